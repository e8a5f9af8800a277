"""Written lines, and one small tokenizer of each kind, trained once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train

_ENGLISH = [
    "The Government of India Act was passed in 1935.",
    "Save the file before you close the window",
    "don't stop (really), the server said: 100% done...",
    "Sri Lanka and Sierra Leone are countries; so is the Republic of India.",
]


@pytest.fixture(scope="session")
def lines() -> dict[str, list[str]]:
    """Lines by code for the codes without shared text, and cases that break tokenizers."""
    values: dict[str, list[str]] = json.loads(
        Path(__file__).with_name("lines.json").read_text(encoding="utf-8")
    )
    return values


@pytest.fixture(scope="session")
def corpus(lines: dict[str, list[str]]) -> list[str]:
    """A little training text: English and the five codes, each line several times."""
    codes = [code for code in lines if "_" in code]
    return (_ENGLISH + [line for code in codes for line in lines[code]]) * 3


@pytest.fixture(scope="session")
def small(corpus: list[str]) -> Callable[[str], Tokenizer]:
    """A small tokenizer of the kind asked for, with two languages and three sentinels."""
    made: dict[str, Tokenizer] = {}

    def make(kind: str) -> Tokenizer:
        if kind not in made:
            config = TokenizerConfig(
                kind=kind,  # type: ignore[arg-type]
                vocabulary=490,
                languages=("hin_Deva", "tam_Taml"),
                sentinels=3,
            )
            made[kind] = train(corpus, config)
        return made[kind]

    return make
