"""The fault table: what was tried on runs of this very code, and what was lost.

    python benchmarks/fault_table.py [SECTION ...] [kills=30]     # commit power kills full corruption; default: all

Prints a row of Markdown for each kind of fault. After each the same command is run again; weights, optimizer
state, losses of every step and the ids of the next batches must equal those of an undisturbed run to the last bit; a
difference ends the script. The faults are those of tests/faults (which says how they are made), on every operation
instead of a choice of them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from faults import test_commit, test_corruption, test_full_disk, test_kill, test_power
from faults.operations import record
from faults.pipelines import KINDS, command, write_recipe
from faults.server import SMALL, Server, killed

EVERY = SMALL["checkpoint"]["every"]


def commit(server: Server, place: Path, kills: int) -> list[str]:
    """SIGKILL before every operation of a run, and inside every write."""
    small = _small(server, place)
    operations = record(server, place / "log" / "run", place, loop=SMALL)
    lines = test_commit.enumerate_kills(server, small, place, operations)
    lost = [int(line.rsplit(": ", 1)[1].split()[0]) for line in lines if "None" not in line]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(o.kind for o in operations).most_common())
    return [
        f"| SIGKILL before each system call of a run with {SMALL['budget']['steps'] // EVERY} checkpoints ({kinds}), "
        f"and in the middle of each write | {len(lines)} | at most {max(lost)} steps (interval {EVERY}) |"
    ]


def power(server: Server, place: Path, kills: int) -> list[str]:
    """Power lost after every operation."""
    small = _small(server, place)
    operations = record(server, place / "log" / "run", place, loop=SMALL)
    found = test_power.trees(operations, operations)
    for number, (_, safe, tree) in enumerate(found):
        test_power.goes_on(server, small, place / str(number), tree, safe)
    return [
        f"| power lost after each of {len(operations)} system calls, whatever mixture of the unsynced stayed | "
        f"{len(found)} disks | no checkpoint that was synced, none half |"
    ]


def kills(server: Server, place: Path, kills: int) -> list[str]:
    """SIGKILL at random moments of whole pipelines."""
    rows = []
    for kind in KINDS:
        seen = test_kill.kill_until(server, kind, place / kind, kills, seed=3)
        stages = ", ".join(
            f"{seen[s]} {s}" for s in ("corpus", "tokenizer", "training", "export", "end") if seen[s]
        )
        rows.append(
            f"| SIGKILL at random, {kind.replace('_', '-')} with dropout ({stages}; {seen['second']} of them the "
            f"second or later one of a run) | {seen['killed']} | at most {seen['most lost']} steps (interval 3) |"
        )
    return rows


def full(server: Server, place: Path, kills: int) -> list[str]:
    """A disk without room at every operation that needs some."""
    small, count = _small(server, place), 0
    for operation in record(server, place / "log" / "run", place, loop=SMALL):
        for mode in "fo" if operation.kind in test_full_disk.WRITES else "":
            folder = place / f"{mode}{operation.number}" / "run"
            test_full_disk.stops_and_goes_on(server, small, folder, mode, operation)
            count += 1
    return [
        f"| disk full from, or only at, each write, creation and sync of a run | {count} | nothing saved; one line |"
    ]


def corruption(server: Server, place: Path, kills: int) -> list[str]:
    """Every file of a training that was cut off, damaged in every way."""
    whole, path = write_recipe(place / "whole", "decoder"), write_recipe(place / "cut", "decoder")
    operations = record(server, whole.parent / "runs" / "run", place, command=command(whole))
    export = next(o.number for o in operations if "/model/.partial-model" in o.path)
    (path.parent / "runs").mkdir()
    arm = {"mode": "k", "at": export, "root": str(path.parent / "runs")}
    assert killed(server.live(path, command=command(path), arm=arm))
    names = test_corruption._files(path)
    for name in names:
        for harm in test_corruption.HARMS:
            test_corruption.damage_and_go_on(server, path, whole, place / "damaged", name, harm)
    for harm in test_corruption.HARMS:
        test_corruption.test_a_finished_run(whole, place / f"finished-{harm}", harm)
    there = [p for p in (whole.parent / "runs").rglob("*") if p.is_file() and "/checkpoints/" not in str(p)]
    return [
        f"| bit flip, truncation, deletion, swap of each of {len(names)} files of a training that was cut off | "
        f"{4 * len(names)} | each named, or of no effect; the newest whole checkpoint used |",
        f"| the same of each of {len(there)} files of a finished pipeline | about {4 * len(there)} | each named or "
        "made again; none used |",
    ]


def _small(server: Server, place: Path) -> Path:
    server.finish(place / "small" / "run", loop=SMALL)
    return place / "small" / "run"


SECTIONS: dict[str, Callable[[Server, Path, int], list[str]]] = {
    "commit": commit,
    "power": power,
    "kills": kills,
    "full": full,
    "corruption": corruption,
}


def main(words: list[str]) -> None:
    """Prints the rows of the sections that `words` names."""
    torch.set_num_threads(1)
    count = next((int(word.removeprefix("kills=")) for word in words if word.startswith("kills=")), 30)
    for name in [word for word in words if word in SECTIONS] or list(SECTIONS):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            server = Server(Path(place))
            (Path(place) / "work").mkdir()
            try:
                rows = SECTIONS[name](server, Path(place) / "work", count)
            finally:
                server.close()
        sys.stdout.write("\n".join(rows) + f"\n<!-- {name}: {time.monotonic() - began:.0f} s -->\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
