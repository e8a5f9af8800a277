"""The data of the quickstart, from the packages of the extra `demo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nalanda.config import parse
from nalanda.corpus.build import CorpusConfig, build

LANGUAGES = ["hin_Deva", "tam_Taml", "mar_Deva", "pan_Guru", "kan_Knda", "ory_Orya", "ben_Beng"]


@pytest.mark.slow
def test_the_whole_corpus_stage(tmp_path: Path) -> None:
    for name in ("pycountry", "babel", "django"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"package '{name}' is not installed (extra demo)")
    sources = [
        {"kind": "catalogs", "package": "pycountry", "languages": LANGUAGES},
        {"kind": "catalogs", "package": "django", "languages": LANGUAGES},
        {"kind": "babel", "languages": LANGUAGES},
    ]
    result = build(parse(CorpusConfig, {"sources": sources}, "test"), tmp_path / "out")
    assert result["ledger"]["total"]["quarantined"] == 0
    for language, least in zip(LANGUAGES, (14_000, 13_000, 8_000, 7_500, 7_000, 4_200, 3_200)):
        assert result["languages"]["train"][language] >= least, language
        assert result["languages"]["test"][language] >= 50, language
    assert result["notes"] == ["package 'django' has no catalogs for ory_Orya"]
