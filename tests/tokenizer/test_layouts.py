"""How families number SentencePiece's pieces: against the pieces looked up plainly, and against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nalanda.base.errors import DataError
from nalanda.tokenizer.layouts import read_dictionary
from nalanda.tokenizer.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
File = Callable[[str], Path]
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


def looked_up(path: Path, names: Sequence[str], texts: list[str], unk: str = "<unk>") -> list[list[int]]:
    """SentencePiece's pieces by their places in `names`."""
    numbers = {name: i for i, name in enumerate(names)}
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [[numbers.get(p, numbers[unk]) for p in row] for row in theirs.encode(texts, out_type=str)]


def pieces(path: Path) -> list[str]:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [theirs.id_to_piece(i) for i in range(theirs.vocab_size())]


def folder_of(path: Path, folder: Path, name: str, config: dict[str, Any]) -> Path:
    (folder / name).write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_t5(sentencepiece_file: File, awkward: list[str], tmp_path: Path) -> None:
    path = sentencepiece_file("unigram")
    folder = folder_of(path, tmp_path, "spiece.model", {"tokenizer_class": "T5Tokenizer", "extra_ids": 5})
    tokenizer = Tokenizer.load(folder)
    names = [*pieces(path), *(f"<extra_id_{i}>" for i in (4, 3, 2, 1, 0))]
    assert [tokenizer.token(i) for i in range(tokenizer.vocabulary)] == names
    assert tokenizer.encode_batch(awkward) == looked_up(path, names, awkward)
    assert tokenizer.affixes == ([], [tokenizer.eos])
    assert [tokenizer.token(i) for i in tokenizer.sentinels] == [f"<extra_id_{i}>" for i in range(5)]
    assert not set(tokenizer.sentinels) & set(tokenizer.encode("<extra_id_0> </s>"))


@pytest.mark.parametrize(
    ("kind", "source", "tags", "around"),
    [
        ("XLMRoberta", None, [], (["<s>"], ["</s>"], ["</s>", "</s>"])),
        ("MBart", "hi_IN", ["en_XX", "hi_IN"], ([], ["</s>", "hi_IN"], [])),
        ("MBart50", "hi_IN", ["en_XX", "hi_IN", "ta_IN"], (["hi_IN"], ["</s>"], [])),
        ("Nllb", "hin_Deva", ["eng_Latn", "hin_Deva", "fra_Latn"], (["hin_Deva"], ["</s>"], [])),
    ],
)
def test_fairseq_families(
    kind: str,
    source: str | None,
    tags: list[str],
    around: tuple[list[str], list[str], list[str]],
    sentencepiece_file: File,
    awkward: list[str],
    tmp_path: Path,
) -> None:
    path = sentencepiece_file("unigram")
    config = {"tokenizer_class": f"{kind}Tokenizer", "additional_special_tokens": tags, "src_lang": source}
    tokenizer = Tokenizer.load(folder_of(path, tmp_path, "sentencepiece.bpe.model", config))
    names = [*FAIRSEQ, *pieces(path)[3:], *tags, "<mask>"]
    assert [tokenizer.token(i) for i in range(tokenizer.vocabulary)] == names
    assert tokenizer.encode_batch(awkward) == looked_up(path, names, awkward)
    assert tokenizer.affixes == tuple([names.index(name) for name in part] for part in around[:2])
    assert tokenizer.pair_affixes[1] == [names.index(name) for name in around[2]]
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.mask == len(names) - 1
    assert tokenizer.tag_style == ({"Nllb": "nllb"}.get(kind, "mbart") if tags else None)
    if tags:
        assert tokenizer.token(tokenizer.language("hin_Deva")) == tags[1]
        assert tokenizer.token(tokenizer.language("eng_Latn")) == tags[0]


