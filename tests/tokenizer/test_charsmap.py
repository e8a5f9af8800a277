"""SentencePiece's normalizer: the same text as the library's, and damage refused."""

from __future__ import annotations

import random

import pytest

from nalanda.base.errors import DataError
from nalanda.tokenizer.charsmap import CharsMap

RULES = ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]


def blob_of(rule: str) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    from sentencepiece import sentencepiece_model_pb2 as messages

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_writer=model,
        vocab_size=8,
        hard_vocab_limit=False,
        model_type="char",
        normalization_rule_name=rule,
        minloglevel=2,
    )
    proto = messages.ModelProto()
    proto.ParseFromString(model.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


@pytest.mark.parametrize("rule", RULES)
def test_same_text_as_sentencepiece(rule: str, awkward: list[str]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=False
    )
    ours = CharsMap(blob_of(rule))
    source = random.Random(1)
    pool = [chr(code) for code in (*range(1, 0x3300), *range(0xAC00, 0xAC80), *range(0xF900, 0xFA00))]
    texts = awkward + ["".join(source.choices(pool, k=source.randint(1, 8))) for _ in range(3000)]
    for text in texts:
        assert ours(text) == theirs.normalize(text), ascii(text[:60])


def test_protected_symbols_stay() -> None:
    ours = CharsMap(blob_of("nmt_nfkc_cf"), ["ＡＢ", "ＡＢＣ", "X"])
    assert ours("ＡＢＣＤ ＡＢx X Y") == "ＡＢＣd ＡＢx X y"


def test_an_empty_map_changes_nothing() -> None:
    assert CharsMap(b"")("ﬁ") == "ﬁ"


@pytest.mark.parametrize("size", [1, 4, 5, 100, 5000])
def test_cut_off_maps_are_refused(size: int) -> None:
    with pytest.raises(DataError, match="damaged charsmap"):
        CharsMap(blob_of("nfkc")[:size])


def test_random_units_end_in_time() -> None:
    source = random.Random(3)
    for size in (16, 256, 4096):
        blob = size.to_bytes(4, "little") + source.randbytes(size) + b"a\0b\0"
        try:
            CharsMap(blob)("any text")
        except DataError as error:
            assert "damaged charsmap" in str(error)  # noqa: PT017


def test_a_trie_without_an_end_is_refused() -> None:
    # Each of 255 units is a child of the root whose children are the same units again.
    units = [label << 10 | label for label in range(256)]
    blob = (
        (4 * len(units)).to_bytes(4, "little")
        + b"".join(unit.to_bytes(4, "little") for unit in units)
        + b"\0"
    )
    with pytest.raises(DataError, match="damaged charsmap, it has no end"):
        CharsMap(blob)
