"""`nalanda evaluate`: models and baselines translate the same test rows; scores, intervals, slices.

Decoder language models are scored by perplexity and bits per byte of the held-out texts instead.

scores: {verb: evaluate, corpus: ${corpus}, models: {pre-trained: ${finetune}, random: ${scratch}}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nalanda.base.errors import DataError
from nalanda.base.run import Run
from nalanda.config import Config
from nalanda.corpus.document import Document
from nalanda.corpus.store import read_split
from nalanda.evaluate.baselines import NAMES, Pair, Query, translate_all
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.scoring import Settings
from nalanda.evaluate.translation import compare, evaluate_translations
from nalanda.generate.decode import transduce
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import ENGLISH
from nalanda.generate.scoring import log_probabilities
from nalanda.stages.language_model import held_out_texts, likelihood
from nalanda.stages.pipeline import model_folder
from nalanda.stages.stage import Context, Stage
from nalanda.stages.use import check_translator, open_model


class EvaluateStage(Config):
    """Scores models of one kind on a split. The first model is the main arm, the others are controls."""

    verb: Literal["evaluate"] = "evaluate"
    corpus: Path
    models: dict[str, Path] = Field(min_length=1)
    split: Literal["test", "dev"] = "test"
    decoding: DecodeConfig = DecodeConfig(kind="beam", beams=4)
    baselines: bool = True
    likelihood: bool = Field(True, description="also score the references: perplexity and bits per byte")
    rows: int | None = Field(default=None, gt=0, description="at most so many rows, the first ones")
    scoring: Settings = Settings()

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, Path]) -> dict[str, Path]:
        for name in models:
            if not name or not all(c.isalnum() or c in "-_ " for c in name):
                raise ValueError(f"'{name}' must be letters, digits, spaces, '-' or '_': it names a folder")
            if name in NAMES:
                raise ValueError(f"'{name}' is the name of a baseline; call the model something else")
        return models


def test_rows(config: EvaluateStage) -> list[Document]:
    """The pairs of the split. Raises DataError where there are none."""
    rows = [d for d in read_split(config.corpus, config.split) if d.target is not None][: config.rows]
    if not rows:
        other = "dev" if config.split == "test" else "test"
        raise DataError(
            f"{config.corpus}: its {config.split} split has no translation pairs; add rows, or score split: {other}"
        )
    return rows


def run(config: EvaluateStage, run: Run, context: Context) -> dict[str, Any]:
    """Translations or likelihoods, as the first model's kind wants."""
    model = open_model(next(iter(config.models.values()))).model
    if model.spec.decoder and not model.spec.encoder:
        return score_language_models(config, context)
    return score_translations(config, run, context)


def score_language_models(config: EvaluateStage, context: Context) -> dict[str, Any]:
    """Perplexity and bits per byte of each model. Raises DataError for a model that is not a decoder."""
    texts = held_out_texts(config.corpus, config.split, config.rows)
    scores: dict[str, Any] = {}
    for name, place in config.models.items():
        opened = open_model(place)
        if opened.model.spec.encoder:
            raise DataError(
                f"models.{name}: {place} is not a decoder, but the first model is; score them apart"
            )
        scores[name] = likelihood(opened, texts, context).scores(config.scoring)
    name, first = next(iter(scores.items()))
    headline = (
        f"{name}: {first['bits_per_byte']:.3f} bits per byte [{first['bits_per_byte_low']:.3f}, "
        f"{first['bits_per_byte_high']:.3f}], perplexity {first['perplexity']:.2f} "
        f"on {len(texts):,} {config.split} texts"
    )
    return {"rows": len(texts), "scores": scores, "headline": headline}


