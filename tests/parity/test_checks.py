"""The checks see what they are for: a network that differs in one place fails them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from parity.cases import CASES
from parity.checks import CHECKS, Broken
from parity.pair import Pair, build

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own warnings, not ours


def of(architecture: str, folder: Path) -> Pair:
    case = next(case for case in CASES if case.architecture == architecture)
    return build(case, folder / "pair")


def found(pair: Pair, name: str, folder: Path) -> float | None:
    """What a check measures; infinity where it is broken off."""
    folder = folder / name
    folder.mkdir()
    try:
        return CHECKS[name].measure(pair, folder)
    except Broken:
        return float("inf")


@torch.no_grad()
def one_weight(pair: Pair) -> None:
    pair.ours.transformer.decoder.blocks[1].feedforward.output.weight[3, 5] += 1.0


@torch.no_grad()
def swapped(pair: Pair) -> None:
    weight = pair.ours.transformer.decoder.blocks[0].feedforward.gate_up.weight
    weight.copy_(torch.cat(weight.chunk(2)[::-1]))


@pytest.mark.parametrize("change", [one_weight, swapped])
def test_a_difference_is_seen(change: Callable[[Pair], None], tmp_path: Path) -> None:
    pair = of("LlamaForCausalLM", tmp_path)
    assert found(pair, "logits", tmp_path) <= 1e-5
    change(pair)
    (tmp_path / "logits").rmdir()
    for name in ("logits", "gradients", "greedy", "saved"):
        assert found(pair, name, tmp_path) > CHECKS[name].limit, name


def test_a_leak_between_texts_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = of("LlamaForCausalLM", tmp_path)
    forward = pair.ours.transformer.forward

    def leaking(
        ids: torch.Tensor, segments: torch.Tensor | None = None, *rest: object, **more: object
    ) -> object:
        return forward(more.pop("ids_BT", ids), None, None, **{k: v for k, v in more.items() if k == "cache"})

    monkeypatch.setattr(
        pair.ours.transformer, "forward", lambda *a, **k: leaking(*a, **k) if a else leaking(k["ids_BT"], **k)
    )
    for name in ("padded", "packed"):
        assert found(pair, name, tmp_path) > CHECKS[name].limit, name


def test_a_tensor_without_effect_is_seen(tmp_path: Path) -> None:
    pair = of("LlamaForCausalLM", tmp_path)
    pair.ours.transformer.decoder.blocks[1].attention.output.weight.data.zero_()
    assert found(pair, "nudged", tmp_path) == float("inf")


def test_another_search_is_seen(tmp_path: Path) -> None:
    pair = of("MarianMTModel", tmp_path)
    assert found(pair, "beam", tmp_path) == 0
    (tmp_path / "beam").rmdir()
    with torch.no_grad():
        pair.ours.heads["tokens"].output.bias.add_(torch.randn(pair.ours.spec.vocabulary))
    assert found(pair, "beam", tmp_path) > 0
