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
from nalanda.base.distributed import current
from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.config import unset
from nalanda.corpus.document import Document
from nalanda.corpus.store import count, read_split
from nalanda.data.build import AnyDataConfig, build_source
from nalanda.data.pairs import PairsConfig
from nalanda.data.preview import check_source
from nalanda.data.source import Source
from nalanda.generate.prompting import Prompting
from nalanda.models.named import FamilyConfig
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.upcycle import UpcycleConfig
from nalanda.nn.model import Model
from nalanda.nn.rotary import RotaryScaling
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages import export
from nalanda.stages.experts import balance_hooks, experts_problem
from nalanda.stages.fitting import ObjectiveConfig, data_parts, misfit
from nalanda.stages.stage import Context, Stage
from nalanda.stages.starting import build_model, check_length, data_tokenizer, inputs
from nalanda.stages.watch import SamplesConfig, Translations, TranslationsConfig, continuations
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.train.checkpoint import CheckpointConfig
from nalanda.train.config import LoopConfig
from nalanda.train.device import find_device
from nalanda.train.diagnostics import Diagnostics, DiagnosticsConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, TensorBoard
from nalanda.train.loop import fit
from nalanda.train.parallel_model import check_parallel
from nalanda.train.schedule import BudgetConfig


def _shape(value: Any) -> str:
    if isinstance(value, FamilyConfig) or (isinstance(value, dict) and "family" in value):
        return "(family)"
    return "(new)" if isinstance(value, dict | ModelConfig) else "(folder)"


class TrainStage(LoopConfig):
    """A recipe's training stage. `model` describes a new model, or is the place of one to go on from: a folder, a
    GGUF file, a name of the hub."""

    verb: Literal["train"] = "train"
    data: Annotated[AnyDataConfig, Field(discriminator="kind")]
    model: Annotated[
        Annotated[ModelConfig, Tag("(new)")]
        | Annotated[FamilyConfig, Tag("(family)")]
        | Annotated[Path, Tag("(folder)")],
        Discriminator(_shape),
    ]
    ignore: tuple[str, ...] = Field(
        (), description="patterns of weights in `model` that may go without a place"
    )
    pickled: bool = Field(
        False, description="read PyTorch's .bin files of `model` too (weights only, no code)"
    )
    rope: RotaryScaling | None = Field(None, description="slow the model's rotations down, for longer texts")
    upcycle: UpcycleConfig | None = Field(
        None, description="turn the model of a folder into a mixture of experts"
    )
    objective: ObjectiveConfig = TokensConfig()
    evaluation: EvaluationConfig | None = EvaluationConfig()
    translations: TranslationsConfig | None = Field(None, description="translate dev rows while training")
    samples: SamplesConfig | None = Field(None, description="continue prompts while training a decoder")
    threads: int | None = Field(default=None, gt=0, description="CPU threads; default: all that may be used")
    tensorboard: bool = False
    diagnostics: DiagnosticsConfig | None = Field(
        None, exclude_if=unset, description="gradients, updates and activations by part, while training"
    )
    languages: tuple[str, ...] = Field((), description="for the model card; default: those of the data")
    license: str | None = Field(
        None, description="for the model card; default: that of the model gone on from"
    )

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> TrainStage:
        problem = self._problem_of_a_new_model()
        if problem:
            raise ValueError(problem)
        for key, part in data_parts(self.data).items():
            steps = sum(rung.steps for rung in part.warmup)
            if self.budget.steps is not None and steps >= self.budget.steps:
                raise ValueError(
                    f"{key}.warmup: its {steps} steps leave nothing of a budget of {self.budget.steps} steps"
                )
        parallel = self.parallel
        if self.diagnostics is not None and (
            parallel.shard or max(parallel.tensor, parallel.context, parallel.expert) > 1
        ):
            raise ValueError(
                "diagnostics: not where ranks hold parts of the model; leave it out, or parallel.shard etc."
            )
        if self.samples is not None and self.data.kind != "causal":
            raise ValueError(f"samples: needs data of kind 'causal', not '{self.data.kind}'; leave it out")
        if self.translations is not None and self.data.kind != "pairs":
            raise ValueError(
                f"translations: needs data of kind 'pairs', not '{self.data.kind}'; leave it out"
            )
        return self

    def _problem_of_a_new_model(self) -> str:
        if isinstance(self.model, Path):
            return ""
        for key, part in data_parts(self.data).items():
            if part.tokenizer is None:
                return f"{key}.tokenizer: required key is missing: a new model has no tokenizer of its own"
        for name, value in (("ignore", self.ignore), ("pickled", self.pickled), ("rope", self.rope)):
            if value:
                return f"{name}: is for the model of a place; a new one has nothing to read"
        if self.upcycle is not None:
            return "upcycle: is for the model of a folder; a new one has `moe`"
        if isinstance(self.model, FamilyConfig):
            spec = self.model.spec()
        else:
            spec = build_spec(self.model, vocabulary=1)
        return misfit(self.objective, self.data, self.model.kind) or experts_problem(self.objective, spec)


