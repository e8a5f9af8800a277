"""Translations inside installed packages."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.corpus import packages
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import check, read
from nalanda.corpus.sources import BabelSource, CatalogsSource


def make_mo(messages: dict[bytes, bytes]) -> bytes:
    """A little-endian .mo file without header."""
    strings, tables, start = b"", b"", 28 + 16 * len(messages)
    for side in (0, 1):
        for item in sorted(messages.items()):
            tables += struct.pack("<2I", len(item[side]), start + len(strings))
            strings += item[side] + b"\0"
    return (
        struct.pack("<7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, start)
        + tables
        + strings
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with catalogs that must not be imported."""
    root = tmp_path / "carrier"
    for place in ("locale/bn", "locale/bn_IN", "sub/locale/bn", "locale/pa_PK"):
        (root / place / "LC_MESSAGES").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (root / "locale/bn/LC_MESSAGES/app.mo").write_bytes(make_mo({b"Sun": "সূর্য".encode()}))
    (root / "locale/bn/LC_MESSAGES/app.po").write_text('msgid "x"\nmsgstr "y"\n', encoding="utf-8")
    (root / "locale/bn_IN/LC_MESSAGES/app.mo").write_bytes(make_mo({b"Moon": "চাঁদ".encode()}))
    (root / "sub/locale/bn/LC_MESSAGES/only.po").write_text('msgid "Star"\nmsgstr "তারা"\n', encoding="utf-8")
    (root / "locale/pa_PK/LC_MESSAGES/app.mo").write_bytes(make_mo({b"Sun": "سورج".encode()}))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "carrier"


def test_catalogs_are_found_without_import(package: str) -> None:
    source = CatalogsSource(package=package, languages=("bn", "pa"))
    check(source)
    quarantine = Quarantine(source="c")
    documents = list(read(source, quarantine))
    assert [(d.text, d.target, d.id) for d in documents] == [
        ("Sun", "সূর্য", "c:locale/bn/app.mo:1"),
        ("Star", "তারা", "c:sub/locale/bn/only.po:1"),
        ("Moon", "চাঁদ", "c:locale/bn_IN/app.mo:1"),
    ]
    assert {d.target_language for d in documents} == {"ben_Beng"}
    assert quarantine.notes == ["package 'carrier' has no catalogs for pan_Guru"]


def test_a_package_that_is_not_there_says_how_to_install_it(package: str) -> None:
    with pytest.raises(DataError, match=r"pip install -e '\.\[demo\]'"):
        check(CatalogsSource(package="surely_not_installed", languages=("hi",)))
    with pytest.raises(DataError, match=r"pip install -e '\.\[demo\]'"):
        check(CatalogsSource(package="../etc", languages=("hi",)))
    with pytest.raises(DataError, match="no gettext catalogs for tam_Taml"):
        check(CatalogsSource(package=package, languages=("ta",)))


def test_without_babel_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[demo\]'"):
        check(BabelSource(languages=("hi",)))


def test_names_of_babel() -> None:
    pytest.importorskip("babel")
    source = BabelSource(languages=("hi", "hoc_Wara"), names=("territories", "cities", "days", "units"))
    quarantine = Quarantine(source="babel")
    found = {d.id: d for d in read(source, quarantine)}
    india = found["babel:hin_Deva:territories:IN"]
    assert (india.text, india.target, india.language) == ("India", "भारत", "eng_Latn")
    assert found["babel:hin_Deva:cities:Asia/Tokyo"].text == "Tokyo"
    assert found["babel:hin_Deva:days:0"].text == "Monday"
    assert quarantine.notes == ["babel has no locale for hoc_Wara"]


def test_every_locale_name_of_the_table_that_babel_has_is_of_that_script() -> None:
    babel = pytest.importorskip("babel")
    from nalanda.text.language import LANGUAGES, script_letters

    for language in LANGUAGES.values():
        source = BabelSource(languages=(language.code,), names=("territories",))
        names = packages._names(babel, language.code, source)
        if names and names["territories"]:
            text = "".join(names["territories"].values())
            inside, total = script_letters(text, language.script)
            assert inside > 0.9 * total, language.code


def test_pycountry_without_importing_it() -> None:
    pytest.importorskip("importlib.metadata").distribution("pycountry")
    code = (
        "import sys\n"
        "from nalanda.corpus.readers import read\n"
        "from nalanda.corpus.quarantine import Quarantine\n"
        "from nalanda.corpus.sources import CatalogsSource\n"
        "rows = list(read(CatalogsSource(package='pycountry', languages=('ory_Orya',)), Quarantine()))\n"
        "assert len(rows) > 3000, len(rows)\n"
        "assert not {'pycountry', 'django', 'torch', 'babel'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
