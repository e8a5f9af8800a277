"""Reading and writing a model takes the memory of its weights once: peak at most 1.15 times their bytes.

Each measurement is a process of its own, which clears the kernel's record of its peak when the imports are done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from nalanda.models.auto import FAMILIES

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"
)
GROWTH = 1.15
LARGE = "llama-3.2-1b"
"""The preset of 1.24 billion parameters."""

PROGRAM = '''
import hashlib, json, sys
from pathlib import Path
import torch
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.models.reading import build_empty
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec

def line(name):
    for text in open("/proc/self/status"):
        if text.startswith(name):
            return int(text.split()[1]) * 1024

def clear():
    open("/proc/self/clear_refs", "w").write("5")

def checksum(model):
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name not in model.tied():
            flat = value.view(torch.uint8).flatten()
            for start in range(0, len(flat), 2**22):
                total.update(flat[start : start + 2**22].numpy().data)
    return total.hexdigest()

def random(config):
    """A model whose weights are drawn one after another, in bf16, straight into their places."""
    model = build_empty(FAMILIES["llama"].spec(config), {"tokens": TokensHeadSpec()})
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    model.heads["tokens"].output.weight = model.transformer.tokens.weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, len(flat), 2**22):
                flat[start : start + 2**22].normal_(std=0.02, generator=generator)
    return model

work, folder = sys.argv[1], Path(sys.argv[2])
words = json.loads(sys.argv[3])
tiny = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
save_model(random({**tiny, "tie_word_embeddings": True}), folder.parent / "tiny")
load_model(folder.parent / "tiny", dtype=torch.bfloat16)  # imports and buffers of the first use
clear()
before = line("VmRSS")
if work == "write":
    model = random(words["config"])
    made = line("VmHWM") - before
    clear()
    save_model(model, folder, shard_bytes=words["shard_bytes"])
else:
    made = 0
    model = load_model(folder, dtype=torch.bfloat16, verify=words["verify"])
peak = line("VmHWM") - before
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"peak": peak, "made": made, "size": size, "checksum": checksum(model)}))
'''


def measure(work: str, folder: Path, **words: Any) -> dict[str, Any]:
    """Peak of `work` over what the process held before it, bytes of the weights, their checksum."""
    words = {"shard_bytes": 5_000_000_000, "verify": False, **words}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), work, str(folder), json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    sys.stdout.write(
        f"{work}: peak {found['peak'] / 1e6:.0f} MB, {found['peak'] / found['size']:.3f} of them\n"
    )
    return found


def test_a_small_model_is_never_held_twice(tmp_path: Path) -> None:
    """60 MB of weights: the buffers of reading and writing show, a second copy would show more."""
    config = {
        "vocab_size": 16000, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "intermediate_size": 1792, "tie_word_embeddings": True,
    }  # fmt: skip
    written = measure("write", tmp_path / "model", config=config)
    read = measure("read", tmp_path / "model")
    assert written["checksum"] == read["checksum"]
    assert read["size"] > 55e6
    assert max(written["peak"], read["peak"]) < 1.5 * read["size"]


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 500_000_000], ids=["one file", "shards"])
def test_a_billion_parameters(tmp_path: Path, shard_bytes: int) -> None:
    needed, free = 2.6e9, shutil.disk_usage(tmp_path).free
    if free < 1.2 * needed:
        pytest.skip(f"{tmp_path} has {free / 1e9:.1f} GB free, the model takes {needed / 1e9:.1f}")
    config = dict(FAMILIES["llama"].presets[LARGE])
    written = measure("write", tmp_path / "model", config=config, shard_bytes=shard_bytes)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) == (1 if shard_bytes > needed else 5)  # the first, of the embeddings alone, is larger
    read = measure("read", tmp_path / "model")
    checked = measure("read", tmp_path / "model", verify=True)
    assert written["checksum"] == read["checksum"] == checked["checksum"]
    assert read["size"] > 2.4e9
    for found in (written, read, checked):
        assert found["peak"] <= GROWTH * found["size"]
    shutil.rmtree(tmp_path / "model")
