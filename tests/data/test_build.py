"""From a corpus folder to sources: what is tokenized, counted, reused and made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter
from nalanda.data.build import build_source
from nalanda.data.denoise import DenoiseConfig
from nalanda.data.masking import MaskedConfig
from nalanda.data.mixture import MixtureConfig
from nalanda.data.next_sentence import NextSentenceConfig
from nalanda.data.packing import CausalConfig
from nalanda.data.pairs import PairsConfig
from nalanda.data.preview import check_source

ROWS = [
    Document(
        f"word{i % 20} again{i}. And more of it! So be it",
        f"a:{i}",
        "eng_Latn",
        f"शब्द {i} है",
        "hin_Deva",
        "a",
    )
    for i in range(30)
] + [
    Document("alone here. Still alone", "b:0", "tam_Taml"),
    Document("alone here. Still alone", "b:1", "tam_Taml"),
]


def write_corpus(folder: Path, documents: list[Document]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "train.parquet").open("wb") as file, SplitWriter(file) as writer:
        for document in documents:
            writer.write(document)
    return folder


class CountingTokenizer:
    """Hands everything on, and counts the texts."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.texts, self.target = inner, 0, self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        self.texts += len(texts)
        return self.inner.encode_batch(texts)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", ROWS)


@pytest.fixture
def tokenizer(make: Any) -> Any:
    return CountingTokenizer(make.tokenizer)


def values(corpus: Path, **more: Any) -> dict[str, Any]:
    return {"corpus": corpus, "tokenizer": corpus, "batch_tokens": 400, "max_length": 40, **more}


def test_pairs(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    source = build_source(PairsConfig(**values(corpus)), "train", tokenizer, tmp_path / "data", 1)
    told = source.describe()
    assert told["rows"] == 30
    assert told["corpus"] == {"pairs": 30, "without_target": 2}
    assert told["rows_by_language"] == {"hin_Deva": 30}
    (batch,) = source.step(0)
    assert set(batch["source_ids"][:, 0].tolist()) == {tokenizer.language("hin_Deva")}


@pytest.mark.parametrize(("direction", "languages"), [("backward", {"eng_Latn": 30}), ("both", None)])
def test_directions(
    corpus: Path, tokenizer: Any, tmp_path: Path, direction: str, languages: dict[str, int] | None
) -> None:
    config = PairsConfig(**values(corpus, direction=direction))
    source = build_source(config, "train", tokenizer, tmp_path / "data", 1)
    assert source.describe()["rows_by_language"] == (languages or {"hin_Deva": 30, "eng_Latn": 30})
    forward = build_source(PairsConfig(**values(corpus)), "train", tokenizer, tmp_path / "data", 1)
    assert forward.describe()["rows_by_language"] == {"hin_Deva": 30}  # another direction is not reused


def test_texts_come_once_and_romanized_where_that_differs(
    corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    config = DenoiseConfig(**values(corpus, noise={"romanize": 1, "edit": 1}))
    roman = {"calls": 0}

    def romanize(text: str) -> str:
        roman["calls"] += 1
        return text.replace("शब्द", "shabda").replace("है", "hai")

    source = build_source(config, "train", tokenizer, tmp_path / "data", 1, romanize=romanize)
    told = source.describe()
    assert told["corpus"] == {"texts": 61, "repeated": 1}
    assert told["rows_by_language"] == {"eng_Latn": 30, "hin_Deva": 30, "tam_Taml": 1}
    assert told["romanized"] == 30
    assert roman["calls"] == 61
    build_source(config, "train", tokenizer, tmp_path / "data", 2, romanize=romanize)
    assert roman["calls"] == 61


def test_sides_and_languages(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    config = CausalConfig(**values(corpus, sides="target"))
    assert build_source(config, "train", tokenizer, tmp_path / "a", 1).describe()["documents"] == 30
    config = CausalConfig(**values(corpus, languages=("tam_Taml",)))
    told = build_source(config, "train", tokenizer, tmp_path / "b", 1).describe()
    assert told["documents"] == 1
    assert told["corpus"] == {"texts": 1, "other_language": 60, "repeated": 1}


@pytest.mark.parametrize("kind", [CausalConfig, MaskedConfig, NextSentenceConfig, DenoiseConfig, PairsConfig])
def test_every_kind_can_be_built_and_checked(
    corpus: Path, tokenizer: Any, tmp_path: Path, kind: type[Any]
) -> None:
    source = build_source(kind(**values(corpus)), "train", tokenizer, tmp_path / "data", 1)
    assert check_source(source)


def test_a_mixture_builds_its_parts_with_seeds_of_their_own(
    corpus: Path, tokenizer: Any, tmp_path: Path
) -> None:
    part = values(corpus)
    parts = [{**part, "kind": "denoise"}, {**part, "kind": "denoise"}, {**part, "kind": "pairs"}]
    config = MixtureConfig(parts=parts, weights=(1, 1, 2))  # type: ignore[arg-type]
    source = build_source(config, "train", tokenizer, tmp_path / "data", 1)
    prints = {part.fingerprint for part in source.parts}  # type: ignore[attr-defined]
    assert len(prints) == 3


def test_stores_are_reused_until_something_changes(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    config = PairsConfig(**values(corpus))

    def texts() -> int:
        before = tokenizer.texts
        build_source(config, "train", tokenizer, tmp_path / "data", 1)
        return tokenizer.texts - before

    assert texts() == 60
    assert texts() == 0
    damaged = tmp_path / "data" / "pairs-train-target" / "tokens.bin"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-2] + b"\x40\x00")
    assert texts() == 60
    assert damaged.read_bytes() == content
    write_corpus(corpus, ROWS[:10])
    assert texts() == 20
    tokenizer.inner.fingerprint = "other"
    assert texts() == 20


def test_a_store_cut_off_halfway_is_made_again(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    config = PairsConfig(**values(corpus))
    tokenizer.inner.encode_batch, whole = None, tokenizer.inner.encode_batch
    with pytest.raises(TypeError):
        build_source(config, "train", tokenizer, tmp_path / "data", 1)
    assert not list((tmp_path / "data").iterdir())
    tokenizer.inner.encode_batch = whole
    assert build_source(config, "train", tokenizer, tmp_path / "data", 1).describe()["rows"] == 30


def test_bad_corpora(tokenizer: Any, tmp_path: Path) -> None:
    def build(documents: list[Document], config: Any = PairsConfig, **more: Any) -> None:
        corpus = write_corpus(tmp_path / "corpus", documents)
        build_source(config(**values(corpus, **more)), "train", tokenizer, tmp_path / "data", 1)

    with pytest.raises(DataError, match="the split 'train' has no rows"):
        build([])
    with pytest.raises(DataError, match=r"gives no row for this data \(2 without_target\)"):
        build(ROWS[-2:])
    with pytest.raises(DataError, match="a row has no language"):
        build([Document("a", "x:0", "", "b", "")])
    with pytest.raises(DataError, match="no tag for kan_Knda"):
        build([Document("a", "x:0", "eng_Latn", "b", "kan_Knda")])
    with pytest.raises(DataError, match=r"no pair is left of 1 .* 1 longer than max_length 40"):
        build([Document("a " * 50, "x:0", "eng_Latn", "b", "hin_Deva")])
    with pytest.raises(DataError, match="at least two texts"):
        build([Document("a. b. c", "x:0", "eng_Latn")], NextSentenceConfig)
    with pytest.raises(DataError, match="no such file"):
        build_source(PairsConfig(**values(tmp_path / "nowhere")), "train", tokenizer, tmp_path / "data", 1)
