"""The page of results: a table for each job, what was compared and how, and every contestant's settings."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from race import Record, ratios

MIB = 1 << 20

METHOD = """\
Each contestant is a process of its own; in each round every one does the same number of whole optimizer steps, alone
(the others are stopped by a signal), in an order that changes from round to round. Time is wall clock from the turn
given to the turn handed back: data, clipping, schedule, logging, evaluation and checkpoints are inside.

- **tokens/s**: all tokens that are not padding over all seconds.
- **per CPU s**: the same over the seconds of processor time of all its threads, waiting in loops included.
- **Nalanda is**: times as fast, round by round: the median, and in brackets the middle half of the rounds.
  **in total**: the ratio of the two rates, with evaluations and checkpoints, which few rounds have.
- **memory**: peak of resident memory above that after the imports, compiling included; **steady**: without warm-up.
- **share of peak**: FLOPs that the network needs for these tokens (forward and twice that backward; a masked model's
  head only where something is masked) at this rate, over large bf16 matrix products in the same rounds.
- **first step**: seconds from the end of the imports; in brackets with an empty compile cache.
- **loss**: the first logged one and the last (means or samples of different steps: a check that it trains, no more).
"""


class Result(NamedTuple):
    """One race. `failures`: what contestants that did not get through said; `others`: see race.Machine."""

    job: str
    records: list[Record]
    failures: dict[str, str]
    others: float


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def cpu() -> str:
    """The processor."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, text = line.partition(":")
        fields.setdefault(key.strip(), text.strip())
    wanted = ("avx512_bf16", "amx_bf16")
    has = [name for name in wanted if name in fields.get("flags", "").split()]
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name')} ({family}; {', '.join(has) or 'no bf16 instructions'})"


def row(record: Record, ours: Record | None, peak: float | None, flops: float | None) -> str:
    """A contestant's line of the table."""
    facts = record.facts
    compared, total, memory = "", "", ""
    if ours is not None and record is not ours:
        low, middle, high = quartiles(ratios(ours, record))
        compared = f"**{middle:.2f} ×** ({low:.2f} to {high:.2f})"
        total = f"{ours.rate() / record.rate():.2f} ×"
        memory = f" ({ours.facts['peak'] / facts['peak']:.2f} ×)"
    share = f"{100 * flops * record.rate() / peak:.0f} %" if peak and flops else ""
    cold = "" if record.cold_seconds is None else f" ({record.cold_seconds:.0f})"
    losses = facts["losses"]
    loss = f"{losses[0]:.2f} to {losses[-1]:.2f}" if len(losses) > 1 else "too few"
    cells = [
        record.name,
        f"{record.rate():,.0f}",
        f"{sum(record.turn_tokens()) / record.cpu_seconds:,.0f}",
        compared,
        total,
        f"{facts['peak'] / MIB:,.0f}{memory}",
        f"{facts['steady_peak'] / MIB:,.0f}",
        share,
        f"{record.first_seconds:.1f}{cold}",
        loss,
        f"{facts['parameters'] / 1e6:.2f} M",
    ]
    return "| " + " | ".join(cells) + " |"


def table(records: list[Record]) -> list[str]:
    """One job's."""
    by_name = {record.name: record for record in records}
    ours, matmul = by_name.get("nalanda"), by_name.get("matmul-peak")
    peak = statistics.median(matmul.rates()) if matmul else None
    flops = next((r.facts["flops_per_token"] for r in records if "flops_per_token" in r.facts), None)
    lines = [
        "| contestant | tokens/s | per CPU s | Nalanda is | in total | memory, MiB (Nalanda's share) | steady, MiB "
        "| share of peak | first step, s | loss | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row(record, ours, peak, flops) for record in records if record is not matmul),
        "",
    ]
    if peak and flops and matmul:
        size = matmul.facts["settings"]["size"]
        lines.append(
            f"bf16 peak: {peak / 1e9:,.0f} GFLOP/s ({size} × {size} products); {flops / 1e6:.1f} MFLOP a token."
        )
    return lines


def details(records: list[Record]) -> list[str]:
    """Settings and versions of each contestant."""
    lines = ["", "Settings:", ""]
    for record in records:
        shown = {key: json.dumps(record.facts.get(key, {})) for key in ("settings", "versions")}
        tokens = sum(record.turn_tokens()) / max(1, len(record.turns) * record.steps_per_turn)
        each = "" if record.name == "matmul-peak" else f", {tokens:,.0f} tokens a step"
        lines.append(f"- {record.name}: `{shown['settings']}`, `{shown['versions']}`{each}")
    return lines


def page(results: list[Result], options: argparse.Namespace, today: datetime.date) -> str:
    """The whole page."""
    command = f"--jobs {options.jobs} --contestants {options.contestants} --rounds {options.rounds}"
    lines = [
        f"# Training beside others, {today}",
        "",
        f"`python benchmarks/engine.py {command}`",
        "",
        f"{cpu()}, {options.threads} threads; evaluation and a checkpoint every {options.every} steps.",
        "",
        METHOD,
    ]
    for job, records, failures, others in results:
        busy = f"Other processes took {100 * others:.0f} % of the machine's time in these rounds."
        lines += [f"## {job}", "", *table(records), busy, *details(records), ""]
        lines += [f"- {name} did not run: `{text.splitlines()[-1]}`" for name, text in failures.items()]
    return "\n".join(lines) + "\n"
