"""Parts of config.json that differ from layer to layer: rotary bases and scalings, windows, layers without them.

Old files have `rope_theta` and `rope_scaling`, new ones `rope_parameters`, some one set for each type of layer. All
are read; written is the new form, and the old one beside it where that can say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nalanda.models.family import ABSENT, ConfigProblem, layer_count
from nalanda.models.shape import Shape
from nalanda.nn.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RotaryScaling,
    RotarySpec,
    YarnScaling,
)

FULL, SLIDING = "full_attention", "sliding_attention"


def read_scaling(
    values: Mapping[str, Any], config: Mapping[str, Any], default_length: int
) -> RotaryScaling | None:
    """The scaling that `rope_scaling` or `rope_parameters` describe. Raises ConfigProblem for an unknown type.

    `default_length`: what is meant where config.json has no max_position_embeddings.
    """
    kind = values.get("rope_type", values.get("type", "default"))
    if values.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigProblem("partial_rotary_factor: heads that are turned in part are not supported")
    nested = [key for key, value in values.items() if isinstance(value, dict)]
    if nested:
        raise ConfigProblem(f"rotations by type of layer ({', '.join(nested)}) are not known to this family")
    longest = config.get("max_position_embeddings", default_length)
    original = (
        config.get("original_max_position_embeddings")
        or values.get("original_max_position_embeddings")
        or longest
    )
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=values["factor"])
    if kind == "dynamic":
        return DynamicScaling(factor=values["factor"], original_length=longest)
    if kind == "llama3":
        return Llama3Scaling(
            factor=values["factor"],
            original_length=original,
            low_frequency_factor=values["low_freq_factor"],
            high_frequency_factor=values["high_freq_factor"],
        )
    if kind == "yarn":
        return _yarn(values, values.get("factor") or longest / original, original)
    if kind == "longrope":
        factor = values.get("factor") or longest / original
        sharpened = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        given = values.get("attention_factor")
        return LongRopeScaling(
            short=tuple(values["short_factor"]),
            long=tuple(values["long_factor"]),
            original_length=original,
            attention_factor=sharpened if given is None else given,
        )
    raise ConfigProblem(f"rope_type {kind!r} is not one of default, linear, dynamic, yarn, llama3, longrope")


def _yarn(values: Mapping[str, Any], factor: float, original: int) -> YarnScaling:
    attention = values.get("attention_factor")
    one, all_dimensions = values.get("mscale"), values.get("mscale_all_dim")
    if attention is None and one and all_dimensions:
        grown = 0.1 * math.log(factor) if factor > 1 else 0.0
        attention = (grown * one + 1) / (grown * all_dimensions + 1)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=values.get("beta_fast") or 32.0,
        beta_slow=values.get("beta_slow") or 1.0,
        attention_factor=attention,
        truncate=values.get("truncate", True),
    )


def write_scaling(scaling: RotaryScaling | None) -> dict[str, Any]:
    """The inverse of `read_scaling`."""
    match scaling:
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScaling():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            given = scaling.attention_factor
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                "original_max_position_embeddings": scaling.original_length,
                **({} if given is None else {"attention_factor": given}),
            }
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "attention_factor": scaling.attention_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
    return {"rope_type": "default"}


def _write(spec: RotarySpec) -> dict[str, Any]:
    return {"rope_theta": spec.theta, **write_scaling(spec.scaling)}


@dataclass(frozen=True)
class Rope:
    """One rotation for all layers; with `skip`, the config key that lists (0 or 1) which layers turn (SmolLM3).

    theta, layers, length: the family's defaults of rope_theta, num_hidden_layers and max_position_embeddings.
    """

    theta: float = 10_000.0
    layers: int = 32
    length: int = 2048
    skip: str | None = None

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("rope_parameters", "rope_theta", "rope_scaling", *([self.skip] if self.skip else []))

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        values = config.get("rope_scaling") or config.get("rope_parameters") or {}
        theta = values.get("rope_theta") or config.get("rope_theta") or self.theta
        spec = RotarySpec(theta=theta, scaling=read_scaling(values, config, self.length))
        count = layer_count(config, "num_hidden_layers", self.layers)
        listed = config.get(self.skip) if self.skip else None
        if listed is not None and len(listed) != count:
            raise ConfigProblem(f"{self.skip} has {len(listed)} entries for {count} layers")
        return {"rotaries": tuple(spec if self.turns(config, layer) else None for layer in range(count))}

    def turns(self, config: Mapping[str, Any], layer: int) -> bool:
        """Whether a layer's queries and keys are turned."""
        if self.skip is None:
            return True
        listed = config.get(self.skip)
        return bool(
            (layer + 1) % config.get("no_rope_layer_interval", 4) if listed is None else listed[layer]
        )

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        spec = next((rotary for rotary in shape.rotaries if rotary is not None), RotarySpec())
        if isinstance(spec.scaling, NtkScaling):  # the same rotations, said by the base alone
            dim = shape.head_dim or shape.hidden // shape.heads
            spec = RotarySpec(theta=spec.theta * spec.scaling.factor ** (dim / (dim - 2)))
        values = _write(spec)
        old = {key: value for key, value in values.items() if key != "rope_theta"}
        written: dict[str, Any] = {
            "rope_parameters": values,
            "rope_theta": spec.theta,
            "rope_scaling": None if spec.scaling is None else old,
        }
        if isinstance(spec.scaling, DynamicScaling):  # it has no other key for the length trained with
            written["max_position_embeddings"] = spec.scaling.original_length
        if self.skip:
            written[self.skip] = [int(rotary is not None) for rotary in shape.rotaries]
        return written


