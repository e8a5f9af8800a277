"""What a model reads for `nalanda inspect`, and how a mistake is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base.errors import DataError, RunError
from nalanda.evaluate.inspection import Reading
from nalanda.generate.decode import generate
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import Prompting, Source
from nalanda.models.exchange import save_model
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.stages.inspect import Asked, layer_numbers, write
from nalanda.stages.inspect import read as read_by
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train

TEXTS = ["the moon is round", "the sun is far", "चाँद गोल है", "सूरज दूर है"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS * 3, TokenizerConfig(vocabulary=320, languages=("hin_Deva", "tam_Taml")))


@pytest.fixture(scope="module")
def untagged() -> Tokenizer:
    return train(TEXTS * 3, TokenizerConfig(vocabulary=320))


def build(kind: str, vocabulary: int) -> Model:
    torch.manual_seed(2)
    config = ModelConfig.model_validate(
        {"kind": kind, "layers": 2, "hidden": 16, "heads": 2, "init_std": 0.4, "position": "learned",
         "max_length": 32}
    )  # fmt: skip
    return Model(build_spec(config, vocabulary), {"tokens": TokensHeadSpec(bias=True)}).eval()


def read(model: Model, tokenizer: Tokenizer, asked: Asked) -> Reading:
    return read_by(model, Prompting(tokenizer, model.spec, model.generation), asked)


def saved(folder: Path, kind: str, tokenizer: Tokenizer) -> Path:
    tokenizer.save(folder / "words")
    save_model(build(kind, tokenizer.vocabulary), folder / kind, (folder / "words").iterdir())
    return folder / kind


def embedded(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S
    )
    assert found
    values: dict[str, Any] = json.loads(found[1])
    return values


def test_an_encoder_reads_the_text_between_its_ends(tokenizer: Tokenizer) -> None:
    reading = read(build("encoder", tokenizer.vocabulary), tokenizer, Asked("the moon"))
    assert reading.stream == (tokenizer.bos, *tokenizer.encode("the moon"), tokenizer.eos)
    assert (reading.source, reading.generated) == ((), 0)


def test_a_decoder_reads_on_what_it_writes(tokenizer: Tokenizer) -> None:
    model = build("decoder", tokenizer.vocabulary)
    prompt = (tokenizer.bos, *tokenizer.encode("the moon"))
    assert read(model, tokenizer, Asked("the moon")).stream == prompt
    longer = read(model, tokenizer, Asked("the moon", generate=9))
    prompting = Prompting(tokenizer, model.spec)
    written = generate(model, [prompt], prompting, DecodeConfig(kind="greedy", max_length=9))[0]
    assert longer.stream == (*prompt, *written.ids)
    assert longer.generated == len(written.ids)
    assert longer.after == (tokenizer.eos if written.finish == "eos" else None)


def test_a_translator_reads_its_own_translation_or_the_one_given(tokenizer: Tokenizer) -> None:
    model = build("encoder_decoder", tokenizer.vocabulary)
    source = (tokenizer.language("hin_Deva"), *tokenizer.encode("the moon"), tokenizer.eos)
    own = read(model, tokenizer, Asked("the moon", to="hin", generate=5))
    prompting = Prompting(tokenizer, model.spec)
    written = generate(model, [source], prompting, DecodeConfig(kind="greedy", max_length=5))[0]
    assert (own.source, own.stream) == (source, (tokenizer.bos, *written.ids))
    given = read(model, tokenizer, Asked("the moon", to="hin_Deva", target="चाँद"))
    assert given.stream == (tokenizer.bos, *tokenizer.encode("चाँद"))
    assert (given.source, given.after, given.generated) == (source, tokenizer.eos, 0)


def test_a_decoder_that_is_told_its_first_token_begins_with_it(tokenizer: Tokenizer) -> None:
    """As NLLB: the decoder starts with EOS and the language's tag."""
    tag = tokenizer.language("tam_Taml")

    class Forced(Prompting):
        def source(self, text: str, to: str | None = None, of: str = "") -> Source:
            return Source([7, 8, 9], self.eos, tag)

    model = build("encoder_decoder", tokenizer.vocabulary)
    prompting = Forced(tokenizer, model.spec)
    given = read_by(model, prompting, Asked("x", to="tam", target="the sun"))
    assert (given.source, given.stream[:2]) == ((7, 8, 9), (tokenizer.eos, tag))
    own = read_by(model, prompting, Asked("x", to="tam", generate=3))
    assert own.stream[:2] == (tokenizer.eos, tag)
    assert own.generated == len(own.stream) - 2
    batch = {"ids": torch.tensor([own.stream[:2]]), "source_ids": torch.tensor([own.source])}
    logits_V = model.logits(model(batch).hidden_BTD[0, -1]).detach()
    logits_V[sorted(tokenizer.special_ids - {tokenizer.eos})] = -torch.inf
    best = int(logits_V.argmax())
    assert (own.stream[2:3] or (own.after,)) == (best,)


