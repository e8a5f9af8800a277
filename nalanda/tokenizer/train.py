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
            text = text.lower() if config.lowercase else text
            characters.update(text)
            sample.add(text)
            waiting += 1
            if waiting == _REPORT:
                bar.update(waiting, characters=float(sample.seen))
                waiting = 0
        bar.update(waiting)
    if not characters:
        raise DataError("tokenizer: there is no text to learn from; the corpus's training split is empty")
    alphabet, rare = _alphabet(characters, config)
    layout = _Layout(config, alphabet)
    with progress(f"learning {config.vocabulary} pieces", total=1, unit="tokenizers") as bar:
        model, size = _MODELS[config.kind](_without(sample.texts(), rare), layout)
        bar.update(1)
    if size < config.vocabulary:
        raise DataError(
            f"vocabulary: {config.vocabulary} asked, the text supports only {size}; "
            f"set vocabulary={size} or give more text"
        )
    result = layout.around(model)
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in layout.special])
    return Tokenizer(str(result.to_str(pretty=True)), ROLES)


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


class _Layout:
    """The vocabulary's fixed part (special tokens, then bytes), and the parts around the subword model."""

    def __init__(self, config: TokenizerConfig, alphabet: list[str]) -> None:
        """Raises DataError when the vocabulary has no room for the characters."""
        self.config, self.alphabet = config, alphabet
        self.special = special_tokens(config.languages, config.sentinels)
        self.fixed = self.special + (list(BYTES) if config.has_bytes else [])
        self.room = config.vocabulary - len(self.fixed)
        forms = 2 if config.kind == "wordpiece" else 1
        if self.room < forms * len(alphabet):
            raise DataError(self._no_room(forms))

    def _no_room(self, forms: int) -> str:
        need = len(self.fixed) + forms * len(self.alphabet)
        parts = [f"{len(self.special)} special tokens"] + (["256 bytes"] if self.config.has_bytes else [])
        parts.append(
            f"{len(self.alphabet)} characters" + (" (at a word's start and inside)" if forms == 2 else "")
        )
        return (
            f"vocabulary: {self.config.vocabulary} asked, but {', '.join(parts)} alone make {need}; raise vocabulary"
            + (", set byte_fallback=false" if self.config.has_bytes else "")
            + " or lower character_coverage (to 0.9995, say)"
        )

    def around(self, model: models.Model) -> tokenizers.Tokenizer:
        """`model` with what stands before and after it."""
        config = self.config
        result = tokenizers.Tokenizer(model)
        before = normalizer(prefix_space=config.prefix_space, lowercase=config.lowercase)
        if before is not None:
            result.normalizer = before
        result.pre_tokenizer = pretokenizer(config.kind)
        result.decoder = decoder(config.kind, prefix_space=config.prefix_space)
        return result

    def learn(self, model: models.Model, trainer: trainers.Trainer, texts: Iterable[str]) -> dict[str, Any]:
        """What the library's trainer makes of the texts: the "model" part of its tokenizer.json."""
        learner = self.around(model)
        learner.train_from_iterator(texts, trainer=trainer)
        return dict(json.loads(learner.to_str())["model"])


def _in_order(vocabulary: dict[str, int]) -> list[str]:
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _bpe(texts: Iterable[str], layout: _Layout) -> tuple[models.Model, int]:
    trainer = trainers.BpeTrainer(
        vocab_size=layout.room,
        min_frequency=layout.config.min_frequency,
        initial_alphabet=layout.alphabet,
        show_progress=False,
    )
    learned = layout.learn(models.BPE(), trainer, texts)
    pieces = layout.fixed + _in_order(learned["vocab"])
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=ROLES["unk"],
        byte_fallback=layout.config.has_bytes,
    )
    return model, len(pieces)


def _unigram(texts: Iterable[str], layout: _Layout) -> tuple[models.Model, int]:
    trainer = trainers.UnigramTrainer(
        # one more, because the trainer counts <unk> among its pieces
        vocab_size=layout.room + 1,
        initial_alphabet=layout.alphabet,
        unk_token=ROLES["unk"],
        show_progress=False,
    )
    learned = layout.learn(models.Unigram(), trainer, texts)
    pieces = _settled([(piece, score) for piece, score in learned["vocab"] if piece != ROLES["unk"]])
    model = models.Unigram(
        vocab=[(name, 0.0) for name in layout.fixed] + pieces,
        unk_id=layout.fixed.index(ROLES["unk"]),
        byte_fallback=layout.config.has_bytes,
    )
    return model, len(layout.fixed) + len(pieces)


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces and log probabilities without what differs from one training to the next.

    The trainer adds words up in the order of a hash table, so sums differ in their last digits; and characters that
    it had pruned come back at the lowest score plus up to 0.0001 for each of them, in that order too.
    """
    lowest = min(score for _, score in pieces)
    came_back = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    settled = [(p, round(lowest if len(p) == 1 and score <= came_back else score, 4)) for p, score in pieces]
    return sorted(settled, key=lambda item: (-item[1], item[0]))


def _wordpiece(texts: Iterable[str], layout: _Layout) -> tuple[models.Model, int]:
    # Each character in both forms, or a word that has one at an unusual place would be <unk> as a whole. And in a
    # fixed order: left to itself, the trainer numbers them as its hash table has it, and ties depend on that.
    single = [*layout.alphabet, *(CONTINUATION + character for character in layout.alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=layout.room,
        min_frequency=layout.config.min_frequency,
        special_tokens=single,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learned = layout.learn(models.WordPiece(), trainer, texts)
    known = set(single)
    longer = [piece for piece in _in_order(learned["vocab"]) if piece not in known]
    pieces = (layout.fixed + single + longer)[: layout.config.vocabulary]
    model = models.WordPiece(
        vocab={piece: i for i, piece in enumerate(pieces)},
        unk_token=ROLES["unk"],
        max_input_chars_per_word=10 * LONGEST_WORD,
        continuing_subword_prefix=CONTINUATION,
    )
    return model, len(pieces)


_MODELS = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece}
