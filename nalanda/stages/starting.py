"""What a training starts from: the model, new or of others, and the tokenizer that belongs to it.

    tokenizer = data_tokenizer(config)
    model = build_model(config, tokenizer, note=context.note)

A model of others is a folder in Hugging Face's layout, a GGUF file or a name of the hub (org/name); the stage and
pipeline folders of our own runs are folders too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nalanda.base import seeds
from nalanda.base.errors import DataError, RunError
from nalanda.base.progress import unsaid
from nalanda.generate.prompting import Prompting, beyond, in_texts
from nalanda.models.exchange import load_model, open_checkpoint
from nalanda.models.extend import extended
from nalanda.models.named import FamilyConfig, new_model
from nalanda.models.plain import ModelConfig, build_spec, token_head
from nalanda.models.upcycle import upcycle
from nalanda.nn.model import Model
from nalanda.nn.spec import Spec
from nalanda.stages.experts import experts_problem
from nalanda.stages.fitting import data_parts, heads_for, misfit
from nalanda.stages.pipeline import model_folder
from nalanda.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nalanda.stages.train import TrainStage


def build_model(config: TrainStage, tokenizer: Tokenizer, note: Callable[[str], None] = unsaid) -> Model:
    """A new model, its weights a function of the seed; or the one at a place, checked against tokenizer, data and
    objective. What is initialized or left out of a model at a place is said to `note`.

    Raises DataError where these do not belong to the model, RunError for a checkpoint that does not fit.
    """
    torch.manual_seed(seeds.derive(config.seed, "weights"))
    heads = heads_for(config.objective)
    if isinstance(config.model, ModelConfig):
        heads["tokens"] = token_head(config.model)
        return Model(build_spec(config.model, tokenizer.vocabulary), heads)
    if isinstance(config.model, FamilyConfig):
        return new_model(config.model, _numbers(config.model, tokenizer), heads)
    folder = model_folder(config.model, pickled=config.pickled)
    check_tokenizer(folder, tokenizer)
    model = load_model(folder, heads, pickled=config.pickled, ignore=config.ignore, note=note)
    problem = misfit(config.objective, config.data, _kind(model.spec)) or _vocabulary(tokenizer, model.spec)
    if problem:
        raise DataError(f"{folder}: {problem}")
    if config.rope is not None:
        model = extended(model, config.rope)
    if config.upcycle is not None:
        model = upcycle(model, config.upcycle)
    if problem := experts_problem(config.objective, model.spec):
        raise DataError(f"{folder}: {problem}")
    return model


def _numbers(config: FamilyConfig, tokenizer: Tokenizer) -> dict[str, int]:
    """What the tokenizer says in config.json."""
    roles = {role: tokenizer.role(role) for role in ("bos", "eos")} | {"pad": tokenizer.pad}
    values = {f"{role}_token_id": number for role, number in roles.items() if number is not None}
    if config.kind == "encoder_decoder":
        values["decoder_start_token_id"] = Prompting(tokenizer).start
    return {"vocab_size": tokenizer.vocabulary, **values}


def _kind(spec: Spec) -> str:
    if spec.encoder and spec.decoder:
        return "encoder_decoder"
    return "encoder" if spec.encoder else "decoder"


def _vocabulary(tokenizer: Tokenizer, spec: Spec) -> str:
    """Why the model has no place for a token that texts may have; empty where it has."""
    for each in (tokenizer, tokenizer.target):
        number = beyond(each, spec.vocabulary)
        if number is not None:
            return (
                f"its vocabulary has {spec.vocabulary:,} entries, the tokenizer's token {each.token(number)!r} has "
                f"the number {number:,}; use the tokenizer that the model was trained with"
            )
    return ""


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises DataError unless `tokenizer` is the one that the model at `folder` was trained with, or gives all its
    tokens the same numbers (as the tokenizer of a GGUF file of the model does)."""
    try:
        own = Tokenizer.load(folder)
    except RunError:
        if any(folder.glob("*tokenizer*")) or (folder / "manifest.json").exists():
            raise
        return  # others keep their tokenizer in another place
    if own.fingerprint != tokenizer.fingerprint and not _same_tokens(own, tokenizer):
        raise DataError(
            f"{folder}: its tokenizer ({own.vocabulary} entries, {own.fingerprint}) is not the one given "
            f"({tokenizer.vocabulary} entries, {tokenizer.fingerprint}); "
            "use the tokenizer that the model was trained with, or leave data.tokenizer out"
        )


