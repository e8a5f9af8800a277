"""The report's sections about the run itself: learning curves, corpus, tokenizer, time and memory, environment.

Each function takes a Record and gives the blocks of one section, none where the run holds nothing for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from nalanda.evaluate.charts import thin
from nalanda.evaluate.content import (
    Block,
    Cell,
    Code,
    Facts,
    Heading,
    LineChart,
    Paragraph,
    Score,
    Series,
    Strong,
    Table,
    number,
)
from nalanda.evaluate.record import Record, StageRecord
from nalanda.evaluate.scoring import METRICS
from nalanda.evaluate.sections_scores import duration, language_name

# Keys of a metrics.jsonl row, the first that is there counts.
_TIME = ("seconds", "elapsed", "elapsed_seconds", "time")
_LOSS = ("nll", "loss")
_DEV_LOSS = ("dev_nll", "dev_loss")
_DEV_SCORE = ("dev_chrf", "dev_chrf++", "dev_bleu")
Points = tuple[tuple[float, float], ...]


def _first(row: dict[str, Any], keys: Iterable[str]) -> float | None:
    for key in keys:
        found = row.get(key)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
    return None


def _clock(stage: StageRecord) -> list[float | None]:
    """Minutes since the stage began for each row of metrics; a row without a time takes its step's.

    A resumed training may count from 0 again: the time before the cut is added.
    """
    before = last = 0.0
    at_step: dict[float, float] = {}
    times: list[float | None] = []
    for row in stage.metrics:
        found, step = _first(row, _TIME), _first(row, ("step",))
        if found is not None:
            if found < last:
                before += last
            last = found
            if step is not None:
                at_step[step] = before + found
        times.append(before + found if found is not None else None)
    known = sorted(at_step.items())
    for index, row in enumerate(stage.metrics):
        step = _first(row, ("step",))
        if times[index] is None and step is not None:
            times[index] = _interpolate(known, step)
    return [None if found is None else found / 60 for found in times]


def _interpolate(known: Sequence[tuple[float, float]], at: float) -> float | None:
    if not known:
        return None
    if at <= known[0][0]:
        return known[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(known):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return known[-1][1]


def _points(stage: StageRecord, keys: Iterable[str], offset: float, use_steps: bool) -> Points:
    keys = tuple(keys)
    found = []
    for row, minutes in zip(stage.metrics, _clock(stage)):
        x = _first(row, ("step",)) if use_steps else minutes
        y = _first(row, keys)
        if x is not None and y is not None:
            found.append((x + offset, y))
    return thin(found)


def _timed(stage: StageRecord) -> bool:
    return any(_first(row, _TIME) is not None for row in stage.metrics)


def curves(record: Record) -> list[Block]:
    """How every training stage learned; the arms' last stages share a picture, over each arm's whole time."""
    stages = [stage for stage in record.verb("train") if stage.metrics]
    if not stages:
        return []
    use_steps = not all(_timed(stage) for stage in stages)
    axis = "steps" if use_steps else "minutes of training, earlier stages of the arm included"
    offsets: dict[str, float] = {}
    hues: dict[str, int] = {}
    last: list[StageRecord] = []
    for system in record.systems:
        for stage, done in zip(
            system.stages, itertools.accumulate((s.training_seconds for s in system.stages), initial=0)
        ):
            offsets[stage.name] = 0.0 if use_steps else done / 60
            hues.setdefault(stage.name, system.hue)
        if system.stages and system.stages[-1] in stages and system.stages[-1] not in last:
            last.append(system.stages[-1])
    earlier = [stage for stage in stages if stage not in last]
    groups = [last] if last else []
    groups += [[stage] for stage in earlier]
    blocks: list[Block] = [Heading("Learning curves")]
    for group in groups:
        names = " and ".join(stage.name for stage in group)
        x_label = axis if group is last or use_steps else "minutes of training"
        for title, keys, label, digits in (
            ("Score on dev", _DEV_SCORE, "chrF++", 1),
            ("Loss", (), "nats per token", 3),
        ):
            series = _series(group, keys, offsets, hues, use_steps)
            if series:
                blocks.append(LineChart(f"{title}: {names}", series, x_label, label, digits))
    return blocks if len(blocks) > 1 else []


def _series(
    group: list[StageRecord],
    keys: tuple[str, ...],
    offsets: dict[str, float],
    hues: dict[str, int],
    use_steps: bool,
) -> tuple[Series, ...]:
    """The curves of one picture: a dev score, or (no keys) the loss, dashed in training and solid on dev."""
    found = []
    for index, stage in enumerate(group):
        hue, offset = hues.get(stage.name, (index + 2) % 4), offsets.get(stage.name, 0.0)
        if keys:
            found.append(Series(stage.name, _points(stage, keys, offset, use_steps), hue=hue))
        else:
            train = _points(stage, _LOSS, offset, use_steps)
            dev = _points(stage, _DEV_LOSS, offset, use_steps)
            found.append(Series(f"{stage.name}, train", train, hue=hue, dashed=bool(dev)))
            found.append(Series(f"{stage.name}, dev", dev, hue=hue))
    return tuple(series for series in found if series.points)


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _fates(row: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """read, kept, filtered, duplicate, quarantined of one row of a ledger."""
    filtered = row.get("filtered")
    dropped = sum(map(_whole, filtered.values())) if isinstance(filtered, dict) else _whole(filtered)
    read, kept = _whole(row.get("read")), _whole(row.get("kept"))
    return read, kept, dropped, _whole(row.get("duplicate")), _whole(row.get("quarantined"))


def _add(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows))) or (0, 0, 0, 0, 0)


def corpus(record: Record) -> list[Block]:
    """Where every row read went, by source and by language, and why rows were filtered."""
    blocks: list[Block] = []
    for stage in record.verb("corpus"):
        ledger = record.files.mapping(stage.path / "ledger.json")
        sources = {k: v for k, v in (ledger.get("sources") or {}).items() if isinstance(v, dict)}
        if sources:
            blocks += _ledger(sources, stage.name if len(record.verb("corpus")) > 1 else "")
    return [Heading("Corpus"), *blocks] if blocks else []


def _ledger(sources: dict[str, dict[str, Any]], name: str) -> list[Block]:
    by_source = {source: _add(map(_fates, languages.values())) for source, languages in sources.items()}
    total = _add(by_source.values())
    wrong = [source for source, (read, *rest) in by_source.items() if read != sum(rest)]
    said = Paragraph(
        (f"Every row read is accounted for: {number(total[0], 0)} read = {number(total[1], 0)} kept + "
         f"{number(total[2], 0)} filtered + {number(total[3], 0)} duplicate + {number(total[4], 0)} quarantined.",)
        if not wrong
        else (Strong("The counts do not add up"), f" for {', '.join(wrong)}: rows were lost."),
    )  # fmt: skip
    fates = ("read", "kept", "filtered", "duplicate", "quarantined")
    rows: list[tuple[Cell, ...]] = [(source, *counts) for source, counts in by_source.items()]
    title = f" ({name})" if name else ""
    blocks: list[Block] = [
        said,
        Table(("source", *fates), (*rows, ("all", *total)), f"Rows by source{title}", last_is_total=True),
    ]
    codes = sorted({code for languages in sources.values() for code in languages})
    by_language = {c: _add(_fates(parts[c]) for parts in sources.values() if c in parts) for c in codes}
    if len(codes) > 1:
        rows = [(language_name(code) or "(none)", *counts) for code, counts in by_language.items()]
        table = Table(("language", *fates), (*rows, ("all", *total)), f"Rows by language{title}", "", True)
        blocks.append(table)
    reasons: dict[str, int] = {}
    for part in (part for languages in sources.values() for part in languages.values()):
        filtered = part.get("filtered")
        for reason, count in filtered.items() if isinstance(filtered, dict) else ():
            reasons[reason] = reasons.get(reason, 0) + _whole(count)
    if reasons:
        ordered = tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        blocks.append(Table(("reason", "rows"), ordered, f"Why rows were filtered{title}"))
    return blocks


def tokenizer(record: Record) -> list[Block]:
    """How finely the tokenizer cuts each language; `all`, where it is told, is the last row."""
    blocks: list[Block] = []
    for stage in record.verb("tokenizer"):
        found = _fits(stage.result)
        ordered = [code for code in found if code != "all"] + (["all"] if "all" in found else [])
        rows = [(language_name(code), *_cuts(found[code])) for code in ordered]
        titles = ("texts", "tokens per word", "characters per token", "bytes", "failed round trips")
        shown = [i for i in range(1, len(titles) + 1) if any(row[i] is not None for row in rows)]
        if shown:
            cells = tuple((row[0], *(row[i] for i in shown)) for row in rows)
            vocabulary = stage.result.get("vocabulary") or stage.config.get("vocabulary")
            size = (
                f"A vocabulary of {number(vocabulary, 0)} tokens"
                if isinstance(vocabulary, int)
                else stage.name
            )
            columns = ("language", *(titles[i - 1] for i in shown))
            blocks.append(Table(columns, cells, size, last_is_total="all" in found))
    return [Heading("Tokenizer"), *blocks] if blocks else []


def _fits(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of a tokenizer's result that holds a fertility for each language."""
    for value in result.values():
        if isinstance(value, dict) and any(isinstance(p, dict) and "fertility" in p for p in value.values()):
            return {code: part for code, part in value.items() if isinstance(part, dict)}
    return {}


