"""What shim.c recorded: every operation of a run below its folder, in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.server import Server


@dataclass(frozen=True)
class Operation:
    """One system call. kind: O create, T truncate, W write, F fsync, R rename, X exchange, U unlink, D rmdir,
    M mkdir, C chmod. Paths are relative to the watched folder; `other` is where a rename goes."""

    number: int
    kind: str
    path: str
    other: str
    offset: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.number} {self.kind} {self.path} {self.other} {self.offset}+{len(self.data)}"


def read(log: Path, root: Path) -> list[Operation]:
    """The operations of a log."""
    content, place, found = log.read_bytes(), 0, []
    while place < len(content):
        end = content.index(b"\n", place)
        kind, path, other, offset, length = content[place:end].decode().split("\t")
        place = end + 1 + int(length)
        one, two = (name and (str(Path(name).relative_to(root)) if name else "") for name in (path, other))
        found.append(Operation(len(found) + 1, kind, one, two, int(offset), content[end + 1 : place]))
    return found


def record(server: Server, folder: Path, place: Path, **order: Any) -> list[Operation]:
    """The operations of an undisturbed life in `folder`; paths are relative to its parent."""
    log = place / "operations.log"
    folder.parent.mkdir(parents=True, exist_ok=True)
    server.finish(folder, arm={"mode": "l", "log": str(log), "root": str(folder.parent)}, **order)
    return read(log, folder.parent)


def commit(operations: list[Operation], name: str) -> list[Operation]:
    """Those of one checkpoint's writing: from its draft to the last of the one that it replaces."""
    drafts = [o for o in operations if f"checkpoints/.partial-{name}-" in o.path]
    first = drafts[0].number
    later = [o for o in operations if o.number > drafts[-1].number and "checkpoints" in o.path]
    last = drafts[-1].number
    for each in later:
        if ".partial-step" in each.path and f".partial-{name}" not in each.path and each.kind == "M":
            break
        last = each.number
    return operations[first - 1 : last]
