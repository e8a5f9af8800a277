"""Every family's networks say what transformers' say; what is compared is in checks.py, with what in cases_*.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
from parity.cases import CASES, pair_of
from parity.checks import CHECKS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours


@pytest.mark.parametrize("name", list(CHECKS))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(case: object, name: str, tmp_path: Path) -> None:
    if name in case.unmatched:
        pytest.skip(case.unmatched[name])
    found = CHECKS[name].measure(pair_of(case), tmp_path)
    assert found is None or found <= CHECKS[name].limit
