"""`nalanda train`: a corpus and a tokenizer -> a trained model, resumable at any moment.

tokenizer, source, dev source -> model (new, or taken from a folder) -> loop -> model/ in Hugging Face layout
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator

from nalanda.base import seeds
from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.corpus.document import Document
from nalanda.corpus.store import count, read_split
from nalanda.data.build import AnyDataConfig, build_source
from nalanda.data.mixture import MixtureConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.preview import check_source
from nalanda.data.source import DataConfig, Source
from nalanda.generate.prompting import Prompting
from nalanda.models.exchange import load_model
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.upcycle import UpcycleConfig, upcycle
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, SequenceHeadSpec, Spec, TokensHeadSpec
from nalanda.objectives.experts import ExpertsConfig
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages import export
from nalanda.stages.experts import balance_hooks, experts_problem, inner_objective
from nalanda.stages.pipeline import model_folder
from nalanda.stages.stage import Context, Stage
from nalanda.stages.watch import SamplesConfig, Translations, TranslationsConfig, continuations
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.train.checkpoint import CheckpointConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, TensorBoard
from nalanda.train.loop import LoopConfig, fit
from nalanda.train.schedule import BudgetConfig

PlainObjective = Annotated[TokensConfig | MlmNextSentenceConfig, Field(discriminator="kind")]
ObjectiveConfig = Annotated[
    TokensConfig | MlmNextSentenceConfig | ExpertsConfig[PlainObjective], Field(discriminator="kind")
]


def _shape(value: Any) -> str:
    return "(new)" if isinstance(value, dict | ModelConfig) else "(folder)"


class TrainStage(LoopConfig):
    """A recipe's training stage. `model` describes a new model or is the folder of one to go on from."""

    verb: Literal["train"] = "train"
    data: Annotated[AnyDataConfig, Field(discriminator="kind")]
    model: Annotated[
        Annotated[ModelConfig, Tag("(new)")] | Annotated[Path, Tag("(folder)")], Discriminator(_shape)
    ]
    upcycle: UpcycleConfig | None = Field(
        None, description="turn the model of a folder into a mixture of experts"
    )
    objective: ObjectiveConfig = TokensConfig()
    evaluation: EvaluationConfig | None = EvaluationConfig()
    translations: TranslationsConfig | None = Field(None, description="translate dev rows while training")
    samples: SamplesConfig | None = Field(None, description="continue prompts while training a decoder")
    threads: int | None = Field(default=None, gt=0, description="CPU threads; default: all that may be used")
    tensorboard: bool = False
    languages: tuple[str, ...] = Field((), description="for the model card; default: those of the data")
    license: str = Field("other", description="for the model card")

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> TrainStage:
        if isinstance(self.model, ModelConfig):
            problem = misfit(self.objective, self.data, self.model.kind)
            problem = problem or experts_problem(self.objective, build_spec(self.model, vocabulary=1))
            if self.upcycle is not None:
                problem = "upcycle: is for the model of a folder; a new one has `moe`"
            if problem:
                raise ValueError(problem)
        if self.samples is not None and self.data.kind != "causal":
            raise ValueError(f"samples: needs data of kind 'causal', not '{self.data.kind}'; leave it out")
        if self.translations is not None and self.data.kind != "pairs":
            raise ValueError(
                f"translations: needs data of kind 'pairs', not '{self.data.kind}'; leave it out"
            )
        return self


_DATA = {
    "encoder": ("masked", "next_sentence"),
    "decoder": ("causal",),
    "encoder_decoder": ("pairs", "denoise"),
}


def data_parts(data: AnyDataConfig) -> dict[str, DataConfig]:
    """The kinds of data that are mixed, by config key; one that is no mixture is its only part."""
    if isinstance(data, MixtureConfig):
        return {f"data.parts.{index}": part for index, part in enumerate(data.parts)}
    return {"data": data}


