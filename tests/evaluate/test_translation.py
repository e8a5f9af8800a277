"""Scores, intervals, slices and paired comparisons of translations."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from nalanda.base.errors import DataError
from nalanda.evaluate import rows as rows_file
from nalanda.evaluate import slices
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.scoring import Settings, Statistics
from nalanda.evaluate.translation import Difference, compare, evaluate_translations

SETTINGS = Settings(resamples=200)
WORDS = ["भारत", "श्रीलंका", "नेपाल", "भाषा", "देश", "लिपि", "नाम", "मुद्रा", "शहर", "नदी"]


def rows(count: int = 120, wrong: float = 0.4, seed: int = 0) -> list[Translation]:
    """Test rows of two languages and two origins; a share `wrong` of their words is replaced."""
    made = []
    for i in range(count):
        texts = random.Random(i)
        words = texts.choices(WORDS, k=texts.randint(1, 7))
        noise = random.Random(f"{seed}-{i}")
        answer = [noise.choice(WORDS) if noise.random() < wrong else word for word in words]
        made.append(
            Translation(
                str(i), " ".join("word" for _ in words), " ".join(words), " ".join(answer),
                "hin_Deva" if i % 3 else "mar_Deva", "names" if i % 2 else "interface", 2.0 * len(words), len(words),
            )
        )  # fmt: skip
    return made


def test_scores_are_sacrebleus_and_files_hold_what_is_returned(tmp_path: Path) -> None:
    data = rows()
    scores = evaluate_translations(data, tmp_path, name="a", model="finetune", settings=SETTINGS)
    hypotheses, references = [row.hypothesis for row in data], [[row.reference for row in data]]
    overall = scores["overall"]
    assert overall["chrf"]["value"] == pytest.approx(
        CHRF(word_order=2).corpus_score(hypotheses, references).score
    )
    assert overall["bleu"]["value"] == pytest.approx(
        BLEU().corpus_score(hypotheses, references).score, abs=1e-6
    )
    assert overall["exact"]["value"] == pytest.approx(100 * sum(row.exact for row in data) / len(data))
    for key in ("chrf", "bleu", "exact"):
        assert overall[key]["low"] < overall[key]["value"] < overall[key]["high"]
    assert "chrF" in scores["signatures"]["chrf"] or "nc:6" in scores["signatures"]["chrf"]
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == scores
    assert rows_file.read(tmp_path / "translations.jsonl") == data


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_any_set_of_rows_scores_as_sacrebleu_does(count: int, wrong: float) -> None:
    data = rows(count, wrong, seed=count)
    data += [
        dataclasses.replace(row, id=f"{row.id}b", hypothesis=text) for row, text in zip(data, ("", "x", "भा"))
    ]
    statistics = Statistics.of(data)
    for inside in (np.arange(len(data)), np.array([len(data) - 1]), np.arange(0, len(data), 2)):
        found = statistics.measure(inside, SETTINGS)
        picked = [data[i] for i in inside]
        hypotheses, references = [row.hypothesis for row in picked], [[row.reference for row in picked]]
        chrf = CHRF(word_order=2).corpus_score(hypotheses, references).score
        assert found["chrf"]["value"] == pytest.approx(chrf, abs=1e-9)
        bleu = BLEU().corpus_score(hypotheses, references).score
        assert found["bleu"]["value"] == pytest.approx(bleu, abs=1e-9)


def test_perplexity_and_bits_per_byte(tmp_path: Path) -> None:
    data = rows(40)
    overall = evaluate_translations(data, tmp_path, name="a", settings=SETTINGS)["overall"]
    assert overall["perplexity"] == pytest.approx(math.exp(2.0))
    size = sum(len(row.reference.encode()) for row in data)
    nats = sum(row.nll or 0 for row in data)
    assert overall["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    bare = [dataclasses.replace(row, nll=None, tokens=None) for row in data]
    assert "perplexity" not in evaluate_translations(bare, tmp_path, name="a", settings=SETTINGS)["overall"]


def test_languages_and_slices_add_up_to_all_rows(tmp_path: Path) -> None:
    data = rows(200)
    scores = evaluate_translations(data, tmp_path, name="a", settings=SETTINGS)
    assert sum(part["rows"] for part in scores["languages"].values()) == 200
    assert set(scores["slices"]) == {"source length", "language", "origin"}
    for parts in scores["slices"].values():
        assert sum(part["rows"] for part in parts) == 200
        exact = sum(part["exact"]["value"] * part["rows"] for part in parts) / 200
        assert exact == pytest.approx(scores["overall"]["exact"]["value"])


@pytest.mark.parametrize("lengths", [[1] * 50, [1, 40], [3] * 29 + [1] * 31 + [20] * 2, list(range(60))])
def test_every_row_is_in_one_slice(lengths: list[int]) -> None:
    data = [
        Translation(str(i), "w " * n, "r", "h", f"l{n % 7}_Deva", "o" if n % 2 else "")
        for i, n in enumerate(lengths)
    ]
    for found in (
        slices._by_length([len(row.source.split()) for row in data], 30),
        slices._by_name([row.target_language for row in data], 30),
    ):
        inside = np.concatenate([part.rows for part in found])
        assert sorted(inside.tolist()) == list(range(len(data)))
        assert all(part.small == (len(part.rows) < 30) for part in found)
        assert sum(part.small for part in found) <= 1


def test_small_slices_are_merged_with_their_neighbours() -> None:
    found = slices._by_length([1] * 40 + [2] * 40 + [3] * 5 + [20] * 4, 30)
    assert [(part.name, len(part.rows)) for part in found] == [("1 word", 40), ("2 words or more", 49)]
    names = slices._by_name(["a"] * 40 + ["b"] * 3 + ["c"] * 4, 30)
    assert [(part.name, len(part.rows), part.small) for part in names] == [
        ("a", 40, False),
        ("2 others", 7, True),
    ]


def test_a_clearly_better_system_is_better_and_the_other_way_round_worse() -> None:
    good, bad = rows(wrong=0.2, seed=1), rows(wrong=0.7, seed=2)
    forth, back = compare(good, bad, SETTINGS), compare(bad, good, SETTINGS)
    assert (forth.verdict, back.verdict) == ("better", "worse")
    difference = forth.overall["chrf"]
    assert difference.value == pytest.approx(difference.first - difference.second)
    assert 0 < difference.low < difference.value < difference.high
    assert back.overall["chrf"].value == pytest.approx(-difference.value)
    assert set(forth.languages) == {"hin_Deva", "mar_Deva"}


def test_a_system_against_itself_is_not_distinguishable() -> None:
    same = compare(rows(), list(reversed(rows())), SETTINGS)
    assert same.verdict == "not distinguishable"
    assert same.overall["chrf"].value == 0
    assert same.overall["chrf"].p == 1


def test_false_alarms_are_about_as_rare_as_they_claim() -> None:
    alarms = sum(
        compare(rows(60, 0.5, seed), rows(60, 0.5, seed + 1000), Settings(resamples=100)).verdict
        != "not distinguishable"
        for seed in range(30)
    )
    assert alarms <= 6  # 5 % of 30 is 1.5; more than 6 has a chance near 1 in 1000


@pytest.mark.parametrize(
    ("p", "low", "high", "verdict"),
    [
        (0.001, 1, 2, "better"),
        (0.001, -2, -1, "worse"),
        (0.2, -1, 2, "not distinguishable"),
        (0.06, 0.1, 2, "not distinguishable"),
        (0.01, -0.1, 2, "not distinguishable"),
    ],
)
def test_verdict(p: float, low: float, high: float, verdict: str) -> None:
    assert Difference(1, 0, 1, low, high, p, 10).verdict == verdict


def test_scores_repeat_exactly(tmp_path: Path) -> None:
    first = evaluate_translations(rows(), tmp_path / "a", name="a", settings=SETTINGS)
    assert first == evaluate_translations(rows(), tmp_path / "b", name="a", settings=SETTINGS)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no translations"):
        evaluate_translations([], tmp_path, name="a")
    with pytest.raises(DataError, match="two translations have the id '3'"):
        evaluate_translations([*rows(9), rows(9)[3]], tmp_path, name="a")
    with pytest.raises(DataError, match="9 rows against 10"):
        compare(rows(9), rows(10), SETTINGS)
    changed = [dataclasses.replace(row, reference="x") for row in rows(9)]
    with pytest.raises(DataError, match="row '0' is not the same"):
        compare(rows(9), changed, SETTINGS)


def test_rows_survive_line_separators_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "translations.jsonl"
    data = [Translation("1", "a\u2028b", "c\nd", '"\\', "hin_Deva")]
    rows_file.write(path, data)
    assert rows_file.read(path) == data
    path.write_text('{"id": "1", "source": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"translations.jsonl:1: 'source' must be a text"):
        rows_file.read(path)
    path.write_text("\n{", encoding="utf-8")
    with pytest.raises(DataError, match=r":2: not JSON"):
        rows_file.read(path)


def test_empty_answers_are_scored(tmp_path: Path) -> None:
    data = [dataclasses.replace(row, hypothesis="") for row in rows(20)]
    overall = evaluate_translations(data, tmp_path, name="a", settings=SETTINGS)["overall"]
    assert overall["chrf"] == {"value": 0.0, "low": 0.0, "high": 0.0}
