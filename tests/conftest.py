"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import ROOT, TINY, nalanda


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data; tests that use it are marked `shared` and skip where it is absent."""
    place = os.environ.get("NALANDA_DATA", "")
    if not place or not Path(place).is_dir():
        pytest.skip("NALANDA_DATA does not name a folder with the benchmark data")
    return Path(place)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that holds `quickstart`, finished."""
    pytest.importorskip("pycountry", reason="needs the demo extra")
    runs = tmp_path_factory.mktemp("runs")
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    assert nalanda("run", recipe, "--runs", str(runs), *TINY) == 0
    return runs
