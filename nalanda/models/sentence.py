"""Folders of the package sentence-transformers: a model whose output is one vector for each text.

    found = read_sentence(folder, note)          # the head that its files describe, and what else they say
    files = sentence_files(model)                # the files that make the package read what we save

modules.json        a transformer, 1_Pooling, and 2_Normalize where vectors have length 1
1_Pooling/config.json        which places make the vector
sentence_bert_config.json, config_sentence_transformers.json        the longest text, prompts: kept as they are
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nalanda.base.errors import RunError
from nalanda.base.io import read_json, read_mapping
from nalanda.nn.model import Model
from nalanda.nn.spec import EmbeddingHeadSpec

MODULES, TEXT, PACKAGE = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING = "1_Pooling/config.json"
NAME = "embedding"
"""What the head is called."""
_MODES = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_OLD_MODES = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
_OTHER_OLD_MODES = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


class Sentence(NamedTuple):
    """`head` is what the folder describes; `words` are the files that are kept as they are, by their names."""

    head: EmbeddingHeadSpec
    words: dict[str, Any]


def read_sentence(folder: Path, note: Callable[[str], None]) -> Sentence | None:
    """What the folder says of sentence vectors; None where it says nothing, or something that is not done here,
    which `note` is told. Raises RunError for damaged files."""
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise RunError(f"{path}: damaged, not a list of modules")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        note(f"{path}: {' + '.join(kinds)[:100]} is not done here, so the model has no head '{NAME}'")
        return None
    inside = str(modules[1].get("path"))
    if Path(inside).name != inside or inside in ("", ".."):
        raise RunError(f"{path}: path {inside[:60]!r} is not a folder beside it")
    modes = _modes(folder / inside / "config.json")
    if len(modes) != 1 or modes[0] not in _MODES:
        note(f"{path}: pooling by {', '.join(modes)} is not done here, so the model has no head '{NAME}'")
        return None
    head = EmbeddingHeadSpec.model_validate({"place": _MODES[modes[0]], "normalize": len(kinds) == 3})
    return Sentence(
        head, {name: read_mapping(folder / name) for name in (TEXT, PACKAGE) if (folder / name).is_file()}
    )


def _modes(path: Path) -> list[str]:
    """The ways of pooling that a config names, in the form of today or of old."""
    config = read_mapping(path)
    found = config.get("pooling_mode")
    if found is not None:
        return [str(mode)[:40] for mode in (found if isinstance(found, list) else [found])]
    old = {**_OLD_MODES, **{name: name for name in _OTHER_OLD_MODES}}
    return [mode for mode, name in old.items() if config.get(f"pooling_mode_{name}")] or ["mean"]


def kept(config: Mapping[str, Any], sentence: Sentence | None) -> dict[str, Any]:
    """`config`, a model's origin, with the files that are kept."""
    if sentence is None:
        return dict(config)
    return {**config, "nalanda": {**(config.get("nalanda") or {}), "sentence": sentence.words}}


def sentence_files(model: Model) -> dict[str, Any]:
    """Name -> JSON values, for a model with one head for vectors that has no weights; else nothing."""
    heads = [
        head for head in model.head_specs.values() if isinstance(head, EmbeddingHeadSpec) and not head.pooler
    ]
    if len(heads) != 1:
        return {}
    kinds = ["Transformer", "Pooling", *(["Normalize"] if heads[0].normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    pooling = {f"pooling_mode_{name}": _MODES[mode] == heads[0].place for mode, name in _OLD_MODES.items()}
    words = (model.origin.get("nalanda") or {}).get("sentence") or {}
    return {
        MODULES: modules,
        POOLING: {"word_embedding_dimension": model.spec.hidden, **pooling},
        **{name: values for name, values in words.items() if name in (TEXT, PACKAGE)},
    }
