"""The command line: `nalanda VERB [ACTION] TARGET [key=value ...] [--flags]`.

Exit codes: 0 done; 1 something the user can mend; 2 a mistake in a recipe or on the command line; 3 input data that
is missing, damaged or does not fit; 4 a run folder that is held, foreign or damaged; 130 interrupted, 143 terminated
by SIGTERM (what was saved is whole, and the same command goes on). This package imports neither torch nor anything
that does; each command imports what it needs. Commands on recipes are here, those on a model in models.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

import nalanda
from nalanda.base.errors import Interrupted, Terminated, UserError
from nalanda.cli import models
from nalanda.cli.plan import plan

_HELP = """Raw text to an evaluated, served language model.

\b
  nalanda run recipes/quickstart.yaml              the whole route, about 15 minutes on 2 cores
  nalanda translate runs/quickstart "Sri Lanka" --to hin_Deva
  nalanda status runs/quickstart                   what is done, running, cut off

\b
Exit codes: 0 done, 1 something you can mend, 2 a mistake in a recipe or on the
command line, 3 data that is missing, damaged or does not fit, 4 a run folder
that is held, foreign or damaged, 130 interrupted, 143 terminated (run again
to go on).
"""

app = typer.Typer(
    name="nalanda",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at the data that a recipe trains on.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: optimizer.lr=2e-4"),
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that run folders are made in.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Do everything but the work, on a sliver of data, and say what it would cost."
    ),
]
Place = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder (or one stage's folder).")]


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(Terminated.exit_code)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line (`arguments`, or the process's own) and exits with its code.

    Every foreseen error becomes one line on standard error.
    """
    with contextlib.suppress(ValueError):  # a thread other than the main one cannot set signal handlers
        signal.signal(signal.SIGTERM, _terminate)
    try:
        app(arguments)
    except UserError as error:
        _fail(error)
    except SystemExit as stop:
        for kind in (Interrupted, Terminated):  # what typer makes of a KeyboardInterrupt, and `_terminate`
            if stop.code == kind.exit_code:
                _fail(kind(f"{kind.__name__.lower()}; run the same command again to go on"))
        raise
    except OSError as error:
        _fail(UserError(f"{error.filename or 'input or output'}: {error.strerror or error}"))


def _fail(error: UserError) -> None:
    for line in str(error).splitlines():
        typer.secho(f"nalanda: {line}", err=True, fg="red" if sys.stderr.isatty() else None)
    sys.exit(error.exit_code)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"nalanda {nalanda.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return None


def _run(verb: str, recipe: Path, overrides: list[str] | None, runs: Path, dry_run: bool) -> None:
    from nalanda.base.distributed import joined
    from nalanda.base.progress import reporter
    from nalanda.stages import dry, pipeline
    from nalanda.stages.recipe import load
    from nalanda.stages.stage import Context

    with joined() as ranks:
        loaded = load(recipe, overrides or [], runs, verb)
        context = Context(progress=reporter(), note=_note) if ranks.first else Context()
        lines = dry.run(loaded, context) if dry_run else []
        results = {} if dry_run else pipeline.run(loaded, context)
    if not ranks.first:
        return
    for line in lines:
        typer.echo(line)
    for name, result in results.items():
        if "headline" in result:
            typer.echo(result["headline"])
        for key in ("report", "model"):
            if key in result:
                typer.echo(f"{name}: {key} in {loaded.stages[name].folder / result[key]}")


@app.command()
def run(
    recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), dry_run: DryRun = False
) -> None:
    """Run a recipe: a pipeline of stages, or a single one.

    What is done is kept, what was cut off goes on, what depends on a change is redone.

    \b
      nalanda run recipes/quickstart.yaml
      nalanda run recipes/quickstart.yaml pretrain.budget.minutes=1 --dry-run
    """
    _run("run", recipe, overrides, runs, dry_run)


@app.command()
def corpus(
    recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), dry_run: DryRun = False
) -> None:
    """Read, filter, deduplicate and split text; every row is accounted for.

    nalanda corpus recipes/corpus.yaml name=mine sources.0.path=my.jsonl
    """
    _run("corpus", recipe, overrides, runs, dry_run)


@app.command()
def tokenizer(
    recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), dry_run: DryRun = False
) -> None:
    """Train a tokenizer on a corpus.

    nalanda tokenizer recipes/tokenizer.yaml corpus=runs/corpus vocabulary=8000
    """
    _run("tokenizer", recipe, overrides, runs, dry_run)


@app.command()
def train(
    recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), dry_run: DryRun = False
) -> None:
    """Train a model: pre-training or fine-tuning, any objective. Ctrl-C saves; the same command goes on.

    nalanda train recipes/train.yaml optimizer.lr=2e-4
    """
    _run("train", recipe, overrides, runs, dry_run)


@app.command()
def evaluate(
    recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), dry_run: DryRun = False
) -> None:
    """Score models on a test split, with confidence intervals, baselines and error slices.

    nalanda evaluate recipes/evaluate.yaml models.mine=runs/mine
    """
    _run("evaluate", recipe, overrides, runs, dry_run)


@app.command()
def report(folder: Place) -> None:
    """Write report.html and report.md for a run, from what its folder holds.

    nalanda report runs/quickstart
    """
    from nalanda.stages.report import write

    typer.echo(f"report in {write(folder)}")


@app.command()
def status(folder: Place) -> None:
    """Show which stages of a run are done, running, cut off or waiting.

    nalanda status runs/quickstart
    """
    from rich.console import Console
    from rich.table import Table

    from nalanda.stages.pipeline import status as rows_of

    table = Table("stage", "state", "time", "memory", "last line logged", box=None, pad_edge=False)
    for row in rows_of(folder):
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
        memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:.0f} MiB"
        keys = [
            key
            for key in ("step", "loss", "dev_loss", "tokens_per_second")
            if row["last"].get(key) is not None
        ]
        last = "  ".join(f"{key} {row['last'][key]:.4g}" for key in keys)
        table.add_row(row["stage"], row["state"], seconds, memory, last)
    Console().print(table)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", help="Write it here instead of printing.")] = None,
) -> None:
    """Print the JSON Schema of recipes, so that editors complete and check the YAML.

    nalanda schema --out nalanda.schema.json
    """
    from nalanda.base.io import write_text
    from nalanda.stages.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"schema in {out}; first line of a recipe: # yaml-language-server: $schema={out}")


@data_app.command()
def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="The training stage of a pipeline to show.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows to show.")] = 8,
    step: Annotated[int, typer.Option("--step", min=0, help="The optimizer step whose batch is shown.")] = 0,
    runs: Runs = Path("runs"),
) -> None:
    """Show a training batch, with the tokens that carry loss in colour.

    nalanda data preview recipes/quickstart.yaml --stage finetune
    """
    from nalanda.base.progress import reporter
    from nalanda.stages.preview import preview as show
    from nalanda.stages.recipe import load
    from nalanda.stages.stage import Context

    loaded = load(recipe, overrides or [], runs)
    show(loaded, stage, step, rows, Context(progress=reporter(), note=_note))


for _command in (plan, models.translate, models.generate, models.chat, models.inspect, models.convert):
    app.command()(_command)


def commands() -> dict[str, Any]:
    """Every command by name, for tests and documents."""
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]
