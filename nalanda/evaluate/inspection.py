"""What goes on inside a model while it reads one text: the numbers behind `nalanda inspect`.

    inspection = inspect(model, tokenizer, Reading(stream=ids), Limits())
    inspection.attentions[0].maps[2][5]        # layer 3, head 6: T x S weights
    inspection.streams[0].values_RTK           # the residual stream read through the output head, layer by layer

The logit lens (nostalgebraist 2020) puts the stream after each layer through the final norm, where there is one, and
the head over the vocabulary; its last row is what the model really predicts. A stream that no such head reads (an
encoder's beside a decoder; a model without one) is described by which tokens' streams point the same way.

Axes: R rows (0 the embeddings, r what block r leaves), T and S places, H heads, K best candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.evaluate.token_labels import Label, Names, label
from nalanda.generate.batching import evaluating
from nalanda.nn.model import Model
from nalanda.nn.transformer import Output

MASKED_ROWS = 16
"""How many copies of the text, each with another token masked, are read at a time."""


class Tokens(Names, Protocol):
    """The part of a tokenizer that looking inside needs; `mask` raises DataError where there is no such token."""

    @property
    def mask(self) -> int: ...


@dataclass(frozen=True)
class Reading:
    """What the model reads: `stream` for the decoder (or for an encoder alone), `source` for the encoder beside it.

    The last `generated` tokens of the stream are the model's own; `after` is what follows the last one, if known.
    """

    stream: tuple[int, ...]
    source: tuple[int, ...] = ()
    generated: int = 0
    after: int | None = None


@dataclass(frozen=True)
class Limits:
    """How much is kept, so that a page stays a page. `layers` counts from 1; None: all that `map_bytes` allows."""

    layers: tuple[int, ...] | None = None
    tokens: int = 64
    map_bytes: int = 6_000_000
    lens: int = 5
    candidates: int = 10


@dataclass(frozen=True)
class Attention:
    """One kind of attention: `maps[i]`, H x T x S, is what block `layers[i]` gives from each query to each key."""

    name: str
    query: str
    key: str
    layers: tuple[int, ...]
    maps: list[np.ndarray]


@dataclass(frozen=True)
class Stream:
    """The residual stream of a side, row by row.

    lens      `ids_RTK` are the likeliest tokens, `values_RTK` their probabilities, `truth_RT` the probability of the
              token that really stands there (nan where none is known)
    similar   `ids_RTK` are the other places whose streams are most alike, `values_RTK` their cosines
    """

    side: str
    kind: Literal["lens", "similar"]
    rows: tuple[int, ...]
    ids_RTK: np.ndarray
    values_RTK: np.ndarray
    norms_RT: np.ndarray
    truth_RT: np.ndarray | None
    why: str = ""


@dataclass(frozen=True)
class Predictions:
    """What the model says at each place of the stream: the next token, or the token itself, read or hidden from it.

    `truth` is the id that really stands there, None where none is known; `truth_rank` counts from 1. A place that
    was left out (special tokens are not masked) has no truth and probabilities of 0.
    """

    kind: Literal["next", "read", "masked"]
    ids_TK: np.ndarray
    values_TK: np.ndarray
    truth: tuple[int | None, ...]
    truth_value: np.ndarray
    truth_rank: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """All that the page shows. `sides` are token ids by the name of the stack that reads them."""

    sides: dict[str, tuple[int, ...]]
    generated: int
    labels: dict[int, Label]
    attentions: list[Attention]
    streams: list[Stream]
    predictions: list[Predictions]
    notes: list[str] = field(default_factory=list)


def inspect(model: Model, tokenizer: Tokens, reading: Reading, limits: Limits) -> Inspection:
    """Reads once with everything captured (and, for a masked language model, once more for each masked token).

    Raises DataError for a reading that is longer than `limits.tokens` or the model's positions, for a layer that is
    not there, for ids that the model does not have, and for hidden states that are not finite.
    """
    sides = _sides(model, reading)
    _check_sides(model, sides, limits)
    notes: list[str] = []
    layers = _layers(model, sides, limits, notes)
    with evaluating(model), torch.inference_mode():
        output = _read(model, reading)
        if not output.hidden_BTD.isfinite().all():
            raise DataError(
                "what the model gives is not finite: its weights hold NaN or overflow in their type"
            )
        attentions = _attentions(model, output, layers)
        streams = _streams(model, output, reading, layers, limits)
        predictions = _predictions(model, tokenizer, output, reading, limits, notes)
    ids = {i for side in sides.values() for i in side}
    ids |= {int(i) for stream in streams if stream.kind == "lens" for i in np.unique(stream.ids_RTK)}
    ids |= {int(i) for found in predictions for i in np.unique(found.ids_TK)}
    ids |= {i for found in predictions for i in found.truth if i is not None}
    labels = {i: label(tokenizer, i) for i in sorted(ids)}
    return Inspection(sides, reading.generated, labels, attentions, streams, predictions, notes)


def _sides(model: Model, reading: Reading) -> dict[str, tuple[int, ...]]:
    if model.transformer.both:
        return {"encoder": reading.source, "decoder": reading.stream}
    return {"decoder" if model.spec.decoder else "encoder": reading.stream}


def _check_sides(model: Model, sides: dict[str, tuple[int, ...]], limits: Limits) -> None:
    positions = {name: position.limit for name, _, position in model.spec.stacks()}
    for name, ids in sides.items():
        room = positions[name]
        if not ids:
            raise DataError(f"nothing for the model's {name} to read: the text is empty")
        if not 0 <= min(ids) <= max(ids) < model.spec.vocabulary:
            raise DataError(
                f"the text has an id outside the model's vocabulary of {model.spec.vocabulary:,}: the tokenizer is "
                "that of another model"
            )
        if room is not None and len(ids) > room:
            raise DataError(
                f"the text is {len(ids)} tokens and the model's {name} has {room} positions; shorten it"
            )
        if len(ids) > limits.tokens:
            raise DataError(
                f"the text is {len(ids)} tokens for the model's {name} and the page takes {limits.tokens}; "
                f"shorten it, or allow more with --tokens {len(ids)}"
            )


def _layers(
    model: Model, sides: dict[str, tuple[int, ...]], limits: Limits, notes: list[str]
) -> dict[str, tuple[int, ...]]:
    """The blocks to show of each stack, from 1: those asked for, or evenly many of all as the page has room for."""
    depth = {name: len(blocks) for name, blocks, _ in model.spec.stacks()}
    per_layer = _bytes_per_layer(model, sides)
    if limits.layers is not None:
        deepest = max(depth.values())
        wrong = [layer for layer in limits.layers if not 1 <= layer <= deepest]
        if wrong or not limits.layers:
            which = wrong[0] if wrong else "none"
            raise DataError(f"--layers: {which}: the model has layers 1 to {deepest}")
        wanted = sorted(set(limits.layers))
        chosen = {name: tuple(layer for layer in wanted if layer <= count) for name, count in depth.items()}
        return _checked(chosen, per_layer, limits)
    room = max(1, limits.map_bytes // per_layer)
    chosen = {name: _spread(count, min(room, count)) for name, count in depth.items()}
    if any(len(chosen[name]) < count for name, count in depth.items()):
        shown = max(chosen.values(), key=len)
        notes.append(
            f"To keep the page small it shows layers {', '.join(map(str, shown))} of {max(depth.values())}; "
            "choose others with --layers, or give a shorter text."
        )
    return _checked(chosen, per_layer, limits)


def _checked(
    chosen: dict[str, tuple[int, ...]], per_layer: int, limits: Limits
) -> dict[str, tuple[int, ...]]:
    """`chosen`, unless a browser could not bear it: four times what would be chosen by itself is too much."""
    size = max(map(len, chosen.values())) * per_layer
    if size > 4 * limits.map_bytes:
        raise DataError(
            f"the page would hold {size / 1e6:.0f} MB of attention maps (limit {4 * limits.map_bytes / 1e6:.0f}); "
            "choose fewer layers with --layers, or give a shorter text"
        )
    return chosen


def _bytes_per_layer(model: Model, sides: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for name, blocks, _ in model.spec.stacks():
        own = len(sides[name])
        most = max(block.attention.heads for block in blocks)
        cross = max((block.cross.heads for block in blocks if block.cross is not None), default=0)
        total += most * own * own + cross * own * len(sides.get("encoder", ()))
    return total


def _spread(count: int, chosen: int) -> tuple[int, ...]:
    """`chosen` of 1 ... count, evenly, the last one among them."""
    return tuple(sorted({count - round(i * count / chosen) for i in range(chosen)}))


def _read(model: Model, reading: Reading) -> Output:
    device = next(model.parameters()).device
    batch = {"ids": torch.tensor([reading.stream], device=device)}
    if model.transformer.both:
        batch["source_ids"] = torch.tensor([reading.source], device=device)
    return model(batch, capture=("attention", "cross_attention", "residuals"))


def _attentions(model: Model, output: Output, layers: dict[str, tuple[int, ...]]) -> list[Attention]:
    kinds = [
        ("encoder.attention", "encoder", "encoder"),
        ("decoder.attention", "decoder", "decoder"),
        ("decoder.cross_attention", "decoder", "encoder"),
    ]
    found = []
    for name, query, key in kinds:
        maps, chosen = output.captured.get(name), layers.get(query, ())
        if maps and chosen:
            kept = [maps[layer - 1][0].float().cpu().numpy() for layer in chosen]
            found.append(Attention(name, query, key, chosen, kept))
    return found


def _streams(
    model: Model, output: Output, reading: Reading, layers: dict[str, tuple[int, ...]], limits: Limits
) -> list[Stream]:
    found = []
    for name, blocks, _ in model.spec.stacks():
        rows = tuple(sorted({0, *layers[name], len(blocks)}))
        residuals = output.captured[f"{name}.residuals"]
        kept = [residuals[row][0] for row in rows]
        norms_RT = np.stack([x_TD.float().norm(dim=-1).cpu().numpy() for x_TD in kept])
        read = "tokens" in model.heads and not (name == "encoder" and model.transformer.both)
        if read:
            truth = truths(model, reading)
            found.append(_lens(model, name, rows, kept, norms_RT, truth, limits.lens))
        else:
            why = (
                "no output head reads the encoder's stream"
                if model.transformer.both and name == "encoder"
                else "the model has no head over the vocabulary"
            )
            found.append(_similar(name, rows, kept, norms_RT, limits.lens, why))
    return found


def truths(model: Model, reading: Reading) -> tuple[int | None, ...]:
    """What each place of the stream should say: the token after it in a decoder, the token itself in an encoder."""
    if model.spec.decoder:
        return (*reading.stream[1:], reading.after)
    return reading.stream


def through_head(model: Model, side: str, x_TD: Tensor) -> Tensor:
    """T x V fp32 logits of a residual stream: the stack's final norm, where it has one, then the token head."""
    stack = model.transformer.decoder if side == "decoder" else model.transformer.encoder
    assert stack is not None
    return model.logits(x_TD if stack.norm is None else stack.norm(x_TD)).float()


