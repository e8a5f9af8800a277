"""Every line of every code with text in the benchmark data comes back exactly."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train


def _files(shared: Path) -> list[Path]:
    files = [
        *shared.glob("mt/ui/*.jsonl.gz"),
        *shared.glob("mt/flores200/*.gz"),
        *shared.glob("mt/nllb_seed/*.gz"),
    ]
    assert len(files) > 90
    return sorted(files)


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if path.name.endswith(".jsonl.gz"):
                row = json.loads(line)
                yield row["xx"]
                yield row["en"]
            else:
                yield line.removesuffix("\n")


def _tokenizer(shared: Path, kind: str, rows: int) -> Tokenizer:
    texts = [text for path in _files(shared) for text in islice(_lines(path), rows)]
    coverage = 0.9995  # of some thousand characters, many once: the rest is bytes, which are under test too
    return train(texts, TokenizerConfig(kind=kind, vocabulary=4000, character_coverage=coverage))  # type: ignore[arg-type]


def _check(tokenizer: Tokenizer, texts: Iterator[str], path: Path) -> int:
    count = 0
    while batch := list(islice(texts, 20_000)):
        back = tokenizer.decode_batch(tokenizer.encode_batch(batch))
        for text, decoded in zip(batch, back, strict=True):
            assert decoded == text, f"{path.name}: {text!r} came back as {decoded!r}"
        count += len(batch)
    return count


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_two_hundred_lines_of_every_file(kind: str, shared_data: Path) -> None:
    tokenizer = _tokenizer(shared_data, kind, 15)
    assert sum(_check(tokenizer, islice(_lines(path), 200), path) for path in _files(shared_data)) > 15_000


@pytest.mark.shared
@pytest.mark.slow
def test_every_line_of_every_file(shared_data: Path) -> None:
    tokenizer = _tokenizer(shared_data, "bpe", 500)
    assert sum(_check(tokenizer, _lines(path), path) for path in _files(shared_data)) > 1_500_000
