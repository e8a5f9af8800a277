"""The page of `nalanda inspect`: what it holds can be read back, and nothing in a text can break out of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.evaluate.inspect_page import embed, page, quantize
from nalanda.evaluate.inspection import Attention, Inspection, Limits, Reading, inspect
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec

HOSTILE = (
    "</script><script>alert(1)</script>", "<!--", "&quot;\"'", "\u2028", "\u202egnp.exe", "\x00\x1b[31m", "]]>", "ि",
    "سلام", "<img src=x onerror=alert(1)>", "\ud7ff", "{{x}}", "${x}", "`", "\\", "\u200d", "\ufdd0",
)  # fmt: skip


class Hostile:
    """Three special tokens, then all that a token may try."""

    vocabulary, bos, eos, mask = 3 + len(HOSTILE), 0, 1, 2
    special_ids = frozenset(range(3))

    def token(self, number: int) -> str:
        if number >= self.vocabulary:
            raise ValueError(f"token id {number} is outside the vocabulary")
        return ("<bos>", "</script>", "[MASK]", *HOSTILE)[number]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(self.token(i) for i in ids)


def inspection(kind: str = "encoder_decoder", **limits: Any) -> Inspection:
    torch.manual_seed(1)
    config = ModelConfig.model_validate(
        {"kind": kind, "layers": 2, "hidden": 16, "heads": 2, "init_std": 0.4}
    )
    model = Model(build_spec(config, Hostile.vocabulary + 1), {"tokens": TokensHeadSpec()})
    stream = tuple(range(3, Hostile.vocabulary))
    source = (2, 4, 3, 1) if kind == "encoder_decoder" else ()
    return inspect(model, Hostile(), Reading(stream, source, generated=2), Limits(**limits))


class Reader(HTMLParser):
    """Collects tags, and the content of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = None

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts[-1] += data


def read(text: str) -> tuple[Reader, dict[str, Any]]:
    reader = Reader()
    reader.feed(text)
    assert len(reader.scripts) == 2
    return reader, json.loads(reader.scripts[0])


def array(text: str, dtype: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_what_is_embedded_reads_back(kind: str) -> None:
    found = inspection(kind)
    _, values = read(page(found, "model", {"decoder": "of 2 layers"}, "text"))
    vocabulary = values["vocabulary"]
    for name, ids in found.sides.items():
        assert [vocabulary[i][0] for i in values["sides"][name]["tokens"]] == list(ids)
    for number, name, text, how, word in vocabulary:
        item = found.labels[number]
        assert (name, text, how, bool(word)) == (item.name, item.text, item.kind, item.word)
    for attention, packed in zip(found.attentions, values["attentions"], strict=True):
        maps = np.stack(attention.maps)
        assert (packed["layers"], packed["heads"]) == ([1, 2], [2, 2])
        back = (array(packed["data"], "u1", *maps.shape) / 255) ** 2
        np.testing.assert_allclose(back, maps, atol=0.004)
    for stream, packed in zip(found.streams, values["streams"], strict=True):
        ids = array(packed["ids"], "<u4", *stream.ids_RTK.shape)
        if stream.kind == "lens":
            ids = np.array([row[0] for row in vocabulary])[ids]
            assert stream.truth_RT is not None
            truth = array(packed["truth"], "<u2", *stream.truth_RT.shape) / 65535
            np.testing.assert_allclose(truth, np.nan_to_num(stream.truth_RT), atol=1e-5)
        np.testing.assert_array_equal(ids, stream.ids_RTK)
        shares = array(packed["values"], "<u2", *stream.values_RTK.shape) / 65535
        values_RTK = shares if stream.kind == "lens" else 2 * shares - 1
        np.testing.assert_allclose(values_RTK, stream.values_RTK, atol=2e-5)
        np.testing.assert_allclose(array(packed["norms"], "<f4", *stream.norms_RT.shape), stream.norms_RT)
    for said, packed in zip(found.predictions, values["predictions"], strict=True):
        assert [[vocabulary[i][0] for i in row] for row in packed["ids"]] == said.ids_TK.tolist()
        np.testing.assert_allclose(packed["values"], said.values_TK, rtol=1e-5)
        truth_ids = [None if i < 0 else vocabulary[i][0] for i in packed["truth"]]
        assert truth_ids == list(said.truth)
        assert packed["truth_rank"] == said.truth_rank.tolist()


def test_hostile_tokens_stay_text() -> None:
    found = inspection("decoder", candidates=30)
    text = page(replace(found, notes=list(HOSTILE)), HOSTILE[0], {HOSTILE[0]: HOSTILE[1]}, "".join(HOSTILE))
    reader, values = read(text)
    assert {row[1] for row in values["vocabulary"]} >= set(HOSTILE)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert not [key for _, attributes in reader.tags for key in attributes if key.startswith("on")]
    assert not re.search("[<>&\u2028\u2029]", reader.scripts[0])
    assert not re.search("[\x00-\x08\x0b-\x1f]", text.replace("\n", ""))


def test_the_page_fetches_nothing_and_builds_no_markup_from_text() -> None:
    reader, _ = read(page(inspection(), "model", {}, "text"))
    for _, attributes in reader.tags:
        assert not {"src", "href", "action"} & set(attributes)
    script = resources.files("nalanda.evaluate").joinpath("inspect.js").read_text(encoding="utf-8")
    style = resources.files("nalanda.evaluate").joinpath("inspect.css").read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "fetch(",
        "import(",
        "XMLHttp",
    ):
        assert word not in script
    assert "</" not in script
    assert "url(" not in style
    assert "@import" not in style
    assert script.count("\n") < 400


def test_numbers_that_are_not_finite_are_not_embedded() -> None:
    with pytest.raises(ValueError):
        embed({"x": float("nan")})


def test_a_weights_byte_is_off_by_little() -> None:
    weights = np.linspace(0, 1, 10_001)
    assert np.abs((quantize(weights) / 255.0) ** 2 - weights).max() < 0.004
    small = np.linspace(0, 0.01, 1001)
    assert np.abs((quantize(small) / 255.0) ** 2 - small).max() < 0.0005


def test_a_model_without_attention_maps_or_predictions_still_has_a_page() -> None:
    found = replace(inspection("encoder"), attentions=[], predictions=[])
    reader, values = read(page(found, "model", {}, "text"))
    assert values["attentions"] == []
    assert "predictions" not in [attributes.get("id") for _, attributes in reader.tags]


def test_the_side_says_which_way_it_is_written() -> None:
    found = inspection("decoder")
    arabic = {**found.sides, "decoder": (3 + HOSTILE.index("سلام"),)}
    _, values = read(page(replace(found, sides=arabic), "model", {}, "text"))
    assert values["sides"]["decoder"]["rtl"] is True
    _, values = read(page(found, "model", {}, "text"))
    assert values["sides"]["decoder"]["rtl"] is False
    assert values["sides"]["decoder"]["generated"] == 2


def test_64_tokens_30_layers_and_9_heads_are_a_few_megabytes() -> None:
    found = inspection("decoder")
    maps = [np.random.default_rng(0).random((9, 64, 64))] * 30
    big = replace(
        found, attentions=[Attention("decoder.attention", "decoder", "decoder", tuple(range(1, 31)), maps)]
    )
    assert len(page(big, "model", {}, "text").encode()) < 2_000_000