def test_an_encoder_decoder_without_languages_needs_none(untagged: Tokenizer) -> None:
    model = build("encoder_decoder", untagged.vocabulary)
    reading = read(model, untagged, Asked("the moon", target="the sun"))
    assert reading.source == tuple(Prompting(untagged, model.spec).source("the moon").ids)
    assert reading.stream == (untagged.bos, *untagged.encode("the sun"))


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("decoder", Asked("x", to="hin"), "--to is for a model that has an encoder and a decoder"),
        ("encoder", Asked("x", target="y"), "--target is for a model that has"),
        ("decoder", Asked("x", of="hin"), "--from is for a model that has"),
        ("encoder", Asked("x", generate=3), "--generate: this model is an encoder"),
        ("encoder_decoder", Asked("x"), "--to: name the language.*it knows hin_Deva, tam_Taml"),
        ("encoder_decoder", Asked("x", to="hin", target=" "), "--target is empty"),
        ("encoder_decoder", Asked("x", to="hin", target="y", generate=2), "choose one"),
        ("encoder_decoder", Asked("x", to="urd_Arab"), "urd_Arab"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(
    kind: str, asked: Asked, says: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(build(kind, tokenizer.vocabulary), tokenizer, asked)
    assert "\n" not in str(caught.value)


def test_a_language_for_a_model_that_knows_none_is_one_line(untagged: Tokenizer) -> None:
    with pytest.raises(DataError, match="--to: this model's tokenizer has no tags of languages"):
        read(build("encoder_decoder", untagged.vocabulary), untagged, Asked("x", to="hin_Deva"))


def test_without_a_head_nothing_is_written(tokenizer: Tokenizer) -> None:
    model = build("decoder", tokenizer.vocabulary)
    del model.heads["tokens"]
    with pytest.raises(DataError, match="leave --generate out"):
        read(model, tokenizer, Asked("x", generate=2))


@pytest.mark.parametrize(("words", "numbers"), [("", None), ("3", (3,)), ("1, 6-8,2", (1, 6, 7, 8, 2))])
def test_layers_as_words(words: str, numbers: tuple[int, ...] | None) -> None:
    assert layer_numbers(words) == numbers


@pytest.mark.parametrize("words", ["x", "1,,2", "-3", "1-2-3", "٣x", "99999999", "3-1"])
def test_layers_that_are_no_numbers_are_one_line(words: str) -> None:
    with pytest.raises(DataError, match="--layers: "):
        layer_numbers(words)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("encoder", {}), ("decoder", {"generate": 3}), ("encoder_decoder", {"to": "hin_Deva", "generate": 6})],
)
def test_a_page_for_each_kind_of_model(
    kind: str, options: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert write(saved(tmp_path, kind, tokenizer), Asked("the moon चाँद", **options), out) == []
    values = embedded(out)
    assert len(values["attentions"]) == (3 if kind == "encoder_decoder" else 1)
    assert [said["kind"] for said in values["predictions"]] == (
        ["masked", "read"] if kind == "encoder" else ["next"]
    )


def test_texts_that_cannot_be_read_write_no_page(tokenizer: Tokenizer, tmp_path: Path) -> None:
    place, out = saved(tmp_path, "encoder", tokenizer), tmp_path / "page.html"
    with pytest.raises(DataError, match="--text is empty"):
        write(place, Asked(" \n"), out)
    with pytest.raises(DataError, match="has 32 positions"):
        write(place, Asked("the moon " * 40), out)
    with pytest.raises(RunError, match="nowhere: no"):
        write(tmp_path / "nowhere", Asked("x"), out)
    assert not out.exists()
