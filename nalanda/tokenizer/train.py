"""Trains a tokenizer on a stream of texts, in bounded memory.

    config = TokenizerConfig(kind="bpe", vocabulary=8000, languages=("hin_Deva", "tam_Taml"), sentinels=100)
    tokenizer = train(texts, config)             # texts: any iterable of NFC strings, read once
    tokenizer.save(folder)

Every character of the stream is counted; the subword model learns from an even, reproducible sample of at most
`sample_characters`. The library's trainers only learn the pieces: ids, special and byte tokens are laid out here,
so that the byte tokens do not count as special and no text can reach a special token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from pydantic import Field, field_validator, model_validator
from tokenizers import AddedToken, models, trainers

from nalanda.base.errors import DataError
from nalanda.base.progress import ProgressFactory, silent
from nalanda.config import Config
from nalanda.tokenizer.pretokenizer import CONTINUATION, LONGEST_WORD, Kind, decoder, normalizer, pretokenizer
from nalanda.tokenizer.tokenizer import BYTES, ROLES, Tokenizer, special_tokens

_CHUNK = 100_000  # a longer text is learned from in pieces of so many characters
_REPORT = 1_000  # texts between two updates of the progress bar


class TokenizerConfig(Config):
    """What a recipe says about its tokenizer."""

    kind: Kind = "bpe"
    vocabulary: int = Field(
        gt=0, description="number of ids in all: special tokens, bytes and learned pieces"
    )
    languages: tuple[str, ...] = Field(
        (), description="codes that get a tag, such as hin_Deva for <2hin_Deva>"
    )
    sentinels: int = Field(0, ge=0, le=1000, description="<extra_0> ... for span corruption")
    byte_fallback: bool | None = Field(
        None, description="spell unseen characters as bytes (bpe, unigram: default true; wordpiece cannot)"
    )
    prefix_space: bool = Field(True, description="a word is the same piece at a text's start and inside it")
    lowercase: bool = Field(False, description="lower-case all text; what is decoded is then lower case too")
    min_frequency: int = Field(
        2, ge=1, description="a pair of pieces seen less often is not merged (bpe, wordpiece)"
    )
    character_coverage: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the text's characters that get a piece of their own; the rarest go",
    )
    sample_characters: int = Field(50_000_000, gt=0, description="learn from at most so many characters")
    seed: int = Field(0, ge=0, description="chooses the sample")

    @field_validator("languages")
    @classmethod
    def _codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", code):
                raise ValueError(f"'{code}' is not a language code such as hin_Deva")
        if len(set(codes)) != len(codes):
            raise ValueError("a language code is given twice")
        return codes

    @model_validator(mode="after")
    def _fallback(self) -> TokenizerConfig:
        if self.kind == "wordpiece" and self.byte_fallback:
            raise ValueError("byte_fallback: wordpiece cannot spell unseen characters as bytes; leave it out")
        return self

    @property
    def has_bytes(self) -> bool:
        """Whether the vocabulary holds the 256 byte tokens."""
        return self.kind != "wordpiece" if self.byte_fallback is None else self.byte_fallback


def train(texts: Iterable[str], config: TokenizerConfig, progress: ProgressFactory = silent) -> Tokenizer:
    """Learns a tokenizer with exactly `config.vocabulary` ids from NFC texts, the same one every time.

    Raises DataError when there is no text, when the vocabulary is too small for the characters, and when it is
    larger than the text supports (naming the largest that it does).
    """
    sample = _Sample(config.sample_characters, config.seed)
    characters: Counter[str] = Counter()
    with progress("reading text for the tokenizer", unit="texts") as bar:
        waiting = 0
        for text in texts:
            characters.update(text.lower() if config.lowercase else text)
            sample.add(text)
            waiting += 1
            if waiting == _REPORT:
                bar.update(waiting, characters=float(sample.seen))
                waiting = 0
        bar.update(waiting)
    if not characters:
        raise DataError("tokenizer: there is no text to learn from; the corpus's training split is empty")
    alphabet, rare = _alphabet(characters, config)
    fixed = special_tokens(config.languages, config.sentinels) + (list(BYTES) if config.has_bytes else [])
    _check_room(config, len(fixed), alphabet)
    with progress(f"learning {config.vocabulary} pieces", total=1, unit="tokenizers") as bar:
        definition = _learn(_without(sample.texts(), rare), config, fixed, alphabet)
        bar.update(1)
    return Tokenizer(definition, ROLES)


class _Sample:
    """An even sample of a stream of unknown length, at most `budget` characters of it.

    A text is kept while a hash of its number lies below a threshold, which is halved whenever the budget is full:
    one pass, no randomness but the seed's, and everything is kept of a stream that fits.
    """

    def __init__(self, budget: int, seed: int) -> None:
        self.budget, self.seed = budget, seed
        self.seen = self.held = self.number = 0
        self.threshold = 2**64
        self.kept: list[tuple[int, str]] = []

    def add(self, text: str) -> None:
        self.seen += len(text)
        for start in range(0, len(text), _CHUNK):
            part = text[start : start + _CHUNK]
            key = self._key()
            if key < self.threshold:
                self.kept.append((key, part))
                self.held += len(part)
        while self.held > self.budget and len(self.kept) > 1:
            self.threshold //= 2
            self.kept = [(key, part) for key, part in self.kept if key < self.threshold] or self.kept[:1]
            self.held = sum(len(part) for _, part in self.kept)

    def _key(self) -> int:
        self.number += 1
        digest = hashlib.blake2b(f"{self.seed}:{self.number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def texts(self) -> Iterator[str]:
        return (part for _, part in self.kept)


def _alphabet(characters: Counter[str], config: TokenizerConfig) -> tuple[list[str], str]:
    """The characters that get a piece of their own, in order, and those that do not.

    The most frequent come first until they cover the share that the config asks for; ties go by code point.
    """
    if config.kind == "unigram":
        characters.pop("\0", None)  # its trainer uses U+0000 to separate words
    total, covered = characters.total(), 0
    chosen: set[str] = set()
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= config.character_coverage * total:
            break
        chosen.add(character)
        covered += count
    rare = "".join(sorted(set(characters) - chosen)) + ("\0" if config.kind == "unigram" else "")
    return sorted(chosen | ({" "} if config.prefix_space else set())), rare


def _without(texts: Iterable[str], rare: str) -> Iterator[str]:
    """The texts, divided where a character stands that gets no piece (else its neighbours would seem adjacent)."""
    if not rare:
        return iter(texts)
    cut = re.compile(
        f"[{re.escape(rare)}]+", re.IGNORECASE if any(c.lower() != c.upper() for c in rare) else 0
    )
    return (part for text in texts for part in cut.split(text) if part)


def _check_room(config: TokenizerConfig, fixed: int, alphabet: list[str]) -> None:
    forms = 2 if config.kind == "wordpiece" else 1
    need = fixed + forms * len(alphabet)
    if config.vocabulary < need:
        special = len(special_tokens(config.languages, config.sentinels))
        parts = [f"{special} special tokens"] + ([f"{len(BYTES)} bytes"] if config.has_bytes else [])
        parts.append(f"{len(alphabet)} characters" + (" at a word's start and inside" if forms == 2 else ""))
        raise DataError(
            f"vocabulary: {config.vocabulary} asked, but {', '.join(parts)} alone make {need}; raise vocabulary"
            + (", set byte_fallback=false" if config.has_bytes else "")
            + " or lower character_coverage (to 0.9995, say)"
        )


def _learn(texts: Iterable[str], config: TokenizerConfig, fixed: list[str], alphabet: list[str]) -> str:
    """The content of tokenizer.json."""
    room = config.vocabulary - len(fixed)
    around = {
        "normalizer": normalizer(prefix_space=config.prefix_space, lowercase=config.lowercase),
        "pre_tokenizer": pretokenizer(config.kind),
        "decoder": decoder(config.kind, prefix_space=config.prefix_space),
    }
    model, size = _MODELS[config.kind](texts, config, around, room, fixed, alphabet)
    if size < config.vocabulary:
        raise DataError(
            f"vocabulary: {config.vocabulary} asked, the text supports only {size}; "
            f"set vocabulary={size} or give more text"
        )
    result = _around(model, around)
    special = special_tokens(config.languages, config.sentinels)
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return str(result.to_str(pretty=True))


def _around(model: models.Model, around: dict[str, Any]) -> tokenizers.Tokenizer:
    result = tokenizers.Tokenizer(model)
    for name, part in around.items():
        if part is not None:
            setattr(result, name, part)
    return result


def _run(model: models.Model, trainer: Any, texts: Iterable[str], around: dict[str, Any]) -> dict[str, Any]:
    """What the library's trainer makes of the texts: the "model" part of its tokenizer.json."""
    learner = _around(model, around)
    learner.train_from_iterator(texts, trainer=trainer)
    return dict(json.loads(learner.to_str())["model"])


