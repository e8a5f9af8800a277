"""Configs: strict, frozen, overridable, and every mistake told at once, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from nalanda.config import Config, ConfigError, dump_yaml, load_yaml, override, parse, parse_yaml


class Adam(Config):
    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)


class Sgd(Config):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.9


class Recipe(Config):
    name: str
    steps: int = 10
    optimizer: Annotated[Adam | Sgd, Field(discriminator="kind")] = Adam()
    rates: tuple[Adam, ...] = ()


def mistakes(values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, values, "r.yaml")
    return str(caught.value).splitlines()


def test_an_unknown_key_names_the_nearest_valid_one() -> None:
    lines = mistakes({"name": "x", "optimizer": {"kind": "adam", "learning_rat": 1.0}})
    assert lines == ["r.yaml: optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"]


def test_all_mistakes_are_told_at_once() -> None:
    lines = mistakes({"steps": "many", "optimizer": {"kind": "adam", "learning_rate": -1}, "foo": 1})
    assert len(lines) == 4
    assert any("name: required key is missing" in line for line in lines)
    assert any("steps: expected a valid integer" in line and "'many'" in line for line in lines)
    assert any("optimizer.learning_rate: expected greater than 0, found -1" in line for line in lines)
    assert any("foo: unknown key; valid keys: name, optimizer, rates, steps" in line for line in lines)


def test_a_wrong_kind_lists_the_kinds() -> None:
    assert mistakes({"name": "x", "optimizer": {"kind": "adan"}}) == [
        "r.yaml: optimizer: unknown kind 'adan'; did you mean 'adam'?"
    ]
    assert "'kind' is missing" in mistakes({"name": "x", "optimizer": {}})[0]


def test_a_mistake_in_a_list_has_its_index() -> None:
    assert mistakes({"name": "x", "rates": [{}, {"learning_rate": 0}]})[0].startswith(
        "r.yaml: rates.1.learning_rate"
    )


def test_overrides_reach_into_mappings_and_lists() -> None:
    values = {"name": "x", "rates": [{"learning_rate": 1}]}
    changed = override(values, ["optimizer.kind=sgd", "rates.0.learning_rate=2e-4", "steps=5"])
    assert changed == {
        "name": "x",
        "rates": [{"learning_rate": 2e-4}],
        "optimizer": {"kind": "sgd"},
        "steps": 5,
    }
    assert values["rates"] == [{"learning_rate": 1}]
    for wrong in ("steps", "rates.7.x=1", "name.first=1", "=3"):
        with pytest.raises(ConfigError, match="command line"):
            override(values, [wrong])


def test_yaml_mistakes_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\d+: not valid YAML"):
        load_yaml(path)
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="line 2: key 'a' is given twice"):
        load_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_yaml(path)
    with pytest.raises(ConfigError, match=r"no such file; did you mean '.*recipe\.yaml'"):
        load_yaml(tmp_path / "recipee.yaml")
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_yaml(path)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Adam().learning_rate = 2.0  # type: ignore[misc]


def test_exponents_are_numbers_and_words_are_words() -> None:
    values = parse_yaml("{lr: 2e-4, compile: off, language: no, on: true}", "x")
    assert values == {"lr": 2e-4, "compile": "off", "language": "no", "on": True}


TEXT = st.text(
    st.characters(exclude_characters="\x85")
)  # PyYAML writes NEL as itself and reads it as a space
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT.filter(bool), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT.filter(bool), PLAIN, max_size=4))
def test_dump_and_load_are_inverse(values: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(values), "x") == values


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    values = {"a": "2e-4", "b": "1.0", "c": "off", "d": "true", "e": "1e5"}
    assert parse_yaml(dump_yaml(values), "x") == values


def test_an_override_changes_one_place_even_where_yaml_shares_it() -> None:
    values = parse_yaml("a: &x {lr: 1, deep: [{b: 2}]}\nb: *x\nc: {<<: *x, lr: 3}\n", "x")
    assert values["c"] == {"lr": 3, "deep": [{"b": 2}]}
    changed = override(values, ["a.lr=9", "a.deep.0.b=8"])
    assert changed["a"] == {"lr": 9, "deep": [{"b": 8}]}
    assert changed["b"] == values["b"] == {"lr": 1, "deep": [{"b": 2}]}
    shared = {"lr": 1}
    assert override({"a": shared, "b": shared}, ["a.lr=2"])["b"] == {"lr": 1}


@pytest.mark.parametrize("text", ["{[a]: 1}", "{1: 2}", "a: 2024-13-45", "{null: 1}"])
def test_odd_yaml_is_an_error_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^x: [^\n]*$"):
        parse_yaml(text, "x")
