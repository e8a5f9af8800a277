"""Finds out what kind of tokenizer lies at a place, and reads it.

    blueprint = read(Path("models/nllb"))        # a folder, one of the files below, or a .gguf

In a folder the first of these counts:

    tokenizer.json                               any pipeline of the `tokenizers` library
    source.spm, target.spm, vocab.json           Marian
    dict*.txt or dict*.json, and a SentencePiece model     fairseq
    vocab.json, merges.txt                       GPT-2's byte-level BPE
    vocab.json and a SentencePiece model         M2M-100
    *.model, *.spm, *.tiktoken                   SentencePiece, tiktoken
    vocab.txt                                    BERT's WordPiece
    *.gguf                                       a model file that holds its tokenizer
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nalanda.base.errors import DataError, RunError
from nalanda.tokenizer.blueprint import (
    OWN_KEY,
    Affixes,
    Blueprint,
    Exact,
    added_token,
    read_bytes,
    read_text,
    template,
)
from nalanda.tokenizer.charsmap import check_charsmap
from nalanda.tokenizer.settings import Settings

_MODELS = ("*.model", "*.spm", "model.SRC", "model.src")


def read(place: Path) -> Blueprint:
    """What lies at `place`. Raises RunError where nothing does or a file is damaged, DataError where it is odd."""
    if place.is_file():
        return _file(place)
    if (place / "tokenizer.json").is_file():
        return _tokenizer_json(place)
    reader = next((reader for fits, reader in _FOLDERS if fits(place)), None)
    if reader is None:
        raise RunError(
            f"{place / 'tokenizer.json'}: no such file; is '{place}' a folder that holds a tokenizer? "
            "(tokenizer.json, a SentencePiece .model, .tiktoken, vocab.txt, vocab.json + merges.txt or a .gguf)"
        )
    return reader(place)


def _file(path: Path) -> Blueprint:
    if path.suffix == ".gguf":
        return _gguf(path)
    if path.name == "tokenizer.json":
        return _tokenizer_json(path.parent)
    settings = Settings.read(path.parent)
    if path.suffix == ".txt":
        from nalanda.tokenizer.wordpiece import from_vocabulary

        return from_vocabulary(path, settings)
    return _model(path, settings)


def _model(path: Path, settings: Settings) -> Blueprint:
    """A file of ranks or of SentencePiece: Llama 3 calls the one as Llama 2 the other."""
    from nalanda.tokenizer import bytelevel, layouts

    if bytelevel.looks_like_ranks(read_bytes(path)):
        return bytelevel.from_ranks(path, settings)
    return layouts.from_model(path, settings)


def _gguf(path: Path) -> Blueprint:
    from nalanda.models.gguf import open_gguf
    from nalanda.tokenizer.gguf import blueprint

    return blueprint(open_gguf(path).metadata, str(path))


def _found(folder: Path, *patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _one(folder: Path, *patterns: str) -> Path:
    """The one file of the patterns. Raises DataError where there are several."""
    found = _found(folder, *patterns)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: expected one file {' or '.join(patterns)}, found {names}; name the file itself"
        )
    return found[0]


def _marian(folder: Path) -> Blueprint:
    from nalanda.tokenizer.layouts import from_dictionary, read_vocabulary

    settings = Settings.read(folder)
    names = read_vocabulary(folder / "vocab.json")
    source = from_dictionary(folder / "source.spm", names, settings, folder / "vocab.json")
    other = folder / "target_vocab.json"
    if other.is_file():
        names = read_vocabulary(other)
    target = from_dictionary(
        folder / "target.spm", names, settings, other if other.is_file() else folder / "vocab.json"
    )
    return replace(source, target=target)


def _fairseq(folder: Path) -> Blueprint:
    from nalanda.tokenizer.layouts import from_dictionary, read_dictionary, read_vocabulary

    settings = Settings.read(folder)
    sides: dict[str, Path] = {}
    for path in _found(folder, *_DICTIONARIES):
        side = path.name.split(".")[1].lower() if path.name.count(".") == 2 else ""
        if side not in sides or path.suffix == ".txt":
            sides[side] = path
    if len(sides) > 1 and not sides.keys() <= {"src", "tgt"}:
        contents = {path.read_bytes() for path in sides.values()}
        if len(contents) > 1:
            raise DataError(
                f"{folder}: several dictionaries that differ; call them dict.SRC.txt and dict.TGT.txt"
            )
        sides = {"": next(iter(sides.values()))}
    made = {}
    for side, path in sides.items():
        model = _one(
            folder, *([f"model.{side.upper()}", f"model.{side}", f"*.{side}.model"] if side else _MODELS)
        )
        names = read_dictionary(path) if path.suffix == ".txt" else read_vocabulary(path)
        made[side] = from_dictionary(model, names, settings, path)
    first = made.get("src") or next(iter(made.values()))
    return replace(first, target=made.get("tgt"))


_DICTIONARIES = ("dict.txt", "dictionary.txt", "dict.*.txt", "dict.*.json")


def _merges(folder: Path) -> Blueprint:
    from nalanda.tokenizer.bytelevel import from_merges

    return from_merges(folder, Settings.read(folder))


def _vocabulary_and_model(folder: Path) -> Blueprint:
    from nalanda.tokenizer.layouts import from_dictionary, read_vocabulary

    path = folder / "vocab.json"
    return from_dictionary(_one(folder, *_MODELS), read_vocabulary(path), Settings.read(folder), path)


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all(_found(folder, name) for name in names)


_FOLDERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Blueprint]], ...] = (
    (_has("source.spm", "target.spm", "vocab.json"), _marian),
    (lambda folder: bool(_found(folder, *_DICTIONARIES) and _found(folder, *_MODELS)), _fairseq),
    (_has("vocab.json", "merges.txt"), _merges),
    (lambda folder: bool(_found(folder, "vocab.json") and _found(folder, *_MODELS)), _vocabulary_and_model),
    (
        lambda folder: bool(_found(folder, *_MODELS, "*.tiktoken")),
        lambda folder: _model(_one(folder, *_MODELS, "*.tiktoken"), Settings.read(folder)),
    ),
    (_has("vocab.txt"), lambda folder: _file(folder / "vocab.txt")),
    (_has("*.gguf"), lambda folder: _gguf(_one(folder, "*.gguf"))),
)


def _tokenizer_json(folder: Path) -> Blueprint:
    path = folder / "tokenizer.json"
    settings = Settings.read(folder)
    text = read_text(path)
    try:
        value = json.loads(text)
        numbers = _numbers(value, path)
        _check_normalizer(value, path)
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise RunError(f"{path}: not a tokenizer: {type(error).__name__}: {error}") from None
    changed = _add_missing(value, numbers, settings, path) | _add_ends(value, numbers, settings)
    own = settings.tokenizer.get(OWN_KEY)
    target = _tokenizer_json(folder / "target") if (folder / "target" / "tokenizer.json").is_file() else None
    return Blueprint(
        definition=json.dumps(value, ensure_ascii=False) if changed else text,
        roles=settings.roles(numbers),
        origin=str(path),
        chat_template=settings.chat_template,
        exact=_exact(own, folder),
        split_special=settings.flag("split_special_tokens", False),
        target=target,
    )


def _exact(value: Any, folder: Path) -> Exact:
    if value is None:
        return Exact()
    try:
        return Exact(**value)
    except TypeError:
        raise RunError(
            f"{folder / 'tokenizer_config.json'}: {OWN_KEY}: damaged, or written by a newer version"
        ) from None


def _numbers(value: dict[str, Any], path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json. Raises RunError where two tokens share an id."""
    vocabulary = value["model"]["vocab"]
    numbers = (
        {row[0]: i for i, row in enumerate(vocabulary)}
        if isinstance(vocabulary, list)
        else {str(name): int(number) for name, number in vocabulary.items()}
    )
    if len(numbers) != len(vocabulary) or len(set(numbers.values())) != len(numbers):
        raise RunError(f"{path}: model.vocab: damaged, a token or an id stands twice")
    for token in value.get("added_tokens") or []:
        numbers.setdefault(token["content"], int(token["id"]))
    return numbers


