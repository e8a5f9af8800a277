"""A run is a folder. `Run.open` locks it, checks that it belongs to this config, and says whether it is done.

with Run.open(folder, config, inputs, format=1) as run:
    if not run.done:
        run.log({"step": 1, "loss": 2.3})          # one line of metrics.jsonl
        run.finish({"loss": 2.1})                  # result.json, written last: its presence means done

folder/ config.yaml  environment.json  inputs.json  metrics.jsonl  ...  result.json  run.lock
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import struct
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nalanda.base import io, machine
from nalanda.base.errors import RunError
from nalanda.config import dump_yaml, load_yaml

_held: set[Path] = set()


class Lock:
    """An exclusive lock on a folder that dies with its process, however that ends.

    A POSIX record lock: the system drops it when the process is gone, and forked children do not inherit it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self.file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises RunError at once, naming who holds it."""
        key = self.path.resolve()
        if key in _held:
            raise RunError(f"{self.path.parent}: this process already works in that folder")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise self._unusable(error) from None
            raise RunError(
                f"{self.path.parent}: held by {holder}; wait for it, stop it, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        self.file = file
        _held.add(key)

    def _unusable(self, error: OSError) -> RunError:
        reason = error.strerror or str(error)
        return RunError(f"{self.path.parent}: cannot be a run folder ({reason}); choose another folder")

    def release(self) -> None:
        """Gives the lock back; the file stays, empty, because removing it would race with a waiter."""
        if self.file is not None:
            _held.discard(self.path.resolve())
            self.file.truncate(0)
            self.file.close()
            self.file = None


def is_held(folder: Path) -> bool:
    """Whether a process works in `folder`. Only asks: takes and writes nothing, so any reader may call it."""
    path = folder / "run.lock"
    # Closing any handle of the file would drop the lock that this very process has on it: never open it then.
    if path.resolve() in _held:
        return True
    try:
        with path.open("rb") as file:
            if sys.platform == "darwin":  # struct flock: start, length, process, type, whence
                asked = struct.pack("qqihh", 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
                return bool(
                    struct.unpack("qqihh", fcntl.fcntl(file, fcntl.F_GETLK, asked))[3] != fcntl.F_UNLCK
                )
            # struct flock: type, whence, start, length, process
            asked = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return bool(struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    except OSError:
        return False


def metrics_row(line: bytes) -> dict[str, Any] | None:
    """One line of a metrics.jsonl; None for what a kill left of a line (cut anywhere, also inside a letter)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys in which two configs differ, as `key: old -> new` lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in [*old, *[k for k in new if k not in old]]:
            at = f"{path}.{key}" if path else str(key)
            lines += difference(old.get(key, "(absent)"), new.get(key, "(absent)"), at)
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