def misfit(objective: ObjectiveConfig, data: AnyDataConfig, model: str) -> str:
    """Why data, objective and a model of kind `model` do not train together, in one line; empty where they do."""
    objective = inner_objective(objective)
    for key, part in data_parts(data).items():
        kind = str(part.kind)  # type: ignore[attr-defined]
        if kind not in _DATA[model]:
            return f"{key}: kind '{kind}' does not train a model of kind '{model}'; use {' or '.join(_DATA[model])}"
        if isinstance(objective, MlmNextSentenceConfig) != (kind == "next_sentence"):
            return (
                f"{key}: kind '{kind}' does not go with objective '{objective.kind}': "
                "'mlm_next_sentence' and data 'next_sentence' go together"
            )
    if isinstance(objective, MlmNextSentenceConfig) and objective.next_sentence.head == "tokens":
        return "objective.next_sentence.head: 'tokens' is the head over the vocabulary; use another name"
    return ""


def heads_for(objective: ObjectiveConfig) -> dict[str, HeadSpec]:
    """The heads that an objective looks through."""
    objective = inner_objective(objective)
    heads: dict[str, HeadSpec] = {"tokens": TokensHeadSpec()}
    if isinstance(objective, MlmNextSentenceConfig):
        heads[objective.next_sentence.head] = SequenceHeadSpec(classes=2)
    return heads


def build_model(config: TrainStage, tokenizer: Tokenizer) -> Model:
    """A new model, its weights a function of the seed; or the one in a folder, checked against tokenizer, data and
    objective.

    Raises DataError where these do not belong to the model.
    """
    if isinstance(config.model, ModelConfig):
        torch.manual_seed(seeds.derive(config.seed, "weights"))
        return Model(build_spec(config.model, tokenizer.vocabulary), heads_for(config.objective))
    folder = model_folder(config.model)
    check_tokenizer(folder, tokenizer)
    model = load_model(folder)
    problem = misfit(config.objective, config.data, _kind(model.spec)) or _missing_head(config, model)
    if config.upcycle is not None:
        torch.manual_seed(seeds.derive(config.seed, "weights"))
        model = upcycle(model, config.upcycle)
    problem = problem or experts_problem(config.objective, model.spec)
    if problem:
        raise DataError(f"{folder}: {problem}")
    return model


def _kind(spec: Spec) -> str:
    if spec.encoder and spec.decoder:
        return "encoder_decoder"
    return "encoder" if spec.encoder else "decoder"


def _missing_head(config: TrainStage, model: Model) -> str:
    for name, wanted in heads_for(config.objective).items():
        found = model.head_specs.get(name)
        if found is None or found.kind != wanted.kind:
            return (
                f"the model has no {wanted.kind} head '{name}', which objective '{config.objective.kind}' needs "
                f"(it has: {', '.join(model.head_specs) or 'none'}); use a model that was trained with that objective"
            )
    return ""


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
    for key, part in data_parts(config.data).items():
        for name, _, position in model.spec.stacks():
            limit = position.limit
            if limit is not None and part.max_length > limit:
                raise DataError(
                    f"{key}.max_length: {part.max_length} is more than the {limit} positions of the model's {name}; "
                    f"set {key}.max_length={limit} or train a model with a larger max_length"
                )


def data_seed(config: TrainStage) -> int:
    """The seed that decides order and noise of the data."""
    return seeds.derive(config.seed, "data")


def sources(
    config: TrainStage, run_folder: Path, tokenizer: Tokenizer, context: Context
) -> tuple[Source, Source | None]:
    """The training source and, where evaluation is asked for, the dev split's.

    Raises DataError where there is a dev split without rows to evaluate on.
    """
    folder, seed = run_folder / "store", data_seed(config)
    if config.evaluation is not None:
        for part in data_parts(config.data).values():
            if count(part.corpus, "dev") == 0:
                raise DataError(f"{part.corpus}: the split 'dev' has no rows; set evaluation: null")
    train = build_source(config.data, "train", tokenizer, folder, seed, context.progress)
    check_source(train)
    if config.evaluation is None:
        return train, None
    return train, build_source(config.data, "dev", tokenizer, folder, seed, context.progress)