def _lens(
    model: Model,
    side: str,
    rows: tuple[int, ...],
    residuals: Sequence[Tensor],
    norms_RT: np.ndarray,
    truth: tuple[int | None, ...],
    count: int,
) -> Stream:
    ids, values, right = [], [], []
    for x_TD in residuals:  # row by row: all rows at once would be R x T x V
        found = _best("next", through_head(model, side, x_TD), truth, count)
        ids.append(found.ids_TK)
        values.append(found.values_TK)
        right.append(found.truth_value)
    return Stream(side, "lens", rows, np.stack(ids), np.stack(values), norms_RT, np.stack(right))


def _similar(
    side: str,
    rows: tuple[int, ...],
    residuals: Sequence[Tensor],
    norms_RT: np.ndarray,
    count: int,
    why: str,
) -> Stream:
    ids, values = [], []
    for x_TD in residuals:
        unit_TD = torch.nn.functional.normalize(x_TD.float(), dim=-1)
        cosine_TT = (unit_TD @ unit_TD.T).fill_diagonal_(-torch.inf)
        best = cosine_TT.topk(min(count, len(x_TD) - 1), dim=-1)
        ids.append(best.indices.cpu().numpy())
        values.append(best.values.clamp(-1, 1).cpu().numpy())
    return Stream(side, "similar", rows, np.stack(ids), np.stack(values), norms_RT, None, why)


