"""A saved model's network without its weights: for counting what it would need.

model = empty_model(Path("models/llama"), {"tokens": TokensHeadSpec()})      # on torch's meta device
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nalanda.base.errors import RunError
from nalanda.models import own
from nalanda.models.auto import find
from nalanda.models.choice import choose_heads, read_spec
from nalanda.models.exchange import CONFIG, open_checkpoint
from nalanda.models.family import ConfigProblem, one_line
from nalanda.models.reading import build_empty, settled
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec


def empty_model(place: Path, heads: Mapping[str, HeadSpec], pickled: bool = False) -> Model:
    """The network of a folder or GGUF file with `heads`, as `load_model` would build it; no tensor is read.

    Raises RunError naming file and key.
    """
    checkpoint = open_checkpoint(place, pickled)
    path = place / CONFIG if place.is_dir() else place
    try:
        if checkpoint.config.get("model_type") == own.MODEL_TYPE:
            spec, saved, _ = own.read_config(checkpoint.config, path)
            return build_empty(spec, {name: saved.get(name, head) for name, head in heads.items()})
        family = find(checkpoint.config, path, checkpoint.weights.keys())
        config = settled(family, checkpoint.config, checkpoint.weights)
        chosen, _ = choose_heads(family, config, heads, checkpoint.weights.keys())
        return build_empty(read_spec(family, config), chosen)
    except (ConfigProblem, ValueError) as problem:
        raise RunError(f"{path}: {one_line(problem)}") from None
