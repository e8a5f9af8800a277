"""Writes docs/models.md: the families as nalanda/models has them, and what the parity checks measure on this machine.

PYTHONPATH=tests python -m parity.table                # everything, minutes
PYTHONPATH=tests python -m parity.table --families     # the families alone; the measured part stays as it is
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nalanda.models.auto import FAMILIES
from nalanda.models.family import Family

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
MODELS = ROOT / "nalanda" / "models"
START, END = "<!-- {}: written by scripts/models-table -->", "<!-- end of {} -->"
SAME = "-"
"""Stands where a check has no meaning."""


def modules() -> dict[str, Path]:
    """The file of each family, by the imports of auto.py."""
    found = {}
    for node in ast.parse((MODELS / "auto.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nalanda.models."):
            path = ROOT / f"{str(node.module).replace('.', '/')}.py"
            found |= {alias.name: path for alias in node.names}
    import nalanda.models.auto as auto

    return {
        value.name: found[name]
        for name, value in vars(auto).items()
        if isinstance(value, Family) and name in found
    }


def lines(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    body = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in body)


def families() -> str:
    """Generated: every family, its model_types, classes with their heads, presets, and the size of its file."""
    files = modules()
    rows = []
    for name, family in FAMILIES.items():
        classes = [
            f"{cls} ({', '.join(heads)})" if heads else cls for cls, heads in family.architectures.items()
        ]
        classes = classes if family.base in family.architectures else [family.base, *classes]
        presets = ", ".join(f"`{preset}`" for preset in family.presets) or SAME
        path = files[name]
        link = f"[{path.name}](../nalanda/models/{path.name}), {lines(path)} lines"
        rows.append(
            (
                f"**{name}**",
                ", ".join(f"`{t}`" for t in family.model_types),
                "<br>".join(classes),
                presets,
                link,
            )
        )
    heading = ("family", "`model_type`", "classes (heads)", "sizes by name", "its file")
    shared = sorted(set(files.values()))
    note = (
        f"{len(FAMILIES)} families in {len(shared)} files, {sum(map(lines, shared))} lines together; "
        "a file that holds several families counts once."
    )
    return f"{table(heading, rows)}\n\n{note}"


def number(name: str, value: float | None) -> str:
    """What a check found, for a cell."""
    if value is None:
        return SAME
    if name in ("greedy", "beam"):
        return "same" if value == 0 else f"**{value:.0f} differ**"
    if name == "nudged":
        return "all" if value == 0 else f"**{value:.0f} do not**"
    return f"{value:.1e}" if value else "0"


def measure() -> str:
    """Runs every check on every case. Minutes."""
    from parity.cases import CASES, pair_of
    from parity.checks import CHECKS

    worst: dict[str, dict[str, float]] = {}
    rows: list[Sequence[str]] = []
    broken = 0
    for case in CASES:
        cells: list[str] = []
        for name, check in CHECKS.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = check.measure(pair_of(case), Path(folder))
                except Exception as error:
                    broken += 1
                    cells.append(f"**{type(error).__name__}**")
                    sys.stderr.write(f"{case.name} {name}: {error}\n")
                    continue
            cells.append(number(name, found))
            if found is not None:
                family = worst.setdefault(case.family, {})
                family[name] = max(family.get(name, 0.0), found)
                if found > check.limit:
                    broken += 1
                    cells[-1] = f"**{cells[-1]}**"
                    sys.stderr.write(f"{case.name} {name}: {found} is above {check.limit}\n")
        rows.append((case.family, case.name, *cells))
        sys.stderr.write(f"{case.name}: {' '.join(cells)}\n")
    limits = [
        "limit",
        *(f"{c.limit:g}" if c.limit else {"nudged": "all"}.get(n, "same") for n, c in CHECKS.items()),
    ]
    headings = [check.heading for check in CHECKS.values()]
    by_family = [
        (f"**{family}**", *(number(name, found.get(name)) for name in CHECKS))
        for family, found in worst.items()
    ]
    return "\n\n".join(
        (
            f"{len(CASES)} networks of {len(worst)} families; {machine()}. "
            + (f"**{broken} checks fail.**" if broken else "All checks hold."),
            table(["largest of the family", *headings], [limits, *by_family]),
            "<details><summary>Every network</summary>",
            table(["family", "network", *headings], rows),
            "</details>",
        )
    )


def machine() -> str:
    """Where it was measured."""
    import platform

    import torch
    import transformers

    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return (
        f"{name}, {os.cpu_count()} cores, fp32; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )


def replaced(page: str, part: str, text: str) -> str:
    """The page with the text of a generated part replaced."""
    start, end = START.format(part), END.format(part)
    before, _, rest = page.partition(start)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def main(words: Sequence[str]) -> None:
    """Writes the page."""
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    page = replaced(page, "families", families())
    if "--families" not in words:
        page = replaced(page, "parity", measure())
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
