"""Our own kind of config.json, for networks that no family can say: the spec, the heads and the tied weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nalanda.base.errors import RunError
from nalanda.models.family import Family, one_line
from nalanda.models.shape import TRAINING, Shape
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, Spec

MODEL_TYPE = "nalanda"
HEADS: TypeAdapter[dict[str, HeadSpec]] = TypeAdapter(dict[str, HeadSpec])


def describe_model(model: Model) -> dict[str, Any]:
    """What config.json holds: enough to build the network again."""
    return {
        "architectures": ["NalandaModel"],
        "model_type": MODEL_TYPE,
        "vocab_size": model.spec.vocabulary,
        "hidden_size": model.spec.hidden,
        "tie_word_embeddings": model.spec.tie_embeddings,
        "spec": model.spec.to_dict(),
        "heads": {name: head.to_dict() for name, head in model.head_specs.items()},
        "tied": model.tied(),
    }


def read_config(values: Mapping[str, Any], path: Path) -> tuple[Spec, dict[str, HeadSpec], dict[str, str]]:
    """Spec, heads and tie map of `values`, config.json's at `path`. Raises RunError for what is missing or wrong."""
    try:
        heads = HEADS.validate_python(values["heads"])
        return Spec.model_validate(values["spec"]), heads, dict(values["tied"])
    except KeyError as error:
        raise RunError(f"{path}: key {error} is missing; save the model again") from None
    except (ValidationError, TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RunError(f"{path}: damaged: {error}") from None
        raise RunError(f"{path}: {one_line(error)}") from None


def extension(family: Family, config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What the family's config.json cannot say of `model`: other heads, and values that only training reads."""
    words: dict[str, Any] = {}
    shape, read = Shape.of(model.spec), family.shape(config)
    training = {key: getattr(shape, key) for key in sorted(TRAINING) if getattr(shape, key) != ()}
    if any(getattr(read, key) != value for key, value in training.items()):
        words["training"] = training
    found = {
        name: by_name.spec(read, config)
        for name in family.architectures.get(config["architectures"][0], ())
        for by_name in family.heads
        if by_name.name == name and not (by_name.optional and name not in model.head_specs)
    }
    if found != model.head_specs:
        words["heads"] = {name: head.to_dict() for name, head in model.head_specs.items()}
    return words
