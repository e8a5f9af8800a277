"""Written lines, and one small tokenizer of each kind, ours and SentencePiece's, trained once."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def awkward() -> list[str]:
    """Texts that break tokenizers."""
    spec = importlib.util.spec_from_file_location("awkward", Path(__file__).with_name("awkward.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.texts())


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "unigram bytes": {"model_type": "unigram", "byte_fallback": True, "character_coverage": 0.98},
    "unigram plain": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
    },
    "unigram symbols": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc_cf",
        "user_defined_symbols": ["<sep>", "[X]", "ＡＢ", "the"],
    },
    "bpe": {"model_type": "bpe"},
    "bpe llama": {"model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98, **IDENTITY},
    "bpe gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<sep>", "[X]", "\n", "\n\n", "▁▁", "▁▁▁"],
        **IDENTITY,
    },
    "bpe symbols": {"model_type": "bpe", "user_defined_symbols": ["<sep>", "[X]", "ab", "\n"]},
    "char": {"model_type": "char"},
}
"""Options of SentencePiece's trainer."""


def _sentencepiece(texts: list[str], path: Path, size: int, options: dict[str, Any]) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def sentencepiece_file(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a small SentencePiece model, by the name of its options."""
    folder = tmp_path_factory.mktemp("sentencepiece")

    def make(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-')}.model"
        return path if path.exists() else _sentencepiece(corpus, path, 700, SENTENCEPIECE[name])

    return make


@pytest.fixture(scope="session")
def flores(shared_data: Path) -> list[str]:
    """Every line of every language of FLORES-200's dev set that the benchmark data hold."""
    files = sorted((shared_data / "mt" / "flores200").glob("*.gz"))
    assert len(files) == 21
    lines = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines += [line.removesuffix("\n") for line in file]
    assert len(lines) == 21 * 997
    return lines


@pytest.fixture(scope="session")
def large_sentencepiece_file(
    flores: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The file of a SentencePiece model of FLORES's lines, by the name of its options."""
    folder = tmp_path_factory.mktemp("large")

    def make(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-')}.model"
        options = {"character_coverage": 0.999, **SENTENCEPIECE[name]}
        return path if path.exists() else _sentencepiece(flores[::12], path, 2500, options)

    return make
