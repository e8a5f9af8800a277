"""A family's rows at work: their tensors into our parameters and ours back into theirs, one at a time.

    found = sources(family, model)              # our parameter -> their keys
    parts(parameter, source, sizes)             # each key with the view of our parameter that is its tensor

The views serve both directions: a transposed matrix is a transposed view, fused matrices are slices of rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from nalanda.models.family import Family, Op, Row
from nalanda.nn.model import Model

EXTENSION = "nalanda."
"""What the keys of parameters begin with that a family has no place for: a head of ours on their network."""


@dataclass(frozen=True)
class Source:
    """Their keys that make one of our parameters: its rows in order; with experts, those of each in order."""

    keys: tuple[str, ...]
    op: Op = "same"
    experts: int = 0
    head: str = ""
    """The head that the parameter belongs to, by its name in the model; empty for the network itself."""


def expand(pattern: str) -> list[str]:
    """`a.{x,y}.b` as ["a.x.b", "a.y.b"]."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


@cache
def regex(pattern: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression: `*` and `#` are numbers, braces alternatives."""
    pieces = re.split(r"(\*|#|\{[^}]*\})", pattern)
    text = ""
    for piece in pieces:
        if piece in ("*", "#"):
            text += r"(\d+)"
        elif piece.startswith("{"):
            text += f"(?:{'|'.join(map(re.escape, piece[1:-1].split(',')))})"
        else:
            text += re.escape(piece)
    return re.compile(text)


def rows_of(family: Family, model: Model) -> list[tuple[Row, str]]:
    """The rows that make `model`, each with the name of the head that it is of (empty: the network's)."""
    found = [(row, "") for row in family.rows]
    for name, spec in model.head_specs.items():
        head = family.head(name, spec.kind)
        found += [(row, name) for row in (head.rows if head is not None else ())]
    return found


def sources(family: Family, model: Model) -> dict[str, Source]:
    """Their keys for each of our parameters and saved buffers; tied ones are left out.

    Of two heads with the same keys (of two classifiers, say) the first by name has them, the other keys of our own.
    Raises ValueError where the network itself has a parameter that the family has no row for.
    """
    rows = rows_of(family, model)
    tied = model.tied()
    found: dict[str, Source] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in tied:
            continue
        source = _source(name.removeprefix("transformer."), value, rows)
        if source is None and name.startswith("heads."):
            source = Source((EXTENSION + name,), head=name.split(".")[1])
        if source is None:
            raise ValueError(f"family {family.name} has no place for '{name}'")
        found[name] = source
    _part_heads(found)
    return found


def _part_heads(found: dict[str, Source]) -> None:
    owner: dict[str, str] = {}
    for name in sorted(found):
        for key in found[name].keys:
            if owner.setdefault(key, name) != name:
                found[name] = Source((EXTENSION + name,), head=found[name].head)


def _source(name: str, value: Tensor, rows: Sequence[tuple[Row, str]]) -> Source | None:
    """A row names the parameter itself, or the module whose parameter it is."""
    module, _, leaf = name.rpartition(".")
    for row, head in rows:
        ours = regex(row.ours.replace("@", head))
        whole = ours.fullmatch(name)
        match = whole or ours.fullmatch(module)
        if match is None:
            continue
        theirs = row.theirs.replace("*", match[1]) if match.groups() else row.theirs
        keys = [key if whole else f"{key}.{leaf}" for key in expand(theirs)]
        experts = value.shape[0] if "#" in theirs else 0
        if experts:
            keys = [key.replace("#", str(expert)) for expert in range(experts) for key in keys]
        return Source(tuple(keys), row.op, experts, head)
    return None


def fused_sizes(model: Model, name: str) -> tuple[int, ...]:
    """How many rows each of the matrices has that are one parameter here; () where the module does not say."""
    path, _, leaf = name.rpartition(".")
    owner, _, module = path.rpartition(".")
    for place, key in ((owner, f"{module}.weight"), (path, leaf)):
        sizes: Mapping[str, tuple[int, ...]] = getattr(model.get_submodule(place), "fused_rows", {})
        if key in sizes:
            return sizes[key]
    return ()


def parts(parameter: Tensor, source: Source, sizes: tuple[int, ...]) -> list[tuple[str, Tensor]]:
    """Their keys, each with the view of `parameter` (real or on torch's meta device) that has their shape."""
    if source.op == "row":
        return [(source.keys[0], parameter[None])]
    if source.op == "transpose":
        return [(source.keys[0], parameter.t() if parameter.dim() == 2 else parameter)]
    if not source.experts:
        return list(zip(source.keys, _split(parameter, len(source.keys), sizes)))
    each = len(source.keys) // source.experts
    views = [view for expert in range(source.experts) for view in _split(parameter[expert], each, sizes)]
    return list(zip(source.keys, views))


def _split(parameter: Tensor, count: int, sizes: tuple[int, ...]) -> Sequence[Tensor]:
    if count == 1:
        return [parameter]
    return parameter.split(list(sizes)) if len(sizes) == count else parameter.chunk(count)
