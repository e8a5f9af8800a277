"""Atomic, checksummed files: a reader sees the old file or the new one, never half of one.

with atomic_writer(path) as file: ...     # text or binary; renamed into place when the block ends
write_json(path, values); read_json(path)
with atomic_folder(path) as draft: ...    # a folder that appears whole, with manifest.json (SHA-256)
verify_manifest(path)                     # raises RunError naming the first file that differs
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from nalanda.base.errors import RunError, UserError

MANIFEST = "manifest.json"
_PARTIAL = ".partial-"


@contextlib.contextmanager
def full_disk_is_clear(path: Path) -> Iterator[None]:
    """Turns 'no space left' and quota errors into one line that says where and how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path) from error
        raise


def _no_space(path: Path) -> UserError:
    parent = next((p for p in [path, *path.parents] if p.exists()), Path("."))
    free = shutil.disk_usage(parent).free
    return UserError(
        f"{path}: the disk is full ({free / 2**20:.0f} MiB free); nothing half-written was kept. "
        "Free some space and run the same command again: it goes on where it was"
    )


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file open for writing (`w` or `wb`) that takes its place at `path` only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    with full_disk_is_clear(path):
        handle, name = tempfile.mkstemp(prefix=_PARTIAL + path.name, dir=path.parent)
        try:
            with os.fdopen(handle, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(values: Any) -> str:
    """A short stable hash (16 hexadecimal digits) of plain JSON values, whatever their keys' order."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def write_manifest(folder: Path, skip: Collection[str] = ()) -> None:
    """Writes manifest.json: size and SHA-256 of every file below `folder` but those whose relative paths are in
    `skip`, which may be edited."""
    names = {p.relative_to(folder).as_posix(): p for p in _files(folder)}
    rows = {
        name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for name, p in names.items()
        if name not in skip
    }
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


@contextlib.contextmanager
def atomic_folder(path: Path, manifest: bool = True, skip: Collection[str] = ()) -> Iterator[Path]:
    """A draft folder that takes its place at `path` (replacing what was there) when the block ends well.

    `skip`: files that the manifest leaves out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_clear(path):
        draft = Path(tempfile.mkdtemp(prefix=_PARTIAL + path.name, dir=path.parent))
        try:
            yield draft
            if manifest:
                write_manifest(draft, skip)
            for file in draft.rglob("*"):
                if file.is_file():
                    os.chmod(
                        file, 0o666 & ~_umask()
                    )  # safetensors makes files that only their owner can read
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            os.chmod(draft, 0o777 & ~_umask())
            old = None
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=_PARTIAL + "old-", dir=path.parent))
                os.replace(path, old / path.name)
            os.replace(draft, path)
            sync_folder(path.parent)
            if old is not None:
                shutil.rmtree(old)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def remove_partials(folder: Path) -> None:
    """Removes what a killed process left half-written directly in `folder`."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.startswith(_PARTIAL):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
