"""What a model is fed. The batch carries the decision: objectives differ by what the data side writes here.

One stream (`ids`) always exists: it is what the model's heads look at. An encoder reads it, a decoder reads it,
and in an encoder-decoder it is the decoder's input while `source_ids` is the encoder's.

    [Batch]  rows   len  meaning
    ids      B x T  int64    input tokens of the stream
    segments B x T  int32    0 = padding, k >= 1 = k-th document packed in the row; attention stays inside a segment
    positions B x T int32    position inside its segment, from 0
    targets  B x T  int64    token to predict at each place (meaningless where its weight is 0)
    target_weight B x T f32  0 = not trained here
    source_ids, source_segments, source_positions   B x S   the encoder's stream; a decoder segment k attends to
                                                    source segment k of the same row
    token_types B x T int32  sentence A or B (BERT)
    prefix   B x T  bool     a decoder's places that all of their segment see, earlier ones too (prefix-LM)
    labels   B      int64    sequence-level target;  label_weight B f32
    sample_ids B    int64    stable id of the first sample of each row, for reports and noise
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "ids": torch.int64,
    "segments": torch.int32,
    "positions": torch.int32,
    "targets": torch.int64,
    "target_weight": torch.float32,
    "source_ids": torch.int64,
    "source_segments": torch.int32,
    "source_positions": torch.int32,
    "token_types": torch.int32,
    "prefix": torch.bool,
    "labels": torch.int64,
    "label_weight": torch.float32,
    "sample_ids": torch.int64,
}
_STREAM = ("ids", "segments", "positions", "targets", "target_weight", "token_types", "prefix")
_SOURCE = ("source_ids", "source_segments", "source_positions")
_ROW = ("labels", "label_weight", "sample_ids")


class Batch(TypedDict, total=False):
    """Tensors by name; shapes and types stand in the file's heading."""

    ids: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    target_weight: Tensor
    source_ids: Tensor
    source_segments: Tensor
    source_positions: Tensor
    token_types: Tensor
    prefix: Tensor
    labels: Tensor
    label_weight: Tensor
    sample_ids: Tensor


def check(batch: Batch) -> None:
    """Raises ValueError when a batch breaks the contract above."""
    for key in ("ids", "segments", "positions"):
        if key not in batch:
            raise ValueError(f"batch has no '{key}'")
    rows, width = batch["ids"].shape
    source = batch.get("source_ids")
    for key, value in batch.items():
        if key not in DTYPES:
            raise ValueError(f"batch key '{key}' is unknown")
        assert isinstance(value, Tensor)
        expected = (rows,) if key in _ROW else (rows, width)
        if key in _SOURCE:
            expected = (rows, source.shape[1] if source is not None else -1)
        if value.dtype != DTYPES[key] or tuple(value.shape) != expected:
            raise ValueError(
                f"batch['{key}'] is {value.dtype} {tuple(value.shape)}, expected {DTYPES[key]} {expected}"
            )
    weight = batch.get("target_weight")
    if weight is not None and bool((weight[batch["segments"] == 0] != 0).any()):
        raise ValueError("batch trains on padding: target_weight is not 0 where segments is 0")


def tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The batch's entries by name."""
    for key, value in batch.items():
        assert isinstance(value, Tensor)
        yield key, value


def move(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`."""
    moved = {key: value.to(device, non_blocking=True) for key, value in tensors(batch)}
    return Batch(**moved)  # type: ignore[typeddict-item]


def trained_tokens(batch: Batch) -> int:
    """How many places of the batch carry a training signal."""
    return int((batch["target_weight"] != 0).sum())
