"""A model converted to another form and back is the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from support import nalanda
from tokenizers import decoders, models, pre_tokenizers, trainers

from nalanda.base.errors import DataError, UserError
from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model, save_model
from nalanda.nn.model import Model
from nalanda.nn.spec import SequenceHeadSpec, TokensHeadSpec
from nalanda.stages import export
from nalanda.stages.convert import Options, convert
from nalanda.tokenizer.tokenizer import Tokenizer

IDS = {"ids": torch.tensor([[5, 9, 11, 2, 7]])}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level one as SmolLM's: GGUF has no name for the pre-tokenizer of ours."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(["Sri Lanka is an island", "the island of Sri Lanka"] * 4, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    rust.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def llama(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = {
        "vocab_size": tokenizer.vocabulary, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "initializer_range": 0.2,
    }  # fmt: skip
    model = Model(FAMILIES["llama"].spec(config), {"tokens": TokensHeadSpec()}).eval()
    folder = tmp_path_factory.mktemp("llama") / "model"
    export.write(model, tokenizer, folder)
    (folder / "README.md").write_text("# A card")
    return folder


def logits(place: Path) -> torch.Tensor:
    model = load_model(place)
    with torch.no_grad():
        return model.logits(model(IDS).hidden_BTD)


@pytest.mark.parametrize(("quantization", "tolerance"), [("f32", 0.0), ("f16", 5e-3), ("q8_0", 0.1)])
def test_to_gguf_and_back(llama: Path, tmp_path: Path, quantization: str, tolerance: float) -> None:
    file, folder = tmp_path / "m.gguf", tmp_path / "back"
    assert nalanda("convert", str(llama), str(file), "--quantization", quantization) == 0
    assert nalanda("convert", str(file), str(folder)) == 0
    expected = logits(llama)
    assert expected.std() > 0.5
    assert (logits(folder) - expected).abs().max() <= tolerance * expected.std()
    assert torch.equal(logits(folder), logits(file))
    text = "Sri Lanka 12 नमस्ते"
    ids = Tokenizer.load(llama).encode(text)
    assert Tokenizer.load(file).encode(text) == Tokenizer.load(folder).encode(text) == ids


def test_a_folder_in_another_type_and_in_pieces(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(llama, out, Options(dtype="bfloat16", shard_bytes=60_000), print)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert (out / "README.md").read_text() == "# A card"
    whole = load_model(llama).state_dict()
    for name, value in load_model(out).state_dict().items():
        assert torch.equal(value, whole[name].bfloat16().float()), name


def test_what_would_be_lost_is_not_overwritten(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(DataError, match="precious: exists and is no model"):
        convert(llama, tmp_path / "precious", Options(), print)


def test_what_gguf_cannot_say_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nalanda|GGUF"):
        convert(tiny_run / "quickstart", tmp_path / "m.gguf", Options(), print)
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(llama)
    spec = model.spec.model_copy(update={"vocabulary": 200})
    small = Model(spec, {"tokens": TokensHeadSpec(), "labels": SequenceHeadSpec(classes=2)})
    save_model(small, tmp_path / "m", files=[llama / "tokenizer.json", llama / "tokenizer_config.json"])
    assert nalanda("generate", str(tmp_path / "m"), "x") == 4
    error = capsys.readouterr().err
    assert "ids, its model 200 embeddings" in error
    assert error.count("\n") == 1


def test_a_folder_converted_in_its_place_keeps_its_card(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(llama, folder, Options(), print)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nसंस्कृत\n", encoding="utf-8")
    convert(folder, folder, Options(dtype="bfloat16"), print)
    assert (folder / "README.md").read_text(encoding="utf-8").endswith("संस्कृत\n")
    assert load_model(folder, dtype=torch.bfloat16).transformer.tokens.weight.dtype == torch.bfloat16