def _cuts(part: dict[str, Any]) -> tuple[Cell, ...]:
    texts, failures = _first(part, ("texts",)), _first(part, ("round_trip_failures",))
    fertility, per_character = _first(part, ("fertility",)), _first(part, ("tokens_per_character",))
    share = _first(part, ("byte_share",))
    return (
        None if texts is None else int(texts),
        None if fertility is None else Score(fertility, digits=2),
        Score(1 / per_character, digits=2) if per_character else None,
        None if share is None else Score(100 * share, digits=1, unit=" %"),
        None if failures is None else int(failures),
    )


def cost(record: Record) -> list[Block]:
    """Seconds and peak memory of each stage."""
    stages = [stage for stage in record.stages.values() if stage.result]
    if not any(stage.seconds for stage in stages):
        return []
    total = sum(stage.seconds for stage in stages)
    peaks = [_first(stage.result, ("peak_memory_bytes",)) for stage in stages]
    rows: list[tuple[Cell, ...]] = [
        (
            stage.name,
            stage.verb,
            duration(stage.seconds),
            Score(100 * stage.seconds / total, digits=0, unit=" %"),
            None if peak is None else Score(peak / 2**20, digits=0),
        )
        for stage, peak in zip(stages, peaks)
    ]
    highest = max((peak for peak in peaks if peak is not None), default=None)
    top = None if highest is None else Score(highest / 2**20, digits=0)
    rows.append(("all", "", duration(total), Score(100.0, digits=0, unit=" %"), top))
    columns = ("stage", "verb", "time", "share", "peak memory, MiB")
    return [Heading("Time and memory"), Table(columns, tuple(rows), last_is_total=True)]


