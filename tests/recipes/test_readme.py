"""Every command of the README works as typed, but for a tiny model and another folder of runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support import ROOT, TINY, nalanda

BLOCKS = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_readme_has_its_two_commands() -> None:
    assert COMMANDS[0] == "scripts/quickstart"
    assert "scripts/test" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("nalanda ")])
def test_a_command_of_the_readme(command: str, tiny_run: Path) -> None:
    words = [str(tiny_run / "quickstart") if w == "runs/quickstart" else w for w in shlex.split(command)[1:]]
    if "recipes/quickstart.yaml" in words:
        words += ["--runs", str(tiny_run), *TINY]
        words = [str(ROOT / w) if w == "recipes/quickstart.yaml" else w for w in words]
    assert nalanda(*words) == 0


def test_scripts_quickstart_runs_the_recipe(tiny_run: Path) -> None:
    """Its stages are done in `tiny_run`, so this shows the script's own part: set up, run, name the report."""
    if not (ROOT / ".venv" / "bin" / "nalanda").exists():
        pytest.skip("scripts/setup has not made .venv")
    words = [str(ROOT / "scripts" / "quickstart"), "--runs", str(tiny_run), *TINY]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tiny_run / "quickstart" / "report" / "report.html") in done.stdout


def test_scripts_test_collects_the_suite() -> None:
    if not (ROOT / ".venv" / "bin" / "nalanda").exists():
        pytest.skip("scripts/setup has not made .venv")
    words = [str(ROOT / "scripts" / "test"), "--collect-only", "-q", "tests/base"]
    environment = {**os.environ, "NALANDA_TEST_WORKERS": "0"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_run.py" in done.stdout
