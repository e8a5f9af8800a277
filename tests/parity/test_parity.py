"""Every family's networks say what transformers' say; what is compared is in checks.py, with what in cases_*.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
from parity.case import Case
from parity.cases import CASES, pair_of
from parity.checks import CHECKS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours


_LONG = ("greedy", "beam", "nudged", "base")
"""Checks of many forward passes: of the variants of a class (those with a label) they run with the slow tests."""


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(
            case, name, id=f"{case.name}-{name}",
            marks=[pytest.mark.slow] if case.label and name in _LONG else [],
        )
        for case in CASES
        for name in CHECKS
    ],
)  # fmt: skip
def test_parity(case: Case, name: str, tmp_path: Path) -> None:
    found = CHECKS[name].measure(pair_of(case), tmp_path)
    assert found is None or found <= CHECKS[name].limit
