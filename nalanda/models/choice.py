"""What a family's checkpoint holds: its network, checked against its layers, and the heads that are read from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from nalanda.models.family import ConfigProblem, Family, Head, one_line, shown
from nalanda.models.own import HEADS
from nalanda.models.reading import matches
from nalanda.models.rows import regex
from nalanda.models.shape import TRAINING, Shape
from nalanda.nn.spec import HeadSpec, Spec


def read_spec(family: Family, config: Mapping[str, Any]) -> Spec:
    """The network, with what our own "nalanda" key says of training. Raises ConfigProblem."""
    training = _words(config, "training")
    known = {key: training[key] for key in TRAINING & set(training)}
    try:
        return Shape.model_validate({**family.shape(config).model_dump(), **known}).spec()
    except ValidationError as error:
        raise ConfigProblem(f"{'nalanda.training.' if known else ''}{one_line(error)}") from None


def _words(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What `key` of our own "nalanda" key says."""
    found: Any = config.get("nalanda") or {}
    words = found.get(key) or {} if isinstance(found, dict) else found
    if not isinstance(words, dict):
        raise ConfigProblem(f"nalanda: {shown(found)} is not what Nalanda writes there")
    return words


def check_layers(
    family: Family, config: Mapping[str, Any], keys: Collection[str], ignore: Sequence[str] = ()
) -> None:
    """Raises ConfigProblem where config.json and the tensors' names do not agree on the number of layers or experts,
    those apart that a pattern of `ignore` means.

    The names of a model's parts are spelled out one by one: after this, there are no more of them than of the file's.
    """
    shape = family.shape(config)
    found = dict.fromkeys(("encoder layers", "decoder layers", "experts"), 0)
    rows = [(row.ours.partition(".")[0], regex(row.theirs)) for row in family.rows if "*" in row.theirs]
    for key in keys:
        names = {key, family.full_name(key)}
        if any(matches(name, ignore) for name in names):
            continue
        names |= {name.rpartition(".")[0] for name in names}
        for stack, pattern in rows:
            match = next((m for m in map(pattern.fullmatch, names) if m), None)
            if match is not None:
                for what, index in zip((f"{stack} layers", "experts"), match.groups()):
                    found[what] = max(found[what], int(index) + 1)
                break
    said = {
        "encoder layers": 0 if shape.kind == "decoder" else shape.layers,
        "decoder layers": 0 if shape.kind == "encoder" else shape.decoder_layers or shape.layers,
        "experts": 0 if shape.moe is None else shape.moe.experts,
    }
    for what, count in found.items():
        if count != said[what]:
            numbers = f" (0 to {count - 1:,})" if count else ""
            raise ConfigProblem(f"{said[what]:,} {what}, but the weights have {count or 'none'}{numbers}")


def choose_heads(
    family: Family,
    config: Mapping[str, Any],
    wanted: Mapping[str, HeadSpec] | None,
    keys: Collection[str],
) -> tuple[dict[str, HeadSpec], set[str]]:
    """The heads to build, and those of them whose weights may be missing: asked for, and not said to be there."""
    shape = family.shape(config)
    try:
        words = HEADS.validate_python(_words(config, "heads"))
    except ValidationError as error:
        raise ConfigProblem(f"nalanda.heads.{one_line(error)}") from None
    present = words or {head.name: _spec(head, shape, config) for head in _present(family, config, keys)}
    if wanted is None:
        return present, set()
    chosen: dict[str, HeadSpec] = {}
    new: set[str] = set()
    for name, asked in wanted.items():
        head = family.head(name, asked.kind)
        if name in present and present[name].kind == asked.kind:
            spec = present[name]
        else:  # how vectors are pooled is for the asker to say
            spec = asked if head is None or asked.kind == "embedding" else _spec(head, shape, config)
        update = {
            key: getattr(asked, key)
            for key in ("classes", "dropout", "normalize")
            if hasattr(asked, key) and hasattr(spec, key)
        }
        chosen[name] = spec.model_copy(update=update)
        same = [p for other, p in present.items() if family.head(other, p.kind) is head or other == name]
        if not any(getattr(p, "classes", None) == getattr(chosen[name], "classes", None) for p in same):
            new.add(name)
    return chosen, new


def heads_said(family: Family, config: Mapping[str, Any], heads: Mapping[str, HeadSpec]) -> bool:
    """Whether the family would build those of its heads that are among `heads` just so, dropout apart."""
    shape = family.shape(config)
    for name, asked in heads.items():
        head = family.head(name, asked.kind)
        if head is None or asked.kind == "embedding":
            continue
        words = {
            **config,
            "num_labels": getattr(asked, "classes", 2),
            **(head.says(asked) if head.says else {}),
        }
        built = head.spec(shape, words)
        if built.model_copy(update={"dropout": getattr(asked, "dropout", 0.0)}).to_dict() != asked.to_dict():
            return False
    return True


class _Asked(dict[str, Any]):
    """config.json's values; remembers which was asked for last."""

    last = ""

    def get(self, key: str, default: Any = None) -> Any:
        self.last = key
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.last = key
        return super().__getitem__(key)


def _spec(head: Head, shape: Shape, config: Mapping[str, Any]) -> HeadSpec:
    """The head as config.json says it. Raises ConfigProblem naming the key."""
    asked = _Asked(config)
    try:
        return head.spec(shape, asked)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        value = shown(config[asked.last]) if asked.last in config else "missing"
        raise ConfigProblem(
            f"{asked.last} is {value}: no head '{head.name}' with this ({one_line(error)})"
        ) from None


def _present(family: Family, config: Mapping[str, Any], keys: Collection[str]) -> list[Head]:
    """The heads that the checkpoint's architecture names; without a known one, those whose weights are there."""
    by_name = {head.name: head for head in family.heads}
    named = config.get("architectures")
    named = named if isinstance(named, list) else []
    for architecture in named:
        if isinstance(architecture, str) and architecture in family.architectures:
            heads = [by_name[name] for name in family.architectures[architecture]]
            return [head for head in heads if not head.optional or _stored(head, keys, family)]
    stored = [head for head in family.heads if _stored(head, keys, family)]
    found = [head for head in stored if not head.optional] or stored
    known = family.base in named  # as a network without a head; T5WithLMHeadModel, of old, is not
    if not known and "tokens" in by_name and by_name["tokens"] not in found and _writes(family, config):
        found.append(by_name["tokens"])
    return found[:1] if len({head.kind for head in found}) < len(found) else found


def _stored(head: Head, keys: Collection[str], family: Family) -> bool:
    rows = [row.theirs for row in head.rows if row.theirs not in family.aliases]
    return bool(rows) and all(_has(theirs, keys, family) for theirs in rows)


def _writes(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether it is a decoder with tied embeddings: then its token head has no weights of its own."""
    shape: Shape = family.shape(config)
    return shape.kind != "encoder" and shape.tie_embeddings


def _has(pattern: str, keys: Collection[str], family: Family) -> bool:
    theirs = regex(pattern)
    return any(
        theirs.fullmatch(name)
        for key in keys
        for full in (key, family.full_name(key))
        for name in (full, full.rpartition(".")[0])
    )
