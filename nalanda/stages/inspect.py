"""A look inside a model: reads one text and writes the page that shows what went on.

write(Path("runs/causal"), Asked(text="Sri Lanka"), Path("inspect.html"))
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nalanda.base.errors import DataError
from nalanda.base.io import read_json, write_text
from nalanda.evaluate.inspect_page import page
from nalanda.evaluate.inspection import Limits, Reading, inspect
from nalanda.nn.cache import Cache
from nalanda.nn.model import Model
from nalanda.stages.pipeline import model_folder
from nalanda.stages.use import load
from nalanda.text.language import Language
from nalanda.text.normalize import nfc
from nalanda.tokenizer.tokenizer import ROLES, Tokenizer

OUTPUT_LENGTH = 40
"""Tokens that an encoder-decoder writes at most, where no target is given."""
TAGGED_SOURCES = ("nalanda", "marian")
"""Styles of language tags where the source names the language to write; in others the target begins with it."""


@dataclass(frozen=True)
class Asked:
    """What the command line says. `to` and `target` are for encoder-decoders; `generate` counts new tokens."""

    text: str
    to: str = ""
    target: str | None = None
    generate: int | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Starts:
    """What a decoder beside an encoder starts with, by generation_config.json or config.json; None: not said."""

    start: int | None = None
    forced: int | None = None


def write(place: Path, asked: Asked, out: Path) -> list[str]:
    """Writes the page to `out`; returns what is to be said beside it (layers left out, heads missing).

    Raises RunError where there is no model, DataError for a text that is empty or too long, and for an option that
    this model has no use for or cannot do without.
    """
    if not asked.text.strip():
        raise DataError("--text is empty: give the model something to read")
    model, tokenizer = load(place)
    model.eval()
    begin = starts(model_folder(place) if place.is_dir() else place) if model.transformer.both else Starts()
    reading = read(model, tokenizer, asked, begin)
    inspection = inspect(model, tokenizer, reading, asked.limits)
    write_text(out, page(inspection, str(place), facts(model), asked.text))
    return inspection.notes


def starts(folder: Path) -> Starts:
    """What the files of a model's folder say of how its decoder is started; nothing, where there are none."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        found |= {key: value for key, value in values.items() if isinstance(value, int)}
    return Starts(found.get("decoder_start_token_id"), found.get("forced_bos_token_id"))


def read(model: Model, tokenizer: Tokenizer, asked: Asked, begin: Starts = Starts()) -> Reading:
    """The ids that a model of this kind reads for a text, with those it writes itself where it is asked to.

    encoder            [BOS] text [EOS], or what its tokenizer says: [CLS] text [SEP]
    decoder            [BOS] text, or what its tokenizer says, and what it generates
    encoder-decoder    see `_source` and `_target_start`, and the target, or its own greedy output
    """
    both = model.transformer.both
    _check_options(asked, both, bool(model.spec.decoder))
    if both:
        return _read_pair(model, tokenizer, asked, begin)
    ids = tokenizer.encode(nfc(asked.text))
    prefix, suffix = tokenizer.affixes
    if tokenizer.roles == ROLES:  # one of ours leaves to the use what stands around a text
        prefix, suffix = [tokenizer.bos], [tokenizer.eos]
    if not model.spec.decoder:
        return Reading((*prefix, *ids, *suffix))
    reading = Reading((*prefix, *ids))
    return reading if asked.generate is None else written_on(model, tokenizer, reading, asked.generate)


def _check_options(asked: Asked, both: bool, decoder: bool) -> None:
    for name, given in (("--to", asked.to), ("--target", asked.target)):
        if given and not both:
            raise DataError(f"{name} is for a model that has an encoder and a decoder; leave it out")
    if asked.generate is not None and not decoder:
        raise DataError("--generate: this model is an encoder, which cannot write; leave it out")
    if asked.generate is not None and asked.target is not None:
        raise DataError("--generate and --target: the model writes, or reads what you give; choose one")


def _read_pair(model: Model, tokenizer: Tokenizer, asked: Asked, begin: Starts) -> Reading:
    tag = _tag(tokenizer, asked, begin)
    source = tuple(_source(tokenizer, asked, tag))
    start = tuple(_target_start(tokenizer, begin, tag))
    if asked.target is None:
        return written_on(model, tokenizer, Reading(start, source), asked.generate or OUTPUT_LENGTH)
    if not asked.target.strip():
        raise DataError("--target is empty: give a text, or leave it out to see what the model writes")
    return Reading((*start, *tokenizer.encode(nfc(asked.target))), source, after=tokenizer.eos)


