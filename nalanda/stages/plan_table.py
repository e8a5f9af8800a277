"""A plan as lines to read: rows of (what, value) for each training stage, and for the sum of several.

for title, rows in tables(plan): ...
"""

from __future__ import annotations

from typing import Any

Lines = list[tuple[str, str]]
_OUT_OF_REACH = 100
"""So many times the compute is as good as never."""


def tables(plan: dict[str, Any]) -> list[tuple[str, Lines]]:
    """A title and rows for each stage, and for all together where there are several."""
    found = [(_title(stage, plan), _stage(stage, plan)) for stage in plan["stages"]]
    if len(found) > 1:
        total = plan["total"]
        rows = [("tokens", short(total["tokens"])), ("FLOPs", f"{total['flops']:.2e}"), *_bill(total)]
        found.append((f"all {len(found)} training stages on {plan['hardware']}", rows))
    return found


def short(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return (
                f"{number / size:.3g} {unit}"
                if abs(number) < 999.5 * size
                else f"{number / size:,.0f} {unit}"
            )
    return f"{number:.3g}"


def size(count: float) -> str:
    """Bytes as GB or MB (of 1e9 and 1e6)."""
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e9 else f"{count / 1e6:.0f} MB"


def clock(hours: float) -> str:
    """A time in the unit that fits."""
    if hours < 1 / 60:
        return f"{hours * 3600:.1f} s"
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"


def _title(stage: dict[str, Any], plan: dict[str, Any]) -> str:
    model = stage["model"]
    kind = model["kind"].replace("_", "-")
    where = "this machine" if plan["machine"] is None else plan["hardware"]
    shape = f"{model['layers']} layers, {model['hidden']} wide"
    return f"{stage['name']}: {kind}, {shape}, {stage['precision']} on {where}"


def _stage(stage: dict[str, Any], plan: dict[str, Any]) -> Lines:
    places = stage["step_places"]
    padding = f", {1 - stage['real_share']:.0%} of the places padding" if stage["real_share"] < 0.995 else ""
    rows: Lines = [
        (
            "parameters",
            f"{short(stage['parameters'])}, {short(stage['active_parameters'])} of them active, "
            f"{short(stage['embedding_parameters'])} in the token embeddings",
        ),
        ("FLOPs", f"{short(stage['flops_per_token'])} a token, {stage['flops']:.2e} in all"),
        ("work", f"{stage['steps']:,.0f} steps of {places:,.0f} places, {short(stage['tokens'])} tokens{padding}"),
        *_memory(stage["memory"], stage),
        *_layouts(stage),
        ("speed", f"{short(stage['tokens_per_second'])} tokens/s, {_seconds(stage['step_seconds'])} a step, "
         f"{stage['mfu']:.0%} of the peak of products"),
        *_bill(stage),
        *_scaling(stage["scaling"]),
        *(("assumed", line) for line in stage["assumed"]),
    ]  # fmt: skip
    if plan["machine"] is not None:
        rows.append(("assumed", "no time for evaluations, checkpoints, data and failures"))
    return rows


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _bill(values: dict[str, Any]) -> Lines:
    rows: Lines = [("time", clock(values["hours"]))] if values["hours"] is not None else []
    if values["kwh"] is not None:
        rows.append(("energy", f"{values['kwh']:.3g} kWh"))
    if values["cost"] is not None:
        rows.append(("cost", f"{values['cost']:,.2f} US dollars"))
    return rows


def _memory(memory: dict[str, Any], stage: dict[str, Any]) -> Lines:
    parts = [f"{name} {size(value)}" for name, value in memory["parts"].items() if round(value / 1e6)]
    share = memory["peak"] / max(memory["available"], 1.0)
    fit = "fits" if memory["fits"] else f"DOES NOT FIT (up to {memory['usable']:.0%} is used)"
    whose = "a device's" if "calibration" not in stage else "free"
    rows = [
        ("memory", f"peak {size(memory['peak'])}, {share:.0%} of {size(memory['available'])} {whose}: {fit}"),
        ("  parts", ", ".join(parts)),
        ("  peak at", memory["at"]),
    ]
    if stage.get("enough"):
        rows.append(("", f"enough: {stage['enough']} such devices"))
    return rows


def _layouts(stage: dict[str, Any]) -> Lines:
    rows: Lines = []
    for number, layout in enumerate(stage["layouts"]):
        parallel = ", ".join(f"{key}: {str(value).lower()}" for key, value in layout["parallel"].items())
        times = ", ".join(
            f"{name} {value / layout['seconds']:.0%}" for name, value in layout["times"].items()
        )
        rows.append(
            (
                "layout" if number == 0 else "  or",
                f"parallel: {{{parallel}}}, micro_batch_tokens: {layout['micro_batch_tokens']:,}; "
                f"{short(layout['tokens_per_second'])} tokens/s, {size(layout['peak'])} ({times})",
            )
        )
    measured = stage.get("calibration")
    if measured is not None:
        rows.append(("measured", f"{measured['how']}; products at " + ", ".join(
            f"{rate / 1e9:.0f} GFLOPS in {name}" for name, rate in measured["rates"].items()
        )))  # fmt: skip
        if measured["share"] < 0.8 and measured["device"] == "cpu":
            rows.append(
                ("", f"other programs are running: this one got {measured['share']:.0%} of its threads' time; "
                 f"alone it would take about {clock(stage['hours'] * measured['share'])}")
            )  # fmt: skip
    return rows


def _scaling(scaling: dict[str, Any] | str) -> Lines:
    if isinstance(scaling, str):
        return [("Chinchilla", f"not asked: {scaling}")]
    fit, best, theirs = scaling["fit"], scaling["optimum_of_compute"], scaling["hoffmann"]
    rows = [
        (
            "Chinchilla",
            f"{scaling['formula']}; E {fit['irreducible']:g}, A {fit['parameters']:g}, B {fit['tokens']:g}, "
            f"alpha {fit['alpha']:g}, beta {fit['beta']:g} ({fit['source']})",
        ),
        (
            "  best tokens",
            f"{short(scaling['optimal_tokens'])} for this size ({short(theirs['optimal_tokens'])} by "
            f"{theirs['source']}); for this compute {short(best['parameters'])} parameters on "
            f"{short(best['tokens'])} tokens, loss {best['loss']:.3f}",
        ),
        (
            "  as planned",
            f"loss {scaling['loss']:.3f} nats a token (by Hoffmann's constants {theirs['loss']:.3f})",
        ),
    ]
    for choice in scaling["choices"]:
        same = choice["equal_compute"]
        rows.append(
            (
                f"  {short(choice['parameters'])}",
                f"{short(choice['tokens'])} tokens for the same compute, loss {choice['loss']:.3f}; "
                + (
                    "never reaches the planned loss"
                    if same is None or same > _OUT_OF_REACH
                    else f"the planned loss after {short(choice['equal_tokens'])} tokens, {same:.2f} x the compute"
                ),
            )
        )
    return rows
