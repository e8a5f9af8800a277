"""The corpus stage as a whole: counts add up whatever the input, and bad input is one clear line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nalanda.base.errors import DataError
from nalanda.config import parse
from nalanda.corpus.build import CorpusConfig, build, input_files
from nalanda.corpus.split import SPLITS, jaccard, trigrams
from nalanda.corpus.store import count, read_split
from nalanda.text.normalize import split_key


def config(path: Path | str, **values: Any) -> CorpusConfig:
    source = {
        "kind": "jsonl",
        "path": str(path),
        "text": "en",
        "target": "xx",
        "language": "en",
        "target_language": "hi",
    }
    return parse(CorpusConfig, {"sources": [source], **values}, "test")


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    data = "".join(json.dumps({"en": en, "xx": xx}) + "\n" for en, xx in pairs).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def many(number: int) -> list[tuple[str, str]]:
    return [(f"word {n} of {n * 7919 % 1009}", f"शब्द {n}") for n in range(number)]


def test_rows_go_where_they_belong(tmp_path: Path) -> None:
    rows = [
        *many(300),
        many(2)[1],
        ("Sun", "Sun"),
        ("Moon", "luna"),
        ("  Star ", "ता\u0930\u093c\u0947"),
    ]
    result = build(config(write_pairs(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    total = result["ledger"]["total"]
    assert total["read"] == 304
    assert total["duplicate"] == 1
    assert (total["filtered"]["untranslated"], total["filtered"]["wrong_script"]) == (1, 1)
    assert (
        total["kept"]
        == sum(result["rows"].values())
        == sum(count(tmp_path / "out", split) for split in SPLITS)
    )
    for split in SPLITS:
        for document in read_split(tmp_path / "out", split):
            if split != "train":
                assert config("x").split.of(split_key(document.text)) == split
            assert document.text == document.text.strip()
            assert (document.language, document.target_language, document.origin) == (
                "eng_Latn",
                "hin_Deva",
                "jsonl",
            )
    assert json.loads((tmp_path / "out/ledger.json").read_text(encoding="utf-8")) == result["ledger"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dev.parquet", "ledger.json", "quarantine", "test.parquet", "train.parquet"
    ]  # fmt: skip


def test_training_rows_near_to_a_test_row_go_and_no_others(tmp_path: Path) -> None:
    rows = [(f"the quick brown fox number {n} jumps", f"लोमड़ी {n}") for n in range(400)]
    path = write_pairs(tmp_path / "a.jsonl", rows)
    loose = build(config(path, split={"near": 0}), tmp_path / "loose")
    strict = build(config(path), tmp_path / "strict")
    assert loose["rows"]["test"] == strict["rows"]["test"] > 0
    test = [trigrams(split_key(d.text)) for d in read_split(tmp_path / "strict", "test")]

    def near(text: str) -> bool:
        return any(jaccard(trigrams(split_key(text)), other) >= 0.8 for other in test)

    expected = [d.text for d in read_split(tmp_path / "loose", "train") if not near(d.text)]
    assert [d.text for d in read_split(tmp_path / "strict", "train")] == expected
    assert strict["ledger"]["total"]["filtered"]["near_test"] == loose["rows"]["train"] - len(expected) > 0


def test_a_sentence_is_in_one_split_in_all_languages(tmp_path: Path) -> None:
    sources = []
    for code, english, word in (("hin_Deva", "word {}", "शब्द"), ("tam_Taml", "Word, {}!", "சொல்")):
        path = write_pairs(
            tmp_path / f"{code}.jsonl", [(english.format(n), f"{word} {n}") for n in range(500)]
        )
        sources.append(config(path).to_dict()["sources"][0] | {"target_language": code})
    values = {"sources": sources, "split": {"near": 0}}
    build(parse(CorpusConfig, values, "test"), tmp_path / "out")
    place: dict[str, set[str]] = {}
    for split in SPLITS:
        for document in read_split(tmp_path / "out", split):
            place.setdefault(split_key(document.text), set()).add(split)
    assert len(place) == 500
    assert all(len(splits) == 1 for splits in place.values())


def test_the_same_input_gives_the_same_corpus(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.jsonl.gz", many(500))
    one, two = build(config(path), tmp_path / "one"), build(config(path), tmp_path / "two")
    assert one == two
    build(config(path), tmp_path / "one")  # and over what is there
    for split in SPLITS:
        name = f"{split}.parquet"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    path.write_bytes(write_pairs(tmp_path / "b.jsonl.gz", many(499)).read_bytes())
    assert build(config(path), tmp_path / "one")["content"] != two["content"]


def test_share_and_forced_split(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.jsonl", many(2000))
    full = config(path, split={"near": 0})
    some = full.model_copy(update={"sources": (full.sources[0].model_copy(update={"share": 0.25}),)})
    result = build(some, tmp_path / "some")
    assert 400 < sum(result["rows"].values()) < 600
    assert result["ledger"]["total"]["filtered"]["not_sampled"] == 2000 - sum(result["rows"].values())
    other = build(some.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other["content"] != result["content"]
    forced = full.model_copy(update={"sources": (full.sources[0].model_copy(update={"split": "dev"}),)})
    assert build(forced, tmp_path / "forced")["rows"] == {"train": 0, "dev": 2000, "test": 0}


def test_texts_of_one_language(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "".join(f"वाक्य {n}\n" for n in range(200)) + "\nlatin\n", encoding="utf-8"
    )
    values = {
        "sources": [{"kind": "text", "path": f"{tmp_path}/a.txt", "language": "hi"}],
        "split": {"near": 0},
    }
    result = build(parse(CorpusConfig, values, "test"), tmp_path / "out")
    assert result["ledger"]["sources"]["text"]["hin_Deva"]["filtered"] == {"empty": 1, "wrong_script": 1}
    assert sum(result["rows"].values()) == 200
    assert next(read_split(tmp_path / "out", "train")).target is None


def test_a_missing_file_stops_before_anything_is_read(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.jsonl", many(3))
    with pytest.raises(DataError, match=r"no such file; did you mean .*train\.jsonl"):
        build(config(tmp_path / "tarin.jsonl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_files_of_a_config_are_named_by_key(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "hin_Deva.json", "en.json"):
        (tmp_path / name).touch()
    sources: list[dict[str, object]] = [
        {"kind": "jsonl", "path": f"{tmp_path}/a.jsonl"},
        {"kind": "jsonl", "path": f"{tmp_path}/*.jsonl"},
        {"kind": "messages", "path": f"{tmp_path}/{{language}}.json", "languages": ["hi"]},
        {"kind": "babel", "languages": ["hi"]},
    ]
    sources[2]["source_path"] = f"{tmp_path}/en.json"
    found = input_files(parse(CorpusConfig, {"sources": sources}, "test"))
    assert {key: path.name for key, path in found.items()} == {
        "sources.0.path": "a.jsonl",
        "sources.1.path:a.jsonl": "a.jsonl",
        "sources.1.path:b.jsonl": "b.jsonl",
        "sources.2.path": "hin_Deva.json",
        "sources.2.source_path:en.json": "en.json",
    }


def test_an_empty_corpus_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"the corpus is empty: the sources \(jsonl\) hold no rows"):
        build(config(tmp_path / "a.jsonl"), tmp_path / "out")
    write_pairs(tmp_path / "a.jsonl", [("Sun", "Sun"), ("Moon", "Luna")])
    with pytest.raises(
        DataError, match=r"of 2 rows read from jsonl none is kept \(1 untranslated, 1 wrong_script\)"
    ):
        build(config(tmp_path / "a.jsonl"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_too_many_bad_rows_stop_the_run_and_can_be_looked_at(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.jsonl", many(90))
    with path.open("ab") as file:
        file.write(b'{"en": "x"}\n' * 10)
    with pytest.raises(
        DataError, match=r"10 of 100 rows cannot be read.*row 91: field 'xx' is missing.*max_quarantined"
    ):
        build(config(path), tmp_path / "out")
    assert len((tmp_path / "out/quarantine/jsonl.jsonl").read_text(encoding="utf-8").splitlines()) == 10
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert build(config(path, max_quarantined=0.1), tmp_path / "out")["ledger"]["total"]["quarantined"] == 10


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_half_written_file_is_used_as_far_as_it_goes_and_named(tmp_path: Path, suffix: str) -> None:
    plain = b"".join(json.dumps({"en": en, "xx": xx}).encode() + b"\n" for en, xx in many(20_000))
    packed = gzip.compress(plain) if suffix == ".gz" else zstandard.compress(plain)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    result = build(config(path, split={"near": 0}), tmp_path / "out")
    assert sum(result["rows"].values()) > 5000
    assert result["ledger"]["total"]["quarantined"] == 1
    assert "ends early" in result["damaged"][0]


def test_an_interrupted_build_leaves_the_old_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pairs(tmp_path / "a.jsonl", many(200))
    build(config(path), tmp_path / "out")
    before = {split: (tmp_path / "out" / f"{split}.parquet").read_bytes() for split in SPLITS}
    write_pairs(path, many(100))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nalanda.corpus.build._Work.separate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(config(path), tmp_path / "out")
    assert before == {split: (tmp_path / "out" / f"{split}.parquet").read_bytes() for split in SPLITS}
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


damage = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40), damage=damage, cut=st.floats(0, 1), suffix=st.sampled_from(["", ".gz", ".zst"])
)
def test_the_ledger_adds_up_for_any_damage(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    damage: list[tuple[float, bytes]],
    cut: float,
    suffix: str,
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    data = bytearray(b"".join(json.dumps({"en": en, "xx": xx}).encode() + b"\n" for en, xx in many(rows)))
    for place, new in damage:
        at = int(place * len(data))
        data[at : at + len(new)] = new
    if suffix:
        data = bytearray(gzip.compress(data) if suffix == ".gz" else zstandard.compress(bytes(data)))
        data = data[: int(len(data) * cut)] if cut < 0.7 else data
    path = folder / f"a.jsonl{suffix}"
    path.write_bytes(data)
    try:
        result = build(config(path, max_quarantined=1.0), folder / "out")
    except DataError as error:
        if "the corpus is empty" not in str(error):
            raise
        return
    total = result["ledger"]["total"]
    accounted = total["kept"] + sum(total["filtered"].values()) + total["duplicate"] + total["quarantined"]
    assert total["read"] == accounted
    assert total["kept"] == sum(count(folder / "out", split) for split in SPLITS)
    if not suffix:
        assert (
            total["read"] == len(bytes(data).removesuffix(b"\n").split(b"\n")) if data else total["read"] == 0
        )
    quarantined = folder / "out/quarantine/jsonl.jsonl"
    lines = quarantined.read_text(encoding="utf-8").splitlines() if quarantined.exists() else []
    assert len(lines) == total["quarantined"]
