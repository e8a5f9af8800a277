"""The three baselines, on examples small enough to work by hand."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from nalanda.evaluate.baselines import (
    COPY,
    NEAREST,
    WORDS,
    NearestNeighbour,
    Pair,
    Query,
    WordByWord,
    translate_all,
    trigrams,
    words,
)

PAIRS = [
    Pair("red house", "लाल घर", "hin_Deva"),
    Pair("house", "घर", "hin_Deva"),
    Pair("green house", "हरा घर", "hin_Deva"),
    Pair("red tree", "लाल पेड़", "hin_Deva"),
    Pair("house", "வீடு", "tam_Taml"),
]


def test_trigrams_of_a_short_word_have_its_edges() -> None:
    assert trigrams("Ab") == {" ab": 1, "ab ": 1}
    assert trigrams("") == {}


def test_nearest_neighbour_by_hand() -> None:
    nearest = NearestNeighbour(["red house", "green tree"], ["A", "B"])
    assert nearest.translate("the tree") == "B"
    assert nearest.translate("Red Houses") == "A"
    assert nearest.translate("xyzzy") == "xyzzy"


def test_nearest_neighbour_takes_the_first_of_equals() -> None:
    assert NearestNeighbour(["sea", "sea"], ["first", "second"]).translate("sea") == "first"


def test_nearest_neighbour_equals_brute_force() -> None:
    rng = random.Random(5)
    texts = ["".join(rng.choice("abcd ") for _ in range(rng.randint(1, 12))) for _ in range(120)]
    sources, queries = texts[:90], texts[90:]
    nearest = NearestNeighbour(sources, sources)
    bags = [trigrams(text) for text in sources]
    frequency = {g: sum(g in bag for bag in bags) for bag in bags for g in bag}
    idf = {g: math.log((1 + len(bags)) / (1 + n)) + 1 for g, n in frequency.items()}
    for query in queries:
        expected = []
        for bag in bags:
            norm = math.sqrt(sum((n * idf[g]) ** 2 for g, n in bag.items())) or 1.0
            shared = ((g, n) for g, n in trigrams(query).items() if g in bag)
            expected.append(sum(n * bag[g] * idf[g] ** 2 for g, n in shared) / norm)
        np.testing.assert_allclose(nearest.similarities(query), expected, rtol=1e-12, atol=1e-12)


def test_words_keep_combining_marks_and_joiners() -> None:
    assert words("हिन्दी, क्‍ष! %(name)s") == ["हिन्दी", "क्‍ष", "name", "s"]


def test_word_by_word_learns_by_elimination_and_copies_the_unknown() -> None:
    rows = [pair for pair in PAIRS if pair.language == "hin_Deva"]
    lexicon = WordByWord([pair.source for pair in rows], [pair.target for pair in rows])
    assert lexicon.translate("Red House") == "लाल घर"
    assert lexicon.translate("green tree?") == "हरा पेड़?"
    assert lexicon.translate("a blue house %s") == "a blue घर %s"


def test_word_by_word_of_nothing_copies() -> None:
    assert WordByWord([], []).translate("as it is") == "as it is"


def test_translate_all_stays_inside_the_language_and_in_order() -> None:
    queries = [Query("house", "tam_Taml"), Query("red house", "hin_Deva"), Query("house", "kan_Knda")]
    answers = translate_all(queries, PAIRS)
    assert answers[COPY] == ["house", "red house", "house"]
    assert answers[NEAREST] == ["வீடு", "लाल घर", "house"]
    assert answers[WORDS] == ["வீடு", "लाल घर", "house"]


@pytest.mark.slow
def test_queries_against_forty_thousand_pairs_take_seconds() -> None:
    rng = random.Random(1)
    stems = ["".join(rng.choice("etaoinshrdlu") for _ in range(rng.randint(2, 9))) for _ in range(6000)]
    texts = [" ".join(rng.choices(stems, k=rng.randint(1, 5))) for _ in range(40500)]
    codes = ["hin_Deva", "tam_Taml"]
    pairs = [Pair(text, text[::-1], codes[i % 2]) for i, text in enumerate(texts[:40000])]
    queries = [Query(text, codes[i % 2]) for i, text in enumerate(texts[40000:])]
    started = time.process_time()
    translate_all(queries, pairs)
    assert time.process_time() - started < 30  # 2 s on an idle core; comparing every pair takes minutes
