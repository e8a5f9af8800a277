"""metrics.jsonl, whose rows can be trusted: lines are appended whole, and checkpoints know the hash of those before.

journal = Journal(folder / "metrics.jsonl")
journal.append({"step": 1, "loss": 2.3})
mark = journal.mark()            # what stands there now is on disk; its size and SHA-256 go into the checkpoint
line = journal.problem(mark)     # at a resume: "" or what is wrong with the rows before the checkpoint
journal.rewind(step)             # drops the rows that a resume from `step` writes again
"""

from __future__ import annotations

import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from nalanda.base import io


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """One line of a metrics.jsonl; None for what a kill left of a line (cut anywhere, also inside a letter)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Journal:
    """The rows that a run logs, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._hash, self._bytes = hashlib.sha256(), 0

    def append(self, values: dict[str, Any]) -> None:
        """Adds one line; a NaN or infinity is written as null. Raises UserError when the disk is full."""
        clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in values.items()}
        line = json.dumps(clean, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with io.full_disk_is_clear(self.path, len(line)):
            file = self._open()
            # No buffer of ours: what a full disk refused must not be tried again when the file is closed.
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        self._hash.update(line)
        self._bytes += len(line)

    def _open(self) -> FileIO:
        if self._file is None:
            new = not self.path.exists()
            self._file = self.path.open("ab", buffering=0)
            content = b"" if new else self.path.read_bytes()
            self._hash, self._bytes = hashlib.sha256(content), len(content)
            if new:
                io.sync_folder(self.path.parent)
        return self._file

    def mark(self) -> dict[str, Any]:
        """Size and SHA-256 of what has been appended, all of which is on disk when this returns."""
        with io.full_disk_is_clear(self.path):
            os.fsync(self._open().fileno())
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def problem(self, mark: dict[str, Any]) -> str:
        """What is wrong with the rows that `mark` was made of, in one line; empty where they are as they were."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return f"{self.path}: missing, though the checkpoint knows of {mark['bytes']} bytes of it"
        if len(content) < mark["bytes"]:
            return f"{self.path}: {len(content)} bytes, the checkpoint knows of {mark['bytes']}: truncated"
        if hashlib.sha256(content[: mark["bytes"]]).hexdigest() != mark["sha256"]:
            return f"{self.path}: its SHA-256 differs from the checkpoint's: damaged or changed"
        return ""

    def keep_damaged(self) -> Path | None:
        """Copies the file beside itself, as it is, for its user to look at; None where there is none."""
        if not self.path.exists():
            return None
        copy = self.path.with_suffix(".damaged.jsonl")
        with io.atomic_writer(copy, "wb") as file:
            file.write(self.path.read_bytes())
        return copy

    def rewind(self, step: int) -> None:
        """Drops the lines that a resume from `step` will write again, and what a kill left of a line."""
        self.close()
        if self.path.exists():
            rows = [(line, metrics_row(line)) for line in self.path.read_bytes().split(b"\n")]
            with io.atomic_writer(self.path, "wb") as file:
                file.writelines(line + b"\n" for line, row in rows if row and _step(row) <= step)

    def close(self) -> None:
        """Closes the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _step(row: dict[str, Any]) -> int:
    step = row.get("step", 0)
    return step if isinstance(step, int) else 0