class Run:
    """An open, locked run folder."""

    def __init__(self, path: Path, config: dict[str, Any], inputs: dict[str, str], format: int) -> None:
        self.path, self.config, self.inputs, self.format = path, config, inputs, format
        self.lock = Lock(path)
        self.fingerprint = fingerprint(config, inputs, format)
        self.started = time.monotonic()
        self._metrics: IO[str] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any],
        inputs: dict[str, str],
        format: int = 1,
        replace: bool = False,
    ) -> Run:
        """Locks `path` and prepares it for `config`.

        A folder of another config is refused with the keys that differ, or with `replace=True` its content is
        moved to `.previous/` beside it (and what was there for this very config is taken back).
        Raises RunError when the folder is held, foreign or damaged.
        """
        run = cls(path, config, inputs, format)
        run.lock.acquire()
        try:
            run._adopt(replace)
        except BaseException:
            run.lock.release()
            raise
        return run

    def _adopt(self, replace: bool) -> None:
        io.remove_partials(self.path)
        known = self._known_fingerprint()
        if known is not None and known != self.fingerprint:
            if not replace:
                raise RunError(self._foreign())
            self._set_aside(known)
            known = None
        if replace:
            self._take_back(known)
            known = self._known_fingerprint()
        if known is None:
            others = [p.name for p in self.path.iterdir() if p.name not in ("run.lock", ".previous")]
            if others and not replace:
                raise RunError(
                    f"{self.path}: not a run folder (holds {others[0]}); choose an empty or new folder"
                )
            (self.path / "result.json").unlink(missing_ok=True)  # of nobody knows what
            # First of all: from here on the folder is this run's, wherever a kill comes.
            values = {"fingerprint": self.fingerprint, "format": self.format, "inputs": self.inputs}
            io.write_json(self.path / "inputs.json", values)
            io.write_text(self.path / "config.yaml", dump_yaml(self.config))
        elif not (self.path / "config.yaml").exists():
            io.write_text(self.path / "config.yaml", dump_yaml(self.config))

    def _known_fingerprint(self) -> str | None:
        path = self.path / "inputs.json"
        if not path.exists():
            return None
        values = io.read_json(path)
        if not isinstance(values, dict) or "fingerprint" not in values:
            raise RunError(f"{path}: damaged, no fingerprint in it; remove the folder or choose another")
        return str(values["fingerprint"])

    def _foreign(self) -> str:
        old = io.read_json(self.path / "inputs.json")
        kept = self.path / "config.yaml"
        lines = difference(load_yaml(kept), self.config) if kept.exists() else ["it was cut off at its start"]
        lines += difference(old["inputs"], self.inputs, "input")
        if old["format"] != self.format:
            lines.append(
                f"stage format: {old['format']} -> {self.format} (made by another version of Nalanda)"
            )
        shown = "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
        return f"{self.path}: made by another config ({shown}); choose another folder or remove this one"

    # Moving a run between its folder and `.previous/` takes many renames, and a kill may come between any two.
    # inputs.json leaves last and returns first: while a run is in two places its folder says whose it is and
    # `.previous/` holds no inputs.json, so the next opening, of whatever config, ends the move either way.
    # result.json leaves first and returns last: a run in two places is never done.

    def _place(self, fingerprint: str) -> Path:
        return self.path.parent / ".previous" / f"{self.path.name}-{fingerprint}"

    def _set_aside(self, known: str) -> None:
        place = self._place(known)
        if (place / "inputs.json").exists():
            _discard(place)
        place.mkdir(parents=True, exist_ok=True)
        for name in _in_order(self.path, first="result.json", last="inputs.json"):
            _move(self.path / name, place / name)

    def _take_back(self, known: str | None) -> None:
        place = self._place(self.fingerprint)
        if not place.is_dir() or (known is not None and (place / "inputs.json").exists()):
            return
        io.remove_partials(place)
        for name in _in_order(place, first="inputs.json", last="result.json"):
            if known is not None and (self.path / name).exists():
                _discard(place / name)  # the folder went on by itself meanwhile: what it has is newer
            else:
                _move(place / name, self.path / name)
        io.remove_partials(place)
        place.rmdir()

    @property
    def done(self) -> bool:
        """Whether this config's work in this folder is finished."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What `finish` was given, with fingerprint, seconds and peak memory."""
        return dict(io.read_json(self.path / "result.json"))

    def log(self, values: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl; a NaN or infinity is written as null."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in values.items()}
        with io.full_disk_is_clear(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(clean, ensure_ascii=False) + "\n")
            self._metrics.flush()

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that a resume from `step` will write again."""
        path = self.path / "metrics.jsonl"
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            rows = [(line, metrics_row(line)) for line in lines]
            with io.atomic_writer(path, "wb") as file:
                file.writelines(line + b"\n" for line, row in rows if row and row.get("step", 0) <= step)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes environment.json, then result.json: the stage is done.

        `seconds` are those of its last attempt: what it did before a cut-off is not in them. A training stage
        adds its own `training_seconds`, which go on over attempts.
        """
        io.write_json(self.path / "environment.json", machine.environment())
        values = {
            "fingerprint": self.fingerprint,
            "format": self.format,
            "seconds": round(time.monotonic() - self.started, 3),
            "peak_memory_bytes": machine.peak_memory(),
            **result,
        }
        io.write_json(self.path / "result.json", values)

    def close(self) -> None:
        """Releases the folder."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self.lock.release()

    def __enter__(self) -> Run:
        machine.reset_peak_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _in_order(folder: Path, first: str, last: str) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != "run.lock")
    return sorted(names, key=lambda name: (name != first, name == last))


def _move(entry: Path, target: Path) -> None:
    if target.exists():
        _discard(target)
    os.replace(entry, target)


def _discard(path: Path) -> None:
    """Removes `path` so that a kill leaves all of it in its place, or nothing there."""
    gone = path.with_name(f".partial-{path.name}")
    _remove(gone)  # of an earlier kill
    os.replace(path, gone)
    _remove(gone)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def fingerprint(config: dict[str, Any], inputs: dict[str, str], format: int) -> str:
    """A stage's identity: resolved config (places of inputs left out), inputs' fingerprints, format."""
    return io.fingerprint(
        {"config": _without_places(config, set(inputs)), "inputs": inputs, "format": format}
    )


def _without_places(values: Any, names: set[str], at: str = "") -> Any:
    if at in names:
        return "(input)"
    if isinstance(values, dict):
        return {k: _without_places(v, names, f"{at}.{k}" if at else str(k)) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return [_without_places(v, names, f"{at}.{i}") for i, v in enumerate(values)]
    return values


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of a finished stage's folder. Raises RunError when it is not finished."""
    if not (folder / "result.json").exists():
        raise RunError(f"{folder}: not a finished stage (no result.json); run it first")
    return str(io.read_json(folder / "result.json")["fingerprint"])
