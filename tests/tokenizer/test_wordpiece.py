"""BERT's vocab.txt gives BERT's ids: against transformers, and against the published algorithm written plainly."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer

from nalanda.base.errors import DataError
from nalanda.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def vocabulary(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a small vocab.txt."""
    trained = BertWordPieceTokenizer(strip_accents=False, lowercase=False)
    trained.train_from_iterator(
        [*corpus, *(text.lower() for text in corpus)], vocab_size=700, show_progress=False
    )
    names = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


def plain_ids(text: str, vocabulary: dict[str, int], lowercase: bool, chinese: bool) -> list[int]:
    """BERT's BasicTokenizer and WordpieceTokenizer (Devlin et al. 2019), word by word and piece by piece."""
    spaced = []
    for character in text:
        code, category = ord(character), unicodedata.category(character)
        if character in " \t\n\r" or category == "Zs":
            spaced.append(" ")
        elif code in (0, 0xFFFD) or category in ("Cc", "Cf", "Cs", "Co"):
            continue
        elif chinese and any(low <= code <= high for low, high in CHINESE):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    ids: list[int] = []
    for word in "".join(spaced).split():
        if lowercase:
            word = "".join(
                c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn"
            )
        part = ""
        for character in word:
            if (33 <= ord(character) <= 126 and not character.isalnum()) or unicodedata.category(character)[
                0
            ] == "P":
                ids += pieces(part, vocabulary) + pieces(character, vocabulary)
                part = ""
            else:
                part += character
        ids += pieces(part, vocabulary)
    return ids


CHINESE = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)]
CHINESE += [(0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]


def pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    ids: list[int] = []
    start = 0
    if len(word) > 100:
        return [vocabulary["[UNK]"]]
    while start < len(word):
        for end in range(len(word), start, -1):
            name = ("##" if start else "") + word[start:end]
            if name in vocabulary:
                ids.append(vocabulary[name])
                start = end
                break
        else:
            return [vocabulary["[UNK]"]]
    return ids


def load(path: Path, folder: Path, **config: object) -> Tokenizer:
    (folder / "vocab.txt").write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder)


# The Rust library lower-cases without context (final sigma, dotted I), and its tables of categories are older than
# Python's: 115 marks and signs of punctuation or format that came after Unicode 8 are letters to it.
_OTHERWISE = set("ΣİẞϴΩKÅ᙭")


def settled(text: str) -> bool:
    """Whether Python and the Rust library class the characters of `text` alike."""
    old = unicodedata.ucd_3_2_0
    return not set(text) & _OTHERWISE and all(old.category(c) == unicodedata.category(c) for c in text)


@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": False}, {"do_lower_case": False, "tokenize_chinese_chars": False}]
)
def test_same_ids_as_the_published_algorithm(
    config: dict[str, bool], vocabulary: Path, awkward: list[str], corpus: list[str], tmp_path: Path
) -> None:
    tokenizer = load(vocabulary, tmp_path, **config)
    numbers = {tokenizer.token(i): i for i in range(tokenizer.vocabulary)}
    lower, chinese = config.get("do_lower_case", True), config.get("tokenize_chinese_chars", True)
    texts = [text for text in awkward + corpus if settled(text)]
    assert len(texts) > 400
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == plain_ids(text, numbers, lower, chinese), ascii(text[:80])


def test_same_ids_and_special_tokens_as_transformers(
    vocabulary: Path, awkward: list[str], corpus: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load(vocabulary, tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    theirs.split_special_tokens = True
    texts = awkward + corpus
    prefix, suffix = tokenizer.affixes
    for text, ids, expected in zip(
        texts, tokenizer.encode_batch(texts), theirs(texts)["input_ids"], strict=True
    ):
        assert [*prefix, *ids, *suffix] == expected, ascii(text[:80])
    first, middle, last = tokenizer.pair_affixes
    a, b = tokenizer.encode_batch(["the file", "an act"])
    assert [*first, *a, *middle, *b, *last] == theirs("the file", "an act")["input_ids"]
    for role in ("pad", "unk", "mask", "cls", "sep"):
        assert tokenizer.role(role) == getattr(theirs, f"{role}_token_id")
    assert (tokenizer.bos, tokenizer.eos) == (theirs.cls_token_id, theirs.sep_token_id)


@pytest.mark.shared
@pytest.mark.slow
def test_same_ids_on_every_line_of_flores(vocabulary: Path, flores: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load(vocabulary, tmp_path, do_lower_case=False)
    numbers = {tokenizer.token(i): i for i in range(tokenizer.vocabulary)}
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    found = tokenizer.encode_batch(flores)
    assert found == theirs(flores, add_special_tokens=False)["input_ids"]
    plain = [line for line in flores if settled(line)]
    assert len(plain) > 15_000
    assert tokenizer.encode_batch(plain) == [plain_ids(line, numbers, False, True) for line in plain]


def test_saved_it_is_loaded_by_transformers_with_its_special_tokens(
    vocabulary: Path, corpus: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = load(vocabulary, tmp_path)
    tokenizer.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    prefix, suffix = tokenizer.affixes
    assert prefix
    assert [[*prefix, *ids, *suffix] for ids in tokenizer.encode_batch(corpus)] == theirs(corpus)["input_ids"]


def test_words_begin_where_no_hash_signs_are(vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = load(vocabulary, tmp_path)
    starts = tokenizer.word_starts[tokenizer.encode("government of x")]
    assert starts.sum() == 3
    assert starts[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[UNK]\na\nb\na\n", "token 'a' stands twice, as number 1 and 3"),
        ("a\nb\n", r"has no token \[UNK\]"),
        ("", r"has no token \[UNK\]"),
    ],
)
def test_damaged_vocabularies_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"vocab\.txt.*{message}"):
        Tokenizer.load(tmp_path)


def test_a_setting_of_another_type_is_refused(vocabulary: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do_lower_case: expected true or false, found 'no'"):
        load(vocabulary, tmp_path, do_lower_case="no")
