"""Longer texts for a model that turns queries and keys by their places: its rotations are slowed down.

    model = extended(load_model(place), YarnScaling(factor=4, original_length=2048))

No weight changes. config.json says it as `transformers` reads it. Models that turn layers with a window by another
base (Gemma 3, ModernBERT) keep those as they are: a window's distances do not grow.
"""

from __future__ import annotations

import torch

from nalanda.base.errors import DataError
from nalanda.nn.model import Model
from nalanda.nn.rotary import LongRopeScaling, NtkScaling, RotaryScaling, RotarySpec
from nalanda.nn.spec import AttentionSpec, BlockSpec, Spec


def extended_spec(spec: Spec, scaling: RotaryScaling) -> Spec:
    """`spec` with `scaling` in place of what its rotations had, and texts longer by its factor.

    Raises DataError where nothing turns by places, or a list of factors does not fit.
    """
    stacks = spec.stacks()
    attentions = [block.attention for _, blocks, _ in stacks for block in blocks if block.attention.rotary]
    if not attentions:
        raise DataError("rope: the model has no rotary positions, so there is nothing to scale; leave it out")
    full = [attention for attention in attentions if attention.window is None]
    some = len({attention.rotary for attention in attentions}) > 1 and bool(full)

    def scaled(attention: AttentionSpec) -> AttentionSpec:
        rotary = attention.rotary
        if rotary is None or (some and attention.window is not None):
            return attention
        return attention.model_copy(
            update={"rotary": _slowed(rotary.theta, scaling, attention.dim(spec.hidden))}
        )

    def block(given: BlockSpec) -> BlockSpec:
        cross = given.cross and scaled(given.cross)
        return given.model_copy(update={"attention": scaled(given.attention), "cross": cross})

    update = {name: tuple(block(one) for one in blocks) for name, blocks, _ in stacks}
    lengths = {
        f"{name}_position": position.model_copy(update={"max_length": _longer(position.max_length, scaling)})
        for name, _, position in stacks
        if position.limit is None
    }
    return spec.model_copy(update={**update, **lengths})


def _slowed(theta: float, scaling: RotaryScaling, dim: int) -> RotarySpec:
    if isinstance(
        scaling, NtkScaling
    ):  # the same rotations, said by the base alone, which every reader knows
        return RotarySpec(theta=theta * scaling.factor ** (dim / (dim - 2)))
    if isinstance(scaling, LongRopeScaling):
        try:
            scaling.frequencies(theta, dim, None)
        except ValueError as problem:
            raise DataError(f"rope: {problem}") from None
    return RotarySpec(theta=theta, scaling=scaling)


def _longer(length: int, scaling: RotaryScaling) -> int:
    """The longest text that the scaled model is meant for, in tokens."""
    original = getattr(scaling, "original_length", length)
    if isinstance(scaling, LongRopeScaling):
        return length
    return max(length, round(original * scaling.factor))


def extended(model: Model, scaling: RotaryScaling) -> Model:
    """The model with scaled rotations; it takes over the weights of the one given. Raises DataError: see above."""
    with torch.device("meta"):
        made = Model(extended_spec(model.spec, scaling), model.head_specs)
    made.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    for name, kept_as in model.tied().items():
        path, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(path), leaf, made.get_parameter(kept_as))
    for name, buffer in made.named_buffers():
        if buffer.is_meta:
            raise RuntimeError(f"buffer '{name}' was not built")
    made.origin, made.generation = model.origin, model.generation
    return made.train(model.training)
