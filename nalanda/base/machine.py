"""What ran where: versions, machine, threads, memory. Written to each stage's environment.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import nalanda

_PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "pydantic",
    "pyarrow",
    "sacrebleu",
    "pycountry",
    "babel",
    "django",
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)


def _commit() -> str | None:
    """The git commit of an editable checkout, with '+' where its files differ; None when installed."""
    root = Path(nalanda.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, machine and git commit, as plain JSON values. Does not import torch."""
    values: dict[str, Any] = {
        "nalanda": nalanda.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        values["threads"] = torch.get_num_threads()
        values["instruction_set"] = torch.backends.cpu.get_cpu_capability()
        values["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return values


def free_memory() -> int | None:
    """Bytes of memory that this process may still take, its container's limit counted; None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        place = Path("/sys/fs/cgroup") / group
        limit, used = ((place / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, max(int(limit) - int(used), 0))
    except (OSError, ValueError):  # no such limit
        return free


def mapped_memory() -> dict[str, int]:
    """Bytes of address space and of data that this process has, by the name of the limit on each (Linux)."""
    names = {"VmSize": "RLIMIT_AS", "VmData": "RLIMIT_DATA"}
    try:
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        return {}
    return {names[line[0][:-1]]: int(line[1]) * 1024 for line in lines if line and line[0][:-1] in names}


def reset_peak_memory() -> None:
    """Starts a new measurement of this process's peak resident memory (Linux; elsewhere it stays a total)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Peak resident memory of this process in bytes since the last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