@pytest.mark.parametrize(
    ("kind", "count", "nepali"), [("MBart", 25, "ne_NP"), ("MBart50", 52, "ne_NP"), ("Nllb", 202, "npi_Deva")]
)
def test_families_without_a_list_have_their_own_languages(
    kind: str, count: int, nepali: str, sentencepiece_file: File, tmp_path: Path
) -> None:
    path = sentencepiece_file("unigram")
    tokenizer = Tokenizer.load(folder_of(path, tmp_path, "x.model", {"tokenizer_class": f"{kind}Tokenizer"}))
    assert len(tokenizer.languages) == count
    assert tokenizer.token(tokenizer.language("npi_Deva")) == nepali


def test_llama_and_gemma_put_bos_before_a_text(
    sentencepiece_file: File, awkward: list[str], tmp_path: Path
) -> None:
    path = sentencepiece_file("bpe llama")
    names = [*pieces(path), "<|im_start|>", "<pad>"]
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_eos_token": True,
        "pad_token": "<pad>",
        "added_tokens_decoder": {
            str(i): {"content": names[i], "special": True} for i in (-2 + len(names), -1 + len(names))
        },
        "chat_template": [{"name": "other", "template": "no"}, {"name": "default", "template": "{{ x }}"}],
    }
    tokenizer = Tokenizer.load(folder_of(path, tmp_path, "tokenizer.model", config))
    assert tokenizer.affixes == ([tokenizer.bos], [tokenizer.eos])
    assert tokenizer.encode_batch(awkward) == looked_up(path, names, awkward)
    assert tokenizer.token(tokenizer.pad) == "<pad>"
    assert tokenizer.chat_template == "{{ x }}"
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").chat_template == "{{ x }}"


DICTIONARY_OPTIONS = ["unigram", "bpe", "bpe llama"]


