"""Checkpoints come in and go out bit for bit; a file that is not sound is refused in one line that names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nalanda.base.errors import RunError, UserError
from nalanda.models.weights import Entry, open_weights, write_weights


def entries(tensors: Mapping[str, Tensor]) -> list[Entry]:
    return [Entry(k, tuple(v.shape), v.dtype, lambda v=v: v) for k, v in tensors.items()]  # type: ignore[misc]


# Writing


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}
    tensors["big"] = torch.zeros(100)
    write_weights(tmp_path, entries(tensors), shard_bytes=80)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)] + [
        "model.safetensors.index.json"
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 600}
    assert list(index["weight_map"]) == sorted(tensors)
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert torch.equal(file.get_tensor(key), tensors[key])
        assert key == "big" or (tmp_path / name).stat().st_size < 80 + 400
    weights = open_weights(tmp_path)
    assert weights.origin == tmp_path / "model.safetensors.index.json"
    assert all(torch.equal(weights.read(key), value) for key, value in tensors.items())
    with pytest.raises(RunError, match=r"index.json: weight 'b' is missing"):
        weights.read("b")
    with pytest.raises(
        RunError, match=r"00001-of-00004.safetensors: weight 'layer.0' has shape \(10,\), its place"
    ):
        weights.read("layer.0", torch.empty(5, 2))
    assert weights.place("big") == f"{tmp_path / 'model-00004-of-00004.safetensors'}: weight 'big'"


def test_only_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def make() -> Tensor:
        tensor = torch.zeros(4)
        assert not alive, "the tensor before is still held"
        alive.append(1)
        weakref.finalize(tensor, alive.pop)
        return tensor

    write_weights(tmp_path, [Entry(f"t{i}", (4,), torch.float32, make) for i in range(6)], shard_bytes=32)
    assert len(open_weights(tmp_path).keys()) == 6


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([Entry("a", (2,), torch.float32, lambda: torch.zeros(2))] * 2, "'a' comes twice"),
        (
            [Entry("a", (2,), torch.float32, lambda: torch.zeros(3))],
            r"announced as torch.float32 \(2,\) and came",
        ),
        ([Entry("a", (2,), torch.float16, lambda: torch.zeros(2))], r"announced .* came as torch.float32"),
        (
            [Entry("a", (2,), torch.complex128, lambda: torch.zeros(2))],
            "complex128, which safetensors cannot",
        ),
        ([Entry("__metadata__", (2,), torch.float32, lambda: torch.zeros(2))], "the format's own name"),
    ],
)
def test_entries_that_do_not_hold(tmp_path: Path, bad: list[Entry], message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        write_weights(tmp_path, bad, shard_bytes=8)
    assert str(tmp_path) in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full") as caught:
        write_weights(tmp_path, entries({"a": torch.zeros(1 << 16)}))
    assert "\n" not in str(caught.value)


# Folders


def refused(folder: Path, message: str, name: str = "model.safetensors", **options: Any) -> None:
    start = time.monotonic()
    with pytest.raises(RunError, match=message) as caught:
        open_weights(folder, **options)
    assert time.monotonic() - start < 2
    assert str(folder) in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def sharded(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two shards, and their index with `changes` to its weight_map."""
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(3), "c": torch.ones(1)}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors", **changes}
    index = {"metadata": {"total_size": 24}, "weight_map": {k: v for k, v in names.items() if v is not None}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": "three.safetensors"}, r"index.json: its file 'three.safetensors' is missing; download"),
        ({"a": "two.safetensors"}, r"weight 'a' should be in two.safetensors, which has none"),
        ({"d": "one.safetensors"}, r"weight 'd' should be in one.safetensors, which has none"),
        ({"a": "../one.safetensors"}, "which is not a .safetensors file beside it"),
        ({"a": "../../etc/passwd"}, "which is not a .safetensors file beside it"),
        ({"a": "/etc/passwd"}, "which is not a .safetensors file beside it"),
        ({"a": "sub/one.safetensors"}, "which is not a .safetensors file beside it"),
        ({"a": "..\\one.safetensors"}, "which is not a .safetensors file beside it"),
        ({"a": "C:one.safetensors"}, "which is not a .safetensors file beside it"),
        ({"a": "one\0.safetensors"}, "which is not a .safetensors file beside it"),
        ({"a": "\ud800.safetensors"}, r"its file '\\ud800.safetensors' is missing"),
        ({"a": "x" * 5000 + ".safetensors"}, "damaged, not an index of shards"),
        ({"a": ""}, "which is not a .safetensors file beside it"),
        ({"a": "config.json"}, "which is not a .safetensors file beside it"),
        ({"a": 5}, "which is not a .safetensors file beside it"),
        ({"a": ["one.safetensors"]}, "which is not a .safetensors file beside it"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sharded(tmp_path, **change)
    refused(tmp_path, message, INDEX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged, not an index"),
        ("[]", "damaged, not an index"),
        ("{}", "damaged, not an index of shards: KeyError: 'weight_map'"),
        ('{"weight_map": []}', "weight_map is empty, or no table"),
        ('{"weight_map": {}}', "weight_map is empty, or no table"),
        ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "'a' stands twice"),
        ('{"weight_map": ' + "[" * 100_000, "damaged, not an index"),
        ("\xff", "damaged, not an index"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    refused(tmp_path, message, INDEX)


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "one.safetensors")
    refused(tmp_path, "weight 'b' is in one.safetensors as well", "two.safetensors")


def test_links(tmp_path: Path) -> None:
    """A link out of the folder is refused; one within it, or into the hub cache's blobs, is how files are kept."""
    elsewhere = tmp_path / "secret.safetensors"
    save_file({"a": torch.ones(2)}, elsewhere)
    snapshot = tmp_path / "models--x" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--x" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    sharded(snapshot)
    shard = snapshot / "one.safetensors"
    shard.rename(blobs / "0123")
    shard.symlink_to("../../blobs/0123")
    assert torch.equal(open_weights(snapshot).read("a"), torch.ones(2))
    shard.unlink()
    shard.symlink_to(elsewhere)
    refused(snapshot, "a link out of the model's folder", "one.safetensors")
    shard.unlink()
    shard.symlink_to("/dev/zero")
    refused(snapshot, "a link out of the model's folder", "one.safetensors")
    shard.unlink()
    shard.symlink_to("one.safetensors")
    refused(snapshot, "one.safetensors", INDEX)


def test_other_names(tmp_path: Path) -> None:
    file = tmp_path / "weights.fp16.safetensors"
    save_file({"a": torch.ones(2)}, file)
    assert open_weights(tmp_path).origin == file
    assert open_weights(file).origin == file
    save_file({"b": torch.ones(2)}, tmp_path / "more.safetensors")
    refused(tmp_path, r"2 weight files \(more.safetensors, weights.fp16.safetensors, ...\) and neither", "")
    file.rename(tmp_path / "model.safetensors")
    assert list(open_weights(tmp_path).keys()) == ["a"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no weights here \(looked for model.safetensors"),
        (["model-00002-of-00003.safetensors"], "one shard of 3, and there are neither the others nor"),
        (["adapter_model.safetensors", "adapter_config.json"], "holds an adapter only, not a model"),
        (["q4.gguf"], "no model.safetensors, but q4.gguf; pass the .gguf file itself"),
        (["tf_model.h5"], "TensorFlow's files are not read"),
        (["training_args.bin"], "only pytorch_model.bin is read"),
        (["pytorch_model.bin"], r"pytorch_model.bin: .bin files are pickles: pass pickled=true"),
        (["pytorch_model.bin.index.json"], r"index.json: .bin files are pickles: pass pickled=true"),
    ],
)
def test_folders_without_weights(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, message, "")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder", "")


# Pickles


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("evil-was-here",)


def test_pickles_are_opened_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(4).bfloat16(), "t": torch.randn(2, 3).t()}
    path = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        weights = open_weights(tmp_path, pickled=True)
        assert list(weights.keys()) == list(tensors)
        for key, value in tensors.items():
            assert weights.shape(key) == tuple(value.shape)
            assert weights.dtype(key) == value.dtype
            assert torch.equal(weights.read(key), value)
            assert torch.equal(weights.read(key, torch.empty(value.shape)), value.float())
        with pytest.raises(RunError, match=r"pytorch_model\.bin: weight 'a' has shape"):
            weights.read("a", torch.empty(2, 3))
    for bad, message in [
        (Evil(), "damaged, or holds more than tensors"),
        ({"a": Evil()}, "damaged, or holds more than tensors"),
        ({"a": {"b": torch.zeros(1)}}, "its entry 'a' is a dict, not a weight"),
        ({1: torch.zeros(1)}, "its entry '1' is a Tensor, not a weight"),
        ([torch.zeros(1)], "holds a list, not a table"),
    ]:
        torch.save(bad, path)
        refused(tmp_path, message, path.name, pickled=True)
    torch.save(tensors, path)
    raw = path.read_bytes()
    for damaged in (b"", b"hello world", raw[: len(raw) // 2]):
        path.write_bytes(damaged)
        refused(tmp_path, "damaged, or holds more than tensors", path.name, pickled=True)
    assert not (tmp_path / "evil-was-here").exists()
    save_file({"better": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_weights(tmp_path, pickled=True).keys()) == ["better"]


def test_pickled_shards(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    weights = open_weights(tmp_path, pickled=True)
    assert torch.equal(weights.read("b"), torch.zeros(2))
    assert weights.place("a") == f"{tmp_path / names['a']}: weight 'a'"


# Memory

MEMORY = """
    import gc, sys
    from pathlib import Path
    import torch
    from nalanda.models.weights import Entry, open_weights, write_weights

    def peak():
        line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def start():
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        return peak()

    folder, size, stored, wanted = Path(sys.argv[1]), int(sys.argv[2]), *[getattr(torch, n) for n in sys.argv[3:]]
    shapes = {f"t{i}": (size // 8 // 1024 // stored.itemsize, 1024) for i in range(8)}
    torch.zeros(8).to(stored).to(wanted)
    base = start()
    made = {}
    for k, s in shapes.items():
        made[k] = torch.empty(s, dtype=stored)
        for row in made[k]:
            row.copy_(torch.randn(1024))
    write_weights(folder, [Entry(k, s, stored, lambda k=k: made[k]) for k, s in shapes.items()], size // 3)
    print(peak() - base)
    del made
    base = start()
    weights = open_weights(folder)
    out = {k: torch.empty(s, dtype=wanted) for k, s in shapes.items()}
    for k, tensor in out.items():
        weights.read(k, tensor)
    print(peak() - base)
    print(sum(t.numel() * t.itemsize for t in out.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32")])
def test_a_gigabyte_is_in_memory_once(tmp_path: Path, stored: str, wanted: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux: /proc/self/clear_refs")
    size = 10**9 if stored == wanted else 10**9 // 2
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path), str(size), stored, wanted],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    writing, reading, model = map(int, done.stdout.split())
    assert writing <= 1.10 * size
    assert reading <= 1.10 * model
