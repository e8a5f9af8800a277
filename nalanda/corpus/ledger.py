"""Where every row went. Per source and language: read = kept + filtered + duplicate + quarantined, exactly.

    ledger.saw("names")                        # a reader met one more row: counted apart from its fate
    ledger.count("names", "hin_Deva", "kept")
    ledger.count("names", "hin_Deva", "filtered", "untranslated")
    ledger.check()                             # raises RuntimeError, naming source and language, if a row is lost

The readers count rows as they meet them, `build` counts what became of each: two counts that must agree.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

FATES = ("kept", "filtered", "duplicate", "quarantined")


class Ledger:
    """Counts of rows by source, language and fate."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._read: Counter[tuple[str, str]] = Counter()
        self._fates: dict[tuple[str, str], Counter[tuple[str, str]]] = {}

    def saw(self, source: str, rows: int = 1) -> None:
        """`rows` rows of `source` were met in its files."""
        self._seen[source] += rows

    def arrived(self, source: str, language: str, rows: int = 1) -> None:
        """`rows` rows came out of the reader, whole or quarantined, in `language`."""
        self._read[source, language] += rows

    def count(self, source: str, language: str, fate: str, reason: str = "", rows: int = 1) -> None:
        """`rows` rows met their fate. A filtered row needs a reason; raises ValueError otherwise."""
        if fate not in FATES or (fate == "filtered") != bool(reason):
            raise ValueError(f"fate '{fate}' with reason '{reason}'")
        self._fates.setdefault((source, language), Counter())[fate, reason] += rows

    def move(self, source: str, language: str, reason: str) -> None:
        """A row that was kept turned out to be filtered after all (known only once all rows were read)."""
        self.count(source, language, "kept", rows=-1)
        self.count(source, language, "filtered", reason)

    def total(self, fate: str, source: str | None = None) -> int:
        """Rows of one fate, or `read`, over all languages, of one source or of all."""
        if fate == "read":
            return sum(n for (name, _), n in self._read.items() if source in (None, name))
        return sum(
            n
            for (name, _), fates in self._fates.items()
            if source in (None, name)
            for (kind, _), n in fates.items()
            if kind == fate
        )

    def check(self) -> None:
        """Raises RuntimeError where rows read and rows accounted for differ: a bug of ours, not of the data."""
        for key in sorted(self._read.keys() | self._fates.keys()):
            read, accounted = self._read[key], sum(self._fates.get(key, Counter()).values())
            if read != accounted:
                raise RuntimeError(
                    f"ledger: {key[0]}, {key[1] or 'no language'}: {read} read, {accounted} accounted for"
                )
            if any(n < 0 for n in self._fates.get(key, Counter()).values()):
                raise RuntimeError(f"ledger: {key[0]}, {key[1] or 'no language'}: a count is below zero")
        for source in sorted(self._seen.keys() | {name for name, _ in self._read}):
            if self._seen[source] != self.total("read", source):
                raise RuntimeError(
                    f"ledger: {source}: {self._seen[source]} rows met, {self.total('read', source)} came out"
                )

    def to_dict(self) -> dict[str, Any]:
        """{source: {language: {read, kept, filtered: {reason: n}, duplicate, quarantined}}, and their total}."""
        sources: dict[str, dict[str, Any]] = {}
        for source, language in sorted(self._read.keys() | self._fates.keys()):
            sources.setdefault(source, {})[language] = self._row([(source, language)])
        return {"sources": sources, "total": self._row(list(self._read.keys() | self._fates.keys()))}

    def _row(self, keys: list[tuple[str, str]]) -> dict[str, Any]:
        fates: Counter[tuple[str, str]] = Counter()
        for key in keys:
            fates.update(self._fates.get(key, Counter()))
        reasons = {reason: n for (fate, reason), n in sorted(fates.items()) if fate == "filtered" and n}
        return {
            "read": sum(self._read[key] for key in keys),
            "kept": fates["kept", ""],
            "filtered": reasons,
            "duplicate": fates["duplicate", ""],
            "quarantined": fates["quarantined", ""],
        }