def _bpe(
    texts: Iterable[str],
    config: TokenizerConfig,
    around: dict[str, Any],
    room: int,
    fixed: list[str],
    alphabet: list[str],
) -> tuple[models.Model, int]:
    trainer = trainers.BpeTrainer(
        vocab_size=room, min_frequency=config.min_frequency, initial_alphabet=alphabet, show_progress=False
    )
    learned = _run(models.BPE(), trainer, texts, around)
    pieces = fixed + sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=ROLES["unk"],
        byte_fallback=config.has_bytes,
    )
    return model, len(pieces)


def _unigram(
    texts: Iterable[str],
    config: TokenizerConfig,
    around: dict[str, Any],
    room: int,
    fixed: list[str],
    alphabet: list[str],
) -> tuple[models.Model, int]:
    trainer = trainers.UnigramTrainer(
        # one more, because the trainer counts <unk> among its pieces
        vocab_size=room + 1,
        initial_alphabet=alphabet,
        unk_token=ROLES["unk"],
        show_progress=False,
    )
    learned = _run(models.Unigram(), trainer, texts, around)
    pieces = [(piece, score) for piece, score in learned["vocab"] if piece != ROLES["unk"]]
    model = models.Unigram(
        vocab=[(name, 0.0) for name in fixed] + pieces,
        unk_id=list(ROLES).index("unk"),
        byte_fallback=config.has_bytes,
    )
    return model, len(fixed) + len(pieces)


def _wordpiece(
    texts: Iterable[str],
    config: TokenizerConfig,
    around: dict[str, Any],
    room: int,
    fixed: list[str],
    alphabet: list[str],
) -> tuple[models.Model, int]:
    trainer = trainers.WordPieceTrainer(
        vocab_size=room,
        min_frequency=config.min_frequency,
        initial_alphabet=alphabet,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learned = _run(models.WordPiece(), trainer, texts, around)
    # Each character in both forms, or a word that has one at an unusual place would be <unk> as a whole.
    single = [*alphabet, *(CONTINUATION + character for character in alphabet)]
    longer = [p for p in sorted(learned["vocab"], key=learned["vocab"].__getitem__) if p not in set(single)]
    pieces = (fixed + single + longer)[: len(fixed) + room]
    model = models.WordPiece(
        vocab={piece: i for i, piece in enumerate(pieces)},
        unk_token=ROLES["unk"],
        max_input_chars_per_word=10 * LONGEST_WORD,
        continuing_subword_prefix=CONTINUATION,
    )
    return model, len(pieces)


_MODELS = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece}
