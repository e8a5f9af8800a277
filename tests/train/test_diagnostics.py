"""Figures from inside: right, complete, and without a trace in the training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_runs import Texts, Work, model_of

from nalanda.config import parse
from nalanda.nn.model import Model
from nalanda.train.config import LoopConfig
from nalanda.train.diagnostics import Diagnostics, DiagnosticsConfig, activations, part_of
from nalanda.train.hooks import Hook, Moment

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**values: Any) -> LoopConfig:
    defaults = {
        "budget": {"steps": 6}, "log_every": 2, "precision": "fp32", "checkpoint": {"every": 2},
        "optimizer": {"kind": "adamw", "lr": 0.01},
    }  # fmt: skip
    return parse(LoopConfig, {**defaults, **values}, "test")


def run(folder: Any, hooks: list[Hook], model: Model | None = None, **values: Any) -> Any:
    folder.fit(
        config(**values),
        hooks=hooks,
        model=model or model_of(Work(model={"dropout": 0.1})),
        source=Texts(micros=2),
    )
    return folder


def trained_rows(folder: Any) -> list[dict[str, Any]]:
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in folder.rows if "loss" in row]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_the_same_to_the_bit(folder: Any, precision: str) -> None:
    off = run(folder("off"), [], precision=precision)
    on = run(folder("on"), [Diagnostics(DiagnosticsConfig(every=1))], precision=precision)
    assert trained_rows(off) == trained_rows(on)
    assert all(torch.equal(value, on.weights()[name]) for name, value in off.weights().items())
    assert len([row for row in on.rows if "weights_changed" in row]) == 6
    assert not any("weights_changed" in row for row in off.rows)


class Keep(Hook):
    """The gradient and the weights around the update of every step."""

    name = "keep"

    def watches(self, step: int) -> bool:
        return True

    def before_update(self, moment: Moment, batches: Any) -> None:
        self.batch = batches[0]
        self.gradients = {n: w.grad.clone() for n, w in moment.model.named_parameters() if w.grad is not None}
        self.before = {n: w.detach().clone() for n, w in moment.model.named_parameters()}

    def after_update(self, moment: Moment) -> None:
        self.after = {n: w.detach().clone() for n, w in moment.model.named_parameters()}


def test_figures_are_those_of_the_step(folder: Any) -> None:
    keep = Keep()
    done = run(folder(), [keep, Diagnostics(DiagnosticsConfig(every=6))], log_every=1, clip=0.01)
    (row,) = (row for row in done.rows if "weights_changed" in row)
    assert row["step"] == 6
    whole = math.sqrt(sum(v**2 for k, v in row.items() if k.startswith("gradient_norm/")))
    logged = next(r for r in done.rows if r["step"] == 6 and "gradient_norm" in r)
    assert whole == pytest.approx(logged["gradient_norm"], rel=1e-5), "of the gradient before it was clipped"
    names = [n for n in keep.before if ".decoder.blocks.1.feedforward." in n]
    assert len(names) == 2
    square = sum(float(keep.gradients[n].double().square().sum()) for n in names)
    assert row["gradient_norm/decoder.1.feedforward"] == pytest.approx(math.sqrt(square), rel=1e-6)
    moved = sum(float((keep.after[n] - keep.before[n]).double().square().sum()) for n in names)
    size = sum(float(keep.before[n].double().square().sum()) for n in names)
    assert row["update_size/decoder.1.feedforward"] == pytest.approx(math.sqrt(moved / size), rel=1e-6)
    same = sum(int((keep.after[n] == keep.before[n]).sum()) for n in keep.before)
    total = sum(w.numel() for w in keep.before.values())
    assert row["weights_changed"] == pytest.approx(1 - same / total)
    assert 0 < row["weights_changed_bf16"] < row["weights_changed"]
    assert {"tokens", "decoder.norm", "decoder.0.attention", "decoder.1.feedforward_norm"} <= {
        key.partition("/")[2] for key in row
    }


def moment_of(model: Model) -> Moment:
    return Moment(
        step=1, last=False, model=model, device=torch.device("cpu"), precision="fp32", seed=0,
        log=lambda row: None, weights=lambda: None,  # type: ignore[arg-type, return-value]
    )  # fmt: skip


def test_dead_units_and_attention_that_looks_everywhere_are_seen() -> None:
    model = model_of(Work(model={"feedforward": "mlp", "activation": "relu", "dropout": 0.5}))
    block = model.transformer.decoder.blocks[0]  # type: ignore[union-attr]
    with torch.no_grad():
        block.feedforward.input.weight[:8] = 0  # type: ignore[union-attr, operator, index]
        block.attention.qkv.weight.zero_()  # type: ignore[union-attr, operator]
    batch = Texts().step(0)[0]
    row = activations(moment_of(model), batch)
    assert row["dead_units/decoder.0"] == pytest.approx(8 / 32)
    even = torch.log(batch["positions"][batch["segments"] != 0].double() + 1).mean()
    assert row["attention_entropy/decoder.0"] == pytest.approx(float(even), rel=1e-5)
    assert row["attention_entropy_least/decoder.1"] <= row["attention_entropy/decoder.1"]
    model.eval()
    stream = model(batch, capture=("residuals",)).captured["decoder.residuals"][1][batch["segments"] != 0]
    assert row["activation_scale/decoder.0"] == pytest.approx(
        float(stream.detach().square().mean().sqrt()), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_other_networks(folder: Any, kind: str) -> None:
    model = model_of(Work(model={"kind": kind, "kv_heads": None}))
    batch = Texts().step(0)[0]
    if kind == "encoder_decoder":
        for key in ("ids", "segments", "positions"):
            batch[f"source_{key}"] = batch[key][:, :9]  # type: ignore[literal-required]
    row = activations(moment_of(model), batch)
    stacks = {key.partition("/")[2].partition(".")[0] for key in row}
    assert stacks == ({"encoder", "decoder"} if kind == "encoder_decoder" else {"encoder"})
    assert all(math.isfinite(value) for value in row.values())


def test_a_model_of_unknown_parts_has_gradients_and_updates(folder: Any, toy: Any) -> None:
    done = folder()
    done.fit(config(), hooks=[Diagnostics(DiagnosticsConfig(every=3))])
    rows = [row for row in done.rows if "weights_changed" in row]
    assert [row["step"] for row in rows] == [3, 6]
    assert "gradient_norm/up" in rows[0]
    assert "update_size/embedding" in rows[0]


def test_a_skipped_step_changes_nothing(folder: Any) -> None:
    done = folder()
    done.fit(
        config(health={"nonfinite": "skip"}), model=model_of(Work()), source=Texts(micros=2, infinite=(2,)),
        hooks=[Diagnostics(DiagnosticsConfig(every=3))],
    )  # fmt: skip
    assert [row["weights_changed"] > 0 for row in done.rows if "weights_changed" in row] == [False, True]


def test_what_is_not_logged_yet_is_in_the_checkpoint() -> None:
    one, two, rows = Diagnostics(DiagnosticsConfig()), Diagnostics(DiagnosticsConfig()), []
    one.row = {"weights_changed": 0.5}
    two.load(one.state(), {}, 3)
    moment = moment_of(model_of(Work()))
    moment.log = rows.append
    two.after_step(moment)
    two.after_step(moment)
    assert rows == [{"step": 1, "weights_changed": 0.5}]


def test_names_of_parts() -> None:
    assert part_of("transformer.decoder.blocks.3.attention.qkv.weight") == "decoder.3.attention"
    assert part_of("transformer.tokens.weight") == "tokens"
    assert part_of("heads.tokens.weight") == "heads.tokens"
    assert part_of("scale") == "scale"
