"""Decoding against full forward passes without a cache, and each prompt's text against the text it gives alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.config import ConfigError, parse
from nalanda.generate.batching import plan
from nalanda.generate.decode import DecodeConfig, Generation, generate, stream
from nalanda.generate.scoring import log_probabilities
from nalanda.nn.model import Model

Prompts = list[list[int]]
Make = Callable[..., Model]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"kind": "greedy"},
    "greedy, constrained": {
        "kind": "greedy",
        "no_repeat_ngram": 2,
        "repetition_penalty": 1.3,
        "min_length": 3,
    },
    "sample": {"kind": "sample", "temperature": 1.3, "top_k": 12, "top_p": 0.95, "min_p": 0.01, "seed": 5},
    "beam": {"kind": "beam", "beams": 4},
    "beam, constrained": {
        "kind": "beam",
        "beams": 3,
        "no_repeat_ngram": 2,
        "repetition_penalty": 1.2,
        "n_best": 2,
    },
    "beam, stop": {"kind": "beam", "beams": 3, "length_penalty": 0.5, "stop": ("c", "ab")},
}


@torch.no_grad()
def next_log_probabilities(model: Model, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """The plain way: everything again at each step, no cache, one row."""
    if model.transformer.both:
        output = model.transformer(torch.tensor([[1, *text]]), source_ids_BS=torch.tensor([prompt]))
    else:
        output = model.transformer(torch.tensor([[*prompt, *text]]))
    return model.logits(output.hidden_BTD[0, -1]).log_softmax(0)


def same(found: Generation, expected: Generation) -> None:
    assert (found.ids, found.text, found.finish) == (expected.ids, expected.text, expected.finish)
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert len(found.alternatives) == len(expected.alternatives)
    for one, other in zip(found.alternatives, expected.alternatives):
        same(one, other)


def test_greedy_is_the_argmax_of_a_full_forward_at_each_step(
    model: Model, tokenizer: Any, prompts: Prompts
) -> None:
    found = generate(model, prompts, tokenizer, DecodeConfig(max_length=12))
    for prompt, generation in zip(prompts, found):
        text: list[int] = []
        score, finish = 0.0, "length"
        while len(text) < 12:
            values = next_log_probabilities(model, prompt, text)
            allowed = values.clone()
            allowed[[0, 1, 3, 22]] = -torch.inf
            token = int(allowed.argmax())
            score += values[token].item()
            if token == 2:
                finish = "eos"
                break
            text.append(token)
        assert (generation.ids, generation.finish) == (text, finish)
        assert generation.score == pytest.approx(score, abs=1e-4)
        assert generation.text == tokenizer.decode(text)


def test_the_small_models_are_worth_testing_with(model: Model, tokenizer: Any, prompts: Prompts) -> None:
    config = DecodeConfig(max_length=12)
    found = generate(model, prompts, tokenizer, config)
    assert len({tuple(generation.ids) for generation in found}) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_prompt_gives_alone(
    model: Model, tokenizer: Any, prompts: Prompts, kind: str
) -> None:
    config = DecodeConfig(max_length=10, **KINDS[kind])
    together = generate(model, prompts, tokenizer, config)
    alone = [generate(model, [p], tokenizer, config, requests=[i])[0] for i, p in enumerate(prompts)]
    split = generate(model, prompts, tokenizer, config.model_copy(update={"batch_tokens": 150}))
    order = [5, 0, 7, 2, 1, 6, 4, 3]
    shuffled = generate(model, [prompts[i] for i in order], tokenizer, config, requests=order)
    for i in range(len(prompts)):
        same(together[i], alone[i])
        same(split[i], alone[i])
        same(shuffled[order.index(i)], alone[i])


@pytest.mark.parametrize("name", ["seq2seq rotary", "decoder learned"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(
    make_model: Make, tokenizer: Any, prompts: Prompts, name: str, alpha: float
) -> None:
    model, letters = make_model(name), range(4, 22)
    texts = [[], *([a] for a in letters), *([a, b] for a in letters for b in letters)]
    config = DecodeConfig(kind="beam", beams=18 * 18, max_length=3, length_penalty=alpha, n_best=6)
    for prompt, found in zip(prompts[:3], generate(model, prompts[:3], tokenizer, config)):
        targets = [[*text, 2] for text in texts]
        rows = log_probabilities(model, [prompt] * len(targets), targets, bos=1)
        ranked = sorted(zip([sum(row) / len(row) ** alpha for row in rows], texts, rows), reverse=True)
        for generation, (_, text, row) in zip([found, *found.alternatives], ranked):
            assert generation.ids == text
            assert generation.score == pytest.approx(sum(row), abs=1e-4)
        assert len(found.alternatives) == 5


def test_one_beam_is_greedy(model: Model, tokenizer: Any, prompts: Prompts) -> None:
    greedy = generate(model, prompts, tokenizer, DecodeConfig(max_length=10))
    beam = generate(
        model, prompts, tokenizer, DecodeConfig(kind="beam", beams=1, length_penalty=0, max_length=10)
    )
    for one, other in zip(greedy, beam):
        same(one, other)


def test_scores_of_complete_texts_are_those_of_forced_decoding(
    model: Model, tokenizer: Any, prompts: Prompts
) -> None:
    config = DecodeConfig(kind="beam", beams=3, max_length=14)
    complete = [
        (p, g) for p, g in zip(prompts, generate(model, prompts, tokenizer, config)) if g.finish == "eos"
    ]
    assert complete
    rows = log_probabilities(model, [p for p, _ in complete], [[*g.ids, 2] for _, g in complete], bos=1)
    assert [g.score for _, g in complete] == pytest.approx([sum(row) for row in rows], abs=1e-4)


def test_sampling_follows_the_model(make_model: Make, tokenizer: Any) -> None:
    model, prompt, count = make_model("decoder rotary grouped window"), [5, 9, 7], 4000
    config = DecodeConfig(kind="sample", temperature=1.5, top_k=5, max_length=1)
    found = generate(model, [prompt] * count, tokenizer, config)
    values = next_log_probabilities(model, prompt, [])
    values[[0, 1, 3, 22]] = -torch.inf
    best = values.topk(5)
    expected = (best.values / 1.5).softmax(0)
    drawn = [generation.ids[0] if generation.ids else 2 for generation in found]
    assert set(drawn) <= set(best.indices.tolist())
    for token, probability in zip(best.indices.tolist(), expected.tolist()):
        assert drawn.count(token) / count == pytest.approx(probability, abs=0.03)  # standard error < 0.008


def test_seeds(make_model: Make, tokenizer: Any, prompts: Prompts) -> None:
    model, config = make_model("seq2seq rotary"), DecodeConfig(kind="sample", max_length=12, temperature=2.0)
    one, again = (generate(model, prompts, tokenizer, config) for _ in range(2))
    assert one == again
    assert one != generate(model, prompts, tokenizer, config.model_copy(update={"seed": 1}))
    assert one[1].ids != one[7].ids  # the same prompt, another request


@pytest.mark.parametrize("kind", ["greedy", "sample", "beam"])
def test_no_ngram_comes_twice(model: Model, tokenizer: Any, prompts: Prompts, kind: Any) -> None:
    def repeats(n: int) -> int:
        config = DecodeConfig(kind=kind, no_repeat_ngram=n, min_length=14, max_length=14, beams=3)
        short = [[4, 5, 6, 4, 5, 6], *[p[:3] for p in prompts]]
        count = 0
        for prompt, found in zip(short, generate(model, short, tokenizer, config)):
            text = found.ids if model.transformer.both else prompt + found.ids
            grams = list(itertools.pairwise(text))
            own = 0 if model.transformer.both else len(prompt) - 1 - len(set(itertools.pairwise(prompt)))
            count += len(grams) - len(set(grams)) - own
        return count

    assert repeats(2) == 0
    if kind != "sample":
        assert repeats(0) > 0


def test_a_text_that_could_only_repeat_itself_ends(make_model: Make, tokenizer: Any) -> None:
    config = DecodeConfig(no_repeat_ngram=1, min_length=60, max_length=60)
    for kind in ("greedy", "beam"):
        found = generate(
            make_model("seq2seq relative"), [[5, 6]], tokenizer, config.model_copy(update={"kind": kind})
        )
        assert sorted(found[0].ids) == list(range(4, 22))
        assert found[0].finish == "eos"


@pytest.mark.parametrize("kind", ["greedy", "sample", "beam"])
def test_lengths_and_forbidden_tokens(model: Model, tokenizer: Any, prompts: Prompts, kind: Any) -> None:
    with torch.no_grad():
        model.heads["tokens"].output.bias[[0, 1, 3, 22]] += 30.0  # type: ignore[union-attr, index]
    config = DecodeConfig(kind=kind, min_length=4, max_length=6)
    found = generate(model, prompts, tokenizer, config)
    for generation in found:
        assert set(generation.ids) <= set(range(4, 22))
        assert (
            4 <= len(generation.ids) + (generation.finish == "eos") - 1 + (generation.finish == "length") <= 6
        )
        assert len(generation.ids) == 6 or generation.finish == "eos"


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_positions_bound_a_decoder(make_model: Make, tokenizer: Any, kind: Any) -> None:
    model = make_model("decoder learned")
    config = DecodeConfig(kind=kind, min_length=9, max_length=9, beams=2)
    prompts = [[5] * 24, [5] * 20, [5] * 3, [6] * 22]
    found = generate(model, prompts, tokenizer, config)
    assert [len(g.ids) for g in found] == [1, 5, 9, 3]
    assert {g.finish for g in found} == {"length"}
    for prompt, generation in zip(prompts, found):
        same(generate(model, [prompt], tokenizer, config)[0], generation)
    # One row of many ends at the last position; until it leaves the batch it must not be read beyond it.
    crowd = generate(model, [[5] * 23] + [[5] * 3] * 20, tokenizer, config)
    assert [len(g.ids) for g in crowd] == [2] + [9] * 20


def test_a_stop_string_ends_the_text_before_it(model: Model, tokenizer: Any, prompts: Prompts) -> None:
    config = DecodeConfig(max_length=14)
    hit = 0
    for prompt, free in zip(prompts, generate(model, prompts, tokenizer, config)):
        if len(free.text) < 4:
            continue
        stop = free.text[2:4]
        stopped = generate(model, [prompt], tokenizer, config.model_copy(update={"stop": ("zz", stop)}))[0]
        assert stopped.finish == "stop"
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.ids == free.ids[: len(stopped.text)]
        spent = len(stopped.text) + 2
        values = log_probabilities(model, [prompt], [free.ids[:spent]], bos=1)[0]
        assert stopped.score == pytest.approx(sum(values), abs=1e-4)
        hit += 1
    assert hit >= 2


@pytest.mark.parametrize("kind", ["greedy", "sample"])
def test_a_stream_gives_the_same_text_piece_by_piece(
    model: Model, tokenizer: Any, prompts: Prompts, kind: Any
) -> None:
    config = DecodeConfig(kind=kind, max_length=12, stop=("dcb", "ee"), temperature=1.5)
    whole = generate(model, prompts, tokenizer, config)
    pieces = [list(stream(model, p, tokenizer, config, request=i)) for i, p in enumerate(prompts)]
    assert ["".join(parts) for parts in pieces] == [generation.text for generation in whole]
    assert max(len(parts) for parts in pieces) >= 5
    with pytest.raises(ValueError, match="beam"):
        next(stream(model, prompts[0], tokenizer, DecodeConfig(kind="beam")))


def test_the_model_is_left_as_it_was_and_can_be_trained(
    model: Model, tokenizer: Any, prompts: Prompts
) -> None:
    model.train()
    generate(model, prompts, tokenizer, DecodeConfig(max_length=3))
    assert all(module.training for module in model.modules())
    source = {"source_ids_BS": torch.tensor([[5, 6]])} if model.transformer.both else {}
    output = model.transformer(torch.tensor([[4, 5, 6]]), **source)
    model.logits(output.hidden_BTD).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bad_prompts_are_named(make_model: Make, tokenizer: Any) -> None:
    model, config = make_model("decoder learned"), DecodeConfig(max_length=3)
    for prompts, message in [
        ([[5], []], "prompt 1 is empty"),
        ([[5] * 25], "prompt 0 has 25 tokens and the model's decoder 24 positions"),
        ([[5], [23]], "prompt 1 has an id outside the model's vocabulary of 23"),
        ([[-1]], "prompt 0 has an id outside"),
    ]:
        with pytest.raises(DataError, match=message):
            generate(model, prompts, tokenizer, config)
    with pytest.raises(DataError, match="prompt 0 has 65 tokens and the model's encoder 64 positions"):
        generate(make_model("seq2seq sinusoidal post"), [[5] * 65], tokenizer, config)
    with pytest.raises(DataError, match="do not belong together"):
        generate(model, [[5]], type("Big", (type(tokenizer),), {"vocabulary": 24})(), config)
    assert generate(model, [], tokenizer, config) == []


def test_contradictory_configs_are_refused() -> None:
    for values, message in [
        ({"min_length": 5, "max_length": 4}, "min_length 5 is above max_length 4"),
        ({"kind": "beam", "beams": 2, "n_best": 3}, "n_best 3 is above beams 2"),
        ({"n_best": 2}, "needs kind: beam"),
        ({"stop": [""]}, "empty stop string"),
        ({"temperature": 0}, "kind=greedy"),
        ({"temperature": -1}, "greater than 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse(DecodeConfig, values, "test")


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [3, 50, 7, 7, 1, 200, 12]
    for places, extra, width in itertools.product((1, 60, 500), (0, 10), (1, 4)):
        batches = plan(lengths, places, extra, width)
        assert sorted(itertools.chain(*batches)) == list(range(7))
        for batch in batches:
            taken = width * len(batch) * (max(lengths[i] for i in batch) + extra)
            assert taken <= places or len(batch) == 1


def test_progress_counts_the_texts(make_model: Make, tokenizer: Any, prompts: Prompts) -> None:
    seen: list[int] = []

    class Bar:
        def __call__(self, label: str, total: int | None = None, unit: str = "rows") -> Bar:
            assert total == len(prompts)
            return self

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int = 0, **shown: str | float) -> None:
            seen.append(n)

    config = DecodeConfig(max_length=3, batch_tokens=30)
    generate(make_model("decoder learned"), prompts, tokenizer, config, progress=Bar())
    assert sum(seen) == len(prompts)
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_batches_on_several_cores_give_the_same_and_give_the_threads_back(
    model: Model, tokenizer: Any, prompts: Prompts, kind: Any
) -> None:
    config = DecodeConfig(kind=kind, max_length=6, batch_tokens=60)
    serial = generate(model, prompts, tokenizer, config)
    torch.set_num_threads(2)  # the fixture puts it back
    for one, other in zip(generate(model, prompts, tokenizer, config), serial):
        same(one, other)
    assert torch.get_num_threads() == 2

    class Broken:
        def decode(self, ids: Sequence[int]) -> str:
            raise KeyboardInterrupt

    broken = type("Broken", (Broken, type(tokenizer)), {})()
    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts, broken, config)
    assert torch.get_num_threads() == 2


def test_alternatives_are_in_order(make_model: Make, tokenizer: Any, prompts: Prompts) -> None:
    config = DecodeConfig(kind="beam", beams=5, n_best=4, length_penalty=0.0, max_length=12)
    for best in generate(make_model("seq2seq relative"), prompts, tokenizer, config):
        every = [replace(best, alternatives=()), *best.alternatives]
        complete = [g.score for g in every if g.finish == "eos"]
        assert complete == sorted(complete, reverse=True)
        assert len({(*g.ids, g.finish == "eos") for g in every}) == len(every)
