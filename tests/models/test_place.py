"""Names of models become paths, or one line that says why not; the hub is stood in for, its absence is real."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nalanda.base.errors import RunError, UserError
from nalanda.models import place
from nalanda.models.place import resolve

FILES = [
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "modeling_evil.py",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "consolidated.safetensors",
    "original/params.json",
    "onnx/model.safetensors",
    "q4.gguf",
    "f16.gguf",
]


class Hub:
    """Stands in for huggingface_hub: one model with `files`, or an `error`; remembers how it was asked."""

    def __init__(self, folder: Path, files: list[str] = FILES, error: Exception | None = None) -> None:
        self.constants = SimpleNamespace(
            HF_HUB_OFFLINE=False, ENDPOINT="https://huggingface.co", HF_HUB_CACHE=str(folder)
        )
        self.folder, self.files, self.error = folder, files, error
        self.asked: list[tuple[str, str | None, bool]] = []

    def snapshot_download(
        self,
        model: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        self.asked.append((model, revision, local_files_only))
        if self.error is not None:
            raise self.error
        for name in self.files:
            wanted, unwanted = (
                any(fnmatch.fnmatch(name, p) for p in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if wanted and not unwanted:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_text("{}")
        return str(self.folder)

    def names(self) -> set[str]:
        return {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Hub]:
    """Puts a stand-in for the hub in the library's place, in an empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def make(reach: str = "", **how: Any) -> Hub:
        (tmp_path / "cache").mkdir()
        hub = Hub(tmp_path / "cache", **how)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
        monkeypatch.setattr(place, "_connect", lambda host, port: reach)
        return hub

    return make


def refused(what: str | Path, *messages: str, **options: Any) -> None:
    start = time.monotonic()
    with pytest.raises(RunError) as caught:
        resolve(what, **options)
    assert time.monotonic() - start < 2
    said = str(caught.value)
    assert said.startswith(f"{what}: ")
    assert "\n" not in said
    for message in messages:
        assert message in said, said


# Paths


def test_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # never asked
    assert resolve(folder) == folder
    assert resolve("org/name") == Path("org/name")
    assert resolve("~/org/name") == folder
    assert resolve(tmp_path / "x.gguf") == tmp_path / "x.gguf"


def test_paths_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, "no config.json here")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "holds an adapter only")
    (tmp_path / "q4.gguf").write_bytes(b"")
    refused(tmp_path, "give the GGUF file itself", "q4.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "a file, but not a .gguf; give the model's folder")
    (tmp_path / "runs").mkdir()
    refused("runs/quikstart", "no such file or folder, though there is a folder runs", "hub:runs/quikstart")


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "./a/b",
        "../a",
        "/a/b",
        "a/b/c",
        "~/a/b",
        "a/b/",
        "a//b",
        "a/..",
        "a/b@",
        "a/b@x y",
        "a/-b",
        "~nobody-of-that-name/b",
        "x" * 5000,
        "a\0b",
        "https://huggingface.co/a/b",
        "a\\b",
        "अ/b",
        "a/b.gguf/c",
        "hub:a",
        "hub:/a/b",
    ],
)
def test_what_is_no_name(name: str, online: Callable[..., Hub]) -> None:
    hub = online()
    refused(name, "no such file or folder, and not a name of the hub, which would be ORG/NAME")
    assert hub.asked == []


# The hub, stood in for


def test_a_model_is_fetched_without_code_or_pickles(online: Callable[..., Hub]) -> None:
    hub = online()
    assert resolve("org/name") == hub.folder
    assert hub.asked == [("org/name", None, False)]
    assert hub.names() == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "1_Pooling/config.json",
    }


def test_revisions_and_the_word_hub(online: Callable[..., Hub]) -> None:
    hub = online()
    Path("org").mkdir()
    resolve("hub:org/name@refs/pr/1")
    assert hub.asked == [("org/name", "refs/pr/1", False)]


def test_pickles_only_where_there_is_nothing_better(online: Callable[..., Hub]) -> None:
    hub = online()
    assert resolve("org/name", pickled=True) == hub.folder
    assert "pytorch_model.bin" not in hub.names()
    hub.files = [f for f in FILES if not f.endswith(".safetensors")]
    (hub.folder / "model.safetensors").unlink()
    refused("org/name", "no safetensors files", "pickled=true")
    assert "pytorch_model.bin" not in hub.names()
    assert resolve("org/name", pickled=True) == hub.folder
    assert "pytorch_model.bin" in hub.names()


