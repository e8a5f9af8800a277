"""BLEU and chrF++ from counts equal sacrebleu's, for the corpus, every sentence and every resample."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from nalanda.metrics.overlap import Bleu, ChrF, bleu, chrf

_TEXT = "the cat sat on a mat , and it was happy . (yes) हिंदी में क्षेत्र । தமிழ் 12 , 3.5 don't"
_WORDS = _TEXT.split()


def _texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Hypotheses that share much with their references; some empty, some equal, some of one word."""
    generator = random.Random(seed)
    references = [" ".join(generator.choices(_WORDS, k=generator.randint(1, 15))) for _ in range(count)]
    hypotheses = []
    for reference in references:
        words = [word if generator.random() < 0.7 else generator.choice(_WORDS) for word in reference.split()]
        hypotheses.append(
            " ".join(words[: generator.randint(0, len(words))] if generator.random() < 0.3 else words)
        )
    return hypotheses, references


_METRICS = {
    "bleu": (Bleu(), BLEU(force=True)),
    "bleu-intl": (Bleu("intl"), BLEU(force=True, tokenize="intl")),
    "bleu-lower": (Bleu(lowercase=True), BLEU(force=True, lowercase=True)),
    "chrf": (ChrF(0), CHRF()),
    "chrf++": (ChrF(), CHRF(word_order=2)),
}


@pytest.mark.parametrize("name", _METRICS)
def test_corpus_and_resamples_equal_sacrebleu(name: str) -> None:
    ours, theirs = _METRICS[name]
    hypotheses, references = _texts(60, seed=1)
    counts = ours.statistics(hypotheses, references)
    generator = np.random.default_rng(0)
    draws = [
        np.arange(60),
        *(generator.integers(0, 60, size=60) for _ in range(20)),
        np.array([5]),
        np.array([3, 3]),
    ]
    scores = ours.score(np.stack([counts[draw].sum(0) for draw in draws]))
    for draw, score in zip(draws, scores, strict=True):
        expected = theirs.corpus_score([hypotheses[i] for i in draw], [[references[i] for i in draw]]).score
        # 3e-14 was the largest difference seen: the same sums, and logarithms of numpy and of math
        assert score == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", ["bleu", "chrf", "chrf++"])
def test_sentences_equal_sacrebleu(name: str) -> None:
    ours, theirs = _METRICS[name]
    if name == "bleu":
        theirs = BLEU(force=True, effective_order=True)
    hypotheses, references = _texts(200, seed=2)
    scores = ours.sentences(ours.statistics(hypotheses, references))
    expected = [theirs.sentence_score(h, [r]).score for h, r in zip(hypotheses, references, strict=True)]
    assert scores.shape == (200,)
    assert scores == pytest.approx(expected, abs=1e-10)
    assert 0 in scores
    assert any(abs(score - 100) < 1e-9 for score in scores)


_line = st.lists(st.sampled_from(["a", "b", "ab", ".", "क", "कि", "x,"]), max_size=6).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_line, _line), min_size=1, max_size=6))
def test_any_corpus_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    hypotheses, references = [h for h, _ in pairs], [r for _, r in pairs]
    for name in ("bleu", "chrf++"):
        ours, theirs = _METRICS[name]
        score = float(ours.score(ours.statistics(hypotheses, references).sum(0)))
        assert score == pytest.approx(theirs.corpus_score(hypotheses, [references]).score, abs=1e-10)
        assert -1e-9 <= score <= 100 + 1e-9


def test_several_references_and_their_signature() -> None:
    hypotheses = ["the cat sat", "a mat"]
    references = [["a cat sat", "the cat sat down"], ["the mat", "a mat"]]
    streams = [["a cat sat", "the mat"], ["the cat sat down", "a mat"]]
    for score, theirs in (
        (bleu(hypotheses, references), BLEU()),
        (chrf(hypotheses, references), CHRF(word_order=2)),
    ):
        assert score.value == pytest.approx(theirs.corpus_score(hypotheses, streams).score)
        assert score.signature == str(theirs.get_signature())
        assert "nrefs:2" in score.signature
    uneven = chrf(hypotheses, [["a cat sat", "the cat sat down"], ["a mat"]])
    assert "nrefs:var" in uneven.signature


def test_signatures_are_sacrebleus() -> None:
    hypotheses, references = _texts(10, seed=3)
    for name, (ours, theirs) in _METRICS.items():
        theirs.corpus_score(hypotheses, [references])
        assert ours.signature() == str(theirs.get_signature()), name
    assert bleu(hypotheses, references, "char").signature.split("|")[3] == "tok:char"
    assert "nw:2" in chrf(hypotheses, references).signature
    assert "nw:0" in chrf(hypotheses, references, word_order=0).signature


def test_chrf_by_hand() -> None:
    # "ab" against "ac", characters only: of the 1-grams one of two matches, of the 2-grams none of one
    assert chrf(["ab"], ["ac"], word_order=0).value == pytest.approx(100 * (1 / 2 + 0) / 2)
    # precision (1/1 + 0 ... one order only), recall 1/2: F2 = 5 * 1 * .5 / (4 * 1 + .5)
    assert chrf(["a"], ["ab"], word_order=0).value == pytest.approx(100 * 5 * 0.5 / 4.5)


def test_bleu_by_hand() -> None:
    # 5 words, one wrong at the end: precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty
    assert bleu(["a b c d x"], ["a b c d e"], "none").value == pytest.approx(
        100 * (4 / 5 * 3 / 4 * 2 / 3 / 2) ** 0.25
    )
    # 4 words of 6, all right: precision 1, penalty exp(1 - 6/4)
    assert bleu(["a b c d"], ["a b c d e f"], "none").value == pytest.approx(100 * np.exp(1 - 6 / 4))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="2 hypotheses but 1 references"):
        chrf(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no segments"):
        bleu([], [])
    with pytest.raises(ValueError, match="segment 1 has no reference"):
        bleu(["a", "b"], ["a", []])
    assert ChrF().statistics([], []).shape == (0, 24)
    assert Bleu().statistics([], []).shape == (0, 10)