def _check_normalizer(value: dict[str, Any], path: Path) -> None:
    """Raises DataError where a charsmap is damaged: the library would panic."""
    found = value.get("normalizer") or {}
    for step in found.get("normalizers") or [found]:
        if isinstance(step, dict) and step.get("type") == "Precompiled":
            try:
                blob = b64decode(str(step.get("precompiled_charsmap")), validate=True)
            except ValueError:
                raise RunError(f"{path}: normalizer.precompiled_charsmap: damaged, not base64") from None
            check_charsmap(blob, f"{path}: normalizer.precompiled_charsmap")


def _add_missing(value: dict[str, Any], numbers: dict[str, int], settings: Settings, path: Path) -> bool:
    """Adds the tokens that only the files beside know. The library numbers them one after another."""
    missing = sorted((i, n, special) for i, (n, special) in settings.added.items() if n not in numbers)
    for number, name, special in missing:
        if number != max(numbers.values(), default=-1) + 1:
            raise DataError(
                f"{settings.folder}: added token {name!r} has id {number}, but the ids of {path.name} end at "
                f"{max(numbers.values(), default=-1)}"
            )
        value.setdefault("added_tokens", []).append(
            {**added_token(number, name, special), "normalized": False}
        )
        numbers[name] = number
    return bool(missing)


def _add_ends(value: dict[str, Any], numbers: dict[str, int], settings: Settings) -> bool:
    """Puts bos and eos around a text where tokenizer_config.json says so in words (add_bos_token, add_eos_token)."""
    if not {"add_bos_token", "add_eos_token"} & settings.tokenizer.keys():
        return False
    roles = settings.roles(numbers)
    ends = {
        role: [roles[role]]
        if settings.flag(f"add_{role}_token", False) and roles.get(role) in numbers
        else []
        for role in ("bos", "eos")
    }
    made = template(Affixes(ends["bos"], ends["eos"]), numbers)
    if made is None and (value.get("post_processor") or {}).get("type") == "ByteLevel":
        return False
    value["post_processor"] = made
    return True
