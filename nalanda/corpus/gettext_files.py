"""Gettext catalogs in plain Python: .po text and .mo binary of either byte order, entry by entry.

    for entry in parse_mo(data): ...     # Entry, or Damage where an entry cannot be read
    for entry in parse_po(data): ...     # fuzzy and obsolete entries come too, and say so

A row of a corpus is one (English, translation) pair. An entry with plural forms gives two: the singular with the
first form and the plural with the second. A language with one form (Japanese) has it with the plural, and so the last
of three or more forms, whose first is seldom the form for one alone.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from nalanda.corpus.compressed import extension, whole
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.sources import Input

_CHARSET = re.compile(rb"charset=([\w.:-]+)", re.I)
# Python's, but no file's; some of them make text that no UTF-8 can hold.
_NO_CHARSETS = ("utf-7", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "undefined")
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\\"'?])|([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.?))", re.S)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr)\s*(?:\[\s*(\d+)\s*\])?\s*(".*)', re.S)


@dataclass(slots=True)
class Entry:
    """One message. `row` counts from 1 (.mo) or is the line in the file (.po); `offset` is in bytes."""

    row: int
    offset: int
    singular: str = ""
    plural: str | None = None
    context: str | None = None
    forms: list[str] = field(default_factory=list)
    flag: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """(English, translation), as the file's heading says."""
        if self.plural is None:
            return [(self.singular, self.forms[0] if self.forms else "")]
        if len(self.forms) == 2:
            return [(self.singular, self.forms[0]), (self.plural, self.forms[1])]
        return [(self.plural, self.forms[-1] if self.forms else "")]


@dataclass(slots=True)
class Damage:
    """An entry that cannot be read. `fatal`: nothing after it can be read either."""

    row: int
    offset: int
    reason: str
    data: bytes
    fatal: bool = False


def read_gettext(file: Input, quarantine: Quarantine, origin: str = "") -> Iterator[Document]:
    """The pairs of a catalog; the header is no row. Fuzzy and obsolete ones carry `meta["flag"]`."""
    data, _ = whole(file.path, quarantine, file.target_language)
    parse = parse_mo if extension(file.path) in (".mo", ".gmo") else parse_po
    for entry in parse(data):
        if isinstance(entry, Damage):
            quarantine.saw()
            if entry.fatal:
                quarantine.damaged.append(f"{file.path}: {entry.reason}")
            quarantine.add(
                file.path,
                entry.reason,
                row=entry.row,
                offset=entry.offset,
                data=entry.data,
                language=file.target_language,
            )
            continue
        for form, (source, target) in enumerate(entry.pairs()):
            quarantine.saw()
            meta = {"flag": entry.flag} if entry.flag else {}
            yield Document(
                text=source,
                id=f"{quarantine.source}:{file.name}:{entry.row}" + ("" if form == 0 else f".{form}"),
                language=file.language,
                target=target,
                target_language=file.target_language,
                origin=origin or quarantine.source,
                meta=meta | ({"context": entry.context} if entry.context else {}),
            )


def _codec(header: bytes) -> str:
    """The charset that a catalog's header names; UTF-8 where it names none, or the template's CHARSET."""
    found = _CHARSET.search(header)
    try:
        name = codecs.lookup(found.group(1).decode("ascii")).name if found else "utf-8"
        b"text".decode(name)  # a LookupError for codecs that are none of text
    except LookupError:
        return "utf-8"
    except UnicodeError:
        pass
    return "utf-8" if name in _NO_CHARSETS else name


def parse_mo(data: bytes) -> Iterator[Entry | Damage]:
    """The messages of a .mo file without its header (GNU gettext manual, The Format of GNU MO Files)."""
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None or len(data) < 20:
        yield Damage(1, 0, "not a .mo file: its first bytes are wrong or it is cut short", data, fatal=True)
        return
    _, revision, count, originals, translations = struct.unpack(order + "5I", data[:20])
    if revision >> 16 > 1:
        yield Damage(1, 4, f".mo format {revision >> 16} is unknown", data[:20], fatal=True)
        return
    if max(originals, translations) + 8 * count > len(data):
        yield Damage(
            1, 8, f"tables of {count:,} messages do not fit into {len(data):,} bytes: cut short", data, True
        )
        return
    codec = "utf-8"
    for index in range(count):
        length, offset = struct.unpack_from(order + "2I", data, originals + 8 * index)
        size, place = struct.unpack_from(order + "2I", data, translations + 8 * index)
        if max(offset + length, place + size) > len(data):
            yield Damage(index + 1, offset, "its text lies beyond the end of the file: cut short", b"")
            continue
        original, translation = data[offset : offset + length], data[place : place + size]
        if not original:
            codec = _codec(translation)
            continue
        try:
            yield _binary_entry(index + 1, offset, original.decode(codec), translation.decode(codec))
        except UnicodeError as error:
            reason = f"not {codec.upper()}: {error}"
            yield Damage(index + 1, offset, reason, original + b"\0" + translation)


