"""What a user writes for a model that others made, turned into a path on this machine.

resolve("models/llama"), resolve("x.gguf")      # a folder with config.json, or a GGUF file: itself
resolve("org/name"), resolve("org/name@v1.0")   # from the Hugging Face hub, or from its cache here
resolve("org/name/file.gguf")                   # one GGUF file from there
resolve("hub:org/name")                         # from there, even where a folder `org` is here

Needs the extra `hub` for names of the hub alone. Only data is fetched (safetensors, JSON, tokenizers' files), never
code, and PyTorch's pickles only where `pickled` allows them and there is nothing better.
"""

from __future__ import annotations

import glob
import os
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from nalanda.base.errors import RunError, UserError
from nalanda.base.io import full_disk_is_clear

_WORD = r"[A-Za-z0-9_][\w.-]{0,95}"
_HUB = re.compile(
    rf"(?P<hub>hub:)?(?P<model>(?P<org>{_WORD})/{_WORD})(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.spm", "*.tiktoken")
_PICKLES = ("pytorch_model*.bin",)
# The same weights once more, in other formats or from the middle of the training.
_UNWANTED = (
    "*/*.safetensors",
    "*/*.bin",
    "consolidated*",
    "original/*",
    "onnx/*",
    "openvino/*",
    "checkpoint-*/*",
)
_PATIENCE = 1.5  # seconds for a first sign of life from the hub

# Errors of huggingface_hub, by name: where they are defined has changed from version to version.
_ERRORS = {
    "GatedRepoError": "its makers ask for an agreement first: give it at {url}, then run: hf auth login",
    "RevisionNotFoundError": "the hub has the model, but no revision {revision!r} of it; see {url}",
    "RepositoryNotFoundError": "no such folder here and no such model on the hub (if it is private: hf auth login)",
    "HFValidationError": "no such folder here, and no name that the hub allows",
}


@dataclass(frozen=True)
class _Name:
    """A model on the hub; `written` is what the user wrote."""

    written: str
    model: str
    file: str | None
    revision: str | None


def resolve(place: str | Path, *, pickled: bool = False) -> Path:
    """The folder (with config.json), or the .gguf file, that `place` means; fetched from the hub where it must be.

    `pickled` lets PyTorch's .bin files be fetched for a model that has no safetensors. Raises RunError, in one line
    that says what to do, where there is no such path or name, the hub cannot be reached or does not give the model.
    """
    path = Path(os.path.expanduser(place))  # these two, unlike Path's own, take any text
    if os.path.exists(path):
        return _local(path)
    name = _parse(str(place))
    library = _library(name)
    unreachable = _unreachable(library.constants)
    patterns = list(_WANTED) if name.file is None else [glob.escape(name.file)]
    folder = _snapshot(library, name, patterns, unreachable)
    if name.file is not None:
        if not (folder / name.file).is_file():
            raise RunError(
                f"{place}: the hub's {name.model} has no file {name.file}; see {_url(library, name)}"
            )
        return folder / name.file
    if not (folder / "config.json").is_file():
        raise RunError(
            f"{place}: this model of the hub has no config.json; where it is in GGUF, name the file: "
            f"{name.model}/FILE.gguf (see {_url(library, name)})"
        )
    if any(folder.glob("*.safetensors")):
        return folder
    if not pickled:
        raise RunError(
            f"{place}: this model of the hub has no safetensors files; if it has {_PICKLES[0]} (pickles), pass "
            "pickled=true to fetch and read them with torch's weights_only reader, which runs no code"
        )
    return _snapshot(library, name, [*patterns, *_PICKLES], unreachable)


def _local(path: Path) -> Path:
    """A path that exists, if it can be a model."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise RunError(f"{path}: a file, but not a .gguf; give the model's folder, where its config.json is")
    if (path / "config.json").is_file():
        return path
    if found := sorted(path.glob("*.gguf")):
        raise RunError(f"{path}: no config.json here; give the GGUF file itself: {found[0]}")
    if (path / "adapter_config.json").is_file():
        raise RunError(
            f"{path}: holds an adapter only; give the model that it was trained on, and then the adapter"
        )
    raise RunError(f"{path}: no config.json here, so it is not a model's folder")


def _parse(place: str) -> _Name:
    found = _HUB.fullmatch(place)
    if found is None:
        raise RunError(
            f"{place}: no such file or folder, and not a name of the hub, which would be ORG/NAME, "
            "ORG/NAME@REVISION or ORG/NAME/FILE.gguf"
        )
    if not found["hub"] and Path(found["org"]).is_dir():  # runs/quikstart is a slip, not a name
        raise RunError(
            f"{place}: no such file or folder, though there is a folder {found['org']}; "
            f"for the hub's model of that name write hub:{place}"
        )
    return _Name(place, found["model"], found["file"], found["revision"])


def _library(name: _Name) -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants  # noqa: F401  (makes it an attribute)
    except ImportError:
        raise RunError(
            f"{name.written}: no such file or folder; to fetch it from the hub run: pip install 'nalanda[hub]', or "
            "download it elsewhere and give its folder's path"
        ) from None
    return huggingface_hub


def _url(library: Any, name: _Name) -> str:
    return f"{library.constants.ENDPOINT}/{name.model}"


def _snapshot(library: Any, name: _Name, patterns: list[str], unreachable: str) -> Path:
    """The folder with the files of the model that `patterns` name, fetched where the hub is in reach."""
    cache = Path(library.constants.HF_HUB_CACHE)
    try:
        with full_disk_is_clear(cache):
            return Path(
                library.snapshot_download(
                    name.model,
                    revision=name.revision,
                    allow_patterns=patterns,
                    ignore_patterns=list(_UNWANTED),
                    local_files_only=bool(unreachable),
                )
            )
    except UserError:
        raise
    except Exception as error:  # the library raises its own kinds and those of the packages below it
        raise _refusal(library, name, error, unreachable) from error


def _refusal(library: Any, name: _Name, error: Exception, unreachable: str) -> RunError:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    for kind in kinds:
        if kind in _ERRORS:
            what = _ERRORS[kind].format(url=_url(library, name), revision=name.revision or "main")
            return RunError(f"{name.written}: {what}")
    if "LocalEntryNotFoundError" not in kinds:
        return RunError(
            f"{name.written}: the hub does not give it: {_line(error)}; try again, or see the hub's status"
        )
    part = "only a part of it" if "IncompleteSnapshotError" in kinds else "nothing of it"
    return RunError(
        f"{name.written}: no such folder here, the hub cannot be reached ({unreachable or _line(error)}), and "
        f"{library.constants.HF_HUB_CACHE} has {part}; on a machine that reaches the hub run: "
        f"hf download {name.model}; then bring the folder here and give its path"
    )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _unreachable(constants: Any) -> str:
    """Why the hub cannot be asked; empty where it can. The library's own patience is ten seconds for each file."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 1080)
    answer: list[str] = []
    # In a thread, because looking up the address knows no time limit.
    asking = threading.Thread(target=lambda: answer.append(_connect(url.hostname or "", port)), daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return answer[0] if answer else f"no answer from {url.hostname} within {_PATIENCE} s"


def _connect(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""
