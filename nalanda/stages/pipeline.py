"""Runs a recipe: skips what is done, resumes what was cut off, redoes what depends on a change.

results = run(recipe, context)          {stage name: result.json's content}
rows = status(Path("runs/quickstart"))  one row per stage: done, running, cut off, waiting
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nalanda.base import io, machine
from nalanda.base.distributed import current
from nalanda.base.errors import RunError
from nalanda.base.journal import metrics_row
from nalanda.base.lock import Lock, is_held
from nalanda.base.outputs import verify_outputs, verify_part
from nalanda.base.run import Run
from nalanda.stages.recipe import Planned, Recipe
from nalanda.stages.stage import Context, fingerprint_input


def run(recipe: Recipe, context: Context) -> dict[str, dict[str, Any]]:
    """Runs every stage of `recipe` that is not done yet, in order. Raises what a stage raises; the stages done
    before it stay done. Under torchrun every process calls this; all work on stages that train, the first on others.
    """
    results: dict[str, dict[str, Any]] = {}
    with _pipeline_folder(recipe):
        for planned in recipe.stages.values():
            results[planned.name] = _run_stage(planned, recipe, context)
        if recipe.is_pipeline and current().first:
            io.write_sealed(recipe.folder / "result.json", _summary(recipe, results))
    return results


@contextlib.contextmanager
def _pipeline_folder(recipe: Recipe) -> Iterator[None]:
    """Holds the pipeline's folder and notes its plan there, so that `status` and `translate` can read it."""
    if not recipe.is_pipeline or not current().first:
        yield
        return
    lock = Lock(recipe.folder)
    lock.acquire()
    try:
        (recipe.folder / "result.json").unlink(missing_ok=True)
        io.write_sealed(recipe.folder / "pipeline.json", _plan(recipe))
        yield
    finally:
        lock.release()


def _plan(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "about": recipe.about,
        "output": recipe.output,
        "stages": {p.name: {"verb": p.verb, "after": list(p.after)} for p in recipe.stages.values()},
    }


def _summary(recipe: Recipe, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "fingerprint": io.fingerprint({name: result["fingerprint"] for name, result in results.items()}),
        "output": recipe.output,
        "seconds": round(sum(result["seconds"] for result in results.values()), 3),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results.values()),
    }


def _run_stage(planned: Planned, recipe: Recipe, context: Context) -> dict[str, Any]:
    ranks = current()
    if ranks.size > 1 and planned.stage.together:
        return _together(planned, recipe, context)
    result = ranks.lead(lambda: _alone(planned, recipe, context))
    return result or _result_of(planned)


def _together(planned: Planned, recipe: Recipe, context: Context) -> dict[str, Any]:
    """A stage on all ranks: the first holds the folder and writes there."""
    ranks = current()
    with contextlib.ExitStack() as stack:
        opened = ranks.lead(lambda: stack.enter_context(_open(planned, recipe)))
        done = ranks.of_first(opened is not None and opened.done)
        if opened is not None:
            _alone(planned, recipe, context, opened)
        elif not done:
            planned.stage.run(planned.config, Run(planned.folder, planned.resolved(), {}, 0), context)
        ranks.gather(None)  # the first has written the result
        return _result_of(planned)


def _result_of(planned: Planned) -> dict[str, Any]:
    return io.read_sealed(planned.folder / "result.json")


def _open(planned: Planned, recipe: Recipe) -> Run:
    inputs = {
        key: fingerprint_input(place, key) for key, place in planned.stage.inputs(planned.config).items()
    }
    stage = planned.stage
    return Run.open(
        planned.folder, planned.resolved(), inputs, stage.format, replace=recipe.is_pipeline, free=stage.free
    )


def _alone(planned: Planned, recipe: Recipe, context: Context, run: Run | None = None) -> dict[str, Any]:
    """A stage by this process, in a folder that it opens or that is open."""
    config = planned.config
    with _open(planned, recipe) if run is None else contextlib.nullcontext(run) as opened:
        for line in opened.notes:
            context.note(f"{planned.name}: {line}")
        if opened.done:
            context.note(f"{planned.name}: done before, kept ({planned.folder})")
            _warn_of_upgrade(planned.folder, context)
            return opened.result()
        if any((planned.folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
            context.note(f"{planned.name}: cut off before, going on ({planned.folder})")
        else:
            context.note(f"{planned.name}: {planned.verb} -> {planned.folder}")
        opened.finish(planned.stage.run(config, opened, context))
        return opened.result()


def _warn_of_upgrade(folder: Path, context: Context) -> None:
    if not (folder / "environment.json").exists():
        return
    then, now = io.read_json(folder / "environment.json"), machine.environment()
    changed = [
        f"{name} {then['packages'][name]} -> {version}"
        for name, version in now["packages"].items()
        if then["packages"].get(name, version) != version
    ]
    if changed:
        context.note(
            f"{folder.name}: made with other versions ({', '.join(changed)}); remove {folder} to redo it"
        )


def status(folder: Path) -> list[dict[str, Any]]:
    """The state of the run at `folder` (a pipeline or one stage), a row for each stage.

    Raises RunError where there is no run.
    """
    if (folder / "pipeline.json").exists():
        names = list(io.read_sealed(folder / "pipeline.json")["stages"])
        return [_stage_status(folder / name, name) for name in names]
    if (folder / "config.yaml").exists() or (folder / "inputs.json").exists():
        return [_stage_status(folder, folder.name)]
    raise RunError(f"{folder}: not a run folder (no pipeline.json or config.yaml)")


def _stage_status(folder: Path, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": name, "state": "waiting", "seconds": None, "memory": None, "last": {}}
    if (folder / "result.json").exists():
        try:
            result = verify_outputs(folder)
            row |= {"state": "done", "seconds": result["seconds"], "memory": result["peak_memory_bytes"]}
        except RunError as error:
            row["state"] = f"damaged: {error}"
    elif (folder / "inputs.json").exists():
        row["state"] = "running" if is_held(folder) else "cut off"
    row["last"] = last_metrics(folder / "metrics.jsonl")
    return row


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl; empty where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().split(b"\n")
    return next((row for line in reversed(lines) if (row := metrics_row(line)) is not None), {})


def model_folder(place: Path, *, pickled: bool = False) -> Path:
    """The model folder that `place` means: itself, a stage's model/, or a pipeline's output stage's model/.

    A GGUF file is itself, and a name like org/name that is no path here means the hub's model, fetched once.
    Raises RunError where there is none yet, or a finished stage's is not the one that it wrote.
    """
    if not place.is_dir():
        from nalanda.models.place import resolve

        return resolve(place, pickled=pickled)
    if (place / "config.json").exists():
        if place.name == "model" and (place.parent / "result.json").exists():
            verify_part(place.parent, "model")
        return place
    if (place / "model" / "config.json").exists():
        return model_folder(place / "model")
    if (place / "pipeline.json").exists():
        output = io.read_sealed(place / "pipeline.json")["output"]
        if (place / output / "model" / "config.json").exists():
            return model_folder(place / output / "model")
        raise RunError(f"{place}: its stage '{output}' has no model yet; run the recipe first")
    raise RunError(f"{place}: no model here (looked for config.json, model/config.json and pipeline.json)")