def _predictions(
    model: Model, tokenizer: Tokens, output: Output, reading: Reading, limits: Limits, notes: list[str]
) -> list[Predictions]:
    if "tokens" not in model.heads:
        notes.append(
            "This model has no head over the vocabulary, so there are no token probabilities and no logit lens: "
            "its stream is shown by which tokens are alike."
        )
        return []
    truth = truths(model, reading)
    kind: Literal["next", "read"] = "next" if model.spec.decoder else "read"
    found = [_best(kind, model.logits(output.hidden_BTD[0]).float(), truth, limits.candidates)]
    if kind == "next":
        return found
    try:
        mask = tokenizer.mask
    except DataError:
        notes.append("The tokenizer has no mask token, so no token can be hidden from the model.")
        return found
    return [_masked(model, reading.stream, mask, tokenizer.special_ids, limits.candidates), *found]


def _best(
    kind: Literal["next", "read", "masked"], logits_TV: Tensor, truth: tuple[int | None, ...], count: int
) -> Predictions:
    probability_TV = logits_TV.softmax(-1)
    best = probability_TV.topk(min(count, logits_TV.shape[-1]), dim=-1)
    known_T = torch.tensor([i is not None for i in truth])
    right_T1 = torch.tensor([i if i is not None else 0 for i in truth], device=logits_TV.device)[:, None]
    value_T = probability_TV.gather(1, right_T1)[:, 0].cpu()
    rank_T = 1 + (logits_TV > logits_TV.gather(1, right_T1)).sum(-1).cpu()
    return Predictions(
        kind,
        best.indices.cpu().numpy(),
        best.values.cpu().numpy(),
        truth,
        value_T.masked_fill(~known_T, torch.nan).numpy(),
        rank_T.masked_fill(~known_T, 0).numpy(),
    )


def _masked(
    model: Model, ids: tuple[int, ...], mask: int, special: frozenset[int], count: int
) -> Predictions:
    """What the model fills in at each place when the token there is masked, all others left as they are."""
    device = next(model.parameters()).device
    places = [place for place, number in enumerate(ids) if number not in special]
    truth: list[int | None] = [None] * len(ids)
    logits_TV = torch.zeros(len(ids), model.spec.vocabulary)
    for start in range(0, len(places), MASKED_ROWS):
        here = torch.tensor(places[start : start + MASKED_ROWS])
        rows = torch.arange(len(here))
        ids_BT = torch.tensor(ids).repeat(len(here), 1)
        ids_BT[rows, here] = mask
        hidden_BTD = model({"ids": ids_BT.to(device)}).hidden_BTD
        logits_TV[here] = model.logits(hidden_BTD[rows, here]).float().cpu()
    for place in places:
        truth[place] = ids[place]
    found = _best("masked", logits_TV, tuple(truth), count)
    hidden = np.array([i is None for i in truth])
    found.values_TK[hidden] = 0.0
    return found
