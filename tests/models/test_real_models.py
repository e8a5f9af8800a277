"""Published checkpoints, read as they are: NALANDA_MODELS names a folder that holds them.

minilm/     all-MiniLM-L6-v2, a sentence-transformers folder (sentence-transformers/all-MiniLM-L6-v2)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.models.exchange import load_model, save_model
from nalanda.nn.spec import EmbeddingHeadSpec, PlacesHeadSpec, SequenceHeadSpec, TokensHeadSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # transformers' own warnings, not ours

TEXTS = (
    "The cat sat on the mat.",
    "A dog lay by the door, waiting for the rain to stop.",
    "Interest rates were raised by a quarter of a point on Thursday.",
    "x",
    "आज बाज़ार में बहुत भीड़ थी।",
    "दिल्ली भारत की राजधानी है।",
    "वह रोज़ सुबह पाँच बजे उठता है।",
    "இன்று மழை பெய்தது.",
    "அவள் ஒரு நல்ல பாடகி.",
    "সে গতকাল ঢাকা থেকে এসেছে।",
    "নদীর জল খুব ঠান্ডা ছিল।",
    "రేపు పాఠశాలకు సెలవు.",
    "ఈ పుస్తకం నాకు చాలా నచ్చింది.",
    "Le train part à sept heures du matin.",
    "Où est la bibliothèque la plus proche ?",
    "Elle a vendu sa maison l'année dernière.",
    "Numbers: 3.14, 1,000,000 and 42%.",
    "UPPER lower MiXeD café naïve",
    "emoji 🙂 and symbols § © €",
    "A longer text. " * 40,
)
"""English, Hindi, Tamil, Bengali, Telugu and French."""


@pytest.fixture(scope="module")
def minilm() -> Path:
    place = Path(os.environ.get("NALANDA_MODELS", "/nonexistent")) / "minilm"
    if not place.is_dir():
        pytest.skip("NALANDA_MODELS does not name a folder with minilm/")
    return place


def load_theirs(folder: Path) -> Any:
    return pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")


@torch.no_grad()
def vectors(model: Any, theirs: Any, head: str = "embedding") -> torch.Tensor:
    """Ours, from the ids that their tokenizer gives."""
    batch = theirs.tokenize(list(TEXTS))
    ours = {"ids": batch["input_ids"], "segments": batch["attention_mask"]}
    return model.logits(model(ours).hidden_BTD, head, ours["segments"])


def smallest_cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), two.double()).min())


def test_sentence_vectors(minilm: Path, tmp_path: Path) -> None:
    theirs = load_theirs(minilm)
    expected = theirs.encode(list(TEXTS), convert_to_tensor=True)
    ours = load_model(minilm)
    assert ours.head_specs["embedding"] == EmbeddingHeadSpec(place="mean", normalize=True)
    assert smallest_cosine(vectors(ours, theirs), expected) >= 0.999999
    assert (vectors(ours, theirs) - expected).abs().max() < 1e-5
    asked = load_model(minilm, {"vector": EmbeddingHeadSpec(place="mean", normalize=True)})
    assert torch.equal(vectors(asked, theirs, "vector"), vectors(ours, theirs))

    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
    save_model(ours, tmp_path / "ours", files=[minilm / name for name in names])
    again = load_theirs(tmp_path / "ours")
    assert again.max_seq_length == theirs.max_seq_length == 256
    assert torch.equal(again.encode(list(TEXTS), convert_to_tensor=True), expected)


def test_it_is_saved_with_every_tensor(minilm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_model(load_model(minilm), tmp_path / "ours")
    before, after = (
        load_file(minilm / "model.safetensors"),
        load_file(tmp_path / "ours" / "model.safetensors"),
    )
    assert set(before) - set(after) == {"embeddings.position_ids"}
    assert set(after) <= set(before)
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_what_it_lacks_is_said(minilm: Path) -> None:
    heads = {
        "tokens": TokensHeadSpec(),
        "labels": SequenceHeadSpec(classes=5),
        "places": PlacesHeadSpec(classes=7),
    }
    for name, head in heads.items():
        notes: list[str] = []
        model = load_model(minilm, {name: head}, note=notes.append)
        assert any(f"head {name} starts from random" in note for note in notes)
        assert model.heads[name].output.weight.abs().max() > 0


def test_a_pooling_that_is_not_done_is_said(minilm: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm, tmp_path / "other")
    (tmp_path / "other" / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    notes: list[str] = []
    assert list(load_model(tmp_path / "other", note=notes.append).heads) == ["pooler"]
    assert any("pooling by max_tokens is not done here" in note for note in notes)
