"""From a recipe file to configs: one stage, or a pipeline of stages that refer to each other as ${NAME}.

    recipe = load(Path("recipes/quickstart.yaml"), ["pretrain.budget.minutes=1"], runs=Path("runs"))
    recipe.folder          runs/quickstart
    recipe.stages          {"corpus": Planned(verb, config, folder, after), ...} in an order that respects references

A recipe with a top-level `verb` is one stage; one with `stages` is a pipeline. Every config is checked, and all
mistakes of all stages are told at once, before anything runs.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nalanda.config import ConfigError, load_yaml, override, parse
from nalanda.stages.stage import Stage
from nalanda.stages.verbs import VERBS, stage_of

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
_TOP_KEYS = ("name", "output", "stages", "about")


@dataclass(frozen=True)
class Planned:
    """One stage of a recipe, its config resolved: `after` names the stages whose folders it reads."""

    name: str
    verb: str
    stage: Stage
    config: Any
    folder: Path
    after: tuple[str, ...]

    def resolved(self) -> dict[str, Any]:
        """The complete config as plain values, as written to config.yaml."""
        return {"verb": self.verb, **self.config.to_dict()}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: where it writes, its stages in running order, and the stage that stands for the whole."""

    name: str
    origin: Path
    folder: Path
    stages: dict[str, Planned]
    output: str | None
    about: str = ""

    @property
    def is_pipeline(self) -> bool:
        return self.output is not None


def load(path: Path, assignments: list[str], runs: Path, verb: str | None = None) -> Recipe:
    """Reads, overrides and checks the recipe at `path`. Raises ConfigError with every mistake, one line each."""
    values = load_yaml(path)
    values = override(values, [_in_stage(values, assignment) for assignment in assignments])
    name = str(values.get("name", path.stem))
    if not _NAME.match(name):
        raise ConfigError(f"{path}: name: '{name}' must be letters, digits, '-' or '_': it names a folder")
    folder = runs / name
    if "stages" in values:
        if verb not in (None, "run"):
            raise ConfigError(f"{path}: this is a pipeline; run it with 'nalanda run {path}'")
        return _pipeline(path, values, name, folder)
    return _single(path, values, name, folder, verb)


def _in_stage(values: dict[str, Any], assignment: str) -> str:
    """In a pipeline `pretrain.optimizer.lr=1` means stages.pretrain.optimizer.lr."""
    stages = values.get("stages")
    first = assignment.split("=")[0].split(".")[0]
    return f"stages.{assignment}" if isinstance(stages, dict) and first in stages else assignment


def _single(path: Path, values: dict[str, Any], name: str, folder: Path, verb: str | None) -> Recipe:
    body = {key: value for key, value in values.items() if key not in ("name", "about")}
    found = body.pop("verb", verb if verb != "run" else None)
    if verb not in (None, "run", found):
        raise ConfigError(f"{path}: verb: this recipe is for 'nalanda {found}', not 'nalanda {verb}'")
    checked = _verb(path, "verb", found)
    stage = stage_of(checked)
    config = parse(stage.config, _resolve(body, {}, str(path), []), str(path))
    planned = Planned(name, checked, stage, config, folder, ())
    return Recipe(name, path, folder, {name: planned}, None, str(values.get("about", "")))


def _verb(path: Path, key: str, verb: Any) -> str:
    if isinstance(verb, str) and verb in VERBS:
        return verb
    if verb is None:
        raise ConfigError(f"{path}: {key}: required key is missing; one of: {', '.join(VERBS)}")
    near = difflib.get_close_matches(str(verb), list(VERBS), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(VERBS)}"
    raise ConfigError(f"{path}: {key}: unknown verb '{verb}'; {hint}")


def _pipeline(path: Path, values: dict[str, Any], name: str, folder: Path) -> Recipe:
    problems = [
        f"{path}: {key}: unknown key; valid keys of a pipeline: {', '.join(_TOP_KEYS)}"
        for key in values
        if key not in _TOP_KEYS
    ]
    stages = values["stages"]
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path}: stages: expected a mapping of stage names to their configs")
    folders = {stage: folder / stage for stage in stages}
    planned: dict[str, Planned] = {}
    for stage, body in stages.items():
        try:
            planned[stage] = _plan(path, stage, body, folders)
        except ConfigError as error:
            problems.append(str(error))
    output = values.get("output", next(reversed(stages)))
    if not isinstance(output, str) or output not in stages:
        problems.append(f"{path}: output: no stage is called '{output}'; stages: {', '.join(stages)}")
    if problems:
        raise ConfigError("\n".join(problems))
    return Recipe(name, path, folder, _ordered(path, planned), str(output), str(values.get("about", "")))


def _plan(path: Path, name: str, body: Any, folders: dict[str, Path]) -> Planned:
    origin = f"{path}: {name}"
    if not _NAME.match(name):
        raise ConfigError(f"{origin}: a stage's name must be letters, digits, '-' or '_': it names a folder")
    if not isinstance(body, dict):
        raise ConfigError(f"{origin}: expected a mapping with a verb")
    rest = dict(body)
    verb = _verb(path, f"{name}.verb", rest.pop("verb", None))
    stage = stage_of(verb)
    after: list[str] = []
    config = parse(stage.config, _resolve(rest, folders, origin, after), origin)
    return Planned(name, verb, stage, config, folders[name], tuple(dict.fromkeys(after)))


def _resolve(value: Any, folders: dict[str, Path], origin: str, after: list[str]) -> Any:
    """`value` with every ${NAME} replaced by that stage's folder; names met are added to `after`."""
    if isinstance(value, dict):
        return {key: _resolve(inner, folders, origin, after) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner, folders, origin, after) for inner in value]
    if not isinstance(value, str):
        return value

    def folder_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in folders:
            known = f"stages: {', '.join(folders)}" if folders else "only a pipeline has stages to name"
            raise ConfigError(f"{origin}: ${{{name}}} names no stage; {known}")
        after.append(name)
        return str(folders[name])

    return _REFERENCE.sub(folder_of, value)


def _ordered(path: Path, planned: dict[str, Planned]) -> dict[str, Planned]:
    order: dict[str, Planned] = {}
    waiting = dict(planned)
    while waiting:
        ready = [name for name, plan in waiting.items() if all(other in order for other in plan.after)]
        if not ready:
            raise ConfigError(f"{path}: stages: {' and '.join(waiting)} refer to each other in a circle")
        order[ready[0]] = waiting.pop(ready[0])
    return order