@dataclass(frozen=True)
class RopeByType:
    """A rotation for layers that see all and another for those with a window, which `types` tells apart.

    full_key, sliding_key: the old keys of the two bases; `shared`: whether an old `rope_scaling` is for both.
    full, sliding, length: the family's defaults of the bases and of max_position_embeddings.
    """

    types: LayerTypes
    full: float
    sliding: float
    length: int = 2048
    full_key: str = "rope_theta"
    sliding_key: str = "rope_local_base_freq"
    shared: bool = False

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        return ("rope_parameters", self.full_key, self.sliding_key, "rope_scaling")

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
        full = {**(new.get(FULL) or {}), **old}
        sliding = {**(new.get(SLIDING) or {}), **(old if self.shared else {})}
        specs = {
            FULL: RotarySpec(
                theta=full.get("rope_theta") or config.get(self.full_key) or self.full,
                scaling=read_scaling(full, config, self.length),
            ),
            SLIDING: RotarySpec(
                theta=sliding.get("rope_theta") or config.get(self.sliding_key) or self.sliding,
                scaling=read_scaling(sliding, config, self.length),
            ),
        }
        return {"rotaries": tuple(specs[kind] for kind in self.types.of(config))}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        found: dict[str, Any] = {
            FULL: {"rope_theta": self.full, "rope_type": "default"},
            SLIDING: {"rope_theta": self.sliding, "rope_type": "default"},
        }
        for rotary, window in zip(shape.rotaries, shape.windows or (None,) * shape.layers):
            if rotary is not None:
                found[FULL if window is None else SLIDING] = _write(rotary)
        return {
            "rope_parameters": found,
            self.full_key: found[FULL]["rope_theta"],
            self.sliding_key: found[SLIDING]["rope_theta"],
            "rope_scaling": ABSENT,
        }


@dataclass(frozen=True)
class LayerTypes:
    """Which layers have a window, by `layer_types` or the rule that a family has where that is absent.

    `rule(config, layer)`: whether a layer has a window. `window`: the default of `sliding_window`; `switch`: the key
    that must be true for any to have one; `reads`: the keys that `rule` looks at.
    """

    rule: Callable[[Mapping[str, Any], int], bool]
    window: int | None
    layers: int = 32
    key: str = "sliding_window"
    to_window: Callable[[int], int] = int
    from_window: Callable[[int], int] = int
    listed: bool = True
    switch: str | None = None
    reads: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """See family.Part."""
        listed, switch = ("layer_types",) if self.listed else (), (self.switch,) if self.switch else ()
        return (self.key, *listed, *switch, *self.reads)

    def of(self, config: Mapping[str, Any]) -> list[str]:
        """The type of each layer."""
        count = layer_count(config, "num_hidden_layers", self.layers)
        types = config.get("layer_types") if self.listed else None
        if types is None:
            return [SLIDING if self.rule(config, layer) else FULL for layer in range(count)]
        if len(types) != count or set(types) - {FULL, SLIDING}:
            raise ConfigProblem(
                f"layer_types: {len(types)} entries of {sorted(map(str, set(types)))} for {count} layers; known are "
                f"{FULL} and {SLIDING}"
            )
        return list(types)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See family.Part."""
        size = config.get(self.key, self.window)
        if size is None or (self.switch and not config.get(self.switch, False)):
            if self.listed and SLIDING in (config.get("layer_types") or ()):
                raise ConfigProblem(f"layer_types has {SLIDING}, but there is no {self.key}")
            return {"windows": ()}
        window = self.to_window(size)
        windows = tuple(window if kind == SLIDING else None for kind in self.of(config))
        return {"windows": windows if any(windows) else ()}

    def write(self, shape: Shape) -> dict[str, Any]:
        """See family.Part."""
        window = next((window for window in shape.windows if window is not None), None)
        written: dict[str, Any] = {self.key: None if window is None else self.from_window(window)}
        if self.switch:
            written[self.switch] = window is not None
        if self.listed:
            windows = shape.windows or (None,) * shape.layers
            written["layer_types"] = [FULL if window is None else SLIDING for window in windows]
        return written