def _binary_entry(row: int, offset: int, original: str, translation: str) -> Entry:
    context, separator, message = original.partition("\x04")
    message = message if separator else original
    singular, plural_separator, plural = message.partition("\0")
    return Entry(
        row=row,
        offset=offset,
        singular=singular,
        plural=plural if plural_separator else None,
        context=context if separator else None,
        forms=translation.split("\0") if plural_separator else [translation],
    )


class _Bad(ValueError):
    """What is wrong with an entry of a .po file."""


def parse_po(data: bytes) -> Iterator[Entry | Damage]:
    """The messages of a .po file without its header (GNU gettext manual, The Format of PO Files)."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    codec = _codec(data[: data.find(b"\n\n", data.find(b"msgstr")) + 1 or 4096])
    for row, offset, block in _blocks(data):
        try:
            entry = _text_entry(row, offset, [line.decode(codec) for line in block])
        except UnicodeError as error:
            yield Damage(row, offset, f"not {codec.upper()}: {error}", b"\n".join(block))
        except _Bad as error:
            yield Damage(row, offset, str(error), b"\n".join(block))
        else:
            if entry is not None and (entry.singular or entry.context):
                yield entry


def _blocks(data: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """Lines that belong to one entry: it ends at a blank line, and where the next one's comments or msgid begin."""
    block: list[bytes] = []
    row = offset = start = first = 0
    opened = translated = False  # whether the block has come to a keyword; to its msgstr
    for row, raw in enumerate(data.split(b"\n"), start=1):
        line = raw.rstrip(b"\r")
        bare = line.lstrip().removeprefix(b"#~").lstrip()
        opens = bare.startswith((b"msgctxt", b"msgid ", b"msgid\t", b'msgid"'))
        comment = bare.startswith(b"#") and not bare.startswith(b"#~")
        if block and (not line.strip() or (translated and opens) or (opened and comment)):
            yield first, start, block
            block, opened, translated = [], False, False
        if line.strip():
            if not block:
                first, start = row, offset
            block.append(line)
            translated = translated or bare.startswith(b"msgstr")
            opened = opened or translated or opens
        offset += len(raw) + 1
    if block:
        yield first, start, block


def _text_entry(row: int, offset: int, block: list[str]) -> Entry | None:
    """The entry in the lines of one block; None for a block of comments alone. Raises _Bad."""
    entry = Entry(row, offset)
    parts: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in (text.strip() for text in block):
        if line.startswith("#~"):
            entry.flag = "obsolete"
            line = line[2:].lstrip()
            if line.startswith("|") or not line:
                continue
        elif line.startswith("#"):
            if line.startswith("#,") and "fuzzy" in re.split(r"[,\s]+", line[2:]):
                entry.flag = entry.flag or "fuzzy"
            continue
        if line.startswith('"'):
            if current is None:
                raise _Bad("a string that belongs to no keyword")
            current.append(_unquote(line))
            continue
        keyword = _KEYWORD.fullmatch(line)
        if keyword is None:
            raise _Bad(f"expected msgid, msgstr or a string, found {line[:40]!r}")
        name, index, value = keyword.groups()
        key = f"msgstr{index or 0}" if name == "msgstr" else name
        if key in parts:
            raise _Bad(f"{key} is given twice in one entry")
        current = parts[key] = [_unquote(value)]
    if not parts:
        return None
    texts = {key: "".join(value) for key, value in parts.items()}
    if "msgid" not in texts or "msgstr0" not in texts:
        raise _Bad(f"{'msgid' if 'msgid' not in texts else 'msgstr'} is missing")
    entry.singular, entry.plural, entry.context = (
        texts["msgid"],
        texts.get("msgid_plural"),
        texts.get("msgctxt"),
    )
    count = sum(key.startswith("msgstr") for key in texts)
    if any(f"msgstr{index}" not in texts for index in range(count)):
        raise _Bad("a plural form of msgstr is left out")
    entry.forms = [texts[f"msgstr{index}"] for index in range(count)]
    return entry


def _unquote(text: str) -> str:
    """The value of a quoted C string. Raises _Bad where the quotes do not close."""
    body = text[1:-1]
    if len(text) < 2 or text[-1] != '"' or re.search(r'(?<!\\)(?:\\\\)*"', body) or _odd_backslash(body):
        raise _Bad(f"a string that does not close: {text[:40]!r}")
    return _ESCAPE.sub(_unescape, body) if "\\" in body else body


def _odd_backslash(body: str) -> bool:
    return (len(body) - len(body.rstrip("\\"))) % 2 == 1


def _unescape(match: re.Match[str]) -> str:
    letter, octal, hexadecimal, other = match.groups()
    if letter:
        return _ESCAPES.get(letter, letter)
    if octal or hexadecimal:
        value = int(octal, 8) if octal else int(hexadecimal, 16)
        if value > 0x7F:  # a byte of a character in the file's charset, of which the escape holds one part
            raise _Bad(f"a byte that is no character by itself: {match.group()}")
        return chr(value)
    return "\\" + other
