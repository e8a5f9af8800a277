"""Training: exact sizes, the same result every time, clear refusals, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, _Sample, train

KINDS = ["bpe", "unigram", "wordpiece"]


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_vocabulary_asked_for(kind: str, small: Callable[[str], Tokenizer]) -> None:
    tokenizer = small(kind)
    assert tokenizer.vocabulary == 490
    first = " ".join(tokenizer.token(i) for i in range(10))
    assert first == "<pad> <unk> <bos> <eos> <mask> <2hin_Deva> <2tam_Taml> <extra_0> <extra_1> <extra_2>"
    assert len({tokenizer.token(i) for i in range(490)}) == 490
    assert len(tokenizer.byte_ids) == (0 if kind == "wordpiece" else 256)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_tokenizer(
    kind: str, corpus: list[str], small: Callable[[str], Tokenizer]
) -> None:
    # In another process, whose hash tables are ordered differently.
    program = (
        "import json, sys\n"
        "from nalanda.tokenizer.train import *\n"
        "kind, texts = json.load(sys.stdin)\n"
        "config = TokenizerConfig(kind=kind, vocabulary=490, languages=('hin_Deva', 'tam_Taml'), sentinels=3)\n"
        "print(train(texts, config).fingerprint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([kind, corpus]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == small(kind).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_larger_than_the_text_supports_names_the_largest(kind: str, corpus: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"vocabulary: 32000 asked, the text supports only \d+; set vocabulary="
    ) as error:
        train(corpus, TokenizerConfig(kind=kind, vocabulary=32000))  # type: ignore[arg-type]
    most = int(str(error.value).partition("only ")[2].partition(";")[0])
    assert train(corpus, TokenizerConfig(kind=kind, vocabulary=most)).vocabulary == most  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_room_for_the_characters_is_refused(kind: str, corpus: list[str]) -> None:
    with pytest.raises(DataError, match=r"vocabulary: 100 asked, but 5 special tokens, .*characters"):
        train(corpus, TokenizerConfig(kind=kind, vocabulary=100))  # type: ignore[arg-type]


def test_no_text_is_refused() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            train(texts, TokenizerConfig(vocabulary=400))


def test_every_character_of_the_text_has_a_piece_even_where_the_sample_misses_it() -> None:
    texts = ["plain words here"] * 400 + ["the letter ߷ once"] + ["plain words again"] * 400
    tokenizer = train(texts, TokenizerConfig(vocabulary=295, sample_characters=500))
    assert not tokenizer.byte_ids & set(tokenizer.encode("߷"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rare_characters_are_spelled_as_bytes_and_join_nothing(kind: str) -> None:
    texts = ["ab cd"] * 500 + ["xߊy"] * 4
    tokenizer = train(texts, TokenizerConfig(kind=kind, vocabulary=268, character_coverage=0.998))  # type: ignore[arg-type]
    ids = tokenizer.encode("xߊy")
    assert [tokenizer.token(i) for i in ids if i in tokenizer.byte_ids] == ["<0xDF>", "<0x8A>"]
    assert tokenizer.decode(ids) == "xߊy"
    assert "xy" not in {tokenizer.token(i) for i in range(tokenizer.vocabulary)}


def test_without_byte_fallback_unseen_characters_are_unknown() -> None:
    tokenizer = train(["ab cd"] * 10, TokenizerConfig(vocabulary=14, byte_fallback=False))
    assert not tokenizer.byte_ids
    assert tokenizer.encode("ab ߊ")[-1] == tokenizer.unk


def test_wordpiece_knows_every_seen_character_at_every_place() -> None:
    tokenizer = train(["xa ya za"] * 5, TokenizerConfig(kind="wordpiece", vocabulary=17))
    assert tokenizer.unk not in tokenizer.encode("ax azy zzz a xx")
    assert tokenizer.decode(tokenizer.encode("ax azy zzz a xx")) == "ax azy zzz a xx"


def test_lowercase_and_no_prefix_space(corpus: list[str]) -> None:
    tokenizer = train(corpus, TokenizerConfig(vocabulary=450, lowercase=True))
    assert tokenizer.decode(tokenizer.encode("Sri LANKA")) == "sri lanka"
    bare = train(corpus, TokenizerConfig(vocabulary=450, prefix_space=False))
    assert bare.decode(bare.encode(" the file")) == " the file"
    assert bare.encode("the")[0] != bare.encode(" the")[0]


def test_a_stream_is_read_once_and_the_sample_stays_within_its_budget() -> None:
    def stream() -> Iterator[str]:
        for i in range(5000):
            yield f"text number {i} " * 5

    sample = _Sample(budget=20_000, seed=1)
    most = 0
    for text in stream():
        sample.add(text)
        most = max(most, sample.held)
    assert most <= 20_000
    assert sample.held > 5_000
    numbers = [int(text.split()[2]) for text in sample.texts()]
    assert min(numbers) < 500  # even over the stream, not its head or its tail
    assert max(numbers) > 4500
    assert numbers == sorted(numbers)
    other = _Sample(budget=20_000, seed=2)
    for text in stream():
        other.add(text)
    assert list(other.texts()) != list(sample.texts())


def test_one_long_text_without_a_space_is_learned_from_and_encoded() -> None:
    text = "कखगघङचछज" * 50_000
    tokenizer = train([text], TokenizerConfig(vocabulary=280, sample_characters=200_000))
    ids = tokenizer.encode(text)
    assert len(ids) < len(text) / 4
    assert tokenizer.decode(ids) == text


def test_progress_counts_every_text(corpus: list[str]) -> None:
    import contextlib

    seen: dict[str, int] = {}

    class Bar:
        def __init__(self, label: str) -> None:
            self.label = label

        def update(self, n: int = 0, **shown: str | float) -> None:
            seen[self.label] = seen.get(self.label, 0) + n

    @contextlib.contextmanager
    def progress(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Bar]:
        yield Bar(label)

    train(corpus * 30, TokenizerConfig(vocabulary=450), progress)
    assert seen == {"reading text for the tokenizer": len(corpus) * 30, "learning 450 pieces": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocabulary": 0}, "vocabulary"),
        ({"vocabulary": 400, "kind": "bep"}, "kind"),
        ({"vocabulary": 400, "languages": ["hin Deva"]}, "is not a language code"),
        ({"vocabulary": 400, "languages": ["hin_Deva", "hin_Deva"]}, "twice"),
        ({"vocabulary": 400, "kind": "wordpiece", "byte_fallback": True}, "wordpiece cannot"),
        ({"vocabulary": 400, "character_coverage": 1.5}, "character_coverage"),
    ],
)
def test_mistakes_in_the_config(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(TokenizerConfig, values, "recipe.yaml")


def test_the_definition_is_json_that_keeps_scripts_readable(
    tmp_path: Path, small: Callable[[str], Tokenizer]
) -> None:
    small("bpe").save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(text)["model"]["byte_fallback"] is True
    assert "क" in text
