"""Checkpoints written by all ranks at once, each its own part; they load on any number of ranks and any layout.

checkpoints/step-000500/
  rank-00000.safetensors ...   each rank's boxes of weights, moments and averages, none of them twice
  pieces.json                  key -> shape and [file, name in it, where its box begins]
  state.json manifest.json     as in a checkpoint of one process

A box is a contiguous block of a whole tensor in the order of the model's own files, whatever the layout: a reader
puts together just the tensors it wants, or its own part of them, and no other rank is needed for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nalanda.base import io
from nalanda.base.distributed import Ranks
from nalanda.base.errors import RunError
from nalanda.models.exchange import write_tensors
from nalanda.train.parallel_layout import Layout, Layouts, local_of

PIECES = "pieces.json"
Own = Callable[[str, Tensor], Tensor]


def write_pieces(
    path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any], layouts: Layouts, ranks: Ranks
) -> None:
    """Writes one checkpoint folder by all ranks together: it appears whole or not at all."""
    if not ranks.first:
        _write_own(Path(ranks.of_first(None)), tensors, layouts, ranks)
        return
    known: io.Digests = {}
    size = sum(local_of(value).numel() * value.itemsize for value in tensors.values()) * ranks.size
    with io.atomic_folder(path, known=known, needed=size) as draft:
        ranks.of_first(str(draft))
        for each in _write_own(draft, tensors, layouts, ranks):
            known |= each
        with io.hashed_writer(draft / "state.json", known) as out:
            out.write(json.dumps(state, ensure_ascii=False, indent=2).encode())


def _write_own(
    draft: Path, tensors: Mapping[str, Tensor], layouts: Layouts, ranks: Ranks
) -> list[io.Digests]:
    """Writes this rank's file, and the first what all have written; returns all files' rows of the manifest."""
    file = f"rank-{ranks.rank:05d}.safetensors"
    known: io.Digests = {}
    data: dict[str, Tensor] = {}
    rows: dict[str, Any] = {}
    for key, value in tensors.items():
        layout = layouts.of(key, value)
        if layout is None:
            if not ranks.first:
                continue
            layout = Layout(tuple(value.shape))
        pieces = []
        for number, (here, there) in enumerate([] if layout.copies else layout.boxes()):
            name = f"{key}#{number}"
            data[name] = local_of(value)[tuple(slice(*r) for r in here)].contiguous()
            pieces.append([file, name, [start for start, _ in there]])
        rows[key] = {
            "shape": list(layout.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "pieces": pieces,
        }
    with io.hashed_writer(draft / file, known) as out:
        write_tensors(out, draft / file, data)
    merged: dict[str, Any] = {}
    for each in ranks.gather(rows):
        for key, row in each.items():
            merged.setdefault(key, {**row, "pieces": []})["pieces"] += row["pieces"]
    if ranks.first:
        with io.hashed_writer(draft / PIECES, known) as out:
            out.write(json.dumps({"tensors": merged}, ensure_ascii=False).encode())
    return ranks.gather(known)


def read_pieces(path: Path, own: Own) -> dict[str, Tensor]:
    """What `write_pieces` was given. `own` takes of each whole tensor what is wanted, one at a time.

    Raises RunError for files that do not hold what pieces.json says; their hashes are the caller's to check.
    """
    rows = io.read_mapping(path / PIECES).get("tensors")
    opened: dict[str, Any] = {}
    try:
        return {key: own(key, _assembled(path, row, opened)) for key, row in rows.items()}  # type: ignore[union-attr]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _assembled(path: Path, row: Mapping[str, Any], opened: dict[str, Any]) -> Tensor:
    """The whole tensor that `row` describes. Raises ValueError where its boxes do not fill it."""
    whole = torch.empty(row["shape"], dtype=getattr(torch, row["dtype"]))
    filled = 0
    for file, name, start in row["pieces"]:
        if Path(file).name != file:
            raise ValueError(f"{file} is no file of this folder")
        if file not in opened:
            opened[file] = safe_open(str(path / file), framework="pt")
        piece = opened[file].get_tensor(name)
        whole[tuple(slice(a, a + size) for a, size in zip(start, piece.shape, strict=True))] = piece
        filled += piece.numel()
    if filled != whole.numel():
        raise ValueError(f"{filled} of {whole.numel()} numbers of a tensor are there")
    return whole
