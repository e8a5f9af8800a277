"""What a finished stage made, under one hash: result.json names manifest.json, which names every file.

    digest = write_outputs(folder)        # when all is written: manifest.json; its SHA-256 goes into result.json
    result = verify_outputs(folder)       # before anything of the folder is used
    verify_part(folder, "model")          # only one folder's own manifest, whose reader checks the rest

Not covered, because they may go or change: checkpoints (each has its manifest), the store of a training that is cut
off (its manifest too), TensorBoard's files, run.lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nalanda.base import io
from nalanda.base.errors import RunError

RESULT, INPUTS, CONFIG = "result.json", "inputs.json", "config.yaml"
_LEFT_OUT = (RESULT, INPUTS, CONFIG, "run.lock", "checkpoints", "store", "tensorboard", ".previous")
_verified: dict[Path, Any] = {}


def write_outputs(folder: Path) -> str:
    """Writes manifest.json of a stage's folder, everything on disk; returns its SHA-256."""
    with io.full_disk_is_clear(folder):
        io.write_manifest(folder, leave=_LEFT_OUT)
    return io.sha256_file(folder / io.MANIFEST)


def verify_outputs(folder: Path) -> dict[str, Any]:
    """Checks every file of a finished stage, or of a pipeline's output stage; returns its result.json.

    Raises RunError naming the first file that is damaged, changed or missing. Within a process, files that look the
    same as at the last check (size, times, inode) are not read again.
    """
    if (folder / "pipeline.json").exists():
        output = folder / str(io.read_sealed(folder / "pipeline.json")["output"])
        io.read_sealed(folder / RESULT)
        return verify_outputs(output)
    result = _head(folder)
    looks = _looks(folder)
    if _verified.get(folder.resolve()) != looks:
        io.verify_manifest(folder)
        _verified[folder.resolve()] = looks
    return result


def verify_part(folder: Path, name: str) -> None:
    """Checks that the manifest of a folder `name` within a finished stage is the one that the stage wrote."""
    _head(folder)
    row = io.read_mapping(folder / io.MANIFEST)["files"].get(f"{name}/{io.MANIFEST}")
    path = folder / name / io.MANIFEST
    if row is not None and not path.is_file():
        raise RunError(
            f"{path}: missing, though the stage's manifest names it; copy {folder / name} to change it"
        )
    if row is not None and io.sha256_file(path) != row["sha256"]:
        raise RunError(f"{path}: its SHA-256 differs from the stage's manifest: damaged or changed")


def _head(folder: Path) -> dict[str, Any]:
    """result.json, once it, inputs.json, config.yaml and the manifest are known to belong together."""
    result, inputs = io.read_sealed(folder / RESULT), io.read_sealed(folder / INPUTS)
    if result.get("fingerprint") != inputs.get("fingerprint"):
        raise RunError(f"{folder / RESULT}: belongs to another stage than {folder / INPUTS}")
    for name, digest in ((CONFIG, inputs.get("config")), (io.MANIFEST, result.get("manifest"))):
        if not (folder / name).is_file():
            raise RunError(f"{folder / name}: missing")
        if io.sha256_file(folder / name) != digest:
            raise RunError(f"{folder / name}: its SHA-256 is not the one known: damaged or changed")
    return result


def _looks(folder: Path) -> Any:
    """What changes when a file is written: places, sizes, times and inodes."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] not in _LEFT_OUT and path.is_file():
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return found
