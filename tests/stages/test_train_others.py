"""Training goes on from models of others: through the command line, exported, read again by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import nalanda

pytest.importorskip("transformers", reason="the oracle")
import transformers
from others import publish, write_corpus

from nalanda.base.errors import DataError, RunError
from nalanda.config import ConfigError, parse
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter
from nalanda.models.exchange import load_model
from nalanda.stages import starting, train
from nalanda.stages.convert import Options, convert
from nalanda.stages.pipeline import model_folder
from nalanda.stages.stage import fingerprint_input
from nalanda.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
DATA = {
    "llama": {"kind": "causal"},
    "gpt2": {"kind": "causal"},
    "bert": {"kind": "masked", "rate": 0.5},
    "t5": {"kind": "denoise", "noise": {"edit": 0, "sentinels": 1}},
}


def recipe(place: Path, model: Any, kind: str, **more: Any) -> dict[str, Any]:
    data = {
        "corpus": str(place / "corpus"),
        "max_length": 64,
        "batch_tokens": 512,
        **DATA.get(kind, {"kind": "pairs"}),
    }
    return {
        "verb": "train",
        "name": "tuned",
        "model": model,
        "data": {**data, **more.pop("data", {})},
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "budget": {"steps": 2},
        "evaluation": {"every": 2},
        "threads": 1,
        "compile": "off",
        **more,
    }


def trained(place: Path, values: dict[str, Any], *words: str) -> Path:
    """The folder of a run of the recipe."""
    write_corpus(place / "corpus")
    path = place / "tuned.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert nalanda("train", str(path), "--runs", str(place / "runs"), *words) == 0
    return place / "runs" / str(values["name"])


def same_logits(folder: Path, architecture: str, pairs: bool) -> Any:
    """transformers' model of the folder, after its logits were found to be ours."""
    theirs = getattr(transformers, architecture).from_pretrained(folder).eval()
    ours = load_model(folder)
    ids = torch.randint(5, 25, (2, 9))
    ones, places = torch.ones(2, 9, dtype=torch.int32), torch.arange(9, dtype=torch.int32).expand(2, 9)
    batch = {"ids": ids, "segments": ones, "positions": places}
    inputs = {"input_ids": ids}
    if pairs:
        source = torch.randint(5, 25, (2, 9))
        batch |= {"source_ids": source, "source_segments": ones, "source_positions": places}
        inputs = {"input_ids": source, "decoder_input_ids": ids}
    with torch.no_grad():
        wanted = theirs(**inputs).logits
        found = ours.logits(ours(batch).hidden_BTD)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    return theirs


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "bert", "t5", "bart", "nllb", "m2m", "mbart", "marian, tags"]
)
def test_two_steps_from_anothers_model_and_back(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    before, tokenizer = publish(name, base)
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [x]\n---\n# Base\n")
    run = trained(tmp_path, recipe(tmp_path, str(base), name))
    assert json.loads((run / "result.json").read_text())["steps"] == 2
    pairs = before.config.is_encoder_decoder
    after = same_logits(run / "model", type(before).__name__, pairs)
    assert type(after).__name__ == type(before).__name__
    moved = [
        key for key, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[key])
    ]
    assert len(moved) > 10
    for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id"):
        wanted = getattr(getattr(before, "generation_config", None), key, None)
        if wanted is not None:
            assert getattr(after.generation_config, key) == wanted
    card = (run / "model" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert f"base_model: {base}" in card
    own = Tokenizer.load(run / "model")
    assert own.encode("the tea is hot") == tokenizer("the tea is hot", add_special_tokens=False)["input_ids"]


def test_a_run_goes_on_from_a_gguf_file_with_its_tokenizer(tmp_path: Path) -> None:
    publish("llama", tmp_path / "base")
    file = tmp_path / "base.gguf"
    convert(tmp_path / "base", file, Options(quantization="f32"), lambda text: None)
    values = recipe(tmp_path, str(file), "llama")
    run = trained(tmp_path, values)
    same_logits(run / "model", "LlamaForCausalLM", False)
    config = parse(train.TrainStage, {key: v for key, v in values.items() if key != "name"}, "test")
    assert starting.inputs(config)["model"] == file
    mark = fingerprint_input(file, "model")
    file.write_bytes(file.read_bytes() + b"0")
    assert fingerprint_input(file, "model") != mark
    beside = recipe(tmp_path, str(tmp_path / "base"), "llama", data={"tokenizer": str(file)}, name="second")
    trained(tmp_path, beside)


def test_names_of_the_hub_survive_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("llama", tmp_path / "snapshot")
    asked: list[tuple[str, bool]] = []

    def resolve(place: Path, *, pickled: bool = False) -> Path:
        asked.append((str(place), pickled))
        return tmp_path / "snapshot"

    monkeypatch.setattr("nalanda.models.place.resolve", resolve)
    for name in ("org/name", "hub:org/name", "org/name@v1.0", "org/name/q8.gguf"):
        values = {**recipe(tmp_path, name, "llama", pickled=True), "verb": "train"}
        del values["name"]
        config = parse(train.TrainStage, values, "test")
        assert config.to_dict()["model"] == name
        assert starting.inputs(config)["model"] == tmp_path / "snapshot"
        assert asked[-1] == (name, True)
    assert starting.data_tokenizer(config).vocabulary == Tokenizer.load(tmp_path / "snapshot").vocabulary
    assert model_folder(config.model) == tmp_path / "snapshot"


def test_what_a_checkpoint_has_too_much_is_fatal_unless_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    publish("llama", base)
    from safetensors.torch import load_file, save_file

    save_file(
        {**load_file(base / "model.safetensors"), "odd.weight": torch.zeros(2)}, base / "model.safetensors"
    )
    write_corpus(tmp_path / "corpus")
    values = recipe(tmp_path, str(base), "llama")
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(values))
    assert nalanda("train", str(path), "--runs", str(tmp_path / "runs")) != 0
    assert "odd.weight" in capsys.readouterr().err
    trained(tmp_path, {**values, "ignore": ["odd.*"], "name": "second"})


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    publish("llama", tmp_path / "base")
    publish("gpt2", tmp_path / "other")
    config = parse(
        train.TrainStage,
        {k: v for k, v in recipe(tmp_path, str(tmp_path / "base"), "llama").items() if k != "name"},
        "test",
    )
    with pytest.raises(DataError, match="is not the one given"):
        starting.build_model(config, Tokenizer.load(tmp_path / "other"))
    with pytest.raises((DataError, RunError)):
        starting.data_tokenizer(config.model_copy(update={"model": tmp_path / "none"}))