def score_translations(config: EvaluateStage, run: Run, context: Context) -> dict[str, Any]:
    """Writes a folder of translations and scores for each system."""
    rows = test_rows(config)
    scored: dict[str, list[Translation]] = {}
    summary: dict[str, Any] = {}
    for index, (name, place) in enumerate(config.models.items()):
        translated = translate(config, place, rows, context)
        scored[name] = translated
        role: Literal["main", "control"] = "main" if index == 0 else "control"
        summary[name] = _score(config, run, translated, name, role, place.name, context)
    if config.baselines:
        pairs = (
            Pair(d.text, d.target, d.target_language)
            for d in read_split(config.corpus, "train")
            if d.target is not None
        )
        queries = [Query(d.text, d.target_language) for d in rows]
        for name, hypotheses in translate_all(queries, pairs, context.progress).items():
            translated = [_row(d, text) for d, text in zip(rows, hypotheses)]
            summary[name] = _score(config, run, translated, name, "baseline", "", context)
    names = list(config.models)
    result: dict[str, Any] = {"rows": len(rows), "scores": summary}
    main = summary[names[0]]
    result["headline"] = (
        f"{names[0]}: chrF++ {main['chrf']:.1f}, BLEU {main['bleu']:.1f} on {len(rows):,} {config.split} rows"
    )
    if len(names) > 1:
        difference = compare(scored[names[0]], scored[names[1]], config.scoring).overall["chrf"]
        result["headline"] += (
            f"; {difference.value:+.1f} chrF++ against {names[1]} "
            f"[{difference.low:+.1f}, {difference.high:+.1f}]: {difference.verdict}"
        )
    return result


def _score(
    config: EvaluateStage,
    run: Run,
    rows: list[Translation],
    name: str,
    role: Literal["main", "control", "baseline"],
    model: str,
    context: Context,
) -> dict[str, Any]:
    scores = evaluate_translations(
        rows,
        run.path / name,
        name=name,
        role=role,
        model=model,
        settings=config.scoring,
        progress=context.progress,
    )
    overall = scores["overall"]
    return {metric: overall[metric]["value"] for metric in ("chrf", "bleu", "exact") if metric in overall}


def _row(
    document: Document, hypothesis: str, nll: float | None = None, tokens: int | None = None
) -> Translation:
    return Translation(
        id=document.id,
        source=document.text,
        reference=document.target or "",
        hypothesis=hypothesis,
        target_language=document.target_language,
        origin=document.origin,
        nll=nll,
        tokens=tokens,
    )


def translate(
    config: EvaluateStage, place: Path, rows: list[Document], context: Context
) -> list[Translation]:
    """A model's translations of the rows, with the likelihood of the references where asked for."""
    opened = open_model(place)
    check_translator(opened.model, place)
    prompting, tokenizer = opened.prompting, opened.tokenizer
    sources = [prompting.source(d.text, d.target_language, d.language or ENGLISH) for d in rows]
    found = transduce(opened.model, sources, prompting, config.decoding, progress=context.progress)
    if not config.likelihood:
        return [_row(d, g.text) for d, g in zip(rows, found)]
    written = tokenizer.target.encode_batch([d.target or "" for d in rows])
    prompts, starts = [source.ids for source in sources], [source.start for source in sources]
    first = [[] if source.forced is None else [source.forced] for source in sources]
    targets = [[*tag, *ids, prompting.eos] for tag, ids in zip(first, written)]
    scored = log_probabilities(opened.model, prompts, targets, bos=starts, progress=context.progress)
    likelihoods = [row[len(tag) :] for row, tag in zip(scored, first)]  # a tag that is given is not predicted
    return [_row(d, g.text, -sum(l), len(l)) for d, g, l in zip(rows, found, likelihoods)]


def inputs(config: EvaluateStage) -> dict[str, Path]:
    """The corpus and every model."""
    return {"corpus": config.corpus} | {
        f"models.{name}": model_folder(place) for name, place in config.models.items()
    }


def shrink(config: EvaluateStage) -> EvaluateStage:
    """Four rows, greedily."""
    greedy = config.decoding.model_copy(update={"kind": "greedy", "max_length": 8, "n_best": 1})
    return config.model_copy(update={"rows": 4, "decoding": greedy})


STAGE = Stage(config=EvaluateStage, run=run, inputs=inputs, shrink=shrink)
