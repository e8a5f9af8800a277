"""From a checkpoint to a model: all is checked before memory is taken, then each tensor is read once into its place.

model = build_empty(spec, heads)                          # shapes only, on torch's meta device
fill(model, sources(family, model), weights, Policy(...), torch.float32)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.errors import RunError
from nalanda.base.progress import unsaid
from nalanda.models.family import Family
from nalanda.models.rows import Source, fused_sizes, parts, regex
from nalanda.models.weights import Weights
from nalanda.nn.heads import build_head
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, Spec

_LEGACY = {".gamma": ".weight", ".beta": ".bias"}
"""What TensorFlow called a norm's weight and bias; early BERT checkpoints still do."""


@dataclass(frozen=True)
class Policy:
    """What may differ between checkpoint and model. `new`: heads that are initialized where they are missing."""

    new: Collection[str] = ()
    ignore: Sequence[str] = ()
    note: Callable[[str], None] = unsaid
    family: Family | None = None


def build_empty(spec: Spec, heads: Mapping[str, HeadSpec]) -> Model:
    """The model without memory for its weights. Raises ValueError for sizes that no machine can count."""
    try:
        with torch.device("meta"):
            return Model(spec, heads)
    except RuntimeError as error:
        raise ValueError(f"the sizes are too large: {str(error).splitlines()[0]}") from None
    except KeyError as error:
        raise ValueError(f"a head cannot be called so: {error.args[0]}") from None


def fill(
    model: Model, found: Mapping[str, Source], weights: Weights, policy: Policy, dtype: torch.dtype
) -> Model:
    """Gives every parameter its memory and reads it; returns the model in evaluation mode.

    Raises RunError naming file and key for what is missing, of another shape, or left over.
    """
    index, tied = _index(weights.keys(), policy.family), model.tied()
    replaced = _stand_in(index, policy.family, model.spec.tie_embeddings)
    zeros = _zeros(found, index, policy.family)
    stored = {name: source for name, source in found.items() if name not in zeros}
    missing = _check(model, stored, weights, index, policy)
    _check_left_over(weights, index, stored, {*missing, *replaced}, policy, model.spec.tie_embeddings)
    empty = model.state_dict(keep_vars=True)
    for name, source in found.items():
        real = torch.empty(
            empty[name].shape, dtype=dtype if empty[name].is_floating_point() else empty[name].dtype
        )
        if name in zeros:
            real.zero_()
        elif name not in missing:
            for key, view in parts(real, source, fused_sizes(model, name)):
                weights.read(index[key], out=view)
        _put(model, name, real)
    for name, kept_as in tied.items():
        _put(model, name, model.get_parameter(kept_as))
    _initialize(model, missing, found)
    if missing:
        heads = sorted({found[name].head for name in missing})
        policy.note(
            f"{weights.origin}: no weights for {_list(sorted(missing))}; "
            f"head{'s' * (len(heads) > 1)} {', '.join(heads)} start{'s' * (len(heads) == 1)} from random ones"
        )
    return model.eval()


def _index(keys: Collection[str], family: Family | None) -> dict[str, str]:
    """The names that rows may use for each stored key: with the family's prefix, with today's names of norms."""
    index: dict[str, str] = {}
    for key in keys:
        name = next((key.removesuffix(old) + new for old, new in _LEGACY.items() if key.endswith(old)), key)
        if name != key and name in keys:  # both: today's name is read, and the other has no place
            name = key
        index[name] = key
        if family is not None:
            index.setdefault(family.full_name(name), key)
    return index


def _stand_in(index: dict[str, str], family: Family | None, tied: bool) -> set[str]:
    """Of tensors that are one, any may be the one that is stored. Returns stored keys that others stand in for."""
    if family is None:
        return set()
    for alias, key in family.aliases.items():
        if alias in index and (tied or not _of_a_head(family, alias)):
            index.setdefault(key, index[alias])
    replaced = set()
    for key, copies in family.untied.items() if not tied else ():
        copy = next((index[copy] for copy in copies if copy in index), None)
        if copy is not None:
            replaced |= {index[key]} if key in index else set()
            index[key] = copy
    return replaced


def _zeros(found: Mapping[str, Source], index: Mapping[str, str], family: Family | None) -> set[str]:
    """Our parameters that are zeros because their keys are absent."""
    zeros = set(family.zeros) - set(index) if family is not None else set()
    return {name for name, source in found.items() if zeros.issuperset(source.keys)}


