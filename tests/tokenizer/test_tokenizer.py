"""Encoding, decoding, saving: exact round trips, text that stays text, the same ids in transformers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nalanda.base.errors import DataError, RunError
from nalanda.tokenizer.pretokenizer import CONTINUATION
from nalanda.tokenizer.tokenizer import Tokenizer

KINDS = ["bpe", "unigram", "wordpiece"]
LOSSLESS = ["bpe", "unigram"]
Small = Callable[[str], Tokenizer]


def assert_round_trip(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids = tokenizer.encode_batch(texts)
    for text, row, back in zip(texts, ids, tokenizer.decode_batch(ids), strict=True):
        assert back == text, f"{text!r} came back as {back!r}"
        assert not tokenizer.special_ids & set(row), f"{text!r} reached a special token"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_written_lines_come_back_exactly(kind: str, small: Small, lines: dict[str, list[str]]) -> None:
    written = [line for group in lines.values() for line in group]
    assert_round_trip(small(kind), written)
    assert_round_trip(small(kind), [unicodedata.normalize("NFC", line) for line in written])


def test_wordpiece_brings_back_text_of_seen_characters(small: Small, corpus: list[str]) -> None:
    assert_round_trip(small("wordpiece"), [*corpus, "#", "## a", " ### #", "don't  stop (really)\u200c"[:-1]])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_unicode_text_comes_back_exactly(kind: str, small: Small) -> None:
    tokenizer = small(kind)
    awkward = st.sampled_from(
        [
            *"▁ \t\n\r#<>0x2aќि़्",
            "\u200d",
            "\u200c",
            "<pad>",
            "<0x0A>",
            "<2hin_Deva>",
            "<extra_0>",
            "  ",
            "\0",
            "\ufeff",
            "👩🏽",
        ]
    )
    texts = st.lists(st.one_of(awkward, st.text(st.characters(exclude_categories=["Cs"]), max_size=5))).map(
        "".join
    )

    @settings(max_examples=300, deadline=None)
    @given(texts)
    @example("")
    def check(text: str) -> None:
        assert_round_trip(tokenizer, [text])

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_texts_give(kind: str, small: Small, corpus: list[str]) -> None:
    tokenizer = small(kind)
    assert tokenizer.encode_batch(corpus) == [tokenizer.encode(text) for text in corpus]
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_distinct_and_left_out_on_request(kind: str, small: Small) -> None:
    tokenizer = small(kind)
    roles = [tokenizer.pad, tokenizer.unk, tokenizer.bos, tokenizer.eos, tokenizer.mask]
    tags = [tokenizer.language(code) for code in tokenizer.languages]
    assert tokenizer.languages == ("hin_Deva", "tam_Taml")
    assert len(tokenizer.sentinels) == 3
    assert len({*roles, *tags, *tokenizer.sentinels}) == 10
    assert tokenizer.special_ids == {*roles, *tags, *tokenizer.sentinels}
    ids = [
        tokenizer.bos,
        tags[0],
        *tokenizer.encode("the file"),
        tokenizer.sentinels[1],
        tokenizer.eos,
        tokenizer.pad,
    ]
    assert tokenizer.decode(np.array(ids)) == "the file"
    assert tokenizer.decode(ids, skip_special=False) == "<bos><2hin_Deva> the file<extra_1><eos><pad>"


def test_sentinels_are_in_the_order_of_their_numbers(corpus: list[str]) -> None:
    from nalanda.tokenizer.train import TokenizerConfig, train

    tokenizer = train(corpus, TokenizerConfig(vocabulary=450, sentinels=12))
    assert [tokenizer.token(i) for i in tokenizer.sentinels] == [f"<extra_{i}>" for i in range(12)]


def test_a_language_without_a_tag_is_refused_with_the_nearest(small: Small) -> None:
    with pytest.raises(
        DataError, match="'hin_Devaa': the tokenizer has no tag for it; did you mean hin_Deva"
    ):
        small("bpe").language("hin_Devaa")
    with pytest.raises(DataError, match="it has: hin_Deva, tam_Taml"):
        small("bpe").language("zzz")


@pytest.mark.parametrize("bad", [-1, 490, 10**6])
def test_ids_out_of_range_are_an_error(bad: int, small: Small) -> None:
    for call in (small("bpe").token, lambda i: small("bpe").decode([5, i])):
        with pytest.raises(ValueError, match="outside the vocabulary of 490"):
            call(bad)


def test_text_that_is_not_unicode_is_refused_with_its_place(small: Small) -> None:
    with pytest.raises(DataError, match=r"text 1 of the batch: a lone surrogate U\+DC80 at character 2"):
        small("bpe").encode_batch(["fine", "ab\udc80"])
    with pytest.raises(DataError, match="text 0 of the batch: expected a string, found NoneType"):
        small("bpe").encode_batch([None])  # type: ignore[list-item]


def test_bytes_that_are_no_text_become_replacement_characters(small: Small) -> None:
    tokenizer = small("bpe")
    first = tokenizer.encode("\U0001f9ff")[1]
    assert tokenizer.token(first) == "<0xF0>"
    assert "\ufffd" in tokenizer.decode([first, *tokenizer.encode("the")])


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_crosses_words_and_no_mark_leaves_its_base_at_a_cut(
    kind: str, small: Small, corpus: list[str]
) -> None:
    tokenizer = small(kind)
    for i in range(tokenizer.vocabulary):
        if i in tokenizer.special_ids or i in tokenizer.byte_ids:
            continue
        piece = tokenizer.token(i)
        piece = piece.removeprefix(CONTINUATION) if kind == "wordpiece" and piece != CONTINUATION else piece
        assert " " not in piece.lstrip(" "), piece
        letters = [unicodedata.category(c)[0] for c in piece.strip(" ")]
        assert not ("N" in letters and len(letters) > 1 and piece[-1] not in "\u200d\u200c"), piece
        assert not ({"L"} <= set(letters) and {"P", "S"} & set(letters)), piece


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("क्‍षेत्र हिंदी", [" क्‍षेत्र", " हिंदी"]),
        ("می‌خواهم", [" می‌خواهم"]),
        ("in १९47", [" in", " ", "१", "९", "4", "7"]),
        ("a  (b)...\n", [" a", " ", " (", "b", ")...", "\n"]),
        ("1️⃣ 👩🏽‍💻 ok", [" ", "1️⃣", " 👩🏽‍💻", " ok"]),
        ("।‍क", [" ।‍", "क"]),
    ],
)
def test_words(text: str, words: list[str], small: Small) -> None:
    rust = small("bpe")._rust
    normalized = rust.normalizer.normalize_str(text)
    assert [word for word, _ in rust.pre_tokenizer.pre_tokenize_str(normalized)] == words


@pytest.mark.parametrize("kind", KINDS)
def test_word_starts(kind: str, small: Small) -> None:
    tokenizer = small(kind)
    starts = tokenizer.word_starts
    assert starts.shape == (tokenizer.vocabulary,)
    assert starts.dtype == bool
    ids = tokenizer.encode("Government of Act 1935 said")
    words, word = [], []
    for i in ids:
        if starts[i] and word:
            words.append(tokenizer.decode(word))
            word = []
        word.append(i)
    assert [*words, tokenizer.decode(word)] == ["Government", "of", "Act", "1935", "said"]
    assert all(starts[i] for i in tokenizer.special_ids)
    assert not any(starts[i] for i in tokenizer.byte_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind: str, small: Small, corpus: list[str], tmp_path: Path) -> None:
    tokenizer = small(kind)
    tokenizer.save(tmp_path / "deep" / "folder")
    loaded = Tokenizer.load(tmp_path / "deep" / "folder")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode_batch(corpus) == tokenizer.encode_batch(corpus)
    for name in ("vocabulary", "pad", "unk", "bos", "eos", "mask", "sentinels", "languages", "special_ids"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert (loaded.word_starts == tokenizer.word_starts).all()


def test_other_tokenizers_have_other_fingerprints(small: Small) -> None:
    assert len({small(kind).fingerprint for kind in KINDS}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it_with_the_same_ids(
    kind: str, small: Small, lines: dict[str, list[str]], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = small(kind)
    tokenizer.save(tmp_path)
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = loader.from_pretrained(tmp_path)
        assert len(theirs) == tokenizer.vocabulary
        for role in ("pad", "unk", "bos", "eos", "mask"):
            assert getattr(theirs, f"{role}_token_id") == getattr(tokenizer, role)
        assert set(theirs.all_special_ids) == tokenizer.special_ids
        for text in [line for group in lines.values() for line in group]:
            ids = tokenizer.encode(text)
            assert theirs(text)["input_ids"] == ids, text
            assert theirs.decode(
                [tokenizer.bos, *ids, tokenizer.eos], skip_special_tokens=True
            ) == tokenizer.decode(ids)


@pytest.mark.parametrize("content", [None, b"{}"])
def test_roles_that_no_file_says_are_known_by_their_usual_names(
    content: bytes | None, small: Small, tmp_path: Path
) -> None:
    small("bpe").save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_bytes(content)
    assert Tokenizer.load(tmp_path).roles == small("bpe").roles


def test_a_role_that_is_missing_is_an_error_when_it_is_asked_for(small: Small) -> None:
    bare = Tokenizer(small("bpe").definition, {"eos": "<eos>"}, "somewhere")
    assert (bare.pad, bare.role("bos"), bare.eos) == (3, None, 3)
    for role in ("bos", "unk", "mask"):
        with pytest.raises(DataError, match=f"somewhere: the tokenizer has no {role} token"):
            getattr(bare, role)
    assert Tokenizer(small("bpe").definition, {}).pad == 0
    bert = Tokenizer(small("bpe").definition, {"cls": "<bos>", "sep": "<eos>"})
    assert (bert.bos, bert.eos, bert.pad) == (2, 3, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no such file; is .* a folder that holds a tokenizer"),
        ("tokenizer.json", b'{"model": ', "not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "damaged, not UTF-8"),
        ("tokenizer.json", b"[" * 100_000, "not a tokenizer"),
        ("tokenizer.json", b"[]", "not a tokenizer"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0, "b": 0}}}', "a token or an id stands twice"),
        ("tokenizer_config.json", b"{", "damaged, not JSON"),
        ("tokenizer_config.json", b'{"a":' * 100_000, "damaged, not JSON"),
        (
            "tokenizer_config.json",
            b'{"nalanda": {"surprise": 1}}',
            "nalanda: damaged, or written by a newer version",
        ),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template: expected text, found int"),
        ("chat_template.jinja", b"\xff", "damaged, not UTF-8"),
        ("tokenizer_config.json", b"[]", "not a JSON mapping"),
        ("tokenizer_config.json", b'{"pad_token": "[PAD]"}', r"has no pad token \('\[PAD\]' is not"),
    ],
)
def test_damaged_folders_are_refused(
    name: str, content: bytes | None, message: str, small: Small, tmp_path: Path
) -> None:
    small("bpe").save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        Tokenizer.load(tmp_path)
