"""A saved model comes back bit for bit, or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalanda.base.errors import RunError, UserError
from nalanda.models import exchange
from nalanda.models.exchange import load_model, save_model
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import SequenceHeadSpec, TokensHeadSpec


def make(**config: Any) -> Model:
    torch.manual_seed(0)
    spec = build_spec(ModelConfig(**{"hidden": 16, "heads": 2, "layers": 1, "max_length": 8, **config}), 20)
    return Model(spec, {"tokens": TokensHeadSpec(bias=True), "labels": SequenceHeadSpec(classes=2)}).eval()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "relative"])
def test_round_trip(tmp_path: Path, position: str, tie: bool) -> None:
    model = make(position=position, tie_embeddings=tie)
    extra = tmp_path / "tokenizer.json"
    extra.write_text("{}")
    save_model(model, tmp_path / "model", files=[extra])
    save_model(model, tmp_path / "model", files=[extra])  # over an old one
    loaded = load_model(tmp_path / "model")
    ids = torch.arange(6)[None]
    one, two = (m.logits(m({"ids": ids, "source_ids": ids}).hidden_BTD) for m in (model, loaded))
    assert torch.equal(one, two)
    assert (loaded.heads["tokens"].output.weight is loaded.transformer.tokens.weight) is tie
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert ("heads.tokens.output.weight" in stored) is not tie
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "tokenizer.json"]


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    (folder / "manifest.json").unlink()


NAME = "transformer.encoder.blocks.0.attention.qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NAME), f"'{NAME}' is missing"),
        (lambda w: w.update(extra=torch.zeros(2)), "'extra' has no place in the model"),
        (lambda w: w.update({NAME: torch.zeros(3, 16)}), rf"'{NAME}' has shape \(3, 16\), .* \(48, 16\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    save_model(make(), tmp_path / "model")
    change_weights(tmp_path / "model", change)
    with pytest.raises(RunError, match=message):
        load_model(tmp_path / "model")


def test_damage_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(make(), folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError, match=r"model\.safetensors.*SHA-256"):
        load_model(folder)
    weights.write_bytes(bytes(data[:100]))
    with pytest.raises(RunError, match="truncated, or not a safetensors file"):
        load_model(folder, verify=False)
    weights.unlink()
    with pytest.raises(RunError, match=r"model.*safetensors"):
        load_model(folder, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="gru"), "'gru', which no family here reads; nearest is"),
        (lambda c: c["spec"].update(hidden="wide"), "hidden"),
        (lambda c: c.pop("heads"), "'heads' is missing"),
        (lambda c: c.update(tied={}), "tied weights"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = tmp_path / "model"
    save_model(make(), folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink()
    with pytest.raises(RunError, match=message):
        load_model(folder)


def test_a_full_disk_is_one_line_and_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    save_model(make(), folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(folder: Path, entries: Any, shard_bytes: int) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange, "write_weights", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_model(make(bias=True), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_card_may_be_edited_and_nothing_else(tmp_path: Path) -> None:
    card, other = tmp_path / "README.md", tmp_path / "tokenizer.json"
    card.write_text("# A model")
    other.write_text("{}")
    folder = tmp_path / "model"
    save_model(make(), folder, files=[card, other])
    (folder / "README.md").write_text("# A better card")
    load_model(folder)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(RunError, match=r"tokenizer\.json"):
        load_model(folder)
