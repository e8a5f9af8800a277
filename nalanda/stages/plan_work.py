"""What a recipe's training stages are, before anything of them is made: network, shapes of batches, budget.

    for work in works(recipe): work.model, work.shape, work.assumed

What only tokenizer or corpus could tell is read from them where they exist and assumed where not; each assumption is
a line in `assumed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from nalanda.base.errors import DataError, RunError, UserError
from nalanda.config import ConfigError
from nalanda.corpus.document import Document
from nalanda.corpus.store import count, read_split
from nalanda.data.batch import Batch, trained_tokens
from nalanda.data.denoise import DenoiseConfig
from nalanda.data.packing import CausalConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.source import DataConfig, TextConfig
from nalanda.data.synthetic import Lengths, synthetic
from nalanda.data.warmup import place
from nalanda.models.auto import FAMILIES
from nalanda.models.empty import empty_model
from nalanda.models.family import ConfigProblem
from nalanda.models.named import FamilyConfig, new_model
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.reading import build_empty
from nalanda.models.upcycle import upcycled_spec
from nalanda.nn.model import Model
from nalanda.stages.fitting import data_parts, heads_for
from nalanda.stages.pipeline import model_folder
from nalanda.stages.recipe import Planned, Recipe
from nalanda.stages.starting import tokenizer_place
from nalanda.stages.train import TrainStage, data_seed
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.train.plan_memory import Rows

VOCABULARY = 32_000
"""Assumed where neither a tokenizer nor the recipe says another."""
SAMPLE = 4000
"""Rows of a corpus whose lengths are looked at."""
_LOOK = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Means over the first steps: rows of a whole step and of a micro-batch, micro-batches, shares of places that are
    not padding."""

    step: Rows
    micro: Rows
    micro_batches: float
    real: float

    @property
    def places(self) -> float:
        """Padded places of a step, of all streams."""
        return self.step.places