_ENCODER = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
_STACKS = {
    "encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {**_ENCODER, "num_key_value_heads": 1}),
    "bert": ("bert", "BertForMaskedLM", _ENCODER),
    "t5": (
        "t5",
        "T5ForConditionalGeneration",
        {"num_layers": 2, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8},
    ),
    "nllb": ("m2m_100", "M2M100ForConditionalGeneration", _STACKS),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_new_model_of_a_known_family_is_saved_as_that(name: str, tmp_path: Path) -> None:
    family, architecture, config = FAMILIES[name]
    publish(name, tmp_path / "base")
    values = recipe(
        tmp_path, {"family": family, "config": config}, name, data={"tokenizer": str(tmp_path / "base")}
    )
    run = trained(tmp_path, values)
    saved = json.loads((run / "model" / "config.json").read_text())
    own = Tokenizer.load(tmp_path / "base")
    assert (saved["model_type"], saved["vocab_size"]) == (family, own.vocabulary)
    assert saved["pad_token_id"] == own.pad
    assert saved["architectures"] == [architecture]
    same_logits(run / "model", architecture, name in ("t5", "nllb"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "lama"}, r"unknown family 'lama'; did you mean llama"),
        (
            {"family": "llama", "preset": "smollm2-135"},
            r"has no preset 'smollm2-135'; did you mean smollm2-135m",
        ),
        (
            {"family": "llama", "config": {"num_layers": 2}},
            r"config\.num_layers: family llama has no such key",
        ),
        ({"family": "llama", "config": {"vocab_size": 9}}, r"config\.vocab_size: comes from the tokenizer"),
        ({"family": "llama", "config": {"hidden_size": 30}}, r"config: .*head"),
        ({"family": "bert"}, r"kind 'causal' does not train a model of kind 'encoder'"),
    ],
)
def test_a_family_that_is_misspelt_is_one_line(model: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, model, "llama", data={"tokenizer": "here"})
    del values["name"]
    with pytest.raises(ConfigError, match=message) as caught:
        parse(train.TrainStage, values, "test")
    assert "\n" not in str(caught.value)


