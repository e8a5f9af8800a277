"""Atomic, checksummed files: a reader sees the old file or the new one, never half of one, also after a power cut.

with atomic_writer(path) as file: ...     # text or binary; renamed into place when the block ends
write_json(path, values); read_json(path)
write_sealed(path, values); read_sealed(path)     # JSON with its own SHA-256 in it
with atomic_folder(path) as draft: ...    # a folder that appears whole, with manifest.json (SHA-256)
verify_manifest(path)                     # raises RunError naming the first file that differs

Order: a file's bytes reach the disk before its name does, the names in a folder before the folder's own, and a new
folder's name before anything that relies on it. tests/faults replays every order that a power cut may leave.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from nalanda.base.errors import RunError, UserError

MANIFEST = "manifest.json"
SEAL = "seal"
_PARTIAL = ".partial-"
_OLD = f"{_PARTIAL}old-"
_CHUNK = 1 << 22
# Read once: asking means setting it for a moment, which another thread's new file would see.
_MASK = os.umask(0)
os.umask(_MASK)


@contextlib.contextmanager
def full_disk_is_clear(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns 'no space left' and quota errors into one line: where, how many bytes are `needed`, how many are free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path, error.errno, needed) from error
        raise


def _no_space(path: Path, number: int, needed: int | None) -> UserError:
    parent = next((p for p in [path, *path.parents] if p.exists()), Path("."))
    free = f"{_size(shutil.disk_usage(parent).free)} free"
    what = "the disk is full" if number == errno.ENOSPC else "your disk quota is used up"
    if needed is not None:
        free = f"{_size(needed)} needed, {free}"
    return UserError(
        f"{path}: {what} ({free}); nothing half-written was kept. "
        "Free some space and run the same command again: it goes on where it was"
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**10:,.0f} KiB"


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems have no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Creates a folder and those above it, each of them on disk when this returns."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _partial(path: Path) -> Path:
    """A name beside `path` that nobody has; what a kill leaves there is removed by `remove_partials`."""
    return path.with_name(f"{_PARTIAL}{path.name}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file open for writing (`w` or `wb`) that takes its place at `path` only when the block ends well."""
    binary = "b" in mode
    with full_disk_is_clear(path):
        make_folder(path.parent)
        draft = _partial(path)
        try:
            with draft.open(
                mode, encoding=None if binary else "utf-8", newline=None if binary else "\n"
            ) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
            sync_folder(path.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with atomic_writer(path) as file:
        file.write(text)


def write_json(path: Path, values: Any) -> None:
    """Writes `values` to `path` atomically, as indented JSON with scripts readable."""
    write_text(path, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in the JSON file at `path`. Raises RunError for a missing or malformed file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: damaged, not JSON: {error}") from None
    except RecursionError:
        raise RunError(f"{path}: damaged, nested too deeply") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in the JSON file at `path`. Raises RunError as `read_json` does, and for any other value."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise RunError(f"{path}: damaged, not a JSON mapping")
    return values


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Writes a mapping as `write_json` does, with one more key, `seal`: the SHA-256 of its name and content."""
    write_json(path, {**values, SEAL: _seal(path.name, values)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The mapping that `write_sealed` wrote. Raises RunError where it is missing, or says anything else than then."""
    values = read_mapping(path)
    seal = values.pop(SEAL, None)
    if seal != _seal(path.name, values):
        raise RunError(f"{path}: damaged or edited: its content is not what its seal (SHA-256) says")
    return values


def _seal(name: str, values: dict[str, Any]) -> str:
    # Through JSON and back first: what is read is compared, and that has lists where this may have tuples.
    return hashlib.sha256(_canonical([name, json.loads(json.dumps(values))])).hexdigest()


def _canonical(values: Any) -> bytes:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(values: Any) -> str:
    """A short stable hash (16 hexadecimal digits) of plain JSON values, whatever their keys' order."""
    return hashlib.sha256(_canonical(values)).hexdigest()[:16]


Digests = dict[str, dict[str, Any]]
"""A manifest's rows: relative path -> bytes and SHA-256."""


class HashedFile:
    """A file open for writing that hashes what goes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        """Writes all of `data`, which lies in memory as bytes."""
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), _CHUNK):  # hashed and written while it is in the processor's cache
            part = whole[start : start + _CHUNK]
            self._hash.update(part)
            self._bytes += len(part)
            self._file.write(part)

    def row(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


@contextlib.contextmanager
def hashed_writer(path: Path, known: Digests) -> Iterator[HashedFile]:
    """A new file of a draft folder, hashed while it is written and on disk when the block ends.

    Its row of the manifest goes into `known`, which `atomic_folder` takes, so that nothing is read a second time.
    """
    with path.open("wb", buffering=_CHUNK) as file:
        hashed = HashedFile(file)
        yield hashed
        file.flush()
        os.fsync(file.fileno())
    known[path.name] = hashed.row()


def files_of(folder: Path, leave: Collection[str] = ()) -> Iterator[Path]:
    """Every file below `folder` but its manifest; of a folder within that has a manifest, only that.

    `leave`: names directly in `folder` that are passed over.
    """
    for entry in sorted(folder.iterdir()):
        if entry.name in leave or entry.name.startswith(_PARTIAL):
            continue
        if entry.is_dir():
            own = entry / MANIFEST
            yield from [own] if own.is_file() else files_of(entry)
        elif entry.name != MANIFEST:
            yield entry


def write_manifest(
    folder: Path, skip: Collection[str] = (), known: Digests | None = None, leave: Collection[str] = ()
) -> None:
    """Writes manifest.json: size and SHA-256 of every file below `folder`, and puts all of them on disk.

    `skip`: relative paths of files that may be edited. `leave`: names directly in `folder` that are no business of
    the manifest. `known`: rows of files that are hashed and on disk already. A folder within that has a manifest of
    its own stands for what that says.
    """
    known, rows, folders = known or {}, {}, {folder}
    for path in files_of(folder, leave):
        name = path.relative_to(folder).as_posix()
        folders |= {parent for parent in path.parents if parent.is_relative_to(folder)}
        if name not in known:
            with path.open("rb") as file:
                row = {"bytes": os.fstat(file.fileno()).st_size}
                known[name] = row | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                os.fsync(file.fileno())
        if name not in skip:
            rows[name] = known[name]
    for inner in sorted(folders, reverse=True):
        sync_folder(inner)
    write_json(folder / MANIFEST, {"files": rows})


def verify_manifest(folder: Path) -> None:
    """Checks every file of `folder` against its manifest. Raises RunError naming the first that differs."""
    try:
        rows = [
            (folder / name, row["bytes"], row["sha256"])
            for name, row in read_json(folder / MANIFEST)["files"].items()
        ]
    except (KeyError, TypeError, AttributeError):
        raise RunError(f"{folder / MANIFEST}: damaged, not a manifest") from None
    for path, size, digest in rows:
        if not path.is_file():
            raise RunError(f"{path}: missing, though the manifest names it")
        if path.stat().st_size != size:
            raise RunError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {size}: truncated or changed"
            )
        if sha256_file(path) != digest:
            raise RunError(f"{path}: its SHA-256 differs from the manifest: damaged or changed")
        if path.name == MANIFEST:
            verify_manifest(path.parent)


@contextlib.contextmanager
def atomic_folder(
    path: Path,
    manifest: bool = True,
    skip: Collection[str] = (),
    known: Digests | None = None,
    needed: int | None = None,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """A draft folder that takes its place at `path` (replacing what was there) when the block ends well.

    `skip`: files that the manifest leaves out. `known`: rows of the manifest that `hashed_writer` gave. `needed`:
    bytes that it takes, for the message of a full disk. `before`: what must be on disk before the folder is there.
    """
    with full_disk_is_clear(path, needed):
        make_folder(path.parent)
        _take_back(path)
        draft = _partial(path)
        try:
            draft.mkdir()
            yield draft
            for file in draft.rglob("*"):
                if file.is_file():  # some libraries make files that only their owner can read
                    os.chmod(file, 0o666 & ~_MASK)
            if manifest:
                write_manifest(draft, skip, known)
            else:
                _sync_all(draft)
            before()
            _put(draft, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _sync_all(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _put(draft: Path, path: Path) -> None:
    """Renames `draft` to `path`; what was there is at `draft` then, or gone."""
    if not path.exists():
        os.replace(draft, path)
    elif not _exchange(draft, path):
        old = path.with_name(f"{_OLD}{secrets.token_hex(4)}")
        old.mkdir()
        os.replace(path, old / path.name)
        os.replace(draft, path)
        sync_folder(path.parent)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two paths change places in one indivisible step, where the system has one (Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _take_back(path: Path) -> None:
    """Ends what a kill left of a replacement without `_exchange`, between the two renames: the old one returns."""
    for place in path.parent.glob(f"{_OLD}*"):
        if (place / path.name).exists() and not path.exists():
            os.replace(place / path.name, path)


def remove_folder(path: Path) -> None:
    """Removes a folder so that a kill or a power cut leaves all of it, or nothing at `path`."""
    gone = _partial(path)
    with full_disk_is_clear(path):
        os.replace(path, gone)
        try:
            sync_folder(path.parent)
        finally:  # on a full disk above all
            shutil.rmtree(gone)


def remove_partials(folder: Path) -> None:
    """Removes what a killed process left half-written directly in `folder`."""
    if not folder.is_dir():
        return
    for place in folder.glob(f"{_OLD}*/*"):
        _take_back(folder / place.name)
    for path in folder.iterdir():
        if path.name.startswith(_PARTIAL):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
