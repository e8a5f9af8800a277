"""Named tensors on disk, read one at a time into their place, and written one at a time as their turn comes.

weights = open_weights(folder)                   # model.safetensors, or its shards by their index
weights.shape("embed.weight"); weights.read("embed.weight", out=parameter[:512])
write_weights(draft, [Entry("embed.weight", (512, 64), torch.bfloat16, make), ...])

Neither side ever holds more than one tensor beside the model itself. Nothing that runs code is read: PyTorch's
`.bin` files are pickles, and only `pickled=True` opens them, with torch's `weights_only` reader.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.base.io import full_disk_is_clear, write_json
from nalanda.models.safetensors_file import Entry, Header, fill, quoted, read_header, write_file

SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
_INDEX = "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_MAX_INDEX = 100_000_000  # bytes
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


class Weights(Protocol):
    """A checkpoint's tensors, by their names."""

    origin: Path  # file or folder, for messages

    def keys(self) -> Collection[str]:
        """The names of all tensors."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of what `read` gives."""
        ...

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of what `read` gives where no `out` is passed."""
        ...

    def read(self, key: str, out: Tensor | None = None) -> Tensor:
        """The tensor; with `out` (same shape, on the CPU, any dtype and strides) fills that and returns it.

        Raises RunError where the file no longer holds it or `out` has another shape.
        """
        ...

    def place(self, key: str) -> str:
        """Where `key` is, for messages: "FILE: weight 'KEY'"."""
        ...


def open_weights(folder: Path, pickled: bool = False) -> Weights:
    """The tensors of a Hugging Face folder (or of one .safetensors file): all headers checked, no tensor read yet.

    `pickled` allows PyTorch's .bin files where there is nothing better. Raises RunError, naming file and tensor, for
    what is missing, damaged, or named by an index and not there.
    """
    if folder.suffix == ".safetensors" and folder.is_file():
        return _Safetensors(folder, {folder: read_header(folder)})
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; a model is a folder with config.json and {SINGLE}")
    if (path := folder / SINGLE).exists():
        return _Safetensors(path, {path: read_header(path)})
    if (index := _index(folder)) is not None:
        files = _weight_map(index, ".safetensors")
        return _Safetensors(index, {path: read_header(path) for path in sorted(set(files.values()))}, files)
    if (only := _only_one(folder)) is not None:
        return _Safetensors(only, {only: read_header(only)})
    found = [path for path in (folder / _PICKLED, folder / _PICKLED_INDEX) if path.exists()]
    if not found:
        raise _nothing_here(folder)
    if not pickled:
        raise RunError(
            f"{found[0]}: .bin files are pickles: pass pickled=true (nalanda convert --pickled) to read "
            "this one all the same (torch's weights_only reader, which runs no code), or convert it to safetensors"
        )
    if found[0].name == _PICKLED:
        return _Pickled(found[0], {found[0]: _unpickle(found[0])})
    files = _weight_map(found[0], ".bin")
    return _Pickled(found[0], {path: _unpickle(path) for path in sorted(set(files.values()))}, files)


def _index(folder: Path) -> Path | None:
    if (folder / _INDEX).exists():
        return folder / _INDEX
    found = sorted(folder.glob("*.safetensors.index.json"))
    return found[0] if len(found) == 1 else None


def _only_one(folder: Path) -> Path | None:
    """The one .safetensors file, of any name, that is a whole model."""
    found = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter"))
    if len(found) > 1:
        raise RunError(
            f"{folder}: {len(found)} weight files ({found[0].name}, {found[1].name}, ...) and neither {SINGLE} nor "
            f"{_INDEX}, which would say how they belong together; download the index too, or pass one file"
        )
    if found and (shard := _SHARD.search(found[0].name)) is not None and int(shard[2]) != 1:
        raise RunError(
            f"{found[0]}: one shard of {int(shard[2])}, and there are neither the others nor {_INDEX}; "
            "download the model again"
        )
    return found[0] if found else None


def _nothing_here(folder: Path) -> RunError:
    """Says what is in `folder` instead of weights."""
    if (folder / "adapter_config.json").exists() or any(folder.glob("adapter*.safetensors")):
        return RunError(
            f"{folder}: holds an adapter only, not a model; open the model that it was trained on "
            "(adapter_config.json: base_model_name_or_path) and add the adapter to it"
        )
    for pattern, what in (
        ("*.gguf", "pass the .gguf file itself"),
        ("*.h5", "TensorFlow's files are not read: convert them to safetensors"),
        ("*.msgpack", "Flax's files are not read: convert them to safetensors"),
        ("*.bin", f"only {_PICKLED} is read (with pickled=true): rename it, or convert it to safetensors"),
    ):
        if found := sorted(folder.glob(pattern)):
            return RunError(f"{folder}: no {SINGLE}, but {found[0].name}; {what}")
    return RunError(f"{folder}: no weights here (looked for {SINGLE}, {_INDEX} and {_PICKLED})")


def _weight_map(index: Path, suffix: str) -> dict[str, Path]:
    """Key -> file, from an index whose every name is checked: it comes from elsewhere and may name any file."""
    try:
        if (size := index.stat().st_size) > _MAX_INDEX:
            raise ValueError(f"{size} bytes, which no index has")
        names = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once)["weight_map"]
        if not isinstance(names, dict) or not names:
            raise ValueError("weight_map is empty, or no table")
        files = {name: _beside(index, name, suffix) for name in dict.fromkeys(map(str, names.values()))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{index}: damaged, not an index of shards: {_line(error)}") from None
    return {key: files[str(name)] for key, name in names.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"{quoted(twice)} stands twice")
    return values


def _beside(index: Path, name: str, suffix: str) -> Path:
    """The file `name` in the index's folder. A link may lead to the hub cache's blobs, and nowhere else outside."""
    if not name.endswith(suffix) or re.search(r"[/\\\x00-\x1f:]", name):
        raise RunError(f"{index}: names {quoted(name)}, which is not a {suffix} file beside it")
    path, folder = index.parent / name, index.parent.resolve()
    if not path.exists():
        raise RunError(f"{index}: its file {quoted(name)} is missing; download the model again")
    blobs = folder.parent.parent / "blobs"  # the hub's cache: snapshots/COMMIT/FILE -> ../../blobs/HASH
    target = path.resolve()
    if not (target.is_relative_to(folder) or target.parent == blobs):
        raise RunError(
            f"{path}: a link out of the model's folder, to {target}; copy the file here if you trust it"
        )
    return path


def _line(error: Exception) -> str:
    """An error of a library in one line of bearable length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class _Files:
    """What both kinds of file share: which file has which key (`found`), and messages that say so.

    `promised` is what an index says. A key that it does not name is kept: whether it is wanted, the model says.
    Raises RunError where a file lacks a key promised, or two files have one key: which is right, nothing tells.
    """

    def __init__(
        self, origin: Path, found: Mapping[Path, Collection[str]], promised: Mapping[str, Path]
    ) -> None:
        self.origin = origin
        self._files: dict[str, Path] = {}
        for key, path in promised.items():
            if key not in found[path]:
                raise RunError(
                    f"{origin}: weight {quoted(key)} should be in {path.name}, which has none of that name"
                )
        for path in sorted(found):
            for key in found[path]:
                if key in self._files:
                    raise RunError(f"{path}: weight {quoted(key)} is in {self._files[key].name} as well")
                self._files[key] = path

    def keys(self) -> Collection[str]:
        return self._files.keys()

    def place(self, key: str) -> str:
        return f"{self._files.get(key, self.origin)}: weight {quoted(key)}"

    def _file(self, key: str) -> Path:
        if key not in self._files:
            raise RunError(f"{self.place(key)} is missing")
        return self._files[key]

    def _check(self, key: str, shape: tuple[int, ...], out: Tensor) -> None:
        if tuple(out.shape) != shape:
            raise RunError(f"{self.place(key)} has shape {shape}, its place in the model {tuple(out.shape)}")


