"""Models on disk, in Hugging Face's layout: config.json and model.safetensors, nothing that runs code.

    save_model(model, run.folder("model"), files=[tokenizer_json])
    model = load_model(folder)

config.json holds the spec, the heads and the map of tied weights (stored once); manifest.json the checksums of all
but the model card, README.md, which is there to be edited.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nalanda.base.errors import RunError
from nalanda.base.io import (
    MANIFEST,
    atomic_folder,
    full_disk_is_clear,
    read_json,
    verify_manifest,
    write_json,
)
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec, Spec

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
_HEADS: TypeAdapter[dict[str, HeadSpec]] = TypeAdapter(dict[str, HeadSpec])


def describe_model(model: Model) -> dict[str, Any]:
    """What config.json holds: enough to build the network again."""
    return {
        "architectures": ["NalandaModel"],
        "model_type": "nalanda",
        "vocab_size": model.spec.vocabulary,
        "hidden_size": model.spec.hidden,
        "tie_word_embeddings": model.spec.tie_embeddings,
        "spec": model.spec.to_dict(),
        "heads": {name: head.to_dict() for name, head in model.head_specs.items()},
        "tied": model.tied(),
    }


def save_model(model: Model, folder: Path, files: Iterable[Path] = ()) -> None:
    """Writes the model to `folder`, replacing what was there; the folder appears whole or not at all.

    `files` (the tokenizer's, a model card) are copied beside it. Raises UserError when the disk is full.
    """
    tied = model.tied()
    weights = {name: value.cpu() for name, value in model.state_dict().items() if name not in tied}
    with atomic_folder(folder, skip=(CARD,)) as draft:
        write_json(draft / CONFIG, describe_model(model))
        write_tensors(draft / WEIGHTS, weights, {"format": "pt"})
        for file in files:
            shutil.copyfile(file, draft / file.name)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file. Raises UserError when the disk is full; a half-written file may be left."""
    with full_disk_is_clear(path):
        try:
            save_file(
                {name: value.detach().contiguous() for name, value in tensors.items()},
                path,
                metadata=metadata,
            )
        except SafetensorError as error:
            raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> Exception:
    """safetensors reports a full disk in words; this gives it back its number."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if f"os error {number}" in text or f"code: {number}" in text:
            return OSError(number, text)
    return error


def read_config(folder: Path) -> tuple[Spec, dict[str, HeadSpec], dict[str, str]]:
    """Spec, heads and tie map of a saved model. Raises RunError where config.json is missing or not ours."""
    path = folder / CONFIG
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != "nalanda":
        kind = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise RunError(f"{path}: not a Nalanda model (model_type is {kind!r}, expected 'nalanda')")
    try:
        heads = _HEADS.validate_python(values["heads"])
        return Spec.model_validate(values["spec"]), heads, dict(values["tied"])
    except KeyError as error:
        raise RunError(f"{path}: key {error} is missing; save the model again") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path}: {place}: {first['msg']}") from None


def load_model(folder: Path, verify: bool = True) -> Model:
    """The saved model, on the CPU, in evaluation mode. Every weight must be there, with its shape, and none besides.

    `verify` compares the checksums of manifest.json, where there is one. Raises RunError naming the file, and the
    weight that is missing, unexpected or of another shape.
    """
    spec, heads, tied = read_config(folder)
    if verify and (folder / MANIFEST).is_file():
        verify_manifest(folder)
    model = Model(spec, heads)
    if model.tied() != tied:
        raise RunError(f"{folder / CONFIG}: its tied weights {tied} are not those of its spec {model.tied()}")
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def load_weights(model: Model, path: Path) -> None:
    """Fills `model` from a safetensors file, strictly: see `load_model`."""
    tied = model.tied()
    expected = {name: value for name, value in model.state_dict().items() if name not in tied}
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), set(expected))
            for name, value in expected.items():
                _copy(path, name, file.get_tensor(name), value)
    except SafetensorError as error:
        raise RunError(f"{path}: damaged, not a safetensors file: {error}") from None


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing:
        raise RunError(f"{path}: weight '{missing[0]}' is missing{_more(missing)}")
    if unexpected:
        raise RunError(
            f"{path}: weight '{unexpected[0]}' is unexpected{_more(unexpected)}; the config has no place for it"
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _copy(path: Path, name: str, found: torch.Tensor, place: torch.Tensor) -> None:
    if found.shape != place.shape:
        raise RunError(
            f"{path}: weight '{name}' has shape {tuple(found.shape)}, the config says {tuple(place.shape)}"
        )
    with torch.no_grad():
        place.copy_(found)