def test_a_preset_is_a_size_and_a_new_model_needs_a_tokenizer(tmp_path: Path) -> None:
    model = {"family": "llama", "preset": "smollm2-135m", "config": {"num_hidden_layers": 4}}
    values = recipe(tmp_path, model, "llama", data={"tokenizer": "here"})
    del values["name"]
    spec = parse(train.TrainStage, values, "test").model.spec({"vocab_size": 77})
    assert (spec.hidden, len(spec.decoder), spec.vocabulary) == (576, 4, 77)
    del values["data"]["tokenizer"]
    with pytest.raises(ConfigError, match=r"data\.tokenizer: required key is missing: a new model has no"):
        parse(train.TrainStage, values, "test")


def test_rotations_are_scaled_by_a_recipe(tmp_path: Path) -> None:
    publish("llama", tmp_path / "base")
    rope = {"kind": "yarn", "factor": 4, "original_length": 64}
    run = trained(tmp_path, recipe(tmp_path, str(tmp_path / "base"), "llama", rope=rope))
    saved = json.loads((run / "model" / "config.json").read_text())
    assert saved["max_position_embeddings"] == 256
    assert saved["rope_parameters"]["rope_type"] == "yarn"
    same_logits(run / "model", "LlamaForCausalLM", False)


def test_a_dry_run_of_anothers_model_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("llama", tmp_path / "base")
    run = trained(tmp_path, recipe(tmp_path, str(tmp_path / "base"), "llama"), "--dry-run")
    assert "parameters" in capsys.readouterr().out
    assert not run.exists()


def test_the_preview_shows_the_batches_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("nllb", tmp_path / "base")
    write_corpus(tmp_path / "corpus")
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, str(tmp_path / "base"), "nllb")), encoding="utf-8")
    assert nalanda("data", "preview", str(path), "--rows", "1") == 0
    lines = capsys.readouterr().out.replace("\n", " ").split("row 0")[1].split("predicts")
    assert lines[0].split("source")[1].split()[0] == "eng_Latn"
    assert lines[0].split("reads")[1].split()[:2] == ["</s>", "hin_Deva"]
    assert lines[1].split()[0] == "hin_Deva"


def test_bert_goes_on_with_two_sentences_and_keeps_its_family(tmp_path: Path) -> None:
    publish("bert", tmp_path / "base")
    write_corpus(tmp_path / "corpus")
    with (tmp_path / "corpus" / "train.parquet").open("wb") as file, SplitWriter(file) as writer:
        for i in range(4):
            writer.write(
                Document(f"go home\nsave the file\n{'cold ' * i}", f"a:{i}", "eng_Latn", None, "", "a")
            )
    values = recipe(
        tmp_path,
        str(tmp_path / "base"),
        "bert",
        data={"kind": "next_sentence"},
        objective={"kind": "mlm_next_sentence"},
        evaluation=None,
    )
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert nalanda("train", str(path), "--runs", str(tmp_path / "runs")) == 0
    result = json.loads((tmp_path / "runs" / "tuned" / "result.json").read_text())
    assert any("next_sentence" in note for note in result["notes"])
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "runs" / "tuned" / "model")
    assert theirs.config.architectures == ["BertForPreTraining"]
