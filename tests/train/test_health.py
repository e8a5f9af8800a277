"""Steps that go wrong: found, named, passed over or gone back from, and the same again after any interruption."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nalanda.base.errors import Interrupted, RunError
from nalanda.config import ConfigError, parse
from nalanda.data.batch import Batch
from nalanda.objectives.tokens import TokensConfig
from nalanda.stages import train
from nalanda.train.config import LoopConfig
from nalanda.train.health import Health, HealthConfig, SpikeConfig, target_of
from nalanda.train.health_search import search
from nalanda.train.hooks import Hook, Moment

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def config(**values: Any) -> LoopConfig:
    defaults = {
        "budget": {"steps": 12},
        "checkpoint": {"every": 4},
        "log_every": 1,
        "precision": "fp32",
        "optimizer": {"kind": "adamw", "lr": 0.02},
    }
    return parse(LoopConfig, {**defaults, **values}, "test")


class StopAt(Hook):
    """As if the power went at a step: raises after that step's logging and before its checkpoint."""

    name = "stop"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise KeyboardInterrupt


class Keep(Hook):
    """The weights after each step."""

    name = "keep"

    def __init__(self) -> None:
        self.weights: dict[int, Tensor] = {}

    def after_step(self, moment: Moment) -> None:
        self.weights[moment.step] = moment.model.up.weight.detach().clone()


@pytest.fixture
def poisoned(toy_source: Any) -> Callable[..., Any]:
    """Makes a toy source whose steps of these numbers (from 0) have an infinite weight in their second batch."""

    class Poisoned(toy_source):
        def __init__(self, *steps: int) -> None:
            super().__init__()
            self.steps = steps

        def step(self, step: int) -> list[Batch]:
            batches: list[Batch] = super().step(step)
            if step in self.steps:
                batches[1]["target_weight"][0, 0] = float("inf")
            return batches

    return Poisoned


@pytest.fixture
def shifted(toy_source: Any) -> Callable[..., Any]:
    """Makes a toy source whose steps are others': `number` of the step -> number of the toy source's step."""

    class Shifted(toy_source):
        def __init__(self, number: Callable[[int], int]) -> None:
            super().__init__()
            self.number = number

        def step(self, step: int) -> list[Batch]:
            return list(super().step(self.number(step)))

    return Shifted


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def without_clock(rows: list[dict[str, Any]]) -> list[str]:
    """As text: a NaN is not equal to itself."""
    return [str({k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}) for row in rows]


# -- where it began --------------------------------------------------------------------------------------------


def watched(model: Any, batches: list[Batch], precision: str = "fp32") -> Any:
    return search(model, TokensConfig(), batches, seed=0, step=3, precision=precision, device=CPU)