def settled(family: Family, config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """config.json as the tensors say it, in families where it does not tell whether the output matrix is stored."""
    if family.settle is None:
        return dict(config)
    index = _index(weights.keys(), family)
    key, tied = index.get(family.output), index.get(family.aliases[family.output])
    own = key is not None and tied is not None
    if own and config.get("tie_word_embeddings", True):
        own = not torch.equal(weights.read(str(key)), weights.read(str(tied)))
    return family.settle(config, own)


def _check(
    model: Model, found: Mapping[str, Source], weights: Weights, index: Mapping[str, str], policy: Policy
) -> set[str]:
    """The parameters of new heads that are to be initialized. Raises RunError for anything else amiss."""
    new: set[str] = set()
    missing: list[str] = []
    empty = model.state_dict(keep_vars=True)
    for name, source in found.items():
        for key, view in parts(empty[name], source, fused_sizes(model, name)):
            fits = key in index and tuple(weights.shape(index[key])) == tuple(view.shape)
            if not fits and source.head in policy.new:
                new.add(name)
            elif key not in index:
                missing.append(key)
            elif view.is_floating_point() and not weights.dtype(index[key]).is_floating_point:
                raise RunError(
                    f"{weights.place(index[key])} holds {weights.dtype(index[key])}, not numbers with fractions: "
                    "quantized checkpoints of this kind are not read"
                )
            elif not fits:
                raise RunError(
                    f"{weights.place(index[key])} has shape {tuple(weights.shape(index[key]))}, the config says "
                    f"{tuple(view.shape)}"
                )
    if missing:
        raise RunError(f"{weights.origin}: weight '{missing[0]}' is missing{_more(missing)}")
    return new


def _check_left_over(
    weights: Weights,
    index: Mapping[str, str],
    found: Mapping[str, Source],
    unread: Collection[str],
    policy: Policy,
    tied: bool,
) -> None:
    """Every stored tensor has a place, repeats one that has, or says nothing; else RunError. `unread`: parameters
    of ours that are not read, and stored keys that are not."""
    used = {index[key] for name, source in found.items() if name not in unread for key in source.keys}
    family, names = policy.family, _names(index)
    dropped: list[str] = []
    for key in weights.keys():  # noqa: SIM118 (a Weights is no mapping)
        if key in used or key in unread or any(matches(name, policy.ignore) for name in names[key]):
            continue
        if family is not None:
            if any(matches(name, family.derived) for name in names[key]):
                continue
            of_a_head = any(_of_a_head(family, name) for name in names[key])
            original = _original(index, family, names[key]) if tied or not of_a_head else ""
            if original in used:
                _check_same(weights, key, original)
                continue
            if of_a_head:
                dropped.append(key)
                continue
        raise RunError(
            f"{weights.place(key)} has no place in the model that the config describes; if that is right, "
            "name it in 'ignore'"
        )
    if dropped:
        policy.note(f"{weights.origin}: {_list(dropped)} left out: weights of heads that are not used here")


def _names(index: Mapping[str, str]) -> dict[str, list[str]]:
    """For each stored key, the names that rows may use."""
    names: dict[str, list[str]] = {}
    for name, stored in index.items():
        names.setdefault(stored, []).append(name)
    return names


def _original(index: Mapping[str, str], family: Family, names: Sequence[str]) -> str:
    """The stored key of the tensor that this one repeats; empty where there is none."""
    return next((index.get(family.aliases[name], "") for name in names if name in family.aliases), "")


def matches(key: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns (fnmatch) means the key."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _check_same(weights: Weights, key: str, original: str) -> None:
    if not torch.equal(weights.read(key), weights.read(original)):
        raise RunError(
            f"{weights.place(key)} differs from '{original}', though the config says that they are one "
            "(tie_word_embeddings)"
        )


def _of_a_head(family: Family, name: str) -> bool:
    return any(
        regex(row.theirs).fullmatch(part)
        for head in family.heads
        for row in head.rows
        for part in (name, name.rpartition(".")[0])
    )


def _put(model: Model, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
    else:
        owner._buffers[leaf] = value


@torch.no_grad()
def _initialize(model: Model, missing: Collection[str], found: Mapping[str, Source]) -> None:
    """Draws what is missing of new heads, from torch's global generator."""
    for head in sorted({found[name].head for name in missing}):
        fresh = build_head(model.head_specs[head], model.spec, model.transformer.tokens).state_dict()
        for name, value in model.heads[head].state_dict(keep_vars=True).items():
            if f"heads.{head}.{name}" in missing:
                value.copy_(fresh[name])


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + _more(names[2:])


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