class _Safetensors(_Files):
    def __init__(
        self,
        origin: Path,
        headers: Mapping[Path, Header],
        promised: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        super().__init__(origin, {path: header.tensors for path, header in headers.items()}, promised)
        self._headers = headers

    def shape(self, key: str) -> tuple[int, ...]:
        return self._headers[self._file(key)].tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._headers[self._file(key)].tensors[key].dtype

    def read(self, key: str, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(self.shape(key), dtype=self.dtype(key))
        self._check(key, self.shape(key), out)
        path = self._file(key)
        fill(path, self._headers[path], key, out)
        return out


class _Pickled(_Files):
    """.bin files, mapped where torch can: pages that were read count in the process's memory."""

    def __init__(
        self,
        origin: Path,
        tensors: Mapping[Path, dict[str, Tensor]],
        promised: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        super().__init__(origin, tensors, promised)
        self._tensors = tensors

    def _tensor(self, key: str) -> Tensor:
        return self._tensors[self._file(key)][key]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensor(key).shape)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensor(key).dtype

    def read(self, key: str, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(self.shape(key), dtype=self.dtype(key))
        self._check(key, self.shape(key), out)
        out.detach().copy_(self._tensor(key))
        return out


def _unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, read by torch's `weights_only` reader. Raises RunError for anything else in it."""
    try:
        # Files from before torch 1.6 are no archives, and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # among others the unpickler's own, whose module nothing here imports
        raise RunError(f"{path}: damaged, or holds more than tensors: {_line(error)}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: holds a {type(values).__name__}, not a table of weights")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise RunError(f"{path}: its entry {quoted(str(key))} is a {type(value).__name__}, not a weight")
    return values


# Writing


def write_weights(
    folder: Path,
    entries: Sequence[Entry],
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes model.safetensors to `folder`; above `shard_bytes`, shards and their index, named as the hub names them.

    `folder` is a draft of `nalanda.base.io.atomic_folder`, which makes it whole or nothing. Each entry's tensor is
    made when it is written, in the file's order, and let go before the next. `metadata` defaults to what transformers
    asks for. Raises RunError where two entries have one key or an entry's tensor is not what it says, UserError when
    the disk is full.
    """
    shards = _split(entries, shard_bytes)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [SINGLE]
    files: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        for entry in shard:
            if entry.key in files:
                raise RunError(f"{folder / name}: weight {quoted(entry.key)} comes twice")
            files[entry.key] = name
    with full_disk_is_clear(folder):
        for name, shard in zip(names, shards, strict=True):
            write_file(folder / name, shard, {"format": "pt"} if metadata is None else metadata)
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        values = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        write_json(folder / _INDEX, values)


def _split(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Shards of at most `shard_bytes` each, in the entries' order; a larger tensor has a shard to itself."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    return shards
