"""The same weights in Hugging Face's models give the same texts, greedy and beam, by their `generate` and ours.

Theirs runs with early_stopping="never", whose result is exact as ours is. They rank a text that the limit cut off
with the complete ones; ours takes it as the last resort only, so it is held against their best complete text.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nalanda.generate.decode import DecodeConfig, generate

transformers = pytest.importorskip("transformers")
from generate import others as weights  # noqa: E402  (it needs transformers too)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours

PAD, LENGTH = weights.V - 1, 12
# Where a decoder starts, and an EOS that these random weights come to: at several lengths, and not always.
SPECIAL = {"gpt2": (PAD, 25), "llama": (PAD, 53), "t5": (0, 58), "marian": (PAD, 4)}
PROMPTS = [[5, 9, 11, 2], [40, 7, 7, 31, 22, 2], [13, 2], [50, 51, 52, 53, 54, 55, 56]]


class Numbers:
    """Every id is a token; the text is the ids."""

    vocabulary, pad = weights.V, PAD

    def __init__(self, bos: int, eos: int) -> None:
        self.bos, self.eos, self.special_ids = bos, eos, frozenset({PAD, eos, bos})
        self.ends = (eos,)

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def theirs(model: Any, prompt: list[int], numbers: Numbers, **options: Any) -> list[tuple[list[int], float]]:
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=numbers.eos,
        pad_token_id=PAD,
        forced_eos_token_id=None,
        decoder_start_token_id=numbers.bos,
        suppress_tokens=[PAD, numbers.bos],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    rows = [[i for i in ids[start:] if i != PAD] for ids in found.sequences.tolist()]
    return list(zip(rows, found.sequences_scores.tolist() if "num_beams" in options else [0.0]))


@pytest.fixture(scope="module", params=list(SPECIAL))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Numbers]:
    old, new = weights.build(request.param, tmp_path_factory.mktemp(request.param))
    return old, new, Numbers(*SPECIAL[request.param])


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}, {"no_repeat_ngram": 2}])
def test_greedy(pair: tuple[Any, Any, Numbers], options: dict[str, Any]) -> None:
    old, new, numbers = pair
    found = generate(new, PROMPTS, numbers, DecodeConfig(max_length=LENGTH, **options))
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    for prompt, generation in zip(PROMPTS, found):
        [(expected, _)] = theirs(old, prompt, numbers, **{names.get(k, k): v for k, v in options.items()})
        assert [*generation.ids, *[numbers.eos] * (generation.finish == "eos")] == expected


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_beam(pair: tuple[Any, Any, Numbers], alpha: float) -> None:
    old, new, numbers = pair
    config = DecodeConfig(kind="beam", beams=4, length_penalty=alpha, max_length=LENGTH)
    options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": alpha, "early_stopping": "never"}
    complete = 0
    for prompt, generation in zip(PROMPTS, generate(new, PROMPTS, numbers, config)):
        kept = theirs(old, prompt, numbers, **options)
        ended = [(ids, rank) for ids, rank in kept if ids[-1] == numbers.eos]
        if not ended and generation.finish == "eos":
            continue  # four cut-off texts have pushed it out of their pool
        expected, rank = (ended or kept)[0]
        assert [*generation.ids, *[numbers.eos] * (generation.finish == "eos")] == expected
        assert generation.score / len(expected) ** alpha == pytest.approx(rank, abs=1e-4)
        complete += bool(ended)
    assert complete > 0
