"""Folders of sentence-transformers: which heads they give, what is kept, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base.errors import RunError
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.nn.model import Model
from nalanda.nn.spec import EmbeddingHeadSpec

CONFIG = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12,
}  # fmt: skip


def save(folder: Path, **head: Any) -> EmbeddingHeadSpec:
    torch.manual_seed(0)
    spec = EmbeddingHeadSpec(**head)
    save_model(Model(FAMILIES["bert"].spec(CONFIG), {"embedding": spec}), folder)
    (folder / "manifest.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    values.pop("nalanda")  # then the folder's own files decide
    (folder / "config.json").write_text(json.dumps(values))
    return spec


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


@pytest.mark.parametrize("place", ["first", "mean", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_there_and_back(tmp_path: Path, place: str, normalize: bool) -> None:
    spec = save(tmp_path / "model", place=place, normalize=normalize)
    assert load_model(tmp_path / "model").head_specs == {"embedding": spec}
    assert (tmp_path / "model" / "1_Pooling" / "config.json").is_file()


@pytest.mark.filterwarnings("ignore")  # the package's own warnings, not ours
@pytest.mark.parametrize(("place", "mode"), [("first", "cls"), ("mean", "mean"), ("last", "lasttoken")])
def test_the_package_pools_alike(tmp_path: Path, place: str, mode: str) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    save(tmp_path / "model", place=place, normalize=False)
    pooling = modules.Pooling.load(str(tmp_path / "model" / "1_Pooling"))
    assert pooling.pooling_mode == mode
    hidden_BTD = torch.randn(2, 5, 16)
    segments_BT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = pooling({"token_embeddings": hidden_BTD, "attention_mask": segments_BT})["sentence_embedding"]
    found = load_model(tmp_path / "model").logits(hidden_BTD, "embedding", segments_BT)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_form_of_today_and_what_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "model", place="mean")
    write(
        tmp_path / "model" / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "cls"}
    )
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    write(tmp_path / "model" / "config_sentence_transformers.json", prompts)
    write(tmp_path / "model" / "sentence_bert_config.json", {"max_seq_length": 7})
    model = load_model(tmp_path / "model")
    assert model.head_specs == {"embedding": EmbeddingHeadSpec(place="first")}
    save_model(model, tmp_path / "again")
    for name, values in (
        ("config_sentence_transformers", prompts),
        ("sentence_bert_config", {"max_seq_length": 7}),
    ):
        assert json.loads((tmp_path / "again" / f"{name}.json").read_text()) == values
    assert "sentence" not in (tmp_path / "again" / "config.json").read_text()
    assert load_model(tmp_path / "again").head_specs == model.head_specs


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "modules.json",
            [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Dense"}],
            "Pooling [+] Dense",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling by max"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pooling by cls, mean"),
    ],
)
def test_what_is_not_done_is_said(tmp_path: Path, file: str, values: Any, message: str) -> None:
    save(tmp_path / "model")
    write(tmp_path / "model" / file, values)
    notes: list[str] = []
    assert not load_model(tmp_path / "model", note=notes.append).heads
    assert len(notes) == 1
    assert re.search(message, notes[0])


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("modules.json", {"a": 1}, "not a list of modules"),
        ("modules.json", "[", "modules.json"),
        (
            "modules.json",
            [{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "../../etc"}],
            "not a folder beside",
        ),
        ("1_Pooling/config.json", [], "not a JSON mapping"),
        ("sentence_bert_config.json", [], "not a JSON mapping"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, file: str, values: Any, message: str) -> None:
    save(tmp_path / "model")
    write(tmp_path / "model" / file, values)
    with pytest.raises(RunError, match=message):
        load_model(tmp_path / "model")