def _same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether all numbers mean the same tokens; what one has more are ids that no text reaches (GGUF's padding)."""
    shared = min(one.vocabulary, other.vocabulary)
    for each in (one, other):
        if any(in_texts(each, i) for i in range(shared, each.vocabulary)):
            return False
    return all(
        one.has(i) == other.has(i) and (not one.has(i) or one.token(i) == other.token(i))
        for i in range(shared)
    )


def check_length(config: TrainStage, model: Model) -> None:
    """Raises DataError where the data's rows may be longer than the model's positions."""
    for key, part in data_parts(config.data).items():
        for name, _, position in model.spec.stacks():
            limit = position.limit
            if limit is not None and part.max_length > limit:
                raise DataError(
                    f"{key}.max_length: {part.max_length} is more than the {limit} positions of the model's {name}; "
                    f"set {key}.max_length={limit} or train a model with a larger max_length"
                )


def tokenizer_place(place: Path) -> Path:
    """The folder or file with the tokenizer that `place` means; a run's folder means its model's.

    Raises RunError where there is none.
    """
    if place.is_dir() and not (place / "result.json").exists() and not (place / "pipeline.json").exists():
        return place
    if place.is_file() or (place / "tokenizer.json").exists():
        return place
    return model_folder(place)


def data_places(config: TrainStage) -> dict[str, Path]:
    """The corpora and tokenizers that the data names, by config key; a mixture has those of its parts."""
    return {
        f"{key}.{name}": getattr(part, name)
        for key, part in data_parts(config.data).items()
        for name in ("corpus", "tokenizer")
        if getattr(part, name) is not None
    }


def data_tokenizer(config: TrainStage) -> Tokenizer:
    """The one tokenizer of the data, or the model's own. Raises DataError where a mixture's parts differ in it."""
    places: list[Path] = []
    for part in data_parts(config.data).values():
        if part.tokenizer is not None:
            places.append(tokenizer_place(part.tokenizer))
        elif isinstance(config.model, Path):
            places.append(model_folder(config.model, pickled=config.pickled))
    found = [Tokenizer.load(place) for place in dict.fromkeys(places)]
    if len({tokenizer.fingerprint for tokenizer in found}) > 1:
        raise DataError(
            f"data.parts: their tokenizers differ ({', '.join(map(str, dict.fromkeys(places)))}); use one"
        )
    return found[0]


def data_prompting(config: TrainStage, tokenizer: Tokenizer) -> Prompting:
    """How the data are laid out, known before any weight is read; as for ours where the model is not made yet."""
    if not isinstance(config.model, Path):
        return Prompting(tokenizer)
    try:
        folder = model_folder(config.model, pickled=config.pickled)
    except RunError:
        return Prompting(tokenizer)
    return Prompting(tokenizer, None, open_checkpoint(folder, config.pickled).generation)


def inputs(config: TrainStage) -> dict[str, Path]:
    """The data's places, the model's where it is not new, and the checkpoint's that is replayed."""
    places = {
        key: tokenizer_place(place) if key.endswith(".tokenizer") else place
        for key, place in data_places(config).items()
    }
    if config.budget.replay is not None:
        places["budget.replay"] = config.budget.replay
    if isinstance(config.model, Path):
        places["model"] = model_folder(config.model, pickled=config.pickled)
    return places
