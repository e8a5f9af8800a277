"""Perplexity and bits per byte of a decoder: against a sum by hand, whole texts and cut ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nalanda.base.errors import DataError
from nalanda.evaluate.scoring import Settings
from nalanda.generate.prompting import Prompting
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.stages.evaluate import EvaluateStage, run
from nalanda.stages.language_model import held_out_texts, likelihood
from nalanda.stages.stage import Context
from nalanda.stages.use import Opened
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train

TEXTS = ["the cat sat", "a dog", "नमस्ते दुनिया", "the dog sat on a cat and the cat sat on a dog"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS * 20, TokenizerConfig(vocabulary=300, min_frequency=1))


def model(tokenizer: Tokenizer, **changes: object) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(kind="decoder", layers=1, hidden=32, heads=2, **changes)  # type: ignore[arg-type]
    return Model(build_spec(config, tokenizer.vocabulary), {"tokens": TokensHeadSpec()}).eval()


def opened(network: Model, tokenizer: Tokenizer) -> Opened:
    return Opened(network, tokenizer, Prompting(tokenizer, network.spec))


def nats(network: Model, tokenizer: Tokenizer, ids: list[int]) -> float:
    row = torch.tensor([[tokenizer.bos, *ids]])
    with torch.no_grad():
        logits = network.logits(network.transformer(row[:, :-1]).hidden_BTD)
    return -float(logits.log_softmax(-1).gather(2, row[:, 1:, None]).sum())


def test_scores_are_the_sums_by_hand(tokenizer: Tokenizer) -> None:
    network = model(tokenizer)
    found = likelihood(opened(network, tokenizer), TEXTS, Context())
    encoded = [[*tokenizer.encode(text), tokenizer.eos] for text in TEXTS]
    total = sum(nats(network, tokenizer, ids) for ids in encoded)
    scores = found.scores(Settings(resamples=200))
    assert scores["tokens"] == sum(map(len, encoded))
    assert scores["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert scores["perplexity"] == pytest.approx(math.exp(total / scores["tokens"]), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(total / scores["bytes"] / math.log(2), rel=1e-5)
    assert scores["bits_per_byte_low"] <= scores["bits_per_byte"] <= scores["bits_per_byte_high"]


def test_a_text_longer_than_the_positions_is_scored_in_pieces(tokenizer: Tokenizer) -> None:
    network = model(tokenizer, position="learned", max_length=6)
    found = likelihood(opened(network, tokenizer), TEXTS, Context())
    for text, (total, tokens, _) in zip(TEXTS, found.counts_N3):
        ids = [*tokenizer.encode(text), tokenizer.eos]
        pieces = [ids[i : i + 6] for i in range(0, len(ids), 6)]
        assert tokens == len(ids)
        assert total == pytest.approx(sum(nats(network, tokenizer, piece) for piece in pieces), rel=1e-5)


def test_held_out_texts_are_all_sides_once(tiny_run: Path) -> None:
    corpus = tiny_run / "quickstart" / "corpus"
    texts = held_out_texts(corpus, "test", None)
    assert len(texts) == len(set(texts)) > 10
    assert held_out_texts(corpus, "test", 5) == texts[:5]


def test_an_encoder_is_refused(tiny_run: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from nalanda.stages import export

    torch.manual_seed(0)
    spec = build_spec(ModelConfig(kind="encoder", layers=1, hidden=32, heads=2), tokenizer.vocabulary)
    export.write(Model(spec, {"tokens": TokensHeadSpec()}), tokenizer, tmp_path / "encoder")
    export.write(model(tokenizer), tokenizer, tmp_path / "decoder")
    corpus = tiny_run / "quickstart" / "corpus"
    alone = EvaluateStage(corpus=corpus, models={"m": tmp_path / "encoder"}, rows=4)
    with pytest.raises(DataError, match="not a translation model"):
        run(alone, None, Context())  # type: ignore[arg-type]
    mixed = EvaluateStage(
        corpus=corpus, models={"d": tmp_path / "decoder", "e": tmp_path / "encoder"}, rows=4
    )
    with pytest.raises(DataError, match=r"models\.e: .* is not a decoder"):
        run(mixed, None, Context())  # type: ignore[arg-type]
