"""The report's sections about quality: the result, what pre-training gained, languages, errors, examples.

Each function takes a Record and gives the blocks of one section, none where the run holds nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nalanda.base.errors import DataError
from nalanda.evaluate import rows as rows_file
from nalanda.evaluate.content import (
    Arm,
    Block,
    Cell,
    Example,
    Examples,
    Figures,
    Heading,
    Inline,
    Interval,
    IntervalChart,
    Paragraph,
    Score,
    Strong,
    Table,
    Text,
    number,
    value,
)
from nalanda.evaluate.record import Record, System
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.scoring import METRICS, Settings
from nalanda.evaluate.translation import Comparison, Difference, compare
from nalanda.text.language import LANGUAGES

NARROW = "\u00a0"  # a space that no line breaks at


def language_name(code: str) -> str:
    """The English name of a code, the code itself where the table has none."""
    row = LANGUAGES.get(code)
    return row.name if row is not None else code


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 14 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds, 1 if seconds < 10 else 0)}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min{NARROW}{whole % 60:02d}{NARROW}s"
    return f"{whole // 3600:,}{NARROW}h{NARROW}{whole % 3600 // 60:02d}{NARROW}min"


def score(part: Any, key: str) -> Score | None:
    """A metric of a part of scores.json, as a value with its interval."""
    found = part.get(key) if isinstance(part, dict) else None
    if isinstance(found, dict) and isinstance(found.get("value"), int | float):
        return Score(found["value"], found.get("low"), found.get("high"))
    if isinstance(found, int | float):
        return Score(float(found), digits=2)
    return None


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _best_baseline(record: Record) -> System | None:
    scored = [(score(s.scores["overall"], "chrf"), s) for s in record.role("baseline")]
    known = [(found.value, system) for found, system in scored if found is not None]
    return max(known, key=lambda item: item[0])[1] if known else None


def comparison_of(record: Record) -> Comparison | None:
    """The main arm against the control arm on their common rows; None where either has no rows."""
    mains, controls = record.role("main"), record.role("control")
    if not mains or not controls:
        return None
    try:
        settings = Settings.model_validate(mains[0].scores.get("settings") or {})
        return compare(
            rows_file.read(mains[0].translations), rows_file.read(controls[0].translations), settings
        )
    except (DataError, ValueError) as error:
        record.problems.append(f"the arms could not be compared: {error}")
        return None


def _parameters(system: System) -> float | None:
    for stage in reversed(system.stages):
        for key in ("parameters", "parameter_count"):
            found = stage.result.get(key)
            if isinstance(found, int | float):
                return float(found)
    return None


def headline(record: Record, comparison: Comparison | None) -> list[Block]:
    """What was trained and how well it does, in one sentence and four figures."""
    mains = record.role("main")
    chrf = score(mains[0].scores["overall"], "chrf") if mains else None
    if chrf is None:
        return []
    main, overall = mains[0], mains[0].scores["overall"]
    codes = list(main.scores.get("languages") or {})
    size = _parameters(main)
    parts: list[Inline] = [f"A model of {number(size / 1e6)} million parameters" if size else "The model"]
    parts += [f", trained in {duration(main.seconds)}," if main.seconds else ""]
    parts += [f" translates into {_joined([language_name(code) for code in codes])}" if codes else " scores"]
    parts += [" at ", Strong(f"chrF++ {value(chrf)}")]
    parts += [f" on {number(overall['rows'], 0)} test rows that training never saw"]
    best = _best_baseline(record)
    if best is not None and (bar := score(best.scores["overall"], "chrf")) is not None:
        parts += [f"; the best baseline ({best.name}) reaches {value(bar)}"]
    items: list[tuple[str, Score | str, str]] = []
    for key, meaning in (
        ("chrf", "letters and words"),
        ("bleu", "words"),
        ("exact", "of answers"),
    ):
        found = score(overall, key)
        if found is not None:
            unit = " %" if key == "exact" else ""
            shown = Score(found.value, found.low, found.high, unit=unit)
            items.append((METRICS[key].title, shown, meaning))
    if comparison is not None:
        gain = comparison.overall["chrf"]
        items.append(("gain in chrF++", _signed(gain), f"over the arm {record.role('control')[0].name}"))
    return [Paragraph((*parts, "."), "lead"), Figures(tuple(items))]


def _signed(difference: Difference) -> Score:
    return Score(difference.value, difference.low, difference.high, sign=True)


def p_value(p: float) -> str:
    """'p = 0.012', and 'p < 0.001' below what is worth telling apart."""
    return f"p{NARROW}<{NARROW}0.001" if p < 0.001 else f"p{NARROW}={NARROW}{p:.3f}"


def _level(settings: Settings) -> str:
    return f"{100 * settings.confidence:g}{NARROW}% interval"


def _opening(system: System) -> Arm:
    """The system's name at the start of a sentence."""
    return Arm(system.name[:1].upper() + system.name[1:], system.hue)