def _tag(tokenizer: Tokenizer, asked: Asked, begin: Starts) -> int | None:
    """The token of the language to write; None for a model that is told none."""
    if asked.to:
        known = asked.to in tokenizer.languages
        return tokenizer.language(asked.to if known else Language.find(asked.to).code)
    if tokenizer.languages and begin.forced is None:
        known_codes = ", ".join(tokenizer.languages)
        raise DataError(f"--to: name the language that this model is to write; it knows {known_codes}")
    return None


def _source(tokenizer: Tokenizer, asked: Asked, tag: int | None) -> list[int]:
    """[TAG] text [EOS] for models whose source names the language to write, else what the tokenizer says."""
    prefix, suffix = tokenizer.affixes
    if tokenizer.roles == ROLES:
        suffix = [tokenizer.eos]
    first = [tag] if tag is not None and tokenizer.tag_style in TAGGED_SOURCES else []
    return [*prefix, *first, *tokenizer.encode(nfc(asked.text.strip())), *suffix]


def _target_start(tokenizer: Tokenizer, begin: Starts, tag: int | None) -> list[int]:
    """What the model's files say, else [BOS]; then the language to write, for models whose target names it."""
    first = tokenizer.bos if begin.start is None else begin.start
    if tag is not None and tokenizer.tag_style not in TAGGED_SOURCES:
        languages = {tokenizer.language(code) for code in tokenizer.languages}
        return [tag] if first in languages else [first, tag]
    return [first] if begin.forced is None else [first, begin.forced]


def written_on(model: Model, tokenizer: Tokenizer, reading: Reading, count: int) -> Reading:
    """`reading` with up to `count` tokens more, each the likeliest, until EOS or the end of the model's positions.

    As in `nalanda generate`, special tokens are not written. (Its engine starts a decoder with BOS alone.)
    Raises DataError where there is no head to write with.
    """
    if "tokens" not in model.heads:
        raise DataError(
            "this model has no head over the vocabulary, so it cannot write; leave --generate out"
        )
    limit = model.spec.decoder_position.limit
    room = count if limit is None else min(count, limit - len(reading.stream))
    ids, after = list(reading.stream), None
    batch = {"ids": torch.tensor([ids])}
    if reading.source:
        batch["source_ids"] = torch.tensor([reading.source])
    cache = Cache(len(ids) + max(room, 1))
    forbidden = sorted(i for i in tokenizer.special_ids - {tokenizer.eos} if i < model.spec.vocabulary)
    with torch.inference_mode():
        for _ in range(room):
            hidden_BTD = model(batch, cache=cache).hidden_BTD
            logits_V = model.logits(hidden_BTD[0, -1])
            logits_V[forbidden] = -torch.inf
            best = int(logits_V.argmax())
            if best == tokenizer.eos:
                after = best
                break
            ids.append(best)
            batch = {"ids": torch.tensor([[best]])}
    return Reading(tuple(ids), reading.source, len(ids) - len(reading.stream), after)


def layer_numbers(words: str) -> tuple[int, ...] | None:
    """`1,6-8` as numbers; None for an empty string. Raises DataError for anything else."""
    if not words:
        return None
    found: list[int] = []
    for part in words.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise DataError(f"--layers: '{part}' is not a layer; write numbers and ranges, for example 1,6-8")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def facts(model: Model) -> dict[str, str]:
    """What the page says of the model beside its name."""
    spec = model.spec
    kind = "encoder-decoder" if model.transformer.both else "decoder" if spec.decoder else "encoder"
    layers = " + ".join(str(len(blocks)) for _, blocks, _ in spec.stacks())
    heads = sorted({block.attention.heads for _, blocks, _ in spec.stacks() for block in blocks})
    return {
        kind: f"of {layers} layers",
        "heads": " or ".join(map(str, heads)),
        "hidden size": f"{spec.hidden:,}",
        "vocabulary": f"{spec.vocabulary:,}",
        "parameters": f"{model.parameter_count():,}",
    }
