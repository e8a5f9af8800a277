"""What several test files share: running a command line in this process, and the overrides of a tiny quickstart."""

from __future__ import annotations

from pathlib import Path

from nalanda import cli

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    *[f"corpus.sources.{i}.share={share}" for i, share in enumerate((0.06, 0.2, 0.2))],
    "corpus.sources.0.languages=[hin_Deva,tam_Taml]",
    "corpus.sources.1.languages=[hin_Deva,tam_Taml]",
    "corpus.sources.2.languages=[hin_Deva,tam_Taml]",
    "tokenizer.vocabulary=700",
    *[
        f"{stage}.{change}"
        for stage in ("pretrain", "finetune", "scratch")
        for change in (
            "budget={steps: 2}",
            "evaluation.every=1",
            "evaluation.batches=1",
            "compile=off",
            "threads=1",
        )
    ],
    "finetune.translations.rows=4",
    "scratch.translations.rows=4",
    "pretrain.model.layers=1",
    "pretrain.model.hidden=32",
    "pretrain.model.inner=64",
    "scratch.model.layers=1",
    "scratch.model.hidden=32",
    "scratch.model.inner=64",
    "scores.decoding.max_length=8",
    "scores.rows=12",
]


def nalanda(*words: str) -> int:
    """Runs a command line in this process; returns its exit code."""
    try:
        cli.main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