def environment(record: Record) -> list[Block]:
    """Versions, machine and seeds; a value that differs between stages names them all."""
    stages = [stage for stage in record.stages.values() if stage.environment]
    if not stages:
        return []
    names = {"cpu": "processor", "cuda": "accelerator", "instruction_set": "instruction set"}
    keys = dict.fromkeys(
        key for stage in stages for key in stage.environment if key not in ("packages", "command")
    )
    items: list[tuple[str, Cell]] = []
    for key in keys:
        found = [_told(stage.environment[key]) for stage in stages if key in stage.environment]
        if any(found):
            items.append((names.get(key, key), _distinct(found)))
    packages = dict.fromkeys(p for stage in stages for p in stage.environment.get("packages") or {})
    versions = [
        f"{package} {_distinct([str((s.environment.get('packages') or {}).get(package, '')) for s in stages])}"
        for package in packages
    ]
    if versions:
        items.append(("packages", ", ".join(versions)))
    seeds = [
        f"{s.name} {s.config['seed']}"
        for s in record.stages.values()
        if isinstance(s.config.get("seed"), int)
    ]
    if seeds:
        items.append(("seeds", ", ".join(seeds)))
    return [Heading("Environment"), Facts(tuple(items))]


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _distinct(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(value for value in values if value))


def method(record: Record) -> list[Block]:
    """How the numbers were made: metric signatures, bootstrap, fingerprints; what could not be read."""
    items: list[tuple[str, Cell]] = []
    if record.systems:
        scores = record.systems[0].scores
        for key, signature in (scores.get("signatures") or {}).items():
            title = METRICS[key].title if key in METRICS else key
            items.append((title, Code(str(signature))))
        settings = scores.get("settings") or {}
        if {"resamples", "confidence", "seed"} <= settings.keys():
            said = (
                f"{100 * settings['confidence']:g} % percentile bootstrap, {number(settings['resamples'], 0)} "
                f"resamples of test rows, seed {settings['seed']}; n-gram counts are summed, then scored"
            )
            items.append(("intervals", said))
    prints = [(s.name, s.result["fingerprint"]) for s in record.stages.values() if "fingerprint" in s.result]
    if prints:
        items.append(("fingerprints", Code(", ".join(f"{name} {value}" for name, value in prints))))
    blocks: list[Block] = [Heading("How it was measured"), Facts(tuple(items))] if items else []
    if record.problems:
        blocks.append(Heading("What could not be read"))
        blocks += [Paragraph((problem,), "note") for problem in dict.fromkeys(record.problems)]
    return blocks
