"""Strict YAML to frozen typed configs. This file is the mechanism and knows no field.

    class Optimizer(Config):
        lr: float = 1e-3

    values = load_yaml(path)                        # a plain dict; a duplicate key is an error
    values = override(values, ["optimizer.lr=2e-4"])
    config = parse(Train, values, origin=str(path))  # all errors at once, as one ConfigError

Each config class lives beside what it builds; tagged unions (`kind: ...`) live in `stages/`.
"""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from nalanda.base.errors import UserError


class ConfigError(UserError):
    """One or more mistakes in a config; the message has one line for each."""

    exit_code = 2


def unset(value: object) -> bool:
    """Whether an option says that it is off: None, False, "none", an empty tuple or dict.

    For `exclude_if` of fields that came later: what was written and hashed before them stays what it was.
    """
    return (
        value is None
        or value is False
        or (isinstance(value, tuple | dict | str) and value in ((), {}, "none"))
    )


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """The complete, resolved config as plain JSON values."""
        return self.model_dump(mode="json")


ConfigT = TypeVar("ConfigT", bound=Config)


class _StrictLoader(yaml.SafeLoader):
    """YAML with three mends: `2e-4` is a number, `off` a word, and a key given twice an error."""


class _StrictDumper(yaml.SafeDumper):
    """Quotes a text that the loader would take for a number."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(f"line {line}: the key {key!r} is not a text; put quotes around it")
        if key in seen:
            raise ConfigError(
                f"line {line}: key '{key}' is given twice (first on line {seen[key]}); keep one"
            )
        seen[key] = line
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_FLOAT = r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
|\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"""


def _install_resolvers() -> None:
    """Numbers like 2e-4, and only `true` and `false` as booleans: `off` and `no` (Norwegian) are words."""
    import re

    boolean, number = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
    _StrictLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != boolean]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for kind in (_StrictLoader, _StrictDumper):
        kind.add_implicit_resolver(number, re.compile(_FLOAT, re.X), list("-+0123456789."))
    _StrictLoader.add_implicit_resolver(
        boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )


_install_resolvers()


def parse_yaml(text: str, origin: str) -> Any:
    """The value that `text` holds. Raises ConfigError naming `origin` and the line."""
    try:
        return _unshared(yaml.load(text, _StrictLoader))
    except ValueError as error:  # a date that is none
        raise ConfigError(f"{origin}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None


def _unshared(value: Any) -> Any:
    """A copy in which no two places are one object: YAML's aliases are, and a change of one would change both."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`. Raises ConfigError for a missing or malformed file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {_describe(values)}")
    return values


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A copy of `values` with dotted `key.sub=value` assignments made; values are read as YAML.

    A number in the path indexes a list (`sources.0.path=x`); missing mappings on the way are made.
    """
    result: dict[str, Any] = _unshared(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"command line: '{assignment}' is not KEY=VALUE (for example optimizer.lr=2e-4)"
            )
        _assign(result, key.split("."), parse_yaml(text, f"command line, {key}"), key)
    return result


def _assign(node: Any, path: list[str], value: Any, key: str) -> None:
    for depth, name in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not name.lstrip("-").isdigit() or not -len(node) <= int(name) < len(node):
                raise ConfigError(f"command line: {key}: '{name}' is not an index of a list of {len(node)}")
            if last:
                node[int(name)] = value
            else:
                node = node[int(name)]
        elif isinstance(node, dict):
            if last:
                node[name] = value
            else:
                if node.get(name) is None:
                    node[name] = {}
                node = node[name]
        else:
            raise ConfigError(f"command line: {key}: '{'.'.join(path[:depth])}' holds no keys")


def parse(kind: type[ConfigT], values: Any, origin: str) -> ConfigT:
    """`values` as a `kind`. Raises one ConfigError that lists every mistake, one line each."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_line(kind, detail, origin) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _line(kind: type[BaseModel], detail: Any, origin: str) -> str:
    tags = _walk(kind, list(detail["loc"]))[1]
    location = [part for part, is_tag in zip(detail["loc"], tags) if not is_tag]
    key = ".".join(str(part) for part in location) or "(top)"
    found = detail.get("input")
    error = detail["type"]
    if error == "extra_forbidden":
        valid = _keys_at(kind, list(detail["loc"][:-1]))
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"{origin}: {key}: unknown key; {hint}"
    if error == "missing":
        return f"{origin}: {key}: required key is missing"
    if error.startswith("union_tag"):
        return f"{origin}: {key}: {_union_message(detail)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:] if message.startswith("Input") else message
    message = message.replace("input should be", "expected")
    return f"{origin}: {key}: {message}" + ("" if error == "value_error" else f", found {_describe(found)}")


def _union_message(detail: Any) -> str:
    context = detail.get("ctx", {})
    discriminator = str(context.get("discriminator", "kind")).strip("'")
    expected = [
        tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",") if tag.strip()
    ]
    if detail["type"] == "union_tag_not_found":
        return f"'{discriminator}' is missing; expected one of the field's kinds"
    near = difflib.get_close_matches(str(context.get("tag")), expected, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of: {', '.join(expected)}"
    return f"unknown {discriminator} '{context.get('tag')}'; {hint}"


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every config class that an annotation can hold, through unions, lists, dicts and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in typing.get_args(annotation):
        found += _models(part)
    return found


def _tag_of(model: type[BaseModel]) -> set[str]:
    tags: set[str] = set()
    for name in ("kind", "verb"):
        field = model.model_fields.get(name)
        if field is not None and typing.get_origin(field.annotation) is typing.Literal:
            tags |= {str(tag) for tag in typing.get_args(field.annotation)}
    return tags


def _walk(kind: type[BaseModel], path: list[Any]) -> tuple[list[type[BaseModel]], list[bool]]:
    """The config classes found at the end of `path`, and for each part whether it is a union's tag."""
    models: list[type[BaseModel]] = [kind]
    tags: list[bool] = []
    for part in path:
        chosen = [m for m in models if str(part) in _tag_of(m)]
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        if chosen and (len(models) > 1 or not fields):  # a field may bear the name of a kind
            models, is_tag = chosen, True
        elif fields:
            models, is_tag = [m for f in fields for m in _models(f.annotation)], False
        else:  # an index of a list or a key of a dict keeps the same candidates
            is_tag = isinstance(part, str) and (part.startswith("(") or part in {m.__name__ for m in models})
        tags.append(is_tag)
    return models, tags


def _keys_at(kind: type[BaseModel], path: list[Any]) -> list[str]:
    models, _ = _walk(kind, path)
    return sorted({field.alias or name for m in models for name, field in m.model_fields.items()})


def dump_yaml(values: dict[str, Any]) -> str:
    """`values` as YAML that `load_yaml` reads back equal, keys in their order, scripts readable."""
    return yaml.dump(values, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=100)
