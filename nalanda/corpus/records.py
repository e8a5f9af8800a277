"""From one record (a JSON object, a row of a table) to a Document, or to the reason why it is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.sources import RecordSource
from nalanda.text.language import language_code


class BadRow(ValueError):
    """Why one row cannot be read; the message is the quarantine's reason."""


def decode(data: bytes) -> str:
    """UTF-8 bytes as text. Raises BadRow naming the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = ", looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise BadRow(
            f"not UTF-8 at byte {error.start} of the row (0x{data[error.start]:02x}{hint})"
        ) from None


def text_field(record: Mapping[str, Any], name: str) -> str:
    """The text in a record's field. Raises BadRow where it is missing, no text, or not valid Unicode."""
    value = record.get(name)
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(
                f"field '{name}' holds half a surrogate pair (\\u{ord(value[error.start]):04x})"
            ) from None
        return value
    if name not in record:
        raise BadRow(
            f"field '{name}' is missing; the row has {', '.join(map(str, list(record)[:8])) or 'no fields'}"
        )
    raise BadRow(f"field '{name}' is {'null' if value is None else type(value).__name__}, expected text")


def _language(record: Mapping[str, Any], field: str | None, default: str) -> str:
    if field is None:
        return default
    try:
        return language_code(text_field(record, field))
    except DataError as error:
        raise BadRow(str(error)) from None


def from_record(
    record: Mapping[str, Any], source: RecordSource, languages: tuple[str, str], name: str, place: str
) -> Document:
    """The Document in `record`: `name` is the source's, `place` where the record stands in it. Raises BadRow."""
    identity = record.get(source.id_field) if source.id_field else None
    if source.id_field and not isinstance(identity, str | int):
        raise BadRow(f"field '{source.id_field}' is no identity: {type(identity).__name__}")
    paired = source.target is not None
    return Document(
        text=text_field(record, source.text),
        id=f"{name}:{place}" if identity is None else str(identity),
        language=_language(record, source.language_field, languages[0]),
        target=text_field(record, source.target) if source.target is not None else None,
        target_language=_language(record, source.target_language_field, languages[1]) if paired else "",
        origin=text_field(record, source.origin_field) if source.origin_field else source.origin or name,
    )
