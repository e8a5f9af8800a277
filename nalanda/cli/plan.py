"""`nalanda plan`: what a recipe's training would need and take, before it is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe with a training stage.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: model.layers=24"),
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(
            "--hardware", help="A machine of the table, h100x8 for eight, or here: measured on this one."
        ),
    ] = "here",
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak that products reach: 0.45")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", help="US dollars for an hour of one device (here: of this machine)."),
    ] = None,
    watts: Annotated[
        float | None, typer.Option("--watts", help="What the whole machine draws under load.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="How long to measure a stage here.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
    runs: Annotated[Path, typer.Option("--runs", help="The folder that run folders are made in.")] = Path(
        "runs"
    ),
) -> None:
    """Say what training would need: memory, layout, time, energy, cost; and how much text its size wants.

    nalanda plan recipes/causal.yaml --hardware h100x8

    nalanda plan recipes/causal.yaml model.model.layers=8 --hardware here
    """
    from nalanda.stages.plan import Options
    from nalanda.stages.plan import plan as make
    from nalanda.stages.recipe import load

    options = Options(hardware, mfu, price, watts, seconds)
    options.check()
    found = make(load(recipe, overrides or [], runs), options, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)


def _show(found: dict[str, object]) -> None:
    from nalanda.stages.plan_table import tables

    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        for title, rows in tables(found):
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
            for what, value in rows:
                table.add_row(
                    what, value, style="bold" if what in ("memory", "speed", "time", "cost") else None
                )
            Console().print(table)
        return
    for title, rows in tables(found):
        typer.echo(title)
        for what, value in rows:
            typer.echo(f"  {what:14} {value}")
