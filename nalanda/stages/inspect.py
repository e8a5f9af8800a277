"""A look inside a model: reads one text and writes the page that shows what went on.

write(Path("runs/causal"), Asked(text="Sri Lanka"), Path("inspect.html"))
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from nalanda.base.errors import DataError
from nalanda.base.io import write_text
from nalanda.evaluate.inspect_page import page
from nalanda.evaluate.inspection import Limits, Reading, inspect
from nalanda.generate.decode import transduce
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import ENGLISH, Prompting, Source
from nalanda.nn.model import Model
from nalanda.stages.use import open_model
from nalanda.text.normalize import nfc

OUTPUT_LENGTH = 40
"""Tokens that an encoder-decoder writes at most, where no target is given."""


@dataclass(frozen=True)
class Asked:
    """What the command line says. `to`, `of` and `target` are for encoder-decoders; `generate` counts new tokens."""

    text: str
    to: str = ""
    of: str = ""
    target: str | None = None
    generate: int | None = None
    limits: Limits = field(default_factory=Limits)


def write(place: Path, asked: Asked, out: Path) -> list[str]:
    """Writes the page to `out`; returns what is to be said beside it (layers left out, heads that are missing).

    Raises RunError where there is no model, DataError for a text that is empty or too long, and for an option that
    this model has no use for or cannot do without.
    """
    if not asked.text.strip():
        raise DataError("--text is empty: give the model something to read")
    notes: list[str] = []
    opened = open_model(place, note=notes.append)
    reading = read(opened.model, opened.prompting, asked)
    inspection = inspect(opened.model, opened.tokenizer, reading, asked.limits)
    write_text(out, page(inspection, str(place), facts(opened.model), asked.text))
    return [*notes, *inspection.notes]


def read(model: Model, prompting: Prompting, asked: Asked) -> Reading:
    """The ids that this model reads for a text, with those it writes itself where it is asked to."""
    both = model.transformer.both
    _check_options(asked, both, bool(model.spec.decoder))
    if both:
        return _read_pair(model, prompting, asked)
    if not model.spec.decoder:
        return Reading(tuple(prompting.around(asked.text)))
    prompt = prompting.prompt(asked.text)
    if asked.generate is None:
        return Reading(tuple(prompt))
    return _continued(model, prompting, Source(prompt, prompting.bos), prompt, asked.generate)


def _check_options(asked: Asked, both: bool, decoder: bool) -> None:
    for name, given in (("--to", asked.to), ("--from", asked.of), ("--target", asked.target)):
        if given and not both:
            raise DataError(f"{name} is for a model that has an encoder and a decoder; leave it out")
    if asked.generate is not None and not decoder:
        raise DataError("--generate: this model is an encoder, which cannot write; leave it out")
    if asked.generate is not None and asked.target is not None:
        raise DataError("--generate and --target: the model writes, or reads what you give; choose one")


def _read_pair(model: Model, prompting: Prompting, asked: Asked) -> Reading:
    """An encoder's text with what the decoder writes for it, or with the target that is given."""
    tokenizer = prompting.tokenizer
    if not asked.to and tokenizer.languages:
        known = ", ".join(tokenizer.languages)
        raise DataError(f"--to: name the language that this model is to write; it knows {known}")
    for name, given in (("--to", asked.to), ("--from", asked.of)):
        if given and not tokenizer.languages:
            raise DataError(f"{name}: this model's tokenizer has no tags of languages; leave it out")
    source = prompting.source(asked.text, asked.to or None, asked.of or ENGLISH)
    start = [source.start] if source.forced is None else [source.start, source.forced]
    if asked.target is None:
        return _continued(model, prompting, source, start, asked.generate or OUTPUT_LENGTH)
    if not asked.target.strip():
        raise DataError("--target is empty: give a text, or leave it out to see what the model writes")
    target = tokenizer.target.encode(nfc(asked.target) if prompting.own else asked.target)
    return Reading((*start, *target), tuple(source.ids), after=prompting.eos)


def _continued(model: Model, prompting: Prompting, prompt: Source, start: list[int], count: int) -> Reading:
    """`start` and up to `count` tokens that the model writes after it, each the likeliest."""
    if "tokens" not in model.heads:
        raise DataError(
            "this model has no head over the vocabulary, so it cannot write; leave --generate out"
        )
    config = DecodeConfig(kind="greedy", max_length=count + (prompt.forced is not None))
    both = model.transformer.both
    written = transduce(model, [prompt], prompting, config)[0]
    source = tuple(prompt.ids) if both else ()
    after = prompting.eos if written.finish == "eos" else None
    return Reading((*start, *written.ids), source, generated=len(written.ids), after=after)


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
