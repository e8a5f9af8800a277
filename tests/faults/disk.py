"""A disk that may lose power: what a file system may hold after the first n operations of a run.

    disk = Disk()
    for operation in operations:
        disk.apply(operation)
        for tree in disk.after_power_loss(): materialize(tree, folder)

Promised is only what POSIX promises: a file's bytes once the file was synced, a name once its folder was synced. All
else may be there or not, in any mixture: names and renames whose folder was not synced, each by itself; bytes that
were not synced, none of them, half or all. A rename is one step, as in every journal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from faults.operations import Operation

Tree = dict[str, bytes | None]
"""Path -> content; None for a folder."""


@dataclass(eq=False)
class Node:
    """A file, or a folder where `names` is not None. `kept`: the bytes that were synced."""

    data: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    names: dict[str, Node] | None = None

    @property
    def dirty(self) -> bool:
        """Whether some of its bytes may be lost."""
        return self.names is None and bytes(self.data) != self.kept


@dataclass(eq=False)
class Change:
    """Entries that one operation sets (or removes: None) in folders; on disk once one of those is synced."""

    entries: list[tuple[Node, str, Node | None]]


class Disk:
    """A file tree as processes see it, and what of it is safe."""

    def __init__(self) -> None:
        self.root = Node(names={})
        self.safe: dict[tuple[Node, str], Node] = {}
        self.pending: list[Change] = []

    def apply(self, operation: Operation) -> None:
        """Carries out one operation."""
        {
            "M": lambda o: self._set(o.path, Node(names={})),
            "O": lambda o: self._set(o.path, Node()),
            "W": self._write,
            "T": lambda o: self._at(o.path).data.__delitem__(slice(o.offset, None)),
            "U": lambda o: self._set(o.path, None) if self._exists(o.path) else None,
            "D": lambda o: self._set(o.path, None),
            "R": self._rename,
            "X": self._exchange,
            "F": lambda o: self._sync(self._at(o.path)),
            "C": lambda o: None,
        }[operation.kind](operation)

    def _parts(self, path: str) -> tuple[Node, str]:
        place = PurePosixPath(path)
        return self._at(str(place.parent)), place.name

    def _at(self, path: str) -> Node:
        node = self.root
        for name in PurePosixPath(path).parts:
            assert node.names is not None
            node = node.names[name]
        return node

    def _exists(self, path: str) -> bool:
        folder, name = self._parts(path)
        return folder.names is not None and name in folder.names

    def _set(self, path: str, node: Node | None) -> None:
        self._change([(*self._parts(path), node)])

    def _change(self, entries: list[tuple[Node, str, Node | None]]) -> None:
        for folder, name, node in entries:
            assert folder.names is not None
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node
        self.pending.append(Change(entries))

    def _write(self, operation: Operation) -> None:
        data, end = self._at(operation.path).data, operation.offset + len(operation.data)
        data.extend(bytes(max(0, end - len(data))))
        data[operation.offset : end] = operation.data

    def _rename(self, operation: Operation) -> None:
        node = self._at(operation.path)
        source, target = self._parts(operation.path), self._parts(operation.other)
        self._change([(*source, None), (*target, node)])

    def _exchange(self, operation: Operation) -> None:
        one, other = self._at(operation.path), self._at(operation.other)
        self._change([(*self._parts(operation.path), other), (*self._parts(operation.other), one)])

    def _sync(self, node: Node) -> None:
        if node.names is None:
            node.kept = bytes(node.data)
            return
        synced = [c for c in self.pending if any(folder is node for folder, _, _ in c.entries)]
        _commit(self.safe, synced)
        self.pending = [c for c in self.pending if c not in synced]

    def after_power_loss(self) -> Iterator[Tree]:
        """The trees that may be found when the power comes back, each once."""
        seen = set()
        contents: list[Callable[[Node], bytes]] = [
            lambda node: node.kept,
            lambda node: bytes(node.data[: (len(node.kept) + len(node.data)) // 2]),
            lambda node: bytes(node.data),
        ]
        for changes in _mixtures(self.pending):
            safe = dict(self.safe)
            _commit(safe, changes)
            for content in contents:
                tree = _tree(safe, self.root, content)
                key = tuple(sorted(tree.items(), key=lambda item: item[0]))
                if key not in seen:
                    seen.add(key)
                    yield tree


def _mixtures(changes: list[Change]) -> Iterator[list[Change]]:
    """Which of the changes reached the disk: any of them where they are few, else none, all, the first n, the last n,
    one alone, all but one."""
    if len(changes) <= 6:
        for count in range(len(changes) + 1):
            yield from (list(some) for some in itertools.combinations(changes, count))
        return
    for n in range(len(changes) + 1):
        yield changes[:n]
        yield changes[n:]
        yield changes[n : n + 1]
        yield changes[:n] + changes[n + 1 :]


def _commit(safe: dict[tuple[Node, str], Node], changes: list[Change]) -> None:
    for folder, name, node in itertools.chain.from_iterable(change.entries for change in changes):
        if node is None:
            safe.pop((folder, name), None)
        else:
            safe[folder, name] = node


def _tree(
    safe: dict[tuple[Node, str], Node], folder: Node, content: Callable[[Node], bytes], at: str = ""
) -> Tree:
    tree: Tree = {}
    for (above, name), node in safe.items():
        if above is folder:
            tree[f"{at}{name}"] = content(node) if node.names is None else None
            if node.names is not None:
                tree |= _tree(safe, node, content, f"{at}{name}/")
    return tree


def materialize(tree: Tree, place: Path) -> None:
    """Makes the files and folders of `tree` in `place`."""
    for name, content in sorted(tree.items()):
        if content is None:
            (place / name).mkdir(parents=True)
        else:
            (place / name).write_bytes(content)
