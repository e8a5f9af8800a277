"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data; tests that use it are marked `shared` and skip where it is absent."""
    place = os.environ.get("NALANDA_DATA", "")
    if not place or not Path(place).is_dir():
        pytest.skip("NALANDA_DATA does not name a folder with the benchmark data")
    return Path(place)
