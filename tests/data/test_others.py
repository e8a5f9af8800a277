"""Batches for models of others: the same ids, labels and losses as transformers' own tokenizers and models make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the oracle")
from others import ENGLISH, HINDI, TRANSLATORS, publish, write_corpus

from nalanda.base.errors import DataError
from nalanda.data.build import AnyDataConfig, build_source
from nalanda.data.denoise import DenoiseConfig
from nalanda.data.masking import MaskedConfig
from nalanda.data.next_sentence import NextSentenceConfig
from nalanda.data.packing import CausalConfig
from nalanda.data.pairs import PairsConfig
from nalanda.generate.prompting import Prompting
from nalanda.models.exchange import load_model
from nalanda.objectives.tokens import TokensConfig
from nalanda.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


STYLES = {"nllb": "nllb", "m2m": "m2m100", "mbart50": "mbart", "mbart": "mbart", "marian, tags": "marian"}


def made(kind: type[Any], folder: Path, **more: Any) -> tuple[Any, Tokenizer, dict[str, Any]]:
    """(model, tokenizer, the first batch) of the model in `folder`, read by us."""
    corpus = write_corpus(folder / "corpus")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    config: AnyDataConfig = kind(corpus=corpus, **{"max_length": 64, "batch_tokens": 4096, **more})
    prompting = Prompting(tokenizer, model.spec, model.generation)
    source = build_source(config, "train", tokenizer, folder / "store", 1, prompting=prompting)
    return model, tokenizer, source.step(0)[0]  # type: ignore[return-value]


def loss_of(model: Any, batch: Any) -> float:
    objective = TokensConfig()
    with torch.no_grad():
        return float(objective(model, batch, {}).terms["tokens"]) / objective.weights(batch)["tokens"]


def shifted(theirs: Any, labels: torch.Tensor) -> torch.Tensor:
    if hasattr(theirs, "prepare_decoder_input_ids_from_labels"):
        return theirs.prepare_decoder_input_ids_from_labels(labels)  # type: ignore[no-any-return]
    from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

    return shift_tokens_right(labels, theirs.config.pad_token_id, theirs.config.decoder_start_token_id)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_pairs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, tokenizer = publish(name, tmp_path)
    model, own, batch = made(PairsConfig, tmp_path)
    assert own.tag_style == STYLES.get(name)
    texts = [f">>hin<< {text}" for text in ENGLISH] if name == "marian, tags" else ENGLISH
    labels: list[list[int]] = []
    total = count = 0.0
    seen = batch["sample_ids"].tolist()
    assert sorted(seen) == list(range(len(ENGLISH)))
    for row, sample in enumerate(seen):
        row_of_theirs = tokenizer(texts[sample], text_target=HINDI[sample], return_tensors="pt")
        labels.append(row_of_theirs["labels"][0].tolist())
        real, read = batch["segments"][row] == 1, batch["source_segments"][row] == 1
        assert batch["source_ids"][row][read].tolist() == row_of_theirs["input_ids"][0].tolist()
        assert batch["targets"][row][real].tolist() == labels[-1]
        assert batch["target_weight"][row][real].tolist() == [1.0] * len(labels[-1])
        begun = shifted(theirs, row_of_theirs["labels"])[0]
        assert batch["ids"][row][real].tolist() == begun.tolist()
        with torch.no_grad():
            total += float(theirs(**row_of_theirs).loss) * len(labels[-1])
        count += len(labels[-1])
    assert loss_of(model, batch) == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_documents_begin_and_end_as_the_model_saw_them(name: str, tmp_path: Path) -> None:
    theirs, tokenizer = publish(name, tmp_path)
    model, own, batch = made(CausalConfig, tmp_path, sides="text")
    begin = tokenizer.bos_token_id if name == "llama" else tokenizer.eos_token_id
    total, found = 0.0, []
    for row in range(len(batch["ids"])):
        for document in range(1, int(batch["segments"][row].max()) + 1):
            here = batch["segments"][row] == document
            read, predicted = batch["ids"][row][here], batch["targets"][row][here]
            assert read[1:].tolist() == predicted[:-1].tolist()
            whole = torch.cat([read, predicted[-1:]])
            found.append(whole.tolist())
            with torch.no_grad():
                total += float(theirs(input_ids=whole[None], labels=whole[None]).loss) * len(read)
    wanted = [
        [begin, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in ENGLISH
    ]
    assert sorted(found) == sorted(wanted)
    trained = batch["target_weight"].bool()
    assert trained[batch["segments"] > 0].all()
    # The pad is the eos here, and the eos at the end of each document is trained all the same.
    assert own.pad == own.eos
    assert int((batch["targets"][trained] == own.eos).sum()) == len(ENGLISH)
    assert loss_of(model, batch) == pytest.approx(total / int(trained.sum()), abs=1e-5)


def test_masks_are_the_models_own(tmp_path: Path) -> None:
    theirs, tokenizer = publish("bert", tmp_path)
    model, own, batch = made(MaskedConfig, tmp_path, rate=0.5, mask_share=0.5, random_share=0.5, sides="text")
    for row, sample in enumerate(batch["sample_ids"].tolist()):
        assert sample >= 0
        real = batch["segments"][row] == 1
        assert batch["targets"][row][real].tolist() in [tokenizer(text)["input_ids"] for text in ENGLISH]
    chosen = batch["target_weight"] > 0
    special = torch.tensor(sorted(own.special_ids))
    assert not torch.isin(batch["targets"][chosen], special).any()
    hidden = batch["ids"][chosen]
    assert set(hidden[torch.isin(hidden, special)].tolist()) == {tokenizer.mask_token_id}
    with torch.no_grad():
        wanted = theirs(
            input_ids=batch["ids"],
            attention_mask=(batch["segments"] > 0).long(),
            labels=batch["targets"].masked_fill(~chosen, -100),
        ).loss
    assert loss_of(model, batch) == pytest.approx(float(wanted), abs=1e-5)


def test_two_sentences_are_laid_out_as_bert_reads_them(tmp_path: Path) -> None:
    _, tokenizer = publish("bert", tmp_path)
    corpus = write_corpus(tmp_path / "corpus")
    from nalanda.corpus.document import Document
    from nalanda.corpus.store import SplitWriter

    with (corpus / "train.parquet").open("wb") as file, SplitWriter(file) as writer:
        for i in range(3):
            writer.write(Document(f"{ENGLISH[i]}\n{ENGLISH[i + 1]}", f"a:{i}", "eng_Latn", None, "", "a"))
    config = NextSentenceConfig(corpus=corpus, batch_tokens=512, max_length=64)
    own = Tokenizer.load(tmp_path)
    batch = build_source(config, "train", own, tmp_path / "store", 1).step(0)[0]
    known = [
        (found["input_ids"], found["token_type_ids"])
        for a in ENGLISH
        for b in ENGLISH
        for found in [tokenizer(a, b)]
    ]
    for row in range(len(batch["ids"])):
        real = batch["segments"][row] == 1
        assert (batch["targets"][row][real].tolist(), batch["token_types"][row][real].tolist()) in known


def test_spans_are_hidden_behind_the_sentinels_of_t5(tmp_path: Path) -> None:
    _, tokenizer = publish("t5", tmp_path)
    noise = {"edit": 0, "sentinels": 1}
    _, own, batch = made(DenoiseConfig, tmp_path, noise=noise, mask=0.4, span=2, sides="text")
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(10)]
    assert own.sentinels == sentinels
    assert sentinels[0] > sentinels[1]  # they count down
    for row in range(len(batch["ids"])):
        source = batch["source_ids"][row][batch["source_segments"][row] == 1].tolist()
        target = batch["targets"][row][batch["segments"][row] == 1].tolist()
        assert source[-1] == target[-1] == tokenizer.eos_token_id
        assert int(batch["ids"][row][0]) == 0
        hidden: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token in sentinels:
                hidden[token] = []
            else:
                hidden[list(hidden)[-1]].append(token)
        assert list(hidden) == sentinels[: len(hidden)]
        whole = [t for token in source[:-1] for t in hidden.get(token, [token])]
        assert tokenizer.decode(whole) in ENGLISH


def test_a_tokenizer_without_a_mask_or_sentinels_is_one_line(tmp_path: Path) -> None:
    for name, noise, wanted in (
        (
            "t5",
            {"edit": 1},
            r"data\.noise\.edit: the tokenizer has no mask token; use noise: \{edit: 0, sentinels: 1\}",
        ),
        ("bart", {"edit": 0, "sentinels": 1}, r"data\.noise\.sentinels: the tokenizer has no sentinels"),
    ):
        publish(name, tmp_path / name)
        with pytest.raises(DataError, match=wanted) as caught:
            made(DenoiseConfig, tmp_path / name, noise=noise)
        assert "\n" not in str(caught.value)
    publish("gpt2", tmp_path / "gpt2")
    with pytest.raises(DataError, match="no mask token"):
        made(MaskedConfig, tmp_path / "gpt2")


def test_bart_restores_texts_with_its_own_mask(tmp_path: Path) -> None:
    _, tokenizer = publish("bart", tmp_path)
    _, _, batch = made(DenoiseConfig, tmp_path, mask=0.4, sides="text")
    assert (batch["source_ids"] == tokenizer.mask_token_id).any()
    for row in range(len(batch["ids"])):
        target = batch["targets"][row][batch["segments"][row] == 1].tolist()
        assert target in [tokenizer(text)["input_ids"] for text in ENGLISH]
        assert int(batch["ids"][row][0]) == tokenizer.eos_token_id
