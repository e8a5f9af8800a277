"""What a translation model has to beat: three baselines that learn nothing or next to nothing.

    translate_all(queries, pairs) -> {"copy": [...], "nearest neighbour": [...], "word by word": [...]}

- copy: the source itself.
- nearest neighbour: the translation of the training source that is most alike: cosine of character 3-grams weighted
  by inverse document frequency, exact, by inverted index, within the target language.
- word by word: each source word replaced by its most probable translation under IBM Model 1, learned from the
  training pairs (Brown et al. 1993, "The mathematics of statistical machine translation"); an unknown word is copied.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nalanda.base.progress import ProgressFactory, silent

COPY, NEAREST, WORDS = "copy", "nearest neighbour", "word by word"
NAMES = (COPY, NEAREST, WORDS)


class Pair(NamedTuple):
    """A training pair: `target` is `source` in `language`."""

    source: str
    target: str
    language: str


class Query(NamedTuple):
    """A source to translate into `language`."""

    source: str
    language: str


def trigrams(text: str) -> Counter[str]:
    """The character 3-grams of a text, compatibility-normalized, lower case, with a space on either side."""
    text = " " + " ".join(unicodedata.normalize("NFKC", text).lower().split()) + " "
    return Counter(text[i : i + 3] for i in range(len(text) - 2))


class NearestNeighbour:
    """The training target whose source is most like a query; sources and targets of one language."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.targets = list(targets)
        self.grams: dict[str, int] = {}
        rows: list[int] = []
        grams: list[int] = []
        counts: list[int] = []
        for row, source in enumerate(sources):
            for gram, count in trigrams(source).items():
                rows.append(row)
                grams.append(self.grams.setdefault(gram, len(self.grams)))
                counts.append(count)
        self._index(np.array(rows, np.int64), np.array(grams, np.int64), np.array(counts, np.float64))

    def _index(self, rows: NDArray[np.int64], grams: NDArray[np.int64], counts: NDArray[np.float64]) -> None:
        frequency = np.bincount(grams, minlength=len(self.grams))
        self.idf = np.log((1 + len(self.targets)) / (1 + frequency)) + 1
        weights = counts * self.idf[grams]
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(self.targets)))
        order = np.argsort(grams, kind="stable")  # postings of one gram together, rows ascending in them
        self.rows = rows[order]
        self.weights = (weights / norms[rows])[order]
        self.starts = np.concatenate([[0], np.cumsum(frequency)])

    def similarities(self, source: str) -> NDArray[np.float64]:
        """The cosine of `source` with every training source, up to the query's own constant norm."""
        known = [(self.grams[g], n) for g, n in trigrams(source).items() if g in self.grams]
        if not known:
            return np.zeros(len(self.targets))
        spans = [slice(self.starts[gram], self.starts[gram + 1]) for gram, _ in known]
        rows = np.concatenate([self.rows[s] for s in spans])
        products = [self.weights[s] * (n * self.idf[gram]) for s, (gram, n) in zip(spans, known)]
        return np.bincount(rows, np.concatenate(products), len(self.targets)).astype(np.float64)

    def translate(self, source: str) -> str:
        """The nearest training target, the earlier of two equals; `source` itself where nothing is shared."""
        scores = self.similarities(source)
        if scores.size == 0 or scores.max() <= 0:
            return source
        return self.targets[int(np.argmax(scores >= scores.max() * (1 - 1e-12)))]


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, marks, digits and joiners of any script."""
    return [text[start:end].lower() for start, end in _spans(text)]


def _spans(text: str) -> list[tuple[int, int]]:
    kinds = "".join("w" if unicodedata.category(c)[0] in "LMN" or c in "\u200c\u200d" else " " for c in text)
    return [match.span() for match in re.finditer("w+", kinds)]


class WordByWord:
    """A lexicon of single words from training pairs of one language: IBM Model 1 with an empty word."""

    LONGEST = 40  # words of a side that are read; a longer text teaches little and costs its square

    def __init__(self, sources: Sequence[str], targets: Sequence[str], rounds: int = 8) -> None:
        self.lexicon: dict[str, str] = {}
        ids: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})
        places: list[int] = []
        source_ids: list[int] = []
        target_ids: list[int] = []
        place = 0
        for source, target in zip(sources, targets):
            left = [0, *(ids[0].setdefault(w, len(ids[0])) for w in words(source)[: self.LONGEST])]
            for word in words(target)[: self.LONGEST]:
                right = ids[1].setdefault(word, len(ids[1]))
                source_ids += left
                target_ids += [right] * len(left)
                places += [place] * len(left)
                place += 1
        if places:
            self._learn(np.array(places), np.array(source_ids), np.array(target_ids), ids, rounds)

    def _learn(
        self,
        places: NDArray[np.int64],
        source_ids: NDArray[np.int64],
        target_ids: NDArray[np.int64],
        ids: tuple[dict[str, int], dict[str, int]],
        rounds: int,
    ) -> None:
        """Expectation maximization over the pairs of words that occur together, from a uniform start."""
        keys, pair = np.unique(source_ids * len(ids[1]) + target_ids, return_inverse=True)
        pair = pair.reshape(-1)
        left, right = keys // len(ids[1]), keys % len(ids[1])
        probability = expected = np.ones(len(keys))
        for _ in range(rounds):
            share = probability[pair]
            share = share / np.bincount(places, share)[places]
            expected = np.bincount(pair, share, minlength=len(keys)).astype(np.float64)
            probability = expected / np.bincount(left, expected)[left]
        names = (list(ids[0]), list(ids[1]))
        # Best first: by probability, then by expected count, then by first appearance.
        order = np.lexsort((right, -np.round(expected, 9), -np.round(probability, 9), left))
        first = np.unique(left[order], return_index=True)[1]
        for index in order[first]:
            if left[index]:
                self.lexicon[names[0][left[index]]] = names[1][right[index]]

    def translate(self, source: str) -> str:
        """`source` with each known word replaced; all between words, and unknown words, stay as they are."""
        parts, end = [], 0
        for start, stop in _spans(source):
            word = source[start:stop]
            parts += [source[end:start], self.lexicon.get(word.lower(), word)]
            end = stop
        return "".join([*parts, source[end:]])


def translate_all(
    queries: Sequence[Query], pairs: Iterable[Pair], progress: ProgressFactory = silent
) -> dict[str, list[str]]:
    """Every baseline's translations of `queries`, in their order. A language without training pairs is copied."""
    by_language: dict[str, tuple[list[str], list[str]]] = {}
    for pair in pairs:
        sources, targets = by_language.setdefault(pair.language, ([], []))
        sources.append(pair.source)
        targets.append(pair.target)
    answers = {name: [query.source for query in queries] for name in NAMES}
    with progress("baselines", total=len(queries), unit="rows") as bar:
        for language in dict.fromkeys(query.language for query in queries):
            if language in by_language:
                nearest = NearestNeighbour(*by_language[language])
                lexicon = WordByWord(*by_language[language])
                for index, query in enumerate(queries):
                    if query.language == language:
                        answers[NEAREST][index] = nearest.translate(query.source)
                        answers[WORDS][index] = lexicon.translate(query.source)
            bar.update(sum(query.language == language for query in queries))
    return answers