def verdict_sentence(main: System, control: System, comparison: Comparison) -> tuple[Inline, ...]:
    """What the comparison says, in plain words."""
    found = comparison.overall["chrf"]
    around = (
        f"{_level(comparison.settings)} of the difference {number(found.low)} to {number(found.high)}, "
        f"{p_value(found.p)}, paired bootstrap over {number(found.rows, 0)} rows"
    )
    scores = f"chrF++ {number(found.first)} against {number(found.second)}"
    if found.verdict == "not distinguishable":
        return (
            _opening(main), " and ", control.arm, " are ", Strong("not distinguishable"),
            f" on this test set: {scores}; {around}.",
        )  # fmt: skip
    amount = f"{number(abs(found.value))} chrF++ {'higher' if found.value > 0 else 'lower'}"
    return (_opening(main), " scores ", Strong(amount), " than ", control.arm, f": {scores}; {around}.")


def time_sentence(main: System, control: System) -> str:
    """How long each arm trained, and whether that was the same."""
    if not main.seconds or not control.seconds:
        return ""

    def told(system: System) -> str:
        steps = [f"{stage.name} {duration(stage.training_seconds)}" for stage in system.stages]
        return f"{system.name} {duration(system.seconds)}" + (
            f" ({' + '.join(steps)})" if len(steps) > 1 else ""
        )

    spread = abs(main.seconds - control.seconds) / max(main.seconds, control.seconds)
    same = (
        "Both had the same total training time: "
        if spread <= 0.05
        else f"The training times differ by {number(100 * spread, 0)} %, which weakens the comparison: "
    )
    return f"{same}{told(main)}; {told(control)}."


def gain(record: Record, comparison: Comparison | None) -> list[Block]:
    """What the main arm gained over the control arm, with interval and p-value."""
    if comparison is None:
        return []
    main, control = record.role("main")[0], record.role("control")[0]
    longer = len(main.stages) > len(control.stages)
    blocks: list[Block] = [
        Heading("What pre-training gained" if longer else f"{main.name} against {control.name}"),
        Paragraph(verdict_sentence(main, control, comparison)),
    ]
    said = time_sentence(main, control)
    if said:
        blocks.append(Paragraph((said,)))
    rows: list[tuple[Cell, ...]] = [
        (METRICS[key].title, *_difference_cells(found)) for key, found in comparison.overall.items()
    ]
    rows += [
        (f"chrF++, {language_name(code)}", *_difference_cells(found))
        for code, found in comparison.languages.items()
    ]
    blocks.append(
        Table(
            ("score", main.name, control.name, "difference", "p", "verdict"),
            tuple(rows),
            note=f"Difference: {main.name} minus {control.name}, with {_level(comparison.settings)}. "
            "Better or worse: p below 0.05 and an interval without 0. "
            "The p-values of single languages are not corrected for there being several.",
        )
    )
    return blocks


def _difference_cells(found: Difference) -> tuple[Cell, ...]:
    p = "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    return Score(found.first), Score(found.second), _signed(found), p, found.verdict


