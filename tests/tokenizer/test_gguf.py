"""Tokenizers in GGUF metadata: read, written and read again; real files where a folder of them is named."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from nalanda.base.errors import DataError
from nalanda.tokenizer.bytelevel import PATTERNS, build
from nalanda.tokenizer.gguf import PRE, from_metadata
from nalanda.tokenizer.gguf_write import to_metadata
from nalanda.tokenizer.tokenizer import Tokenizer

File = Callable[[str], Path]


def again(tokenizer: Tokenizer) -> Tokenizer:
    return from_metadata(to_metadata(tokenizer), "memory")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("bpe llama", "llama"), ("bpe gemma", "llama")),
        *(("unigram", "t5"), ("unigram bytes", "t5"), ("unigram plain", "t5"), ("unigram symbols", "t5")),
    ],
)
def test_sentencepiece_there_and_back(
    name: str, kind: str, sentencepiece_file: File, awkward: list[str]
) -> None:
    tokenizer = Tokenizer.load(sentencepiece_file(name))
    metadata = to_metadata(tokenizer)
    assert metadata["tokenizer.ggml.model"] == kind
    assert (
        len(metadata["tokenizer.ggml.tokens"])
        == len(metadata["tokenizer.ggml.scores"])
        == tokenizer.vocabulary
    )
    back = from_metadata(metadata, "memory")
    assert back.encode_batch(awkward) == tokenizer.encode_batch(awkward)
    assert (back.roles, back.affixes, back.special_ids) == (
        tokenizer.roles,
        tokenizer.affixes,
        tokenizer.special_ids,
    )


def byte_level(pre: str, corpus: list[str]) -> Tokenizer:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(corpus, vocab_size=600, show_progress=False)
    names = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    known = PRE[pre]
    import json

    pairs = [tuple(pair) for pair in json.loads(trained._tokenizer.to_str())["model"]["merges"]]
    plan = build(
        [*names, "<|endoftext|>", "<think>"],
        pairs,
        list(known.patterns),
        "made here",
        special=["<|endoftext|>"],
        users=["<think>"],
        roles={"eos": "<|endoftext|>"},
        whole_words=known.whole_words,
        nfc=known.nfc,
        chat_template="{{ x }}",
    )
    return Tokenizer.of(plan)


@pytest.mark.parametrize("pre", list(PRE))
def test_byte_level_there_and_back(pre: str, corpus: list[str], awkward: list[str]) -> None:
    tokenizer = byte_level(pre, corpus)
    metadata = to_metadata(tokenizer)
    written = metadata["tokenizer.ggml.pre"]
    assert PRE[written].patterns == PRE[pre].patterns
    back = from_metadata(metadata, "memory")
    short = [text for text in awkward if len(text) < 1000]
    assert back.encode_batch(short) == tokenizer.encode_batch(short)
    assert back.chat_template == "{{ x }}"
    assert back.encode("a<think>b")[1] == back.vocabulary - 1
    assert back.special_ids == {back.vocabulary - 2}
    assert [back.decode(ids) for ids in back.encode_batch(corpus)] == corpus


def test_digits_are_cut_as_the_digits_pre_tokenizer_does(corpus: list[str], awkward: list[str]) -> None:
    tokenizer = byte_level("smollm", corpus)
    other = tokenizers.Tokenizer.from_str(tokenizer.definition)
    other.encode_special_tokens = True
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert tokenizer.encode_batch(awkward) == [
        e.ids for e in other.encode_batch(awkward, add_special_tokens=False)
    ]


def test_wordpiece_there_and_back(awkward: list[str], tmp_path: Path) -> None:
    rows = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "##a",
        "x",
        "##x",
        "the",
        "##b",
        "-",
        "क",
        "##ष",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert to_metadata(tokenizer)["tokenizer.ggml.tokens"][5:7] == ["▁a", "a"]
    back = again(tokenizer)
    assert back.encode_batch(awkward) == tokenizer.encode_batch(awkward)
    assert (back.roles, back.affixes) == (tokenizer.roles, tokenizer.affixes)


def test_what_gguf_cannot_say_is_refused(small: Callable[[str], Tokenizer], sentencepiece_file: File) -> None:
    with pytest.raises(DataError, match="cannot be written as GGUF"):
        to_metadata(small("bpe"))
    with pytest.raises(DataError, match="BPE with a charsmap cannot be written as GGUF"):
        to_metadata(Tokenizer.load(sentencepiece_file("bpe")))
    with pytest.raises(DataError, match="cannot be written as GGUF"):
        to_metadata(Tokenizer.load(sentencepiece_file("bpe symbols")))


_PLAIN: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "a", "▁"],
    "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
}


def test_a_plain_file_has_bos_and_a_space_in_front() -> None:
    tokenizer = from_metadata(_PLAIN, "x.gguf")
    assert tokenizer.affixes == ([1], [])
    assert tokenizer.encode("a") == [3, 2]
    assert tokenizer.unk == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "missing: the file holds no tokenizer"),
        ("model", "rwkv", "'rwkv' is not known; expected llama, t5, gpt2 or bert"),
        ("tokens", [], "empty"),
        ("tokens", [1, 2], "entry 0 is no text"),
        ("tokens", "abc", "expected a list"),
        ("scores", [0.0], "1 entries for 4 tokens"),
        ("scores", [0.0, 0.0, float("inf"), 0.0], "entry 2 is inf"),
        ("token_type", [1], "1 entries for 4 tokens"),
        ("bos_token_id", 4, "4 is no id of 4 tokens"),
        ("bos_token_id", -1, "-1 is no id of 4 tokens"),
        ("token_type", [1, 3, 1, 1], None),
    ],
)
def test_damaged_metadata_are_refused_by_key(key: str, value: Any, message: str | None) -> None:
    metadata = {**_PLAIN, f"tokenizer.ggml.{key}": value}
    if message is None:
        assert from_metadata(metadata, "x.gguf").unk == 0
        return
    with pytest.raises(DataError, match=rf"x\.gguf: key 'tokenizer\.ggml\.{key}': {message}"):
        from_metadata(metadata, "x.gguf")


def test_damaged_byte_level_metadata_are_refused_by_key() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.pre": "gpt-2",
    }
    with pytest.raises(DataError, match=r"key 'tokenizer\.ggml\.merges': missing"):
        from_metadata(metadata, "x.gguf")
    with pytest.raises(DataError, match=r"merges': entry 1 \('b b'\) joins no two tokens to a third"):
        from_metadata({**metadata, "tokenizer.ggml.merges": ["a b", "b b"]}, "x.gguf")
    with pytest.raises(DataError, match=r"pre': 'other' is not known; known are gpt-2"):
        from_metadata({**metadata, "tokenizer.ggml.pre": "other", "tokenizer.ggml.merges": []}, "x.gguf")
    twice = {**metadata, "tokenizer.ggml.tokens": ["a", "b", "ab", "a"], "tokenizer.ggml.merges": ["a b"]}
    with pytest.raises(DataError, match="token 'a' stands twice, as number 0 and 3"):
        from_metadata(twice, "x.gguf")


def _real(name: str) -> Path:
    place = os.environ.get("NALANDA_MODELS", "")
    path = Path(place) / f"{name}.gguf"
    if not place or not path.is_file():
        pytest.skip(f"NALANDA_MODELS names no folder with {name}.gguf")
    return path


def _lines(shared: Path) -> list[str]:
    found = []
    for path in sorted((shared / "mt" / "flores200").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            found += [line.removesuffix("\n") for line in file]
    return found


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_files_have_the_ids_of_transformers(name: str, shared_data: Path, awkward: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    path = _real(name)
    tokenizer = Tokenizer.load(path)
    rust = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)._tokenizer
    rust.encode_special_tokens = True
    if name == "smollm2":
        # transformers has no entry for `smollm` and leaves out the cut at digits, which the file asks for.
        digits = pre_tokenizers.Digits(individual_digits=True)
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    texts = _lines(shared_data) + awkward
    if name == "gemma3":
        # Of more than 31 spaces SentencePiece and llama.cpp take the longest run that is a symbol; transformers
        # merges spaces by pairs and takes 16.
        texts = [text for text in texts if " " * 32 not in text and "▁" * 32 not in text]
    expected = [e.ids for e in rust.encode_batch(texts, add_special_tokens=False)]
    assert tokenizer.encode_batch(texts) == expected
    assert again(tokenizer).encode_batch(texts) == expected


def test_patterns_cover_every_text(awkward: list[str]) -> None:
    for name, pattern in PATTERNS.items():
        cut = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        for text in awkward[:300]:
            assert "".join(word for word, _ in cut.pre_tokenize_str(text)) == text, name


def test_bytes_without_a_merge_are_a_tokenizer() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = {"model": "gpt2", "pre": "gpt-2", "tokens": letters, "token_type": [1] * 256, "merges": []}
    tokenizer = from_metadata({f"tokenizer.ggml.{key}": value for key, value in made.items()}, "here")
    assert tokenizer.decode(tokenizer.encode("नमस्ते")) == "नमस्ते"
    with pytest.raises(DataError, match=r"'tokenizer\.ggml\.tokens': empty"):
        from_metadata({f"tokenizer.ggml.{key}": value for key, value in {**made, "tokens": []}.items()}, "x")