class Breaks(nn.Module):
    """A linear layer that gives NaN, or sends one backwards, in rows that hold a number above `limit`."""

    def __init__(self, width: int, backwards: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.backwards = backwards
        self.batch: Batch | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.batch is not None
        y = self.inner(x) * 1
        rows = (self.batch["ids"] == 12).any(1)[:, None, None]
        if not self.backwards:
            return y.masked_fill(rows, math.nan)
        y.register_hook(lambda gradient: gradient.masked_fill(rows, math.nan))
        return y.clone()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_module_and_the_samples_are_found(
    toy: Any, toy_batch: Any, backwards: bool, precision: str
) -> None:
    model, batch = toy(dropout=0.1), toy_batch(5, 6, 3)
    batch["ids"].clamp_(max=11)
    batch["ids"][[1, 3], 0] = 12
    good = toy_batch(2, 4, 1)
    good["ids"].clamp_(max=11)
    model.up = nn.Sequential(Breaks(8, backwards), model.up)
    for part in (good, batch):
        model.up[0].batch = part
        finding = watched(model, [part], precision)
        if part is good:
            assert finding.micro is None
            continue
        assert finding.where == "up.0"
        assert finding.what == ("the gradient" if backwards else "the loss")
        assert finding.samples == ([300, 301, 302, 303, 304] if backwards else [301, 303])
    assert all(weight.grad is None for weight in model.parameters())


def test_a_weight_that_is_not_finite_is_named(toy: Any, toy_batch: Any) -> None:
    model = toy()
    with torch.no_grad():
        model.down.bias[3] = float("inf")
    finding = watched(model, [toy_batch(2, 3, 1), toy_batch(3, 3, 2)])
    assert finding.micro == 0
    assert finding.where == "down, whose weight bias is not finite"
    assert "the loss in micro-batch 1 of 2, first down, whose weight bias" in finding.text(2)


def test_the_objective_is_named_where_the_model_is_right(toy: Any, toy_batch: Any) -> None:
    good, bad = toy_batch(2, 3, 1), toy_batch(3, 3, 2)
    bad["target_weight"][0, 0] = float("nan")
    finding = watched(toy(), [good, bad])
    assert finding.where == "in the objective, of finite hidden states"


def test_hooks_are_gone_and_numbers_are_those_of_the_step(toy: Any, toy_batch: Any) -> None:
    model, batch = toy(dropout=0.5), toy_batch(4, 5, 2)
    watched(model, [batch])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- policies --------------------------------------------------------------------------------------------------


def test_stop_names_step_module_and_samples(folder: Any, toy: Any, toy_source: Any) -> None:
    model = toy()
    model.up = nn.Sequential(Breaks(8, False), model.up)

    class Source(toy_source):
        def step(self, step: int) -> list[Batch]:
            batches: list[Batch] = super().step(step)[1:]
            batches[0]["ids"].clamp_(max=11)
            if step == 5:
                batches[0]["ids"][2, 0] = 12
            model.up[0].batch = batches[0]
            return batches

    wanted = r"^step 6: the loss is nan; the loss, first up\.0; samples \d+02; nothing of this step was kept; .*skip$"
    with pytest.raises(RunError, match=wanted) as caught:
        folder().fit(config(workers=0), model=model, source=Source())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_skipped_step_changes_no_weight_and_counts(folder: Any, poisoned: Any, kind: str) -> None:
    run, keep = folder(), Keep()
    values = config(
        health={"nonfinite": "skip"}, optimizer={"kind": kind, "lr": 0.02}, ema={"decay": 0.9}, log_every=2
    )
    result = run.fit(values, source=poisoned(2, 5, 8, 9), hooks=[keep])
    assert result["steps"] == 12
    for step in range(2, 13):
        assert torch.equal(keep.weights[step], keep.weights[step - 1]) == (step in (3, 6, 9, 10)), step
    assert all(torch.isfinite(value).all() for value in run.weights().values())
    assert [event["step"] for event in result["health"]] == [3, 6, 9, 10]
    assert "step 6: the loss is" in result["notes"][1]
    rows = {row["step"]: row for row in run.rows if "note" not in row}
    assert rows[4]["skipped"] == 1
    assert math.isfinite(rows[4]["loss"])
    assert rows[10]["skipped"] == 2
    assert "loss" not in rows[10]
    assert "skipped" not in rows[12]


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_resumed_equals_uninterrupted(folder: Any, poisoned: Any, policy: str) -> None:
    values = config(health={"nonfinite": policy}, ema={"decay": 0.9}, budget={"steps": 14})
    whole, cut = folder("whole"), folder("cut")
    result = whole.fit(values, source=poisoned(2, 7, 11))
    for at in (1, 2, 3, 4, 5, 7, 9, 10, 12, 13):
        with pytest.raises(KeyboardInterrupt):
            cut.fit(values, source=poisoned(2, 7, 11), hooks=[StopAt(at)])
    again = cut.fit(values, source=poisoned(2, 7, 11))
    assert equal(cut.weights(), whole.weights())
    assert without_clock(cut.rows) == without_clock(whole.rows)
    assert again["health"] == result["health"]
    assert again["notes"] == result["notes"]
    assert len(result["health"]) == 3


def test_a_rewind_goes_on_with_later_data(folder: Any, poisoned: Any, shifted: Any) -> None:
    """Data 0 to 3, then (6 being bad) 7, 8, 9, then (10 being bad, back to step 4 again) 11 and on."""
    run, plain = folder("rewound"), folder("plain")
    result = run.fit(config(health={"nonfinite": "rewind"}), source=poisoned(6, 10))
    plain.fit(config(), source=shifted(lambda step: step if step < 4 else step + 7))
    assert [(e["step"], e["to"]) for e in result["health"]] == [(7, 4), (8, 4)]
    assert equal(run.weights(), plain.weights())
    assert run.losses() == plain.losses()
    assert result["steps"] == 12


def test_a_rewind_to_the_beginning(folder: Any, poisoned: Any, shifted: Any) -> None:
    run, plain = folder("rewound"), folder("plain")
    run.fit(
        config(health={"nonfinite": "rewind"}, optimizer={"kind": "muon", "lr": 0.02}), source=poisoned(1)
    )
    plain.fit(config(optimizer={"kind": "muon", "lr": 0.02}), source=shifted(lambda step: step + 2))
    assert equal(run.weights(), plain.weights())


class Press(Hook):
    """Presses Ctrl-C after a step."""

    name = "press"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_rewind_does_not_see_the_checkpoints_of_interruptions(folder: Any, poisoned: Any) -> None:
    values = config(health={"nonfinite": "rewind"}, checkpoint={"every": 4, "keep": 1})
    whole, cut = folder("whole"), folder("cut")
    result = whole.fit(values, source=poisoned(6))
    for at in (5, 6):
        with pytest.raises(Interrupted):
            cut.fit(values, source=poisoned(6), hooks=[Press(at)])
    again = cut.fit(values, source=poisoned(6))
    assert again["health"] == result["health"]
    assert [event["to"] for event in result["health"]] == [4]
    assert equal(cut.weights(), whole.weights())


def test_a_replay_passes_over_what_was_rewound(folder: Any, poisoned: Any) -> None:
    run, replay = folder("run"), folder("replay")
    run.fit(config(health={"nonfinite": "rewind"}), source=poisoned(6))
    place = run.path / "checkpoints" / "step-000012"
    replay.fit(config(health={"nonfinite": "rewind"}, budget={"replay": place}), source=poisoned(6))
    assert equal(replay.weights(), run.weights())


def test_limits(folder: Any, poisoned: Any) -> None:
    every = poisoned(*range(4, 99))
    with pytest.raises(RunError, match=r"step 5: .*already rewound 2 times; .*raise health.rewinds"):
        folder("rewinds").fit(config(health={"nonfinite": "rewind", "rewinds": 2}), source=every)
    with pytest.raises(RunError, match=r"step 8: .*3 steps before it were skipped; .*raise health.skips"):
        folder("skips").fit(config(health={"nonfinite": "skip", "skips": 3}), source=every)
    done = folder("apart").fit(
        config(health={"nonfinite": "skip", "skips": 1}), source=poisoned(1, 3, 5, 7, 9)
    )
    assert len(done["health"]) == 5


def test_which_checkpoint_a_rewind_goes_to() -> None:
    assert target_of([0, 4, 8], 9, 0, 4) == 8
    assert target_of([0, 4, 8], 8, 0, 4) == 8
    assert target_of([4, 8], 9, 2, 4) == 4
    assert target_of([4, 6, 8], 7, 0, 4) == 4
    assert target_of([4, 8], 9, 7, 4) == 4
    assert target_of([3], 9, 0, 4) == 3
    assert target_of([], 9, 0, 4) is None


def test_a_policy_may_change_between_resumes(folder: Any, poisoned: Any) -> None:
    run = folder()
    with pytest.raises(RunError, match="step 7"):
        run.fit(config(), source=poisoned(6))
    assert run.fit(config(health={"nonfinite": "skip"}), source=poisoned(6))["steps"] == 12
    assert "health" in train.STAGE.free, "a run's folder takes it too"


def test_off_is_not_written() -> None:
    assert "health" not in config().to_dict()
    assert "health" in config(health={"nonfinite": "skip"}).to_dict()


# -- spikes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def spiky(toy_source: Any) -> Callable[..., Any]:
    """Makes a toy source whose steps of these numbers have labels drawn anew, at ten times the weight of others."""

    class Spiky(toy_source):
        def __init__(self, *steps: int) -> None:
            super().__init__()
            self.steps = steps

        def step(self, step: int) -> list[Batch]:
            batches: list[Batch] = super().step(step)
            for batch in batches if step in self.steps else []:
                batch["targets"] = torch.randint(
                    13, batch["targets"].shape, generator=torch.Generator().manual_seed(step)
                )
                batch["target_weight"] *= 10
            return batches

    return Spiky


def spikes(policy: str, **values: Any) -> LoopConfig:
    return config(
        budget={"steps": 40},
        checkpoint={"every": 10},
        optimizer={"kind": "adamw", "lr": 0.05},
        health={"spike": {"policy": policy, "window": 12, "rise": 0.5, "back": 5, **values}},
    )


@pytest.mark.parametrize("policy", ["note", "skip", "rewind"])
def test_planted_spikes_are_found_and_nothing_else(
    folder: Any, spiky: Any, shifted: Any, policy: str
) -> None:
    run, plain = folder("run"), folder("plain")
    result = run.fit(spikes(policy), source=spiky(25, 33))
    found = [event["step"] for event in result["health"]]
    assert found == ([26, 28] if policy == "rewind" else [26, 34])
    if policy == "rewind":  # data 26 come at step 20, so data 33 at step 27, which is counted as 28
        assert [event["to"] for event in result["health"]] == [20, 20]
    assert "in the middle of the 12 steps before; samples" in result["notes"][0]
    calm = plain.fit(spikes("note"), source=spiky())
    assert "health" not in calm


def test_a_rewound_spike_leaves_no_trace(folder: Any, spiky: Any, shifted: Any) -> None:
    run, plain, cut = folder("run"), folder("plain"), folder("cut")
    run.fit(spikes("rewind"), source=spiky(25))
    plain.fit(spikes("rewind"), source=shifted(lambda step: step if step < 20 else step + 6))
    assert equal(run.weights(), plain.weights())
    for at in (22, 25, 29, 35):
        with pytest.raises(KeyboardInterrupt):
            cut.fit(spikes("rewind"), source=spiky(25), hooks=[StopAt(at)])
    cut.fit(spikes("rewind"), source=spiky(25))
    assert equal(run.weights(), cut.weights())
    assert without_clock(cut.rows) == without_clock(run.rows)


def test_what_a_spike_is() -> None:
    spike = SpikeConfig(policy="note", window=10, z=6, rise=0.1)
    health = Health(HealthConfig(spike=spike), warmup=0.5)
    for loss in (2.0, 2.1, 1.9, 2.0, 2.2, 1.8, 2.0, 2.1, 1.9, 2.0):
        assert health.judge(9.0 if loss == 2.2 else loss, 1.0, 0.1).action == "none"
    assert health.judge(2.5, 1.0, 0.4).action == "none"  # still warming up
    assert health.judge(2.5, 1.0, 0.6).action == "none"  # within 6 deviations of 0.1 * 1.48
    assert health.judge(4.5, 1.0, 0.6).action == "note"
    assert health.judge(math.nan, 1.0, 0.6).action == "stop"
    assert health.judge(2.0, math.inf, 0.1).action == "stop"
    flat = Health(HealthConfig(spike=spike))
    for _ in range(10):
        flat.judge(2.0, 1.0, 0.6)
    assert flat.judge(2.19, 1.0, 0.6).action == "none"  # no deviation at all, but less than a tenth
    assert flat.judge(2.21, 1.0, 0.6).action == "note"


def test_checkpoints_must_reach_back_far_enough() -> None:
    with pytest.raises(
        ConfigError, match=r"spike.back: 20 steps back need 6 checkpoints of every 4 steps.*keep=6"
    ):
        config(health={"spike": {"policy": "rewind"}})
    config(health={"spike": {"policy": "rewind"}}, checkpoint={"every": 4, "keep": 6})
