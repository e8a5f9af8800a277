"""What the model is trained on, before it is: batches as coloured text, and a check that stops a useless run.

    check_source(source)                                  # DataError when nothing, or everything, is trained
    for line in preview(batch, tokenizer, rows=4):
        console.print(line)

Two lines a row (three with an encoder): what the model reads, and what it has to predict at the same places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.text import Text

from nalanda.base.errors import DataError
from nalanda.data.batch import Batch, check, trained_tokens
from nalanda.data.source import Source

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer

TRAINED, COPIED, MASKED, SPECIAL, PADDING = "bold green", "cyan", "black on yellow", "magenta", "dim"
_PARTLY = ("masked", "next_sentence")


def legend() -> Text:
    """What the colours mean."""
    return Text.assemble(
        ("trained", TRAINED),
        "  ",
        ("trained, and the input shows it at the same place", COPIED),
        "  ",
        ("hidden", MASKED),
        "  ",
        ("special", SPECIAL),
        "  ",
        ("not trained, or padding", PADDING),
    )


def trained_share(batch: Batch) -> float:
    """Which share of the places that are not padding carries a training signal, 0 to 1."""
    real = int((batch["segments"] != 0).sum())
    return trained_tokens(batch) / real if real else 0.0


def preview(batch: Batch, tokenizer: Tokenizer, rows: int = 4) -> list[Text]:
    """The first `rows` rows of a batch, as lines of coloured tokens; `|` stands between packed documents."""
    mask = tokenizer.role("mask")
    hidden = {*tokenizer.sentinels} | (set() if mask is None else {mask})
    values = {key: value.numpy() for key, value in batch.items()}  # type: ignore[attr-defined]
    lines = []
    for row in range(min(rows, len(values["ids"]))):
        head = Text(f"row {row}", style="bold")
        for key in ("sample_ids", "labels"):
            if key in values:
                head.append(
                    f"  {key.removesuffix('s').removesuffix('_id')} {values[key][row]}", style="not bold"
                )
        lines.append(head)
        if "source_ids" in values:
            source = values["source_ids"][row]
            lines.append(_reads("source  ", source, values["source_segments"][row], hidden, tokenizer))
        reader = tokenizer.target if "source_ids" in values else tokenizer
        lines.append(_reads("reads   ", values["ids"][row], values["segments"][row], hidden, reader))
        if "targets" in values:
            lines.append(_predicts(values, row, tokenizer.target))
    return lines


def _reads(label: str, ids: np.ndarray, segments: np.ndarray, hidden: set[int], tokenizer: Tokenizer) -> Text:
    line = Text(label, style="bold")
    for place, number in enumerate(ids.tolist()):
        if place and segments[place] != segments[place - 1]:
            line.append("| ", style=PADDING)
        style = "not bold"
        if segments[place] == 0:
            style = PADDING
        elif number in hidden:
            style = MASKED
        elif number in tokenizer.special_ids:
            style = SPECIAL
        line.append(tokenizer.token(number), style=style)
        line.append(" ")
    return line


def _predicts(values: dict[str, np.ndarray], row: int, tokenizer: Tokenizer) -> Text:
    line = Text("predicts ", style="bold")
    ids, targets, weight = (values[key][row].tolist() for key in ("ids", "targets", "target_weight"))
    for read, target, trained in zip(ids, targets, weight):
        if trained:
            line.append(tokenizer.token(target), style=COPIED if read == target else TRAINED)
        else:
            line.append("·", style=PADDING)
        line.append(" ")
    return line


def _ordinary_places(batch: Batch, source: Source) -> int:
    """Places that could be trained: of a source that hides tokens, those that are not special tokens."""
    real = batch["segments"] != 0
    tokenizer: Tokenizer | None = getattr(source, "tokenizer", None)
    if source.describe()["kind"] in _PARTLY and tokenizer is not None:
        real &= ~torch.isin(batch["targets"], torch.tensor(sorted(tokenizer.special_ids)))
    return int(real.sum())


def check_source(source: Source, steps: int = 1) -> dict[str, float]:
    """Looks at the first steps of a source, or of each part of a mixture, before anything expensive begins.

    Returns the share of trained places by kind. Raises DataError when a source trains on nothing, or one that
    hides tokens trains on every place, or a batch breaks the contract of `data/batch.py`.
    """
    found: dict[str, float] = {}
    for part in getattr(source, "parts", (source,)):
        kind = str(part.describe()["kind"])
        batches = [batch for step in range(steps) for batch in part.step(step)]
        try:
            for batch in batches:
                check(batch)
        except ValueError as error:
            raise DataError(f"data ({kind}): a batch breaks the contract: {error}") from None
        real = sum(_ordinary_places(batch, part) for batch in batches)
        share = sum(trained_tokens(batch) for batch in batches) / max(1, real)
        if share == 0:
            raise DataError(
                f"data ({kind}): 0 % of {real} places are trained in the first {steps} step(s): nothing would be "
                "learned; look at them with 'nalanda data preview'"
            )
        if kind in _PARTLY and share > 0.99:
            raise DataError(
                f"data ({kind}): {share:.0%} of {real} places are trained, so the model sees nothing to infer them "
                "from; lower 'rate', or give it longer texts"
            )
        found[kind] = share
    return found