@pytest.mark.parametrize("name", DICTIONARY_OPTIONS)
def test_a_fairseq_dictionary_numbers_the_pieces(
    name: str, sentencepiece_file: File, awkward: list[str], corpus: list[str], tmp_path: Path
) -> None:
    path = sentencepiece_file(name)
    kept = pieces(path)[3:][::-1]
    missing = kept[10:40:3] + (kept[-90:-60] if name == "bpe llama" else [])  # byte pieces among them
    kept = [piece for piece in kept if piece not in missing]
    rows = [*kept, "hin_Deva", "tam_Taml", "wholeword", "madeupword0000", "madeupword0001"]
    (tmp_path / "dict.txt").write_text(
        "".join(f"{row} {i + 1}\n" for i, row in enumerate(rows)), encoding="utf-8"
    )
    (tmp_path / "spm.model").write_bytes(path.read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    names = [*FAIRSEQ, *rows]
    assert read_dictionary(tmp_path / "dict.txt") == names
    assert tokenizer.vocabulary == len(names)
    texts = awkward + corpus + missing
    expected = looked_up(path, names, texts)
    assert tokenizer.encode_batch(texts) == expected
    assert any(3 in row for row in expected)
    assert tokenizer.language("hin_Deva") == names.index("hin_Deva")
    assert tokenizer.affixes == ([], [2])
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode_batch(texts) == expected
    assert (again.vocabulary, again.fingerprint) == (tokenizer.vocabulary, tokenizer.fingerprint)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", DICTIONARY_OPTIONS)
def test_a_fairseq_dictionary_on_every_line_of_flores(
    name: str, large_sentencepiece_file: File, flores: list[str], tmp_path: Path
) -> None:
    path = large_sentencepiece_file(name)
    rows = [piece for i, piece in enumerate(pieces(path)[3:]) if i % 17]
    (tmp_path / "dict.txt").write_text("".join(f"{row} 1\n" for row in rows), encoding="utf-8")
    (tmp_path / "spm.model").write_bytes(path.read_bytes())
    assert Tokenizer.load(tmp_path).encode_batch(flores) == looked_up(path, [*FAIRSEQ, *rows], flores)


def test_two_dictionaries_are_source_and_target(
    sentencepiece_file: File, corpus: list[str], tmp_path: Path
) -> None:
    for side, name in (("SRC", "unigram"), ("TGT", "bpe")):
        path = sentencepiece_file(name)
        rows = pieces(path)[3:]
        (tmp_path / f"dict.{side}.txt").write_text("".join(f"{row} 1\n" for row in rows), encoding="utf-8")
        (tmp_path / f"model.{side}").write_bytes(path.read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    for made, name in ((tokenizer, "unigram"), (tokenizer.target, "bpe")):
        path = sentencepiece_file(name)
        assert made.encode_batch(corpus) == looked_up(path, [*FAIRSEQ, *pieces(path)[3:]], corpus)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.target.encode_batch(corpus) == tokenizer.target.encode_batch(corpus)


@pytest.mark.filterwarnings("ignore:Recommended")
def test_marian_and_m2m_100_as_in_transformers(
    sentencepiece_file: File, awkward: list[str], corpus: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    source, target = sentencepiece_file("unigram"), sentencepiece_file("unigram plain")
    rows = list(
        dict.fromkeys(["</s>", "<unk>", *pieces(source)[3:], *pieces(target)[3::2], ">>hin<<", "<pad>"])
    )
    marian, m2m = tmp_path / "marian", tmp_path / "m2m"
    for folder in (marian, m2m):
        folder.mkdir()
    (marian / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(rows)}), encoding="utf-8")
    (marian / "source.spm").write_bytes(source.read_bytes())
    (marian / "target.spm").write_bytes(target.read_bytes())
    tokenizer = Tokenizer.load(marian)
    assert tokenizer.encode_batch(corpus + awkward) == looked_up(source, rows, corpus + awkward)
    assert tokenizer.target.encode_batch(corpus + awkward) == looked_up(target, rows, corpus + awkward)
    assert tokenizer.language("hin_Deva") == rows.index(">>hin<<")
    theirs = transformers.MarianTokenizer.from_pretrained(marian)
    prefix, suffix = tokenizer.affixes
    assert [[*prefix, *ids, *suffix] for ids in tokenizer.encode_batch(corpus)] == theirs(corpus)["input_ids"]
    names = [*FAIRSEQ, *pieces(source)[3:]]
    (m2m / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    (m2m / "sentencepiece.bpe.model").write_bytes(source.read_bytes())
    theirs = transformers.M2M100Tokenizer(
        str(m2m / "vocab.json"), str(m2m / "sentencepiece.bpe.model"), src_lang="hi", tgt_lang="ta"
    )
    theirs.save_pretrained(m2m)
    tokenizer = Tokenizer.load(m2m)
    prefix, suffix = tokenizer.affixes
    assert [[*prefix, *ids, *suffix] for ids in tokenizer.encode_batch(corpus)] == theirs(corpus)["input_ids"]
    assert tokenizer.language("tam_Taml") == theirs.get_lang_id("ta")
    assert tokenizer.vocabulary == len(names) + 100 + 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1\nb 2\na 3\n", "line 3: token 'a' stands twice"),
        ("a 1\nb\n", "line 2: expected a token and its count, found 'b'"),
        ("<s> 1\n", "line 1: token '<s>' stands twice"),
        ("a 1\n\n\n", "line 2: expected a token and its count"),
    ],
)
def test_damaged_dictionaries_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"dict\.txt: {message}"):
        read_dictionary(tmp_path / "dict.txt")


def test_an_overwritten_entry_means_the_later_id(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 1\nb 2\na 3 #fairseq:overwrite\n", encoding="utf-8")
    names = read_dictionary(tmp_path / "dict.txt")
    assert (names.index("a"), names.index("b"), len(names)) == (6, 5, 7)


def test_an_added_token_in_the_wrong_place_is_refused(sentencepiece_file: File, tmp_path: Path) -> None:
    folder = folder_of(
        sentencepiece_file("bpe llama"), tmp_path, "tokenizer.model", {"tokenizer_class": "Llama"}
    )
    for number, message in ((5, "which .* has already given"), (10**8, "far beyond")):
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": number}), encoding="utf-8")
        with pytest.raises(DataError, match=f"added token '<new>' has id {number}, {message}"):
            Tokenizer.load(folder)
