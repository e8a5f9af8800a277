"""Translations as rows: what an evaluation scores, writes and reads back.

write(path, rows); read(path) -> [Translation, ...]       # translations.jsonl
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nalanda.base import io
from nalanda.base.errors import DataError


@dataclass(frozen=True, slots=True)
class Translation:
    """One test row with a system's answer.

    `nll` is the negative log-likelihood of the reference in nats, summed over its `tokens` tokens (end included).
    """

    id: str
    source: str
    reference: str
    hypothesis: str
    target_language: str
    origin: str = ""
    nll: float | None = None
    tokens: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the answer is the reference, but for spaces at the ends."""
        return self.hypothesis.strip() == self.reference.strip()

    @staticmethod
    def of(values: Mapping[str, Any], where: str = "row") -> Translation:
        """The row in a mapping; other keys are ignored. Raises DataError for a missing or mistyped one."""
        texts: dict[str, str] = {}
        for key in ("id", "source", "reference", "hypothesis", "target_language"):
            if not isinstance(values.get(key), str):
                raise DataError(f"{where}: '{key}' must be a text, found {values.get(key)!r}; mend the row")
            texts[key] = values[key]
        nll, tokens = values.get("nll"), values.get("tokens")
        for key, item in (("nll", nll), ("tokens", tokens)):
            if item is not None and not isinstance(item, int | float):
                raise DataError(f"{where}: '{key}' must be a number, found {item!r}; mend the row")
        return Translation(**texts, origin=str(values.get("origin") or ""), nll=nll, tokens=tokens)


def write(path: Path, rows: Sequence[Translation], extra: Sequence[Mapping[str, Any]] = ()) -> None:
    """Writes `rows`, one JSON object a line, atomically; `extra` adds keys to each."""
    with io.atomic_writer(path) as file:
        for index, row in enumerate(rows):
            values = {key: value for key, value in dataclasses.asdict(row).items() if value is not None}
            values |= extra[index] if extra else {}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Translation]:
    """The rows of a translations.jsonl. Raises DataError naming the line that is not one."""
    return [Translation.of(values, where) for where, values in _objects(path)]


def sentence_scores(path: Path) -> list[float]:
    """Each row's own chrF++ as an evaluation wrote it, in the rows' order. Raises DataError where one has none."""
    scores = []
    for where, values in _objects(path):
        if not isinstance(values.get("chrf"), int | float):
            raise DataError(f"{where}: no 'chrf'; run the evaluation again")
        scores.append(float(values["chrf"]))
    return scores


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a JSON Lines file with the place it stands at."""
    try:
        # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the evaluation first") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}; run the evaluation again") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}; run the evaluation again") from None
            if not isinstance(values, dict):
                raise DataError(f"{path}:{number}: expected an object, found {values!r}")
            yield f"{path}:{number}", values
