"""The command line under torchrun: one process writes and speaks, a killed one is started again with the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from nalanda.models.exchange import load_model

RECIPE = """
name: tiny
output: model
stages:
  corpus: {verb: corpus, sources: [{kind: catalogs, package: pycountry, languages: [hin_Deva], share: 0.1}]}
  tokenizer: {verb: tokenizer, corpus: "${corpus}", vocabulary: 600}
  model:
    verb: train
    data: {kind: causal, corpus: "${corpus}", tokenizer: "${tokenizer}", max_length: 32, batch_tokens: 256,
           micro_batch_tokens: 128}
    model: {kind: decoder, layers: 1, hidden: 16, heads: 2}
    budget: {steps: 150}
    precision: fp32
    checkpoint: {every: 10}
    evaluation: null
    parallel: {shard: true}
"""


def started(folder: Path) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(RECIPE)
    words = [
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--rdzv-backend",
        "c10d",
    ]
    words += ["--rdzv-endpoint", "localhost:0", "-m", "nalanda", "run", "tiny.yaml", "--runs", "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def workers(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += [int(entry.name)] if int(fields[1]) == parent else []
    return sorted(found)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("pycountry", reason="needs the demo extra")
    torchrun = started(tmp_path)
    checkpoints = tmp_path / "runs" / "tiny" / "model" / "checkpoints"
    until = time.monotonic() + 200
    while not list(checkpoints.glob("step-*")) and time.monotonic() < until and torchrun.poll() is None:
        time.sleep(0.05)
    os.kill(workers(torchrun.pid)[-1], signal.SIGKILL)
    out, said = torchrun.communicate(timeout=300)
    assert torchrun.returncode == 0, f"{out}\n{said}"
    assert said.count("model: cut off before, going on") == 1, "the first rank alone speaks"
    assert out.count("model in") == 1
    lines = (checkpoints.parent / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if "loss" in row] == list(range(10, 151, 10))
    assert load_model(checkpoints.parent / "model").spec.hidden == 16