def prepare(
    config: TrainStage, run_folder: Path, context: Context
) -> tuple[Tokenizer, Source, Source | None, Model]:
    """Everything that training needs, built and checked before the first step."""
    tokenizer = data_tokenizer(config)
    model = build_model(config, tokenizer)
    check_length(config, model)
    train, dev = sources(config, run_folder, tokenizer, context)
    return tokenizer, train, dev, model


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses `count` CPU threads (None: as many as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(config: TrainStage, run: Run, context: Context) -> dict[str, Any]:
    """Trains until the budget is spent and exports the model."""
    with _threads(config.threads):
        return _run(config, run, context)


def _run(config: TrainStage, run: Run, context: Context) -> dict[str, Any]:
    tokenizer, train, dev, model = prepare(config, run.path, context)
    prompting = Prompting(tokenizer, model.spec, model.generation)
    hooks: list[Hook] = balance_hooks(config.objective)
    if dev is not None and config.evaluation is not None:
        hooks.append(Evaluation(config.evaluation, dev, config.objective))
    if config.translations is not None and isinstance(config.data, PairsConfig):
        rows = _dev_pairs(config.data, config.translations.rows)
        hooks.append(Translations(config.translations, rows, prompting))
    if config.samples is not None:
        hooks.append(continuations(config.samples, prompting))
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
    result["flops_per_token"] = flops_per_token(model, train)
    result["active_parameters"] = model.parameter_count(active=True)
    export.write(model, tokenizer, run.path / "model", card=export.Card.of(run.path.name, config, result))
    shutil.rmtree(run.path / "store", ignore_errors=True)
    return {**result, "model": "model"}


def flops_per_token(model: Model, source: Source) -> float:
    """FLOPs of training (forward and backward) for each token of rows as long as those of the first step."""
    batches = source.step(0)
    rows = sum(batch["segments"].any(1).sum().item() for batch in batches)
    length, source_length = (
        sum(int((batch[key] != 0).sum()) for batch in batches if key in batch) / rows
        for key in ("segments", "source_segments")
    )
    return model.flops_per_token(round(length), round(source_length))


def _dev_pairs(data: PairsConfig, rows: int) -> list[Document]:
    pairs = (document for document in read_split(data.corpus, "dev") if document.target is not None)
    return list(islice(pairs, rows))


def data_places(config: TrainStage) -> dict[str, Path]:
    """The corpora and tokenizers that the data names, by config key; a mixture has those of its parts."""
    return {
        f"{key}.{name}": getattr(part, name)
        for key, part in data_parts(config.data).items()
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
    """The data's places, the model's where it is not new, and the checkpoint's that is replayed."""
    places = data_places(config)
    if config.budget.replay is not None:
        places["budget.replay"] = config.budget.replay
    if isinstance(config.model, Path):
        places["model"] = model_folder(config.model)
    return places


def shrink(config: TrainStage) -> TrainStage:
    """Three steps (the first is slow), one checkpoint, one evaluation."""
    evaluation = config.evaluation and config.evaluation.model_copy(
        update={"every": 3, "batches": 1, "patience": None}
    )
    return config.model_copy(
        update={
            "budget": BudgetConfig(steps=3),
            "log_every": 1,
            "schedule": config.schedule.model_copy(update={"warmup": 0.0}),
            "evaluation": evaluation,
            "samples": config.samples and config.samples.model_copy(update={"every": 3, "max_length": 4}),
            "translations": config.translations and TranslationsConfig(every=3, rows=4, max_length=8),
            "checkpoint": CheckpointConfig(every=3),
            "compile": "off",
            "tensorboard": False,
        }
    )


STAGE = Stage(config=TrainStage, run=run, inputs=inputs, shrink=shrink, format=2)