@dataclass(frozen=True)
class Work:
    """One training stage. `model` has no memory for its weights; `steps` None: the budget is `minutes`;
    `whole_steps`: smaller ones of a warm-up of batches counted by what they take; `dev_batches`
    of one evaluation and `rows` of the corpus: None where it is not made yet."""

    name: str
    config: TrainStage
    model: Model
    lengths: Lengths
    shape: Shape
    steps: int | None
    minutes: float | None
    whole_steps: float | None
    dev_batches: float | None
    rows: int | None
    assumed: tuple[str, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the weights start random."""
        return not isinstance(self.config.model, Path)


def works(recipe: Recipe) -> list[Work]:
    """The training stages of a recipe, in order. Raises ConfigError where there is none, DataError or UserError, in
    one line, for what cannot be planned."""
    found: dict[Path, Work] = {}
    for planned in recipe.stages.values():
        if planned.verb == "train":
            found[planned.folder] = _work(planned, recipe, found)
    if not found:
        verbs = ", ".join(f"{planned.name} ({planned.verb})" for planned in recipe.stages.values())
        raise ConfigError(f"{recipe.origin}: no stage trains, so there is nothing to plan; it has: {verbs}")
    return list(found.values())


def _work(planned: Planned, recipe: Recipe, earlier: dict[Path, Work]) -> Work:
    config, whole = _plain(planned.config)
    assumed = (
        []
        if whole == config.budget.steps
        else [f"smaller steps of data.warmup by the places they take: {whole:,.0f} whole steps in all"]
    )
    if planned.config.parallel != config.parallel:
        assumed.append(
            "nothing of the recipe's `parallel`: layouts are searched, and here one process is measured"
        )
    tokenizer = _tokenizer(config)
    vocabulary = _vocabulary(config, recipe, tokenizer, assumed)
    model = _model(config, vocabulary, earlier, assumed)
    lengths = {
        key: _lengths(key, part, tokenizer, assumed.append) for key, part in data_parts(config.data).items()
    }
    steps, minutes = config.budget.steps, config.budget.minutes
    if config.budget.replay is not None:
        raise UserError(f"{planned.name}: budget.replay repeats another run: plan that run")
    shape = shape_of(config, model.spec.vocabulary, lengths)
    return Work(
        name=planned.name,
        config=config,
        model=model,
        lengths=lengths,
        shape=shape,
        steps=steps,
        minutes=minutes,
        whole_steps=whole,
        dev_batches=_dev_batches(config, lengths, shape),
        rows=_rows(config) if tokenizer is not None else None,
        assumed=tuple(dict.fromkeys(assumed)),
    )


def _plain(config: TrainStage) -> tuple[TrainStage, float | None]:
    """The stage for one process and without a warm-up of batches, and how many whole steps its budget comes to."""
    rungs = [part.warmup for part in data_parts(config.data).values()]
    steps = config.budget.steps
    whole = (
        None
        if steps is None
        else min(float(at.whole + at.part / at.parts) for at in (place(r, steps) for r in rungs))
    )
    values = config.to_dict()
    for part in values["data"].get("parts", [values["data"]]):
        part.pop("warmup", None)
    return TrainStage.model_validate({**values, "parallel": {}}), whole


def _tokenizer(config: TrainStage) -> Tokenizer | None:
    """The tokenizer that the data name, or the model's, where it is on this machine."""
    part = next(iter(data_parts(config.data).values()))
    named = part.tokenizer if part.tokenizer is not None else config.model
    if not isinstance(named, Path) or not named.exists():
        return None
    try:
        return Tokenizer.load(tokenizer_place(named))
    except RunError:  # a stage that is not done yet
        return None


def _vocabulary(config: TrainStage, recipe: Recipe, tokenizer: Tokenizer | None, assumed: list[str]) -> int:
    if tokenizer is not None:
        return tokenizer.vocabulary
    for part in data_parts(config.data).values():
        for planned in recipe.stages.values():
            if planned.verb == "tokenizer" and planned.folder == part.tokenizer:
                size = int(planned.config.vocabulary)
                assumed.append(f"a vocabulary of {size:,}, as its tokenizer's recipe says")
                return size
    size = VOCABULARY
    if isinstance(config.model, FamilyConfig):
        with contextlib.suppress(ConfigProblem):  # some families know no size that is theirs
            size = FAMILIES[config.model.family].spec(config.model.values({})).vocabulary
    assumed.append(f"a vocabulary of {size:,}: the tokenizer is not made yet")
    return size


def _model(config: TrainStage, vocabulary: int, earlier: dict[Path, Work], assumed: list[str]) -> Model:
    heads = heads_for(config.objective)
    if isinstance(config.model, ModelConfig):
        return build_empty(build_spec(config.model, vocabulary), heads)
    if isinstance(config.model, FamilyConfig):
        numbers = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        if config.model.kind == "encoder_decoder":
            numbers["decoder_start_token_id"] = 0
        with torch.device("meta"):
            return new_model(config.model, numbers, heads)
    made = next((folder for folder in earlier if config.model in (folder, folder / "model")), None)
    if made is not None:
        before = earlier[made].model
        model = build_empty(
            before.spec, {name: before.head_specs.get(name, head) for name, head in heads.items()}
        )
    elif config.model.exists():
        model = empty_model(model_folder(config.model, pickled=config.pickled), heads, config.pickled)
    else:
        raise DataError(
            f"model: {config.model} is not on this machine, so its sizes are not known; get it first, or plan a new "
            "model of its family (model: {family: llama, preset: ...})"
        )
    if config.upcycle is not None:
        model = build_empty(upcycled_spec(model.spec, config.upcycle), model.head_specs)
    return model


def _lengths(
    key: str, part: DataConfig, tokenizer: Tokenizer | None, say: Callable[[str], None]
) -> np.ndarray:
    """N x 2 (source, stream) lengths: of a sample of the corpus, or the longest that are allowed."""
    if tokenizer is not None and part.corpus.exists():
        found = _sampled(part, tokenizer)
        if len(found):
            return found
        raise DataError(f"{key}: the first {SAMPLE:,} rows of {part.corpus} hold nothing for this data")
    both = isinstance(part, PairsConfig | DenoiseConfig)
    longest = min(part.max_length, part.micro // 2 if both else part.micro)
    longest -= longest % part.length_multiple
    what = (
        "documents as long as a row" if isinstance(part, CausalConfig) else "every row as long as max_length"
    )
    say(f"{what} ({longest:,} places), without padding: the corpus is not made yet")
    return np.array([[longest if both else 0, longest]])


def _sampled(part: DataConfig, tokenizer: Tokenizer) -> np.ndarray:
    rows: list[tuple[int, int]] = []
    pairs = isinstance(part, PairsConfig)
    texts: list[str] = []
    others: list[str] = []
    for document in islice(read_split(part.corpus, "train"), SAMPLE):
        for text, other in _texts(part, document):
            texts.append(text)
            others.append(other)
    sources = [len(tokens) for tokens in tokenizer.encode_batch(texts)]
    targets = [len(t) for t in tokenizer.target.encode_batch(others)] if pairs else sources
    for source, target in zip(sources, targets):
        if not source or not target:
            continue
        if isinstance(part, PairsConfig | DenoiseConfig):
            if source + 2 <= part.max_length and target + 1 <= part.max_length:
                rows.append((source + 2, target + 1))
        elif isinstance(part, CausalConfig):
            rows.append((0, source + 1))
        else:
            whole, rest = divmod(source, part.max_length - 2)
            rows += [(0, part.max_length)] * whole + ([(0, rest + 2)] if rest else [])
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _texts(part: DataConfig, document: Document) -> Iterator[tuple[str, str]]:
    """The texts that the data takes of a row; of a pair, both sides together."""
    if isinstance(part, PairsConfig):
        if document.target is not None:
            yield document.text, document.target
        return
    sides = part.sides if isinstance(part, TextConfig) else "both"
    wanted = part.languages if isinstance(part, TextConfig) else ()
    if sides != "target" and (not wanted or document.language in wanted):
        yield document.text, ""
    if sides != "text" and document.target is not None and (not wanted or document.target_language in wanted):
        yield document.target, ""


def _rows(config: TrainStage) -> int | None:
    parts = data_parts(config.data).values()
    if not all(part.corpus.exists() for part in parts):
        return None
    return sum(count(part.corpus, "train") for part in parts)


def _dev_batches(config: TrainStage, lengths: Lengths, shape: Shape) -> float | None:
    """Micro-batches of an evaluation; None where the corpus is not made yet."""
    if config.evaluation is None:
        return 0.0
    if config.evaluation.batches is not None:
        return float(config.evaluation.batches)
    places = 0.0
    for key, part in data_parts(config.data).items():
        if not part.corpus.exists():
            return None
        places += count(part.corpus, "dev") * float(lengths[key].sum(1).mean())
    return places / shape.micro.places


def shape_of(config: TrainStage, vocabulary: int, lengths: Lengths) -> Shape:
    """The mean shape of the first steps (fewer where they are large)."""
    source = synthetic(config.data, vocabulary, lengths, data_seed(config))
    steps: list[list[Batch]] = []
    looked = 0
    while len(steps) < 8 and (not steps or looked < _LOOK):
        steps.append(source.step(len(steps)))
        looked += sum(_places(batch) for batch in steps[-1])
    batches = [batch for step in steps for batch in step]
    micro, real = _mean(batches)
    each = len(batches) / len(steps)
    return Shape(Rows(micro.count * each, micro.length, micro.source, micro.trained), micro, each, real)


def _places(batch: Batch) -> int:
    return batch["ids"].numel() + (batch["source_ids"].numel() if "source_ids" in batch else 0)


def _mean(batches: list[Batch]) -> tuple[Rows, float]:
    """Mean rows, and mean lengths by which rows x length is the mean number of places; and the real share."""
    rows = sum(batch["ids"].shape[0] for batch in batches)
    places = sum(batch["ids"].numel() for batch in batches)
    source = sum(batch["source_ids"].numel() for batch in batches if "source_ids" in batch)
    real = sum(
        int((batch[key] != 0).sum())
        for batch in batches
        for key in ("segments", "source_segments")
        if key in batch
    )
    trained = sum(trained_tokens(batch) for batch in batches)
    mean = Rows(rows / len(batches), places / rows, source / rows, trained / places)
    return mean, real / (places + source)


def flops_per_place(model: Model, rows: Rows) -> float:
    """FLOPs of training for each padded place: as `Model.flops_per_token` counts, but the token head only at places
    that are trained."""
    counted = model.flops_per_token(round(rows.length), round(rows.source))
    head = 6.0 * rows.length * model.spec.hidden * model.spec.vocabulary / (rows.length + rows.source)
    return counted - head * (1 - rows.trained)
