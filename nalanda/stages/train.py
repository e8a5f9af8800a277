"""`nalanda train`: a corpus and a tokenizer -> a trained model, resumable at any moment.

tokenizer, source, dev source -> model (new, or taken from a folder) -> loop -> model/ in Hugging Face layout
"""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from nalanda.base import seeds
from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.corpus.document import Document
from nalanda.corpus.store import read_split
from nalanda.data.build import AnyDataConfig, build_source
from nalanda.data.mixture import MixtureConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.preview import check_source
from nalanda.data.source import Source
from nalanda.models.exchange import load_model
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, SequenceHeadSpec, TokensHeadSpec
from nalanda.objectives.labels import LabelsConfig
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages import export
from nalanda.stages.pipeline import model_folder
from nalanda.stages.stage import Context, Stage
from nalanda.stages.watch import Translations, TranslationsConfig
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.train.checkpoint import CheckpointConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, TensorBoard
from nalanda.train.loop import LoopConfig, fit
from nalanda.train.schedule import BudgetConfig

ObjectiveConfig = Annotated[TokensConfig | MlmNextSentenceConfig | LabelsConfig, Field(discriminator="kind")]


def _shape(value: Any) -> str:
    return "(new)" if isinstance(value, dict | ModelConfig) else "(folder)"


class TrainStage(LoopConfig):
    """A recipe's training stage. `model` describes a new model or is the folder of one to go on from."""

    verb: Literal["train"] = "train"
    data: Annotated[AnyDataConfig, Field(discriminator="kind")]
    model: Annotated[
        Annotated[ModelConfig, Tag("(new)")] | Annotated[Path, Tag("(folder)")], Discriminator(_shape)
    ]
    objective: ObjectiveConfig = TokensConfig()
    evaluation: EvaluationConfig | None = EvaluationConfig()
    translations: TranslationsConfig | None = Field(None, description="translate dev rows while training")
    threads: int | None = Field(default=None, gt=0, description="CPU threads; default: all that may be used")
    tensorboard: bool = False
    languages: tuple[str, ...] = Field((), description="for the model card; default: those of the data")
    license: str = Field("other", description="for the model card")

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> TrainStage:
        if isinstance(self.model, ModelConfig):
            _check_fit(self.objective, self.data.kind, self.model.kind)
        if self.translations is not None and self.data.kind != "pairs":
            raise ValueError(
                f"translations: needs data of kind 'pairs', not '{self.data.kind}'; leave it out"
            )
        return self


_ENCODER_DATA = ("masked", "next_sentence")
_DECODER_DATA = ("causal",)
_PAIR_DATA = ("pairs", "denoise")


def _check_fit(objective: ObjectiveConfig, data: str, model: str) -> None:
    expected = {"encoder": _ENCODER_DATA, "decoder": _DECODER_DATA, "encoder_decoder": _PAIR_DATA}[model]
    if data != "mixture" and data not in expected:
        raise ValueError(
            f"data of kind '{data}' does not train a model of kind '{model}'; use {' or '.join(expected)}"
        )
    if isinstance(objective, MlmNextSentenceConfig) != (data == "next_sentence"):
        raise ValueError("objective 'mlm_next_sentence' and data 'next_sentence' go together")


def heads_for(objective: ObjectiveConfig) -> dict[str, HeadSpec]:
    """The heads that an objective looks through."""
    if isinstance(objective, LabelsConfig):
        return {objective.head: SequenceHeadSpec(classes=2)}
    heads: dict[str, HeadSpec] = {"tokens": TokensHeadSpec()}
    if isinstance(objective, MlmNextSentenceConfig):
        heads["next_sentence"] = SequenceHeadSpec(classes=2)
    return heads


