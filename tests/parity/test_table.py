"""docs/models.md says what the tables and files are today, and every class that a family names has been compared."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from nalanda.config import parse
from nalanda.models.auto import FAMILIES
from nalanda.stages.train import TrainStage

pytest.importorskip("transformers")
from parity.cases import CASES
from parity.checks import CHECKS
from parity.table import END, PAGE, START, families, number, replaced

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours


def part(name: str) -> str:
    page = PAGE.read_text(encoding="utf-8")
    return page.partition(START.format(name))[2].partition(END.format(name))[0].strip()


def test_the_page_lists_the_families_as_they_are() -> None:
    assert part("families") == families(), "run scripts/models-table --families"


def test_the_page_has_every_network_and_no_failure() -> None:
    measured = part("parity")
    for case in CASES:
        assert f"| {case.family} | {case.name} |" in measured, "run scripts/models-table"
    assert "checks fail" not in measured
    assert all(check.heading in measured for check in CHECKS.values())


def test_every_class_of_every_family_has_a_case() -> None:
    compared = {(case.family, case.architecture) for case in CASES}
    named = {(name, cls) for name, family in FAMILIES.items() for cls in family.architectures}
    assert not named - compared
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_page_s_recipe_is_one() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    values: dict[str, Any] = yaml.safe_load(text)
    assert parse(TrainStage, values, "docs/models.md").model == TrainStage.model_validate(values).model


def test_parts_are_replaced_and_numbers_written() -> None:
    page = f"a\n{START.format('x')}\nold\n{END.format('x')}\nb\n"
    assert replaced(replaced(page, "x", "new"), "x", "newer") == replaced(page, "x", "newer")
    assert "old" not in replaced(page, "x", "new")
    assert replaced(page, "x", "new").endswith("b\n")
    assert number("greedy", 0) == "same"
    assert "3 differ" in number("beam", 3)
    assert number("logits", 2.1e-6) == "2.1e-06"
    assert number("base", None) == "-"
