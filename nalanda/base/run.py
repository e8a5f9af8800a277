"""A run is a folder. `Run.open` locks it, checks that it belongs to this config, and says whether it is done.

with Run.open(folder, config, inputs, format=1) as run:
    if not run.done:
        run.log({"step": 1, "loss": 2.3})          # one line of metrics.jsonl
        run.finish({"loss": 2.1})                  # result.json, written last: its presence means done

folder/ config.yaml  environment.json  inputs.json  metrics.jsonl  ...  manifest.json  result.json  run.lock

Every file is covered by a hash: inputs.json and result.json by a seal of their own, config.yaml by inputs.json, what
a finished stage made by manifest.json, that by result.json, checkpoints by their own manifests, the rows of
metrics.jsonl before a checkpoint by the checkpoint. What can be written again is, and `run.notes` says so; the rest
is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nalanda.base import io, machine
from nalanda.base.errors import RunError
from nalanda.base.journal import Journal
from nalanda.base.lock import Lock
from nalanda.base.outputs import CONFIG, INPUTS, RESULT, verify_outputs, write_outputs
from nalanda.config import dump_yaml, load_yaml


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

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        inputs: dict[str, str],
        format: int,
        free: Sequence[str] = (),
    ) -> None:
        self.path, self.config, self.inputs, self.format = path, config, inputs, format
        self.lock = Lock(path)
        self.fingerprint = fingerprint({k: v for k, v in config.items() if k not in free}, inputs, format)
        self.started = time.monotonic()
        self.journal = Journal(path / "metrics.jsonl")
        self.notes: list[str] = []

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any],
        inputs: dict[str, str],
        format: int = 1,
        replace: bool = False,
        free: Sequence[str] = (),
    ) -> Run:
        """Locks `path` and prepares it for `config`.

        A folder of another config is refused with the keys that differ, or with `replace=True` its content is
        moved to `.previous/` beside it (and what was there for this very config is taken back). `free`: keys of the
        config that may differ, because the result does not depend on them.
        Raises RunError when the folder is held, foreign or damaged.
        """
        run = cls(path, config, inputs, format, free)
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
            if others:
                self.notes.append(
                    f"{self.path / INPUTS}: missing; of what is there, what belongs to this run goes on"
                )
            (self.path / RESULT).unlink(missing_ok=True)  # of nobody knows what
            self._claim()
        elif _digest(self.path / CONFIG) != io.read_sealed(self.path / INPUTS).get("config"):
            self.notes.append(f"{self.path / CONFIG}: missing or damaged; written again")
            self._claim()
        if self.done:
            self._verify()

    def _claim(self) -> None:
        """Says whose folder this is: inputs.json first, so that from there on it is, wherever a kill comes."""
        text = dump_yaml(self.config)
        digest = hashlib.sha256(text.encode()).hexdigest()
        values = {
            "fingerprint": self.fingerprint,
            "format": self.format,
            "inputs": self.inputs,
            "config": digest,
        }
        io.write_sealed(self.path / INPUTS, values)
        io.write_text(self.path / CONFIG, text)

    def _known_fingerprint(self) -> str | None:
        """Whose folder this is, None for nobody's; a lost inputs.json is written again where the rest tells."""
        path = self.path / INPUTS
        if not path.exists() and not self._mine():
            return None
        try:
            known = str(io.read_sealed(path)["fingerprint"])
            if self._result_says() not in ("", known):
                raise RunError(f"{path}: belongs to another stage than {self.path / RESULT}")
            return known
        except RunError as error:
            if not self._mine():
                raise RunError(f"{error}; put it back, or remove {self.path} to begin anew") from None
            self.notes.append(f"{error}; written again: the rest of the folder is this run's")
            self._claim()
            return self.fingerprint

    def _mine(self) -> bool:
        """Whether the folder's other files say that it belongs to this run."""
        if self.done:
            return self._result_says() == self.fingerprint
        return _digest(self.path / CONFIG) == hashlib.sha256(dump_yaml(self.config).encode()).hexdigest()

    def _result_says(self) -> str:
        """Whose result.json this is; "" without one that can be trusted."""
        try:
            return str(io.read_sealed(self.path / RESULT).get("fingerprint", "")) if self.done else ""
        except RunError:
            return ""

    def _verify(self) -> None:
        """Raises RunError unless all that the finished stage made is as it was."""
        try:
            result = verify_outputs(self.path)
            if result["fingerprint"] != self.fingerprint:
                raise RunError(f"{self.path / RESULT}: belongs to another run")
        except RunError as error:
            again = ", training from its last checkpoint" if (self.path / "checkpoints").is_dir() else ""
            raise RunError(
                f"{error}; put it back, or remove {self.path / RESULT} and run the same command again: the stage is "
                f"made again{again}"
            ) from None

    def _foreign(self) -> str:
        old = io.read_sealed(self.path / INPUTS)
        kept = self.path / CONFIG
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
        io.make_folder(place)
        self._move_all(self.path, place, first=RESULT, last=INPUTS)

    def _take_back(self, known: str | None) -> None:
        place = self._place(self.fingerprint)
        if not place.is_dir() or (known is not None and (place / "inputs.json").exists()):
            return
        io.remove_partials(place)
        if known is not None:  # the folder went on by itself meanwhile: what it has is newer
            for entry in [entry for entry in place.iterdir() if (self.path / entry.name).exists()]:
                _discard(entry)
        self._move_all(place, self.path, first=INPUTS, last=RESULT)
        io.remove_partials(place)
        place.rmdir()

    def _move_all(self, source: Path, target: Path, first: str, last: str) -> None:
        names = sorted(entry.name for entry in source.iterdir() if entry.name != "run.lock")
        for name in sorted(names, key=lambda name: (name != first, name == last)):
            if name == last:
                _sync(source, target)
            _move(source / name, target / name)
            if name == first:
                _sync(source, target)
        _sync(source, target)

    @property
    def done(self) -> bool:
        """Whether this config's work in this folder is finished."""
        return (self.path / RESULT).exists()

    def result(self) -> dict[str, Any]:
        """What `finish` was given, with fingerprint, seconds and peak memory."""
        return io.read_sealed(self.path / RESULT)

    def log(self, values: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl; a NaN or infinity is written as null."""
        self.journal.append(values)

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl that a resume from `step` will write again."""
        self.journal.rewind(step)

    def check_metrics(self, mark: dict[str, Any]) -> str:
        """What is wrong with the rows before the checkpoint that keeps `mark` (of `journal.mark`), in one line.

        The damaged file is kept beside the new one, which has the rows that can be read; "" where all is well.
        """
        problem = self.journal.problem(mark)
        if problem and (kept := self.journal.keep_damaged()):
            problem += f"; it is kept as {kept.name}, and the rows that can be read go on"
        return problem

    def finish(self, result: dict[str, Any]) -> None:
        """Writes environment.json, manifest.json, then result.json: the stage is done, and all of it is on disk.

        `seconds` are those of its last attempt: what it did before a cut-off is not in them. A training stage
        adds its own `training_seconds`, which go on over attempts.
        """
        io.write_json(self.path / "environment.json", machine.environment())
        values = {
            "fingerprint": self.fingerprint,
            "format": self.format,
            "seconds": round(time.monotonic() - self.started, 3),
            "peak_memory_bytes": machine.peak_memory(),
            "manifest": write_outputs(self.path),
            **result,
        }
        io.write_sealed(self.path / RESULT, values)

    def close(self) -> None:
        """Releases the folder."""
        self.journal.close()
        self.lock.release()

    def __enter__(self) -> Run:
        machine.reset_peak_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _move(entry: Path, target: Path) -> None:
    if target.exists():
        _discard(target)
    os.replace(entry, target)


def _sync(*folders: Path) -> None:
    for folder in folders:
        with io.full_disk_is_clear(folder):
            io.sync_folder(folder)


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
    if not (folder / RESULT).exists():
        raise RunError(f"{folder}: not a finished stage (no result.json); run it first")
    return str(io.read_sealed(folder / RESULT)["fingerprint"])


def _digest(path: Path) -> str:
    return io.sha256_file(path) if path.is_file() else ""
