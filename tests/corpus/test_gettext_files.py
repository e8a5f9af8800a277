"""Gettext catalogs, against Python's own reader of .mo and babel's and polib's of .po."""

from __future__ import annotations

import gettext
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalanda.corpus.document import Document
from nalanda.corpus.gettext_files import Damage, Entry, parse_mo, parse_po
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import read
from nalanda.corpus.sources import GettextSource

HEADER = "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n != 1;\n"


def make_mo(messages: dict[bytes, bytes], order: str = "<") -> bytes:
    """A .mo file of either byte order, as the GNU manual lays it out."""
    items = sorted(messages.items())
    start = 28 + 16 * len(items)
    strings, tables = b"", ([], [])
    for side in (0, 1):
        for item in items:
            tables[side].append((len(item[side]), start + len(strings)))
            strings += item[side] + b"\0"
    head = struct.pack(order + "7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, start)
    rows = b"".join(struct.pack(order + "2I", *row) for table in tables for row in table)
    return head + rows + strings


def good(found: list[Entry | Damage]) -> list[Entry]:
    assert not [x for x in found if isinstance(x, Damage)], found
    return [x for x in found if isinstance(x, Entry)]


text = st.text(
    st.characters(exclude_characters="\0\x04", exclude_categories=("Cs",)), min_size=1, max_size=20
)


@given(
    messages=st.dictionaries(text, text, max_size=12),
    plurals=st.dictionaries(text, st.tuples(text, text, text), max_size=4),
    order=st.sampled_from(["<", ">"]),
)
def test_mo_against_python(
    messages: dict[str, str], plurals: dict[str, tuple[str, str, str]], order: str
) -> None:
    table = {b"": HEADER.encode()}
    table |= {key.encode(): value.encode() for key, value in messages.items() if key not in plurals}
    table |= {f"{k}\0{p}".encode(): f"{a}\0{b}".encode() for k, (p, a, b) in plurals.items()}
    data = make_mo(table, order)
    catalog = gettext.GNUTranslations(io.BytesIO(data))._catalog  # type: ignore[attr-defined]
    ours: dict[object, str] = {}
    for entry in good(list(parse_mo(data))):
        if entry.plural is None:
            ours[entry.singular] = entry.forms[0]
        else:
            ours |= {(entry.singular, index): form for index, form in enumerate(entry.forms)}
    catalog.pop("", None)
    assert ours == catalog


def test_contexts_and_other_charsets_in_mo() -> None:
    header = b"Content-Type: text/plain; charset=ISO-8859-1\n"
    (entry,) = good(list(parse_mo(make_mo({b"": header, b"menu\x04Open": b"\xd6ffnen"}))))
    assert (entry.context, entry.singular, entry.forms) == ("menu", "Open", ["Öffnen"])


@pytest.mark.parametrize("name", ["utf-7", "rot13", "base64", "nonsense", "CHARSET"])
def test_a_charset_that_is_none_is_read_as_utf8(name: str) -> None:
    header = f"Content-Type: text/plain; charset={name}\n".encode()
    (entry,) = good(list(parse_mo(make_mo({b"": header, b"Open": "खोलें".encode()}))))
    assert entry.forms == ["खोलें"]


def test_every_cut_of_a_mo_file_is_either_read_or_told() -> None:
    data = make_mo({b"": HEADER.encode(), **{b"word %d" % n: "शब्द".encode() for n in range(5)}})
    whole = {(e.singular, e.forms[0]) for e in good(list(parse_mo(data)))}
    for cut in range(len(data) - 1):
        found = list(parse_mo(data[:cut]))
        assert any(isinstance(x, Damage) for x in found), cut
        assert {(e.singular, e.forms[0]) for e in found if isinstance(e, Entry)} <= whole


def test_a_bad_message_in_mo_leaves_the_others() -> None:
    found = list(parse_mo(make_mo({b"": HEADER.encode(), b"a": b"\xff", b"b": b"ok"})))
    assert [type(x).__name__ for x in found] == ["Damage", "Entry"]


PO = r"""# a translator's note
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=n != 1;\n"

#. from the menu
#: menu.c:12
msgctxt "menu"
msgid "Open"
msgstr "खोलें"
#, fuzzy, c-format
#| msgid "Clos"
msgid "Close %s"
msgstr "बंद %s"

msgid "one file"
msgid_plural "%d files"
msgstr[0] "एक फ़ाइल"
msgstr[1] "%d फ़ाइलें"

msgid ""
"two "
"parts \"quoted\" \\ and\ttab\n"
msgstr ""
"दो "
"भाग\n"

msgid "untranslated"
msgstr ""

#~ msgid "gone"
#~ msgstr "गया"

#~| msgid "older"
#~ msgctxt "x"
#~ msgid "gone too"
#~ msgstr ""
#~ "वह भी"
"""


def test_po_by_hand() -> None:
    entries = good(list(parse_po(PO.encode())))
    assert [(e.context, e.flag, e.pairs()) for e in entries] == [
        ("menu", "", [("Open", "खोलें")]),
        (None, "fuzzy", [("Close %s", "बंद %s")]),
        (None, "", [("one file", "एक फ़ाइल"), ("%d files", "%d फ़ाइलें")]),
        (None, "", [('two parts "quoted" \\ and\ttab\n', "दो भाग\n")]),
        (None, "", [("untranslated", "")]),
        (None, "obsolete", [("gone", "गया")]),
        ("x", "obsolete", [("gone too", "वह भी")]),
    ]


def test_po_against_polib() -> None:
    polib = pytest.importorskip("polib")
    theirs = [
        (
            e.msgctxt,
            e.msgid,
            e.msgid_plural or None,
            [e.msgstr_plural[k] for k in sorted(e.msgstr_plural)] or [e.msgstr],
        )
        for e in polib.pofile(PO)
    ]
    ours = [(e.context, e.singular, e.plural, e.forms) for e in good(list(parse_po(PO.encode())))]
    assert ours == theirs


def test_django_catalogs_against_babel() -> None:
    pofile = pytest.importorskip("babel.messages.pofile")
    django = pytest.importorskip("importlib.util").find_spec("django")
    if django is None:
        pytest.skip("django is not installed")
    root = Path(django.submodule_search_locations[0])
    paths = [
        p for code in ("hi", "ta", "bn", "ar", "ja") for p in sorted(root.rglob(f"locale/{code}/**/*.po"))
    ][::6]
    assert len(paths) > 5
    for path in paths:
        data = path.read_bytes()
        theirs = {}
        for message in pofile.read_po(io.BytesIO(data)):
            if message.id:
                ids = message.id if isinstance(message.id, tuple | list) else [message.id]
                forms = message.string if isinstance(message.string, tuple | list) else [message.string]
                theirs[(message.context, *ids)] = (list(forms), message.fuzzy)
        ours = {}
        for entry in good(list(parse_po(data))):
            if entry.flag != "obsolete":
                ids = (entry.singular,) if entry.plural is None else (entry.singular, entry.plural)
                ours[(entry.context, *ids)] = (entry.forms, entry.flag == "fuzzy")
        assert ours == theirs, path


@given(messages=st.dictionaries(text, text, min_size=1, max_size=8))
def test_what_polib_writes_is_read(messages: dict[str, str]) -> None:
    polib = pytest.importorskip("polib")
    safe = {
        k: v for k, v in messages.items() if not set(k + v) & set("\r\a\b\f\v\x1c\x1d\x1e\x85\u2028\u2029")
    }
    file = polib.POFile()
    for key, value in safe.items():
        file.append(polib.POEntry(msgid=key, msgstr=value))
    assert {e.singular: e.forms[0] for e in good(list(parse_po(str(file).encode())))} == safe


@pytest.mark.parametrize(
    "bad",
    ['msgid "a\nmsgstr "b"', 'msgid "a"', 'msgstr "b"', 'msgid "a"\nmsgid "b"\nmsgstr "c"',
     'msgid "a" x\nmsgstr "b"', 'msgid "a"\nmsgstr[1] "b"', 'nonsense "a"', '"a string alone"',
     'msgid "a\\"\nmsgstr "b"', 'msgid "\\xff"\nmsgstr "b"',
     'msgid "a"b"\nmsgstr "c"'],
)  # fmt: skip
def test_a_bad_po_entry_is_told_and_the_others_are_read(bad: str) -> None:
    data = f'msgid "before"\nmsgstr "x"\n\n{bad}\n\nmsgid "after"\nmsgstr "y"\n'.encode()
    found = list(parse_po(data))
    assert [e.singular for e in found if isinstance(e, Entry)] == ["before", "after"]
    (damage,) = [x for x in found if isinstance(x, Damage)]
    assert (damage.row, damage.offset) == (4, data.index(bad.encode()))
    assert damage.data == bad.encode()


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parsers_fail(data: bytes) -> None:
    list(parse_po(data))
    list(parse_mo(data))
    list(parse_mo(b"\xde\x12\x04\x95" + data))
    list(parse_po(b'msgid "a"\nmsgstr "b"\n' + data))


def test_forms_of_other_plural_systems() -> None:
    one = Entry(1, 0, "file", "files", forms=["ファイル"])
    three = Entry(1, 0, "file", "files", forms=["файл", "файла", "файлов"])
    assert one.pairs() == [("files", "ファイル")]
    assert three.pairs() == [("files", "файлов")]


def test_rows_of_a_catalog(tmp_path: Path) -> None:
    path = tmp_path / "hi.po"
    path.write_text(PO.replace('msgid "Open"\nmsgstr "खोलें"', 'msgid "Open'), encoding="utf-8")
    quarantine = Quarantine(source="app")
    documents = list(read(GettextSource(path=str(path), target_language="hi"), quarantine))
    assert documents[0] == Document(
        "Close %s", "app:hi.po:11", "eng_Latn", "बंद %s", "hin_Deva", "app", {"flag": "fuzzy"}
    )
    assert len(documents) == 7
    assert quarantine.ledger.to_dict()["total"]["quarantined"] == 1
    assert quarantine.ledger._seen["app"] == 8
