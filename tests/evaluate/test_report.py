"""The report: both files say the same, nothing breaks out of its place, absent files leave sections out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nalanda.base import io
from nalanda.base.errors import RunError
from nalanda.evaluate import render_html, render_markdown, rows, sections_scores
from nalanda.evaluate.content import Heading, Page, Paragraph, Strong, Table, Text
from nalanda.evaluate.record import System
from nalanda.evaluate.record import read as read_record
from nalanda.evaluate.report import pipeline_page, write_report
from nalanda.evaluate.rows import Translation
from nalanda.evaluate.translation import Comparison, Difference, evaluate_translations

EVIL = '<script>alert("x")</script> & \'"` | **b** ]]> \x00\x0b'
Maker = Callable[..., Path]


class Reader(HTMLParser):
    """Checks nesting, gathers the text a person sees (no titles of pictures) and every attribute."""

    VOID = frozenset({"meta", "br", "hr", "img", "link"})
    SILENT = frozenset({"title", "desc", "style", "svg"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.SILENT & set(self.open):
            self.text.append(data)


def parsed(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def numbers(text: str) -> list[str]:
    return re.findall(r"[+−]?\d[\d,]*(?:\.\d+)?", text)


def test_html_is_well_formed_and_stands_alone(make_run: Maker) -> None:
    run = make_run()
    html, _ = write_report(run, pipeline_page(run))
    text = html.read_text(encoding="utf-8")
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    reader = parsed(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert all(key != "src" and not key.startswith("on") for _, key, _ in reader.attributes)
    links = [value for _, key, value in reader.attributes if key in ("href", "xlink:href")]
    anchors = {value for _, key, value in reader.attributes if key == "id"}
    assert links
    assert all(link.startswith("#") and link[1:] in anchors for link in links)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    identifiers = [value for _, key, value in reader.attributes if key == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_every_section_is_there_in_order(make_run: Maker) -> None:
    page = pipeline_page(make_run())
    assert [block.text for block in page.blocks if isinstance(block, Heading)] == [
        "What pre-training gained", "Languages", "Learning curves", "Where the errors are", "Examples",
        "Corpus", "Tokenizer", "Time and memory", "Environment", "How it was measured",
    ]  # fmt: skip


def test_both_files_say_the_same_numbers(make_run: Maker) -> None:
    run = make_run()
    html, markdown = write_report(run, pipeline_page(run))
    shown = " ".join(parsed(html.read_text(encoding="utf-8")).text)
    plain = re.sub(r"\\(.)", r"\1", markdown.read_text(encoding="utf-8"))
    assert set(numbers(shown)) == set(numbers(plain))
    assert len(numbers(plain)) > 300


def test_numbers_are_those_of_the_scores(make_run: Maker) -> None:
    run = make_run()
    overall = io.read_json(run / "scores" / "pre-trained" / "scores.json")["overall"]["chrf"]
    markdown = write_report(run, pipeline_page(run))[1].read_text(encoding="utf-8")
    assert f"**chrF++ {overall['value']:.1f}**" in markdown
    assert f"{overall['value']:.1f} ({overall['low']:.1f} to {overall['high']:.1f})" in markdown
    assert "84,915 read = " in markdown
    # What adds up in the fixture is said to add up; one lost row is told.
    ledger = io.read_json(run / "corpus" / "ledger.json")
    ledger["sources"]["babel"]["hin_Deva"]["read"] += 1
    io.write_json(run / "corpus" / "ledger.json", ledger)
    assert "**The counts do not add up** for babel" in render_markdown.render(pipeline_page(run))


def test_hostile_data_stays_text(make_run: Maker, tmp_path: Path) -> None:
    run = make_run()
    found = rows.read(run / "scores" / "pre-trained" / "translations.jsonl")
    evil = [Translation(r.id, EVIL, r.reference, EVIL, r.target_language, EVIL) for r in found[:40]]
    shutil.rmtree(run / "scores")
    shutil.copytree(run / "corpus", run / "scores")
    (run / "scores" / "config.yaml").write_text("verb: evaluate\n", encoding="utf-8")
    evaluate_translations(evil, run / "scores" / "x", name=EVIL, model=EVIL)
    plan = io.read_json(run / "pipeline.json")
    io.write_json(run / "pipeline.json", {**plan, "name": EVIL, "about": EVIL})
    html, markdown = write_report(run, pipeline_page(run))
    text = html.read_text(encoding="utf-8")
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    reader = parsed(text)
    assert "script" not in reader.tags
    assert '<script>alert("x")</script> & \'"` | **b** ]]>' in "".join(reader.text)
    assert "<script" not in re.sub(r"\\(.)", "", markdown.read_text(encoding="utf-8"))


def test_languages_are_marked_for_the_right_font(make_run: Maker) -> None:
    run = make_run()
    reader = parsed(render_html.render(pipeline_page(run)))
    languages = {value for _, key, value in reader.attributes if key == "lang"}
    assert {"en", "en-Latn", "hi-Deva", "ta-Taml"} <= languages
    assert render_html.language_tag("nonsense here") is None
    urdu = Page("t", "s", (Table(("a",), ((Text("اردو", "urd_Arab"),),)),))
    assert '<span lang="ur-Arab" dir="rtl" class="words">اردو</span>' in render_html.render(urdu)


@pytest.mark.parametrize(
    "absent",
    [
        "pipeline.json", "corpus/ledger.json", "corpus", "tokenizer", "pretrain", "finetune", "random", "scores",
        "finetune/metrics.jsonl", "finetune/result.json", "finetune/environment.json", "scores/from-random",
        "scores/pre-trained", "scores/pre-trained/translations.jsonl", "scores/copy",
    ],
)  # fmt: skip
def test_what_is_absent_is_left_out(make_run: Maker, absent: str) -> None:
    run = make_run()
    place = run / absent
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    html, markdown = write_report(run, pipeline_page(run))
    assert parsed(html.read_text(encoding="utf-8")).tags
    assert markdown.stat().st_size > 500


def test_what_is_damaged_is_named(make_run: Maker) -> None:
    run = make_run()
    (run / "tokenizer" / "result.json").write_text("{", encoding="utf-8")
    with (run / "finetune" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4')
    (run / "scores" / "pre-trained" / "translations.jsonl").write_text("{}\n", encoding="utf-8")
    text = render_markdown.render(pipeline_page(run))
    assert "## What could not be read" in text
    for name in ("result.json", "metrics.jsonl", "translations.jsonl"):
        assert name in text.partition("## What could not be read")[2]


def test_a_single_stage_and_no_run(make_run: Maker, tmp_path: Path) -> None:
    run = make_run()
    titles = [b.text for b in pipeline_page(run / "pretrain").blocks if isinstance(b, Heading)]
    assert titles == ["Learning curves", "Time and memory", "Environment", "How it was measured"]
    with pytest.raises(RunError, match="not a run folder"):
        pipeline_page(tmp_path)


def test_the_arms_are_compared_at_their_total_times(make_run: Maker) -> None:
    record = read_record(make_run())
    main, control = record.role("main")[0], record.role("control")[0]
    assert [stage.name for stage in main.stages] == ["pretrain", "finetune"]
    assert [stage.name for stage in control.stages] == ["random"]
    assert main.seconds == pytest.approx(603)
    said = sections_scores.time_sentence(main, control).replace("\u00a0", " ")
    assert said == (
        "Both had the same total training time: pre-trained 10 min 03 s (pretrain 3 min 02 s + finetune "
        "7 min 01 s); from random 10 min 04 s."
    )
    short = System("x", "control", control.path, control.scores, record.role("main")[0].stages[:1], 1)
    assert "differ by 70 %, which weakens" in sections_scores.time_sentence(main, short)


def sentence(value: float, low: float, high: float, p: float) -> str:
    main, control = (
        System(n, r, Path(), {}, (), h) for n, r, h in (("ours", "main", 0), ("theirs", "control", 1))
    )
    found = Difference(50 + value, 50.0, value, low, high, p, 1234)
    parts = sections_scores.verdict_sentence(main, control, Comparison({"chrf": found}))
    return "".join(part if isinstance(part, str) else part.text for part in parts).replace("\u00a0", " ")


def test_significance_in_plain_words() -> None:
    assert sentence(3.12, 2.0, 4.2, 0.0004) == (
        "Ours scores 3.1 chrF++ higher than theirs: chrF++ 53.1 against 50.0; 95 % interval of the difference "
        "2.0 to 4.2, p < 0.001, paired bootstrap over 1,234 rows."
    )
    assert "Ours scores 2.0 chrF++ lower than theirs" in sentence(-2, -3, -1, 0.01)
    assert "Ours and theirs are not distinguishable on this test set" in sentence(0.4, -0.5, 1.3, 0.4)
    assert "p = 0.400" in sentence(0.4, -0.5, 1.3, 0.4)


def test_arms_of_one_quality_are_not_called_different(make_run: Maker) -> None:
    text = render_markdown.render(pipeline_page(make_run(same=True)))
    assert "Pre-trained and from random are **not distinguishable** on this test set" in text


def test_examples_are_best_median_and_worst(make_run: Maker) -> None:
    run = make_run()
    scores = sorted(rows.sentence_scores(run / "scores" / "pre-trained" / "translations.jsonl"))
    found = sections_scores.examples(read_record(run))
    shown = {
        b.title: [e.score.value for e in b.items] for b in found if not isinstance(b, Heading | Paragraph)
    }
    assert shown["Best"] == [100.0] * 4
    assert max(shown["Worst"]) < scores[len(scores) // 2]
    assert min(shown["Worst"]) == scores[0]
    assert scores[len(scores) // 4] <= shown["Median"][0] <= scores[3 * len(scores) // 4]


def test_markdown_escapes_tables_and_emphasis() -> None:
    page = Page("a|b", "_s_", (Table(("x|y",), (("1 | 2\n3",),)), Paragraph((Strong("a*b"), " <i>&amp;"))))
    text = render_markdown.render(page)
    assert "| x\\|y |" in text
    assert "| 1 \\| 2 3 |" in text
    assert "**a\\*b** \\<i\\>&amp;amp;" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.44, "0.4 s"), (42, "42 s"), (59.6, "1 min 00 s"), (860, "14 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert sections_scores.duration(seconds).replace("\u00a0", " ") == said


def test_a_resumed_stage_counts_the_training_of_all_its_attempts(make_run: Maker) -> None:
    run = make_run()
    path = run / "pretrain" / "result.json"
    io.write_json(path, {**io.read_json(path), "seconds": 5.0, "training_seconds": 180.0})
    main = read_record(run).role("main")[0]
    assert main.stages[0].seconds == 5.0
    assert main.seconds == pytest.approx(180 + main.stages[1].seconds)