def build_model(config: TrainStage, tokenizer: Tokenizer) -> Model:
    """A new model, its weights a function of the seed; or the one in a folder, checked against the tokenizer.

    Raises DataError where the tokenizer does not belong to the model.
    """
    if isinstance(config.model, ModelConfig):
        torch.manual_seed(seeds.derive(config.seed, "weights"))
        return Model(build_spec(config.model, tokenizer.vocabulary), heads_for(config.objective))
    folder = model_folder(config.model)
    check_tokenizer(folder, tokenizer)
    return load_model(folder)


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises DataError unless `tokenizer` is the one that the model in `folder` was trained with."""
    own = Tokenizer.load(folder)
    if own.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{folder}: its tokenizer ({own.vocabulary} entries, {own.fingerprint}) is not the one given "
            f"({tokenizer.vocabulary} entries, {tokenizer.fingerprint}); "
            "use the tokenizer that the model was trained with"
        )


def check_length(config: TrainStage, model: Model) -> None:
    """Raises DataError where the data's rows may be longer than the model's positions."""
    longest = getattr(config.data, "max_length", None)
    for name, _, position in model.spec.stacks():
        limit = position.limit
        if limit is not None and longest is not None and longest > limit:
            raise DataError(
                f"data.max_length: {longest} is more than the {limit} positions of the model's {name}; "
                f"set data.max_length={limit} or train a model with a larger max_length"
            )


def sources(
    config: TrainStage, run_folder: Path, tokenizer: Tokenizer, context: Context
) -> tuple[Source, Source | None]:
    """The training source and, where the corpus has a dev split and it is asked for, the evaluation source."""
    folder = run_folder / "store"
    seed = seeds.derive(config.seed, "data")
    train = build_source(config.data, "train", tokenizer, folder, seed, context.progress)
    check_source(train)
    if config.evaluation is None:
        return train, None
    return train, build_source(config.data, "dev", tokenizer, folder, seed, context.progress)


def prepare(
    config: TrainStage, run_folder: Path, context: Context
) -> tuple[Tokenizer, Source, Source | None, Model]:
    """Everything that training needs, built and checked before the first step."""
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = data_tokenizer(config)
    model = build_model(config, tokenizer)
    check_length(config, model)
    train, dev = sources(config, run_folder, tokenizer, context)
    return tokenizer, train, dev, model


def run(config: TrainStage, run: Run, context: Context) -> dict[str, Any]:
    """Trains until the budget is spent and exports the model."""
    tokenizer, train, dev, model = prepare(config, run.path, context)
    hooks: list[Hook] = []
    if dev is not None and config.evaluation is not None:
        hooks.append(Evaluation(config.evaluation, dev, config.objective))
    if config.translations is not None and isinstance(config.data, PairsConfig):
        rows = _dev_pairs(config.data, config.translations.rows)
        hooks.append(Translations(config.translations, rows, tokenizer))
    if config.tensorboard:
        hooks.append(TensorBoard(run.path / "tensorboard"))
    result = fit(
        model,
        config.objective,
        train,
        config,
        run.path,
        hooks=hooks,
        log=run.log,
        rewind=run.rewind_metrics,
        progress=context.progress,
    )
    for note in result["notes"]:
        context.note(f"{run.path.name}: {note}")
    result["data"] = train.describe()
    export.write(model, tokenizer, run.path / "model", card=export.Card.of(run.path.name, config, result))
    shutil.rmtree(run.path / "store", ignore_errors=True)
    return {**result, "model": "model"}


def _dev_pairs(data: PairsConfig, rows: int) -> list[Document]:
    pairs = (document for document in read_split(data.corpus, "dev") if document.target is not None)
    return list(islice(pairs, rows))


def data_places(config: TrainStage) -> dict[str, Path]:
    """The corpora and tokenizers that the data names, by config key; a mixture has those of its parts."""
    if isinstance(config.data, MixtureConfig):
        parts = {f"data.parts.{index}": part for index, part in enumerate(config.data.parts)}
    else:
        parts = {"data": config.data}
    return {
        f"{key}.{name}": getattr(part, name)
        for key, part in parts.items()
        for name in ("corpus", "tokenizer")
    }


def data_tokenizer(config: TrainStage) -> Tokenizer:
    """The one tokenizer of the data. Raises DataError where a mixture's parts use different ones."""
    places = [place for key, place in data_places(config).items() if key.endswith(".tokenizer")]
    found = [Tokenizer.load(place) for place in dict.fromkeys(places)]
    if len({tokenizer.fingerprint for tokenizer in found}) > 1:
        raise DataError(
            f"data.parts: their tokenizers differ ({', '.join(map(str, dict.fromkeys(places)))}); use one"
        )
    return found[0]


def inputs(config: TrainStage) -> dict[str, Path]:
    """The data's places, and the model's where it is not new."""
    places = data_places(config)
    if isinstance(config.model, Path):
        places["model"] = model_folder(config.model)
    return places


def shrink(config: TrainStage) -> TrainStage:
    """One step, one checkpoint, one evaluation."""
    evaluation = config.evaluation and config.evaluation.model_copy(
        update={"every": 1, "batches": 1, "patience": None}
    )
    return config.model_copy(
        update={
            "budget": BudgetConfig(steps=1),
            "schedule": config.schedule.model_copy(update={"warmup": 0.0}),
            "evaluation": evaluation,
            "translations": config.translations and TranslationsConfig(every=1, rows=4, max_length=8),
            "checkpoint": CheckpointConfig(every=1),
            "compile": "off",
            "tensorboard": False,
        }
    )


STAGE = Stage(config=TrainStage, run=run, inputs=inputs, shrink=shrink)
