"""What checkpoints of others may say in more than one way, and what a user may leave out of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nalanda.base.errors import RunError
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

LLAMA = {
    "vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def saved(folder: Path, family: str, config: dict[str, Any]) -> Path:
    """A folder as others write it: without a manifest."""
    torch.manual_seed(0)
    save_model(Model(FAMILIES[family].spec(config), {"tokens": TokensHeadSpec()}), folder)
    (folder / "manifest.json").unlink()
    return folder


def change_config(folder: Path, **values: Any) -> None:
    """Writes values into config.json; None takes the key away."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_saved_model_is_not_rounded_by_the_old_name_of_its_type(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path / "model", "llama", LLAMA)
    change_config(folder, dtype=None, torch_dtype="bfloat16")
    save_model(load_model(folder, dtype=getattr(torch, kind)), tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["dtype"] == kind
    assert "torch_dtype" not in config
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert read.dtype == getattr(torch, kind)


def test_common_names_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    config = {"vocab_size": 67, "n_embd": 48, "n_layer": 1, "n_head": 4, "n_positions": 32}
    folder = saved(tmp_path / "model", "gpt2", config)
    change_config(folder, n_head=None, num_attention_heads=4)  # no shape tells how many there are
    model = load_model(folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()(ids).logits
        ours = model.logits(model.transformer(ids).hidden_BTD)
    assert model.spec.decoder[0].attention.heads == 4
    assert (ours - theirs).abs().max() < 1e-5


def test_a_class_of_old_has_its_output_matrix(tmp_path: Path) -> None:
    config = {"vocab_size": 67, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    folder = saved(tmp_path / "model", "t5", config)
    change_config(folder, architectures=["T5WithLMHeadModel"], nalanda=None)
    assert set(load_model(folder).heads) == {"tokens"}
    change_config(folder, architectures=["T5Model"])
    assert not load_model(folder).heads


def test_layers_that_are_to_be_left_out(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama", LLAMA)
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(RunError, match="1 decoder layers, but the weights have 2"):
        load_model(folder)
    assert len(load_model(folder, ignore=["model.layers.1.*"]).spec.decoder) == 1


def test_a_norm_under_both_of_its_names(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama", LLAMA)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.norm.gamma": torch.zeros(32)}, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"weight 'model\.norm\.gamma' has no place"):
        load_model(folder)
    weights["model.norm.gamma"] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    assert load_model(folder)
