"""How well a tokenizer fits a text, by language: pieces per word, share of bytes, and whether the text comes back.

rows = evaluate(tokenizer, ((document.language, document.text) for document in documents))
rows["hin_Deva"].fertility                   # rows["all"] adds up every language
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from nalanda.base.errors import DataError
from nalanda.tokenizer.tokenizer import Tokenizer

TOTAL = "all"
"""The row that adds up all languages."""
_BATCH = 4096


@dataclass(slots=True)
class Fit:
    """Counts over some texts, and the ratios that follow; a ratio without a denominator is NaN."""

    texts: int = 0
    words: int = 0
    characters: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    unknown_tokens: int = 0
    round_trip_failures: int = 0

    @property
    def fertility(self) -> float:
        """Tokens per word, where words are divided by white space (Rust et al. 2021)."""
        return self.tokens / self.words if self.words else float("nan")

    @property
    def tokens_per_character(self) -> float:
        """Tokens per code point."""
        return self.tokens / self.characters if self.characters else float("nan")

    @property
    def byte_share(self) -> float:
        """The part of all tokens that are single bytes of characters without a piece."""
        return self.byte_tokens / self.tokens if self.tokens else float("nan")

    def to_dict(self) -> dict[str, int | float]:
        """Counts and ratios by name."""
        return {
            **asdict(self),
            "fertility": self.fertility,
            "tokens_per_character": self.tokens_per_character,
            "byte_share": self.byte_share,
        }


def evaluate(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> dict[str, Fit]:
    """The fit to each language of a stream of (language, text), in order of first appearance, then `all`.

    Raises DataError when a language is called `all`, which is the name of the sum.
    """
    rows: dict[str, Fit] = {}
    total = Fit()
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        for language, fit in _fits(tokenizer, batch):
            if language == TOTAL:
                raise DataError(f"a language cannot be called '{TOTAL}': that is the row of the sum")
            _add(rows.setdefault(language, Fit()), fit)
            _add(total, fit)
    return {**rows, TOTAL: total}


def _fits(tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> Iterator[tuple[str, Fit]]:
    ids = tokenizer.encode_batch([text for _, text in batch])
    back = tokenizer.decode_batch(ids)
    unk = tokenizer.role("unk")  # byte-level tokenizers have none
    for (language, text), row, decoded in zip(batch, ids, back, strict=True):
        yield (
            language,
            Fit(
                texts=1,
                words=len(text.split()),
                characters=len(text),
                tokens=len(row),
                byte_tokens=sum(i in tokenizer.byte_ids for i in row),
                unknown_tokens=sum(i == unk for i in row),
                round_trip_failures=int(decoded != text),
            ),
        )


def _add(total: Fit, part: Fit) -> None:
    for name, count in asdict(part).items():
        setattr(total, name, getattr(total, name) + count)