def languages(record: Record) -> list[Block]:
    """chrF++ by language for every system, as a picture and a table; all scores of every system."""
    systems = record.systems
    codes = list(dict.fromkeys(code for system in systems for code in system.scores.get("languages") or {}))
    if not codes:
        return []
    dots: list[Interval] = []
    rows: list[tuple[Cell, ...]] = []
    bold: set[tuple[int, int]] = set()
    for code in [*codes, ""]:
        parts = [s.scores["languages"].get(code, {}) if code else s.scores["overall"] for s in systems]
        scores = [score(part, "chrf") for part in parts]
        name = language_name(code) if code else "All"
        dots += [Interval(name, s.name, found, s.hue) for s, found in zip(systems, scores) if found]
        best = max((found.value for found in scores if found), default=None)
        bold |= {(len(rows), i + 2) for i, found in enumerate(scores) if found and found.value == best}
        rows.append((name, next((part["rows"] for part in parts if part), 0), *scores))
    columns = ("language", "rows", *(system.name for system in systems))
    return [
        Heading("Languages"),
        IntervalChart("chrF++ by language", tuple(dots), "chrF++", in_table=True),
        Table(columns, tuple(rows), "chrF++ by language", last_is_total=True, bold=frozenset(bold)),
        _every_score(systems),
    ]


def _every_score(systems: Sequence[System]) -> Table:
    keys = {"chrf": "chrF++", "bleu": "BLEU", "exact": "exact match, %"}
    keys |= {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    shown = {k: name for k, name in keys.items() if any(score(s.scores["overall"], k) for s in systems)}
    rows = tuple((s.arm, *(score(s.scores["overall"], key) for key in shown)) for s in systems)
    return Table(("system", *shown.values()), rows, "All scores, all languages together")


def errors(record: Record) -> list[Block]:
    """The main arm's scores in slices, worst ones visible."""
    mains = record.role("main")
    found = mains[0].scores.get("slices") if mains else None
    if not found:
        return []
    blocks: list[Block] = [Heading("Where the errors are")]
    for kind, parts in found.items():
        name: Callable[[str], str] = language_name if kind == "language" else str
        rows = tuple(
            (
                name(p["name"]) + (" *" if p.get("small") else ""),
                p["rows"],
                score(p, "chrf"),
                score(p, "exact"),
            )
            for p in parts
        )
        note = "* too few rows for a firm number" if any(part.get("small") for part in parts) else ""
        blocks.append(Table((kind, "rows", "chrF++", "exact match, %"), rows, f"By {kind}", note))
    return blocks


def examples(record: Record, each: int = 4) -> list[Block]:
    """The main arm's best, median and worst translations, chosen by rule."""
    mains = record.role("main")
    if not mains or not mains[0].translations.exists():
        return []
    try:
        rows = rows_file.read(mains[0].translations)
        scores = rows_file.sentence_scores(mains[0].translations)
    except DataError as error:
        record.problems.append(str(error))
        return []
    if len(rows) != len(scores) or not rows:
        return []
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], -len(rows[i].source), rows[i].id))
    chosen = (("Best", order), ("Median", _from_middle(order)), ("Worst", order[::-1]))
    blocks: list[Block] = [
        Heading("Examples"),
        Paragraph(
            (f"Rows of {mains[0].name} in order of their own chrF++ (the longer source first among equals), "
             "from the top, around the middle and from the bottom; languages and sources varied where they can be.",),
            "note",
        ),
    ]  # fmt: skip
    used: set[int] = set()
    for title, ranked in chosen:
        picked = _varied([i for i in ranked if i not in used], rows, each)
        used |= set(picked)
        if picked:
            blocks.append(Examples(title, tuple(_example(rows[i], scores[i]) for i in picked)))
    return blocks


def _from_middle(order: Sequence[int]) -> list[int]:
    half = len(order) // 2
    spiral = [half]
    for step in range(1, half + 1):
        spiral += [half - step] + ([half + step] if half + step < len(order) else [])
    return [order[i] for i in spiral if 0 <= i < len(order)]


def _varied(ranked: Sequence[int], rows: Sequence[Translation], each: int) -> list[int]:
    """The first of `ranked`, one for each language and each source before any comes twice."""
    languages: set[str] = set()
    sources: set[str] = set()
    first: list[int] = []
    for index in ranked:
        row = rows[index]
        if row.target_language not in languages and row.source not in sources and len(first) < each:
            languages.add(row.target_language)
            sources.add(row.source)
            first.append(index)
    return first + [i for i in ranked if i not in first][: each - len(first)]


def _example(row: Translation, chrf: float) -> Example:
    about = [language_name(row.target_language), *([row.origin] if row.origin else [])]
    code = row.target_language
    return Example(
        Text(row.source, "eng_Latn"),
        Text(row.reference, code),
        Text(row.hypothesis or "(empty)", code if row.hypothesis else ""),
        Score(chrf),
        ", ".join(about),
    )
