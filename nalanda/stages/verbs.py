"""The verbs that a recipe may name. A stage's module is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from nalanda.stages.stage import Stage


def _corpus() -> Stage:
    from nalanda.stages.corpus import STAGE

    return STAGE


def _tokenizer() -> Stage:
    from nalanda.stages.tokenizer import STAGE

    return STAGE


def _train() -> Stage:
    from nalanda.stages.train import STAGE

    return STAGE


def _evaluate() -> Stage:
    from nalanda.stages.evaluate import STAGE

    return STAGE


def _report() -> Stage:
    from nalanda.stages.report import STAGE

    return STAGE


VERBS: dict[str, Callable[[], Stage]] = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}


def stage_of(verb: str) -> Stage:
    """The stage that `verb` names; the caller has checked that it is one of VERBS."""
    return VERBS[verb]()
