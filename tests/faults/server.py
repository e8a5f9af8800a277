"""The process that forks lives (harness.py), and what a finished run is compared by."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMALL: dict[str, Any] = {
    "budget": {"steps": 6},
    "schedule": {"warmup": 2},
    "checkpoint": {"every": 2, "keep": 1},
    "log_every": 1,
}
"""A training of a fifth of a second with three checkpoints, each of which replaces the one before."""
CLOCK = ("seconds", "tokens_per_second", "all_waited")


def build_shim(folder: Path) -> Path | None:
    """shim.c as a library; None without Linux or a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        return None
    library = folder / "shim.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HERE / "shim.c"),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    return library


class Server:
    """Forks a life for each call of `live`."""

    def __init__(self, folder: Path) -> None:
        self.shim = build_shim(folder)
        self.said, self._errors = folder / "said.txt", (folder / "stderr.txt").open("w")
        preload = {"LD_PRELOAD": str(self.shim)} if self.shim else {}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "harness.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **preload, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def live(self, folder: Path, **order: Any) -> dict[str, Any]:
        """One life; `status` is its exit code, or minus the signal that ended it; `said` what it told its user."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.said.write_text("")
        self.process.stdin.write(json.dumps({"folder": str(folder), "said": str(self.said), **order}) + "\n")
        self.process.stdin.flush()
        life = json.loads(self.process.stdout.readline())
        return {**life, "said": self.said.read_text()}

    def errors(self) -> str:
        """What lives that broke have printed."""
        return Path(self._errors.name).read_text()

    def finish(self, folder: Path, **order: Any) -> dict[str, Any]:
        """A life that nobody disturbs, to the end."""
        life = self.live(folder, **order)
        assert life["status"] == 0, life["said"] + self.errors()
        return life

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self._errors.close()


def killed(life: dict[str, Any]) -> bool:
    """Whether SIGKILL ended a life."""
    return bool(life["status"] == -signal.SIGKILL)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def digest(path: Path) -> str:
    """A file's hash."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(folder: Path) -> dict[str, Any]:
    """What must be equal to the last bit after any faults: losses, weights, optimizer state, where the run stands."""
    last = max((folder / "checkpoints").glob("step-*"))
    window = json.loads((last / "state.json").read_text())["window"]
    return {
        "rows": rows(folder),
        "weights": json.loads((folder / "result.json").read_text()).get("weights"),
        "window": {k: v for k, v in window.items() if k not in CLOCK},
        **{name: digest(last / name) for name in ("model.safetensors", "optimizer.safetensors")},
    }


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint folder, 0 without one."""
    return max((int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")), default=0)
