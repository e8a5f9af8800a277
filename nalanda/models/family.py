"""What a family of checkpoints is: data that is read in both directions. One file of this folder holds each.

LLAMA = Family(
    name="llama", model_types=("llama",), base="LlamaModel", prefix="model.",
    constants={"kind": "decoder", "norm": "rms", "feedforward": "glu"},
    keys=(Key("hidden_size", "hidden", 4096), ...),          # their config.json <-> Shape
    rows=(Row("model.layers.*.self_attn.{q,k,v}_proj", "decoder.blocks.*.attention.qkv"), ...),
    heads=(Head("tokens", ...), ...), architectures={"LlamaForCausalLM": ("tokens",)},
)

In a row `*` is the layer and `#` the expert, braces name several tensors that are one of ours (their rows one after
another), and what is said of a module holds for its weight and its bias, where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from nalanda.models.shape import MAX_LAYERS, MAX_ROWS, Shape, essence
from nalanda.nn.spec import HeadSpec, Spec

Op = Literal["same", "transpose", "row"]
"""same: as it is; transpose: their matrix is inputs x outputs; row: theirs is 1 x V, ours V."""
REQUIRED = object()
ABSENT = object()
"""Written for a config key that is to be removed."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


_LONGEST = 400
"""Characters of a message; what it quotes comes from elsewhere and may be of any length."""


class ConfigProblem(Exception):
    """A value of config.json that the family cannot take; the reader adds the file's name."""


def one_line(error: Exception) -> str:
    """What an error says, in one line of bearable length; of several that pydantic found, the first."""
    text = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = f"{place}: {first['msg'].removeprefix('Value error, ')}".lstrip(": ")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def shown(value: Any) -> str:
    """A value for a message, in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


@dataclass(frozen=True)
class Codec:
    """How a value of theirs becomes ours, and back."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "tanh": "tanh",
}


def _activation(value: Any) -> str:
    if value not in _ACTIVATIONS:
        raise ConfigProblem(f"activation {shown(value)} is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


SAME = Codec(_same, _same)
ACTIVATION = Codec(_activation, _ACTIVATION_NAMES.__getitem__)


_COMMON_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "head_dim": "head_dim",
    "max_length": "max_position_embeddings",
}
"""What transformers reads in every family where the family's own name of a value is absent (n_embd, d_model ...)."""