def data_seed(config: TrainStage) -> int:
    """The seed that decides order and noise of the data."""
    return seeds.derive(config.seed, "data")


def sources(
    config: TrainStage,
    run_folder: Path,
    tokenizer: Tokenizer,
    context: Context,
    prompting: Prompting | None = None,
) -> tuple[Source, Source | None]:
    """The training source and, where evaluation is asked for, the dev split's.

    Raises DataError where there is a dev split without rows to evaluate on.
    """
    folder, seed = run_folder / "store", data_seed(config)
    if config.evaluation is not None:
        for part in data_parts(config.data).values():
            if count(part.corpus, "dev") == 0:
                raise DataError(f"{part.corpus}: the split 'dev' has no rows; set evaluation: null")
    train = build_source(config.data, "train", tokenizer, folder, seed, context.progress, prompting=prompting)
    check_source(train)
    if config.evaluation is None:
        return train, None
    dev = build_source(config.data, "dev", tokenizer, folder, seed, context.progress, prompting=prompting)
    return train, dev


def prepare(
    config: TrainStage, run_folder: Path, context: Context
) -> tuple[Prompting, Source, Source | None, Model, list[str]]:
    """Everything that training needs, built and checked before the first step; and what is to be said of it."""
    tokenizer = data_tokenizer(config)
    notes: list[str] = []
    model = build_model(config, tokenizer, notes.append)
    check_length(config, model)
    check_parallel(config.parallel, model, current().size)
    prompting = Prompting(tokenizer, model.spec, model.generation)

    def made() -> tuple[Source, Source | None]:
        return sources(config, run_folder, tokenizer, context, prompting)

    train, dev = current().lead(made) or made()  # the first makes the stores, the others find them made
    return prompting, train, dev, model, notes


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
    find_device(config.device)  # before data are prepared
    with _threads(config.threads):
        return _run(config, run, context)


def _run(config: TrainStage, run: Run, context: Context) -> dict[str, Any]:
    prompting, train, dev, model, notes = prepare(config, run.path, context)
    hooks: list[Hook] = balance_hooks(config.objective)
    if dev is not None and config.evaluation is not None:
        hooks.append(Evaluation(config.evaluation, dev, config.objective))
    if config.translations is not None and isinstance(config.data, PairsConfig):
        rows = _dev_pairs(config.data, config.translations.rows)
        hooks.append(Translations(config.translations, rows, prompting))
    if config.samples is not None:
        hooks.append(continuations(config.samples, prompting))
    if config.diagnostics is not None:
        hooks.append(Diagnostics(config.diagnostics))
    if config.tensorboard and current().first:
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
        mark=run.journal.mark,
        verify=run.check_metrics,
        progress=context.progress,
    )
    result["notes"] = [*notes, *result["notes"]]
    for note in result["notes"]:
        context.note(f"{run.path.name}: {note}")
    result["data"] = train.describe()
    result["flops_per_token"] = flops_per_token(model, train)
    result["active_parameters"] = model.parameter_count(active=True)
    if current().first:
        card = export.Card.of(run.path.name, config, result)
        export.write(model, prompting.tokenizer, run.path / "model", card=card)
    current().gather(None)  # all have read their last batch
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
            "diagnostics": config.diagnostics and DiagnosticsConfig(every=3),
        }
    )


STAGE = Stage(
    config=TrainStage,
    run=run,
    inputs=inputs,
    shrink=shrink,
    format=2,
    together=True,
    free=("parallel", "workers", "threads", "device", "health", "diagnostics"),
)
