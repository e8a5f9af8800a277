"""A run as a report reads it: every stage folder's config, environment, result and metrics, and the systems scored.

    record = read(Path("runs/quickstart"))
    record.stages["finetune"].result["seconds"]     record.systems[0].scores["overall"]["chrf"]["value"]

Reads what is there: an absent file is an empty value; a damaged one is empty too and named in `record.problems`.

    runs/NAME/ pipeline.json  STAGE/ config.yaml environment.json result.json metrics.jsonl
                              STAGE/ [SYSTEM/] scores.json translations.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nalanda.base import io
from nalanda.base.errors import RunError, UserError
from nalanda.base.outputs import verify_outputs
from nalanda.config import load_yaml
from nalanda.evaluate.content import Arm
from nalanda.evaluate.translation import SCORES, TRANSLATIONS


@dataclass(frozen=True)
class StageRecord:
    """One stage's folder as plain values."""

    name: str
    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def verb(self) -> str:
        """What the stage does: corpus, tokenizer, train, evaluate ..."""
        return str(self.config.get("verb", ""))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the stage's last attempt, 0 where unknown."""
        return _number(self.result.get("seconds"))

    @property
    def training_seconds(self) -> float:
        """Seconds in training steps over all attempts (not evaluation, not checkpoints); without them `seconds`."""
        return _number(self.result.get("training_seconds")) or self.seconds


@dataclass(frozen=True)
class System:
    """One system's scores; `stages` are the training stages that made it, first to last."""

    name: str
    role: str
    path: Path
    scores: dict[str, Any]
    stages: tuple[StageRecord, ...]
    hue: int

    @property
    def arm(self) -> Arm:
        """Its name in its colour."""
        return Arm(self.name, self.hue)

    @property
    def translations(self) -> Path:
        """Where its rows are."""
        return self.path / TRANSLATIONS

    @property
    def seconds(self) -> float:
        """Training time of all its stages, in seconds."""
        return sum(stage.training_seconds for stage in self.stages)


class Reader:
    """Reads optional files; remembers which were damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []

    def mapping(self, path: Path) -> dict[str, Any]:
        """The mapping in a JSON or YAML file, empty where there is none."""
        if not path.exists():
            return {}
        try:
            values = load_yaml(path) if path.suffix == ".yaml" else io.read_json(path)
        except (UserError, OSError) as error:
            self.problems.append(str(error))
            return {}
        if isinstance(values, dict):
            return values
        self.problems.append(f"{path}: expected an object, found {type(values).__name__}")
        return {}

    def lines(self, path: Path) -> list[dict[str, Any]]:
        """The objects of a JSON Lines file; a line cut off by a kill is dropped and named."""
        if not path.exists():
            return []
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                values = None
            if isinstance(values, dict):
                rows.append(values)
            else:
                self.problems.append(f"{path}:{number}: not a JSON object; left out")
        return rows

    def stage(self, path: Path) -> StageRecord:
        """One stage's folder; what is damaged in a finished one is named."""
        if (path / "result.json").exists() and (path / io.MANIFEST).exists():
            try:
                verify_outputs(path)
            except RunError as error:
                self.problems.append(str(error))
        return StageRecord(
            path.name,
            path,
            self.mapping(path / "config.yaml"),
            self.mapping(path / "environment.json"),
            self.mapping(path / "result.json"),
            self.lines(path / "metrics.jsonl"),
        )


@dataclass(frozen=True)
class Record:
    """A whole run."""

    name: str
    path: Path
    about: str
    stages: dict[str, StageRecord]
    systems: list[System]
    files: Reader

    @property
    def problems(self) -> list[str]:
        """What was damaged or could not be computed, one line each."""
        return self.files.problems

    def role(self, role: str) -> list[System]:
        """The systems of one role: main, control or baseline."""
        return [system for system in self.systems if system.role == role]

    def verb(self, verb: str) -> list[StageRecord]:
        """The stages of one verb, in order."""
        return [stage for stage in self.stages.values() if stage.verb == verb]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def read(folder: Path) -> Record:
    """The run at `folder`: a pipeline, or a single stage. Raises RunError where there is neither."""
    reader = Reader(folder)
    plan = reader.mapping(folder / "pipeline.json")
    if (folder / "config.yaml").exists():
        stages = {folder.name: reader.stage(folder)}
    else:
        names = list(plan.get("stages") or sorted(p.parent.name for p in folder.glob("*/config.yaml")))
        stages = {n: reader.stage(folder / n) for n in names if (folder / n / "config.yaml").exists()}
    if not stages:
        raise RunError(f"{folder}: not a run folder (no stage with a config.yaml); run a recipe first")
    systems = _systems(reader, stages)
    name = str(plan.get("name") or folder.resolve().name)
    return Record(name, folder, str(plan.get("about") or ""), stages, systems, reader)


def _systems(reader: Reader, stages: dict[str, StageRecord]) -> list[System]:
    """Every scores.json in a stage or one folder below, main arms first, baselines last."""
    found = []
    for stage in stages.values():
        for path in [stage.path / SCORES, *sorted(stage.path.glob(f"*/{SCORES}"))]:
            scores = reader.mapping(path)
            if scores.get("overall"):
                found.append((stage, path.parent, scores))
    order = {"main": 0, "control": 1, "baseline": 3}
    found.sort(key=lambda item: order.get(str(item[2].get("role")), 2))
    systems: list[System] = []
    for index, (stage, path, scores) in enumerate(found):
        role = str(scores.get("role", "main"))
        lineage = () if role == "baseline" else _lineage(scores, stage, stages)
        hue = -1 if role == "baseline" else index % 4
        systems.append(System(str(scores.get("name", path.name)), role, path, scores, lineage, hue))
    return systems


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for inner in values.values():
            yield from _strings(inner)
    elif isinstance(values, list):
        for inner in values:
            yield from _strings(inner)


def _parent(config: dict[str, Any], stages: dict[str, StageRecord]) -> StageRecord | None:
    """The training stage that a config's `model` names by a path: its folder, or one inside it."""
    for text in (text for text in _strings(config.get("model")) if len(Path(text).parts) > 1):
        for name in reversed(Path(text).parts):
            if name in stages and stages[name].verb == "train":
                return stages[name]
    return None


def _lineage(
    scores: dict[str, Any], stage: StageRecord, stages: dict[str, StageRecord]
) -> tuple[StageRecord, ...]:
    """The chain of training stages that ends in the model scored."""
    current = stages.get(str(scores.get("model"))) or _parent(stage.config, stages)
    chain: list[StageRecord] = []
    while current is not None and current not in chain:
        chain.insert(0, current)
        current = _parent(current.config, stages)
    return tuple(chain)