def test_one_gguf_file(online: Callable[..., Hub]) -> None:
    hub = online()
    assert resolve("org/name/q4.gguf@v1") == hub.folder / "q4.gguf"
    assert hub.asked == [("org/name", "v1", False)]
    assert hub.names() == {"q4.gguf"}
    refused("org/name/q5.gguf", "the hub's org/name has no file q5.gguf", "https://huggingface.co/org/name")
    hub.files = ["README.md", "q4.gguf"]
    refused("org/name", "no config.json", "org/name/FILE.gguf")


def error(name: str, *bases: type[Exception]) -> Exception:
    return type(name, bases or (Exception,), {})("something\nof many lines")


LOCAL = error("LocalEntryNotFoundError", FileNotFoundError)
MISSING = type("RepositoryNotFoundError", (Exception,), {})


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (error("RepositoryNotFoundError"), "no such model on the hub (if it is private: hf auth login)"),
        (
            error("GatedRepoError", MISSING),
            "agreement first: give it at https://huggingface.co/org/name, then run",
        ),
        (error("RevisionNotFoundError"), "no revision 'v9' of it"),
        (error("HFValidationError", ValueError), "no name that the hub allows"),
        (
            error("HfHubHTTPError", OSError),
            "the hub does not give it: HfHubHTTPError: something of many lines",
        ),
        (LOCAL, "cannot be reached (LocalEntryNotFoundError: something of many lines)"),
    ],
)
def test_the_hubs_refusals(online: Callable[..., Hub], raised: Exception, message: str) -> None:
    online(error=raised)
    refused("org/name@v9", message)


def test_a_full_disk(online: Callable[..., Hub]) -> None:
    online(error=OSError(errno.ENOSPC, "full"))
    with pytest.raises(UserError, match="the disk is full"):
        resolve("org/name")


def test_out_of_reach_the_cache_is_asked(online: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = online(reach="huggingface.co: no route")
    assert resolve("org/name") == hub.folder
    assert hub.asked == [("org/name", None, True)]
    hub.error = LOCAL
    refused("org/name", "no such folder here, the hub cannot be reached (huggingface.co: no route)")
    refused("org/name", f"{hub.folder} has nothing of it", "hf download org/name", "give its path")
    hub.error = error("IncompleteSnapshotError", type(LOCAL))
    refused("org/name", "has only a part of it")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("org/name", "pip install 'nalanda[hub]'", "give its folder's path")
    refused("nothing", "not a name of the hub")


# Whether there is a network


def constants(url: str) -> Any:
    return SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT=url)


def test_whether_the_hub_is_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert place._unreachable(constants(f"http://127.0.0.1:{port}")) == ""
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert place._unreachable(constants("https://hub.invalid")) == ""
        monkeypatch.setenv("no_proxy", "hub.invalid")
        assert "hub.invalid: " in place._unreachable(constants("https://hub.invalid"))
    assert "refused" in place._unreachable(constants(f"http://127.0.0.1:{port}"))


def test_a_network_that_swallows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        done.wait(30)
        raise OSError

    monkeypatch.setattr(place.socket, "create_connection", wait)
    start = time.monotonic()
    assert "no answer from hub.example within" in place._unreachable(constants("https://hub.example"))
    assert time.monotonic() - start < 2
    done.set()


OFFLINE = """
import json, sys, time
from nalanda.base.errors import RunError
from nalanda.models.place import resolve
said = []
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        said.append(str(resolve(name)))
    except RunError as error:
        said.append(str(error))
    assert time.monotonic() - start < 2
print(json.dumps(said))
"""


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no address"])
def test_the_real_library_offline(tmp_path: Path, how: str) -> None:
    """A model in the real library's cache is found there; one that is not is refused soon, and in one line."""
    pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "hub" / "models--org--cached" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "models--org--cached" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--cached" / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors", "q4.gguf"):
        (snapshot / name).write_text("{}")
    env = {
        k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")
    }
    env |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    env |= {"HF_HUB_OFFLINE": "1"} if how == "HF_HUB_OFFLINE" else {"HF_ENDPOINT": "https://hub.invalid"}
    names = ["org/cached", "org/cached/q4.gguf", f"org/cached@{'0' * 40}", "org/other", "org/cached@v2"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said[:3] == [str(snapshot), str(snapshot / "q4.gguf"), str(snapshot)]
    for name, line in zip(names[3:], said[3:], strict=True):
        assert line.startswith(f"{name}: no such folder here, the hub cannot be reached (")
        assert ("HF_HUB_OFFLINE is set" if how == "HF_HUB_OFFLINE" else "hub.invalid: ") in line
        assert f"{tmp_path / 'hub'} has nothing of it; on a machine" in line
        assert "\n" not in line
