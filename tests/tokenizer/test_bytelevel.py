"""tiktoken's rank files and GPT-2's vocab.json with merges.txt: the ids of tiktoken and of `tokenizers`."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nalanda.base.errors import DataError
from nalanda.tokenizer.bytelevel import PATTERNS, looks_like_ranks, read_ranks
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.words import byte_alphabet

tiktoken = pytest.importorskip("tiktoken")
SPECIAL = {"<|endoftext|>": 900, "<|im_start|>": 901, "<|im_end|>": 905}


def train(texts: list[str], pattern: str, size: int = 900) -> tokenizers.Tokenizer:
    """A byte-level BPE of the `tokenizers` library."""
    made = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer=trainer)
    return made


def ranks_of(texts: list[str], pattern: str) -> dict[bytes, int]:
    table = byte_alphabet()
    vocabulary = train(texts, pattern).get_vocab()
    return {bytes(table[c] for c in token): rank for token, rank in vocabulary.items()}


def write(folder: Path, ranks: dict[bytes, int], pattern: str, name: str = "small.tiktoken") -> None:
    lines = [
        b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda row: row[1])
    ]
    (folder / name).write_bytes(b"".join(lines))
    added = {str(i): {"content": token, "special": True} for token, i in SPECIAL.items()}
    config = {"pat_str": pattern, "added_tokens_decoder": added, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def reference(ranks: dict[bytes, int], pattern: str) -> Callable[[str], list[int]]:
    encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=SPECIAL)
    return lambda text: list(encoding.encode_ordinary(text))


@pytest.mark.parametrize("name", list(PATTERNS))
def test_same_ids_as_tiktoken(name: str, corpus: list[str], awkward: list[str], tmp_path: Path) -> None:
    ranks = ranks_of(corpus + awkward[:150], PATTERNS[name])
    write(tmp_path, ranks, PATTERNS[name])
    tokenizer, encode = Tokenizer.load(tmp_path), reference(ranks, PATTERNS[name])
    for text, ids in zip(awkward, tokenizer.encode_batch(awkward), strict=True):
        if len(text) < 50_000:  # tiktoken is quadratic in a word's length
            assert ids == encode(text), ascii(text[:80])
            assert tokenizer.decode(ids) == text
    assert tokenizer.vocabulary == 906
    assert {tokenizer.token(i) for i in tokenizer.special_ids} == set(SPECIAL)
    assert tokenizer.encode_marked(["<|im_end|>"]) == [[905]]
    assert not tokenizer.special_ids & set(tokenizer.encode("<|im_end|><|endoftext|>"))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "gpt4o"])
def test_same_ids_on_every_line_of_flores(name: str, flores: list[str], tmp_path: Path) -> None:
    ranks = ranks_of(flores[::10], PATTERNS[name])
    write(tmp_path, ranks, PATTERNS[name])
    encode = reference(ranks, PATTERNS[name])
    assert Tokenizer.load(tmp_path).encode_batch(flores) == [encode(line) for line in flores]


def test_llama_3_calls_its_ranks_tokenizer_model(corpus: list[str], tmp_path: Path) -> None:
    ranks = ranks_of(corpus, PATTERNS["llama3"])
    write(tmp_path, ranks, PATTERNS["llama3"], "tokenizer.model")
    assert looks_like_ranks((tmp_path / "tokenizer.model").read_bytes())
    assert Tokenizer.load(tmp_path).encode(corpus[0]) == reference(ranks, PATTERNS["llama3"])(corpus[0])
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(
        DataError, match=r"\d+ ranks, which is none of the encodings in use; give its pattern as pat_str"
    ):
        Tokenizer.load(tmp_path)


def test_saved_it_is_loaded_by_transformers(corpus: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path, ranks_of(corpus, PATTERNS["llama3"]), PATTERNS["llama3"])
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(corpus)["input_ids"] == tokenizer.encode_batch(corpus)
    assert tokenizer.word_starts[tokenizer.encode(" of")[0]]
    assert not tokenizer.word_starts[tokenizer.encode("of")[0]]


def test_gpt2_and_roberta_files(corpus: list[str], awkward: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = train(corpus, PATTERNS["gpt2"])
    made.model.save(str(tmp_path))
    names = [
        *sorted(made.get_vocab(), key=made.get_vocab().__getitem__),
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
    ]
    (tmp_path / "vocab.json").write_text(
        json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8"
    )
    for kind, oracle in (("GPT2", transformers.GPT2Tokenizer), ("Roberta", transformers.RobertaTokenizer)):
        config = {
            "tokenizer_class": f"{kind}Tokenizer",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        tokenizer, theirs = Tokenizer.load(tmp_path), oracle.from_pretrained(tmp_path)
        theirs.split_special_tokens = True
        prefix, suffix = tokenizer.affixes
        rows = [[*prefix, *ids, *suffix] for ids in tokenizer.encode_batch(awkward)]
        assert rows == theirs(awkward)["input_ids"]
        assert bool(prefix) == bool(suffix) == (kind == "Roberta")


_ALL = b"".join(b64encode(bytes([i])) + b" %d\n" % i for i in range(256))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_ALL + b"!!! 256\n", "line 257: expected a token in base64 and its rank"),
        (_ALL + b"YWI= x\n", "line 257: expected a token in base64 and its rank"),
        (_ALL + b"YWI= 5\n", "line 257: an empty token, or token or rank 5 stands twice"),
        (_ALL + b"YQ== 256\n", "line 257: .*stands twice"),
        (_ALL + b"YWI= 999999999999\n", "line 257"),
        (_ALL[: _ALL.index(b"9g==")], "not every single byte has a rank"),
    ],
)
def test_damaged_rank_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tiktoken: {message}"):
        read_ranks(tmp_path / "x.tiktoken")


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ('{"a": 0, "b": 1}', "#version\na b\n", "merges.txt: line 2: 'a b' joins no two tokens to a third"),
        ('{"a": 0, "b": 0}', "", "vocab.json: tokens 'a' and 'b' have the same id 0"),
        ('{"a": -1}', "", "vocab.json: expected tokens with ids from 0 on"),
        ('{"a": 9999999}', "", "vocab.json: ids go up to 9999999, but there are only 1 tokens"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(
    vocabulary: str, merges: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        Tokenizer.load(tmp_path)
