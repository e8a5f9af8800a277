"""JSON message files of software, read without being told which: MediaWiki, Chrome, ARB and i18next.

    {"@metadata": {...}, "search": "Search"}                          MediaWiki
    {"search": {"message": "Search", "description": "..."}}           Chrome
    {"@@locale": "en", "search": "Search", "@search": {...}}          ARB
    {"menu": {"search": "Search", "items_one": "{{count}} item"}}     i18next, nested

A message is paired with that of the same key in the English file; one without such a key is flagged `no_source`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nalanda.base.errors import DataError
from nalanda.corpus.compressed import whole
from nalanda.corpus.document import Document
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.records import BadRow, decode, text_field
from nalanda.corpus.sources import Input, MessagesSource, expand


def check(source: MessagesSource, files: list[Input]) -> None:
    """Raises DataError where the English file is missing or no message file."""
    if source.source_path is not None:
        for file in files:
            _originals(source, file)


def _originals(source: MessagesSource, file: Input) -> dict[str, Any]:
    """{key: message} of the English file that belongs to `file`."""
    path = expand(source.source_path or "", file.target_language)[0]
    quarantine = Quarantine()
    try:
        messages = dict(_parse(whole(path, quarantine)[0]))
    except BadRow as error:
        raise DataError(f"{path}: {error}") from None
    if quarantine.damaged:
        raise DataError(quarantine.damaged[0])
    return messages


def _parse(data: bytes) -> list[tuple[str, Any]]:
    """(dotted key, value) of every message. Raises BadRow where the file as a whole is not one of messages."""
    text = decode(data.removeprefix(b"\xef\xbb\xbf"))
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise BadRow(f"a JSON {type(values).__name__}, expected an object of messages")
        return list(_flatten(values, ""))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRow(f"not JSON: {error}") from None


def _flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key.startswith("@"):
            continue  # metadata, of the file or of one message
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(value.get("message"), str) and _is_chrome(value):
            yield name, value["message"]
        elif isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list):
            yield from _flatten({str(index): item for index, item in enumerate(value)}, f"{name}.")
        else:
            yield name, value


def _is_chrome(value: dict[str, Any]) -> bool:
    return all(key in ("message", "description", "placeholders", "hash", "meaning") for key in value)


def read_messages(source: MessagesSource, file: Input, quarantine: Quarantine) -> Iterator[Document]:
    """The messages of one file, with their English where the source names a file for it."""
    group = file.target_language or file.language
    originals = _originals(source, file) if source.source_path is not None else {}
    data, complete = whole(file.path, quarantine, group)
    if not complete:
        return
    try:
        messages = _parse(data)
    except BadRow as error:
        quarantine.saw()
        quarantine.damaged.append(f"{file.path}: {error}")
        quarantine.add(file.path, str(error), offset=0, data=data, language=group)
        return
    for row, (key, message) in enumerate(messages, start=1):
        quarantine.saw()
        identity = f"{quarantine.source}:{file.name}:{key}"
        origin = source.origin or quarantine.source
        try:
            text = text_field({key: message}, key)
            if source.source_path is None:
                yield Document(text, identity, file.language, origin=origin)
                continue
            found = isinstance(originals.get(key), str)
            original = text_field(originals, key) if found else ""
            flag = {} if found else {"flag": "no_source"}
            yield Document(original, identity, file.language, text, file.target_language, origin, flag)
        except BadRow as error:
            value = json.dumps({key: message}).encode("ascii")
            quarantine.add(file.path, str(error), row=row, data=value, language=group)