class Part(Protocol):
    """A part of config.json and what it says of the shape."""

    def names(self) -> tuple[str, ...]:
        """The keys of config.json that it reads."""
        ...

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Values of Shape. Raises ConfigProblem, or anything that a value of the wrong type raises."""
        ...

    def write(self, shape: Shape) -> dict[str, Any]:
        """Values of config.json; ABSENT for a key to remove."""
        ...


@dataclass(frozen=True)
class Key:
    """One value, `theirs` in config.json and `ours` in Shape; `default` (theirs) is meant where it is absent, by its
    common name too."""

    theirs: str
    ours: str
    default: Any = REQUIRED
    codec: Codec = SAME

    def names(self) -> tuple[str, ...]:
        """See Part."""
        return (self.theirs,)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Part."""
        common = _COMMON_NAMES.get(self.ours, self.theirs)
        value = config.get(self.theirs, config.get(common, self.default))
        if value is REQUIRED:
            raise ConfigProblem(f"key '{self.theirs}' is missing")
        return {self.ours: None if value is None else self.codec.read(value)}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See Part."""
        value = getattr(shape, self.ours)
        return {self.theirs: None if value is None else self.codec.write(value)}


@dataclass(frozen=True)
class Fixed:
    """A key with which only one value is supported: any other would change what the network computes."""

    theirs: str
    value: Any
    why: str = ""

    def names(self) -> tuple[str, ...]:
        """See Part."""
        return (self.theirs,)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Part."""
        found = config.get(self.theirs)
        if found is not None and found != self.value:
            why = f": {self.why}" if self.why else ""
            raise ConfigProblem(f"{self.theirs} is {shown(found)}; only {self.value!r} is supported{why}")
        return {}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See Part."""
        return {}


@dataclass(frozen=True)
class Row:
    """Their tensor or tensors and ours; the heading of this file says how names are written."""

    theirs: str
    ours: str
    op: Op = "same"


@dataclass(frozen=True)
class Head:
    """A head of the family. `spec` makes it for a shape and (where there is one) config.json.

    `name`: what it is called in a Model; a head of the same kind under another name takes its rows too. `says`:
    values of config.json that make `spec` give this HeadSpec, written where those that are there do not. `optional`:
    an architecture that names it has it only where its weights are stored.
    """

    name: str
    kind: str
    spec: Callable[[Shape, Mapping[str, Any]], HeadSpec]
    rows: tuple[Row, ...] = ()
    says: Callable[[Any], Mapping[str, Any]] | None = None
    optional: bool = False


def classes(config: Mapping[str, Any], default: int = 2) -> int:
    """How many classes config.json names: `id2label`'s, `num_labels`, or Hugging Face's default."""
    labels = config.get("id2label") or {}
    count = len(labels) if isinstance(labels, dict | list) else labels
    count = count or config.get("num_labels") or default
    if not isinstance(count, int) or not 0 < count <= MAX_ROWS:
        raise ConfigProblem(f"id2label, num_labels: {shown(count)} is no number of classes")
    return count


@dataclass(frozen=True)
class Family:
    """See the heading of this file.

    base: the architecture without a head; prefix: what its keys begin with in architectures that have one, and in
    rows; odd_prefixes: architectures whose keys begin with something else instead.
    architectures: their class -> names of heads. aliases: keys that repeat another, stored or not. derived: patterns
    (fnmatch) of keys that hold nothing that config.json does not say. always: written into every config.json; fresh:
    into that of a model that was not read from one. presets: named sizes, as config.json's values. untied: key ->
    those that transformers reads in its place where embeddings are not tied, all of them the same tensor. zeros: keys
    that mean zeros where they are absent. settle: mends a config.json that does not say whether the output matrix is
    stored (`settle(config, whether)`), `output`.
    """

    name: str
    model_types: tuple[str, ...]
    base: str
    constants: Mapping[str, Any]
    keys: tuple[Part, ...]
    rows: tuple[Row, ...]
    heads: tuple[Head, ...]
    architectures: Mapping[str, tuple[str, ...]]
    prefix: str = ""
    odd_prefixes: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    aliases: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    untied: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    derived: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    output: str = ""
    settle: Callable[[Mapping[str, Any], bool], dict[str, Any]] | None = None
    always: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    fresh: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _EMPTY)

    def full_name(self, key: str) -> str:
        """A stored key as rows would have it, with the family's prefix."""
        for odd in self.odd_prefixes.values():
            if key.startswith(odd):
                return self.prefix + key.removeprefix(odd)
        return key if key.startswith(self.prefix) else self.prefix + key

    def stored_name(self, key: str, architecture: str) -> str:
        """A key of the rows as `architecture` stores it."""
        if not self.prefix or not key.startswith(self.prefix):
            return key
        prefix = "" if architecture == self.base else self.odd_prefixes.get(architecture, self.prefix)
        return prefix + key.removeprefix(self.prefix)

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """What config.json says. Raises ConfigProblem naming the key."""
        values = dict(self.constants)
        owner: dict[str, str] = {}
        for part in self.keys:
            names = ", ".join(part.names())
            for name in part.names():
                if not _finite(config.get(name)):
                    raise ConfigProblem(f"{name} is {shown(config[name])}: not a finite number")
            try:
                found = part.read(config)
            except ConfigProblem as problem:
                text = str(problem)
                raise ConfigProblem(text if names in text else f"{names}: {text}") from None
            except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
                said = ", ".join(f"{name} = {shown(config[name])}" for name in part.names() if name in config)
                what = (
                    one_line(error)
                    if isinstance(error, ValidationError)
                    else f"{type(error).__name__}: {one_line(error)}"
                )
                raise ConfigProblem(f"{said or names}: cannot be read ({what})") from None
            values |= found
            owner |= dict.fromkeys(found, names)
        try:
            return Shape.model_validate(values)
        except ValidationError as error:
            raise self._problem(error, owner, config) from None

    def spec(self, config: Mapping[str, Any]) -> Spec:
        """The network that config.json describes. Raises ConfigProblem naming the key."""
        shape = self.shape(config)
        try:
            return shape.spec()
        except ValidationError as error:
            raise self._problem(error, {}, config) from None

    @staticmethod
    def _problem(
        error: ValidationError, owner: Mapping[str, str], config: Mapping[str, Any]
    ) -> ConfigProblem:
        first = error.errors()[0]
        place = str(first["loc"][0]) if first["loc"] else ""
        name = owner.get(place, place)
        value = f" is {shown(config[name])}" if name in config else ""
        return ConfigProblem(f"{name}{value}: {first['msg'].removeprefix('Value error, ')}".lstrip(": "))

    def config(self, spec: Spec, base: Mapping[str, Any] = _EMPTY) -> dict[str, Any]:
        """The config.json that says `spec`: `base` with what differs changed.

        Raises ValueError where the family cannot say it.
        """
        if base and self._says(base, spec):
            return dict(base)
        shape = Shape.of(spec)
        written: dict[str, Any] = {"model_type": self.model_types[0], **(base or self.fresh), **self.always}
        for part in self.keys:
            written |= part.write(shape)
        written = {key: value for key, value in written.items() if value is not ABSENT}
        if not self._says(written, spec):
            raise ValueError(f"family {self.name} cannot say this network")
        return written

    def _says(self, config: Mapping[str, Any], spec: Spec) -> bool:
        try:
            return bool(essence(self.spec(config)) == essence(spec))
        except ConfigProblem:
            return False

    def head(self, name: str, kind: str) -> Head | None:
        """The head called `name`, if it is of that kind; else the first of that kind."""
        same = [head for head in self.heads if head.kind == kind]
        return next((head for head in same if head.name == name), same[0] if same else None)


def layer_count(config: Mapping[str, Any], key: str, default: int) -> int:
    """How many layers config.json names. Raises ConfigProblem for a number that no network has."""
    count = config.get(key, default)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MAX_LAYERS:
        raise ConfigProblem(f"{key} is {str(count)[:40]}; it must be a whole number from 1 to {MAX_LAYERS:,}")
    return count
