"""Source configs and the files they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.corpus.build import CorpusConfig, source_names
from nalanda.corpus.sources import JsonlSource, ParquetSource, TextSource, expand, inputs


def test_an_unknown_language_is_a_config_error_with_the_nearest_code() -> None:
    values = {"sources": [{"kind": "text", "path": "a.txt", "language": "hin_Dev"}]}
    with pytest.raises(ConfigError, match="did you mean hin_Deva"):
        parse(CorpusConfig, values, "recipe.yaml")


def test_a_mistyped_key_and_kind_are_found() -> None:
    with pytest.raises(ConfigError, match="did you mean 'path'"):
        parse(CorpusConfig, {"sources": [{"kind": "text", "pat": "a.txt", "path": "b"}]}, "recipe.yaml")
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        parse(CorpusConfig, {"sources": [{"kind": "jsonlines", "path": "a"}]}, "recipe.yaml")
    with pytest.raises(ConfigError, match="sources"):
        parse(CorpusConfig, {"sources": []}, "recipe.yaml")


def test_aliases_become_codes() -> None:
    assert TextSource(path="a.txt", language="hi").language == "hin_Deva"
    assert TextSource(path="{language}.txt", languages=("hi", "Tamil")).languages == ("hin_Deva", "tam_Taml")


def test_languages_and_their_place_in_the_path_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        TextSource(path="a.txt", languages=("hi",))
    with pytest.raises(ValueError, match="go together"):
        TextSource(path="{language}.txt")


def test_a_language_in_the_path_is_the_targets_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "hin_Deva.jsonl").touch()
    path = f"{tmp_path}/{{language}}.jsonl"
    pair = JsonlSource(path=path, languages=("hi",), language="en", text="en", target="xx")
    assert inputs(pair)[0][1:] == ("hin_Deva.jsonl", "eng_Latn", "hin_Deva")
    alone = JsonlSource(path=path, languages=("hi",))
    assert inputs(alone)[0][1:] == ("hin_Deva.jsonl", "hin_Deva", "")


def test_wildcards_variables_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/x.txt", "a/x.txt", "a/y.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("BOOKS", str(tmp_path))
    found = inputs(TextSource(path="$BOOKS/*/*.txt*"))
    assert [file.name for file in found] == ["a/x.txt", "a/y.txt.gz", "b/x.txt"]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl.gz").touch()
    with pytest.raises(DataError, match=r"no such file; did you mean .*train\.jsonl\.gz"):
        expand(f"{tmp_path}/trian.jsonl.gz")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        expand(f"{tmp_path}/nowhere/a.txt")
    with pytest.raises(DataError, match="is a folder"):
        expand(str(tmp_path))
    with pytest.raises(DataError, match="environment variable"):
        expand("$SURELY_UNSET_VARIABLE/a.txt")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"kind 'parquet' reads \.parquet"):
        inputs(ParquetSource(path=f"{tmp_path}/a.txt"))


def test_names_are_made_unique() -> None:
    sources = (
        {"kind": "text", "path": "a"},
        {"kind": "text", "path": "b"},
        {"kind": "text", "path": "c", "name": "c"},
    )
    assert source_names(CorpusConfig(sources=sources)) == ["text", "text-2", "c"]
