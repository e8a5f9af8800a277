"""SentencePiece models give the ids of SentencePiece, on whatever text; damaged files are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nalanda.base.errors import DataError
from nalanda.tokenizer.sentencepiece import Model, build, merges, read
from nalanda.tokenizer.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
NAMES = [
    "unigram",
    "unigram bytes",
    "unigram plain",
    "unigram symbols",
    "bpe",
    "bpe llama",
    "bpe gemma",
    "bpe symbols",
    "char",
]
File = Callable[[str], Path]


def assert_same(tokenizer: Tokenizer, path: Path, texts: list[str]) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.vocabulary == theirs.vocab_size()
    for text, ours, expected in zip(texts, tokenizer.encode_batch(texts), theirs.encode(texts), strict=True):
        assert ours == expected, f"{text[:80]!r} ({len(text)} characters)"


@pytest.mark.parametrize("name", NAMES)
def test_same_ids_as_sentencepiece(
    name: str, sentencepiece_file: File, awkward: list[str], corpus: list[str], lines: dict[str, list[str]]
) -> None:
    path = sentencepiece_file(name)
    written = [line for group in lines.values() for line in group]
    assert_same(Tokenizer.load(path), path, awkward + corpus + written)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_same_ids_on_every_line_of_flores(
    name: str, large_sentencepiece_file: File, awkward: list[str], flores: list[str]
) -> None:
    path = large_sentencepiece_file(name)
    assert_same(Tokenizer.load(path), path, flores + awkward)


@pytest.mark.parametrize("name", ["unigram", "unigram bytes", "bpe llama", "bpe gemma"])
def test_saved_and_loaded_it_gives_the_same_ids(
    name: str, sentencepiece_file: File, awkward: list[str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(sentencepiece_file(name))
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(awkward) == tokenizer.encode_batch(awkward)
    assert again.roles == tokenizer.roles == {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    assert again.special_ids == tokenizer.special_ids


@pytest.mark.parametrize("name", ["unigram bytes", "bpe llama", "bpe gemma"])
def test_text_comes_back(name: str, sentencepiece_file: File, corpus: list[str]) -> None:
    tokenizer = Tokenizer.load(sentencepiece_file(name))
    assert tokenizer.decode_batch(tokenizer.encode_batch(corpus)) == corpus
    assert tokenizer.word_starts[tokenizer.encode(" the")[0]]


def test_no_text_reaches_a_control_symbol(sentencepiece_file: File) -> None:
    for name in NAMES:
        tokenizer = Tokenizer.load(sentencepiece_file(name))
        for symbol in ("<s>", "</s>", "<unk>"):
            ids = tokenizer.encode(symbol)
            assert not {tokenizer.bos, tokenizer.eos} & set(ids), (name, symbol)
            assert tokenizer.encode_marked([symbol])[0][-1] == tokenizer.encode_marked([f"a{symbol}"])[0][-1]


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_any_cut_off_or_changed_byte_is_no_crash(name: str, sentencepiece_file: File, tmp_path: Path) -> None:
    good = sentencepiece_file(name).read_bytes()
    path = tmp_path / "broken.model"
    broken = [good[:size] for size in (0, 1, 5, 40, 300, len(good) // 2, len(good) - 1)]
    broken += [good[:i] + bytes([good[i] ^ 0x55]) + good[i + 1 :] for i in range(0, 400, 7)]
    messages = []
    for content in broken:
        path.write_bytes(content)
        try:
            read(path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message and "\n" not in message for message in messages)


def _proto(*pieces: tuple[str, float, int], kind: int = 1, rules: bytes = b"") -> bytes:
    module = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = module.ModelProto()
    for name, score, of in pieces:
        proto.pieces.add(piece=name, score=score, type=of)
    proto.trainer_spec.model_type = kind
    proto.normalizer_spec.precompiled_charsmap = rules
    return bytes(proto.SerializeToString())


_UNK = ("<unk>", 0.0, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: _proto(kind=1), "has no pieces"),
        (lambda: _proto(_UNK, kind=3), "whole words, which is not supported"),
        (lambda: _proto(_UNK, ("a", -1.0, 1), ("a", -2.0, 1)), "token 'a' stands twice, as number 1 and 2"),
        (lambda: _proto(("a", -1.0, 1)), "no piece is the unknown one"),
        (lambda: _proto(_UNK, ("a", float("nan"), 1)), "piece 1 is damaged"),
        (lambda: b"\x0a\xff\xff\xff\xff\x7f", "announced at byte 6 where 0 are left"),
        (lambda: b"\x0a" + b"\xff" * 20, "a number longer than 10 bytes"),
        (lambda: b"\x0b\x00", "begins no field of a protocol buffer"),
        (lambda: b"\x08\x01", "a number stands where a message belongs"),
    ],
)
def test_odd_models_are_refused(content: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(content())
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_a_damaged_charsmap_is_refused_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(_proto(_UNK, ("a", -1.0, 1), rules=b"\xff\xff\xff\x7fabc"))
    with pytest.raises(DataError, match=r"x\.model"):
        Tokenizer.load(tmp_path).encode("a")


def test_pieces_of_the_same_score_merge_in_any_way() -> None:
    assert merges({"a": -3.0, "b": -3.0, "ab": -2.0, "abb": -1.0, "bb": -4.0}) == [
        *[("a", "bb"), ("ab", "b")],
        ("a", "b"),
        ("b", "b"),
    ]


def test_tokens_that_are_missing_are_named() -> None:
    values: dict[str, Any] = {"kind": "bpe", "pieces": ["<unk>", "a"], "scores": [0.0, -1.0], "types": [2, 1]}
    with pytest.raises(DataError, match="has no token '<s>'"):
        build(Model(**values), ["<unk>", "a"], ["<s>"], "<unk>")
