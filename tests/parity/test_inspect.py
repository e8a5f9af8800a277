"""What `nalanda inspect` shows of every family is what transformers says: attention maps and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from parity.case import Case
from parity.cases import CASES, pair_of
from parity.pair import Pair, forget

from nalanda.evaluate.inspection import Inspection, Limits, Reading, inspect

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours
FIRST = {case.family: case for case in reversed(CASES)}
THEIRS = {
    "encoder.attention": ("encoder_attentions", "attentions"),
    "decoder.attention": ("decoder_attentions", "attentions"),
    "decoder.cross_attention": ("cross_attentions",),
}
"""Our names of attention maps, and theirs."""


class Ids:
    """A tokenizer of numbers."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.mask = vocabulary, vocabulary - 1

    def token(self, number: int) -> str:
        return f"t{number}"

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return " ".join(map(self.token, ids))


def look(pair: Pair) -> tuple[Inspection, Any]:
    """Ours and theirs of the pair's first text."""
    text = pair.texts[0]
    stream, source = (text.target, text.ids) if pair.both else (text.ids, [])
    reading = Reading(tuple(stream or ()), tuple(source))
    vocabulary = pair.ours.spec.vocabulary
    ours = inspect(pair.ours, Ids(vocabulary), reading, Limits(candidates=vocabulary))
    forget(pair.theirs)
    arguments = {"input_ids": torch.tensor([text.ids]), "attention_mask": torch.ones(1, len(text.ids)).long()}
    if pair.both:
        arguments["decoder_input_ids"] = torch.tensor([text.target])
    with torch.no_grad():
        return ours, pair.theirs(**arguments, output_attentions=True)


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda case: case.name)
def test_a_page_of_every_family(case: Case) -> None:
    pair = pair_of(case)
    ours, theirs = look(pair)
    assert [found.name for found in ours.attentions] == (
        list(THEIRS) if pair.both else [f"{'decoder' if pair.ours.spec.decoder else 'encoder'}.attention"]
    )
    for found in ours.attentions:
        maps = next(
            value for name in THEIRS[found.name] if (value := getattr(theirs, name, None)) is not None
        )
        assert len(found.maps) == len(maps)
        for our_HTS, their_BHTS in zip(found.maps, maps):
            np.testing.assert_allclose(our_HTS, their_BHTS[0].numpy(), atol=1e-5)
    said = [found for found in ours.predictions if found.kind != "masked"]
    assert len(said) == ("tokens" in pair.ours.heads)
    for found in said:
        logits_TV = theirs.logits if hasattr(theirs, "logits") else theirs.prediction_logits
        expected_TV = logits_TV[0].softmax(-1).numpy()
        np.testing.assert_allclose(
            found.values_TK, np.take_along_axis(expected_TV, found.ids_TK, -1), atol=1e-5
        )
