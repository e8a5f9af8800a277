"""Layouts: only such as can be, the fastest that fits first, and FLOPs as torch counts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nalanda.base.errors import UserError
from nalanda.models.plain import ModelConfig, build_spec
from nalanda.models.reading import build_empty
from nalanda.nn.model import Model
from nalanda.nn.spec import TokensHeadSpec
from nalanda.train.machines import devices, find
from nalanda.train.optimizer import AdamWConfig
from nalanda.train.plan_layout import USABLE, Job, enough, layouts, search
from nalanda.train.plan_memory import Rows, Sizes

HEADS = {"tokens": TokensHeadSpec()}


def job(
    layers: int = 12, hidden: int = 768, rows: float = 512, length: int = 1024, vocabulary: int = 50_000
) -> Job:
    config = ModelConfig(kind="decoder", layers=layers, hidden=hidden, heads=hidden // 64, max_length=length)
    model = build_empty(build_spec(config, vocabulary), HEADS)
    return Job(
        model.spec,
        Sizes.of(model),
        Rows(rows, length),
        model.flops_per_token(length),
        "bf16",
        AdamWConfig(),
        chunk=1342,
        block=1342,
    )


def test_a_small_model_is_only_replicated() -> None:
    best = search(job(), find("h100x8"))[0]
    assert best.fits
    assert (best.layout.data, best.layout.tensor, best.layout.shard) == (8, 1, False)
    # 124 M parameters at 40 % of 8 x 989 TFLOPS: 6 N a token and attention.
    assert 0.9 < best.seconds / (job().flops_per_place * 512 * 1024 / (8 * 989e12 * 0.4)) < 1.15


def test_a_large_model_is_cut_and_what_fits_comes_first() -> None:
    found = search(job(layers=48, hidden=8192, rows=64, length=4096), find("h100x64"))
    best = found[0]
    assert best.fits
    assert best.memory.peak <= USABLE * 80e9
    assert best.layout.shard or best.layout.tensor > 1
    fits = [each.fits for each in found]
    assert fits == sorted(fits, reverse=True)


def test_a_model_that_fits_nowhere_says_how_many_would_do() -> None:
    large = job(layers=48, hidden=8192, rows=512, length=2048)
    assert not search(large, find("t4"))[0].fits
    count = enough(large, find("a100-40"))
    assert count is not None
    assert count > 8
    assert search(large, find(f"a100-40x{count}"))[0].fits


def test_layouts_divide_the_devices_and_the_heads() -> None:
    large = job(rows=64)
    for layout in layouts(large, find("h100x16")):
        assert layout.data * layout.expert * layout.context * layout.tensor == 16
        assert 12 % layout.tensor == 0
        assert layout.tensor <= 8
    assert not list(layouts(job(rows=1), find("h100x8")))


def test_long_rows_may_be_shared_out() -> None:
    long = job(rows=4, length=65_536)
    assert any(layout.context > 1 for layout in layouts(long, find("h100x8")))


def test_more_devices_and_a_better_share_are_faster() -> None:
    one, eight = (search(job(), find(name))[0].seconds for name in ("h100", "h100x8"))
    assert 6 < one / eight <= 8
    assert search(job(), find("h100"), 0.5)[0].seconds < one


def test_machines_are_found_and_others_are_told_what_is_near() -> None:
    assert find("H100x8").count == 8
    assert find("mi300x").count == 1
    assert find("mi300xx4").count == 4
    assert find("rtx4090x2").device == devices()["rtx4090"]
    for name, near in (("h10", "h100"), ("a100", "a100-80"), ("rtx4080", "rtx4090"), ("h100x0", "from 1")):
        with pytest.raises(UserError, match=near) as caught:
            find(name)
        assert "\n" not in str(caught.value)


def test_every_machine_can_be_planned_for_and_states_dense_peaks() -> None:
    small = job(rows=8)
    for name, device in devices().items():
        assert device.bf16 == 0 or device.bf16 >= device.fp32
        assert search(replace(small, precision="bf16" if device.bf16 else "fp32"), find(name))
    assert devices()["h100"].bf16 == 989e12  # the data sheet's 1,979 is with sparsity
    assert devices()["a100-80"].bf16 == 312e12


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder_decoder"])
def test_flops_are_those_that_torch_counts(kind: str) -> None:
    values = {"kind": kind, "layers": 2, "hidden": 64, "heads": 4, "position": "learned"}
    model = Model(build_spec(ModelConfig.model_validate(values), vocabulary=300), HEADS)
    rows, length, source = 2, 32, 32 if kind == "encoder_decoder" else 0
    batch = {"ids": torch.randint(300, (rows, length))}
    if source:
        batch["source_ids"] = torch.randint(300, (rows, source))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(batch).hidden_BTD).sum().backward()
    counted = counter.get_total_flops()
    expected = model.flops_per_token(length, source) * rows * (length + source)
    # Torch counts all of a causal square, where half is needed: 4 B T T D forward, twice that backward, half of it.
    if kind != "encoder":
        expected += 3 * 2 * 2 * rows * length * length * 64
    assert counted == pytest.approx(expected, rel=0.01)
