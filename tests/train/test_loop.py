"""The loop: the same run twice, resumes, errors, Ctrl-C, hooks."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nalanda.base.errors import Interrupted, RunError
from nalanda.config import ConfigError, parse
from nalanda.objectives.next_sentence import MlmNextSentenceConfig
from nalanda.objectives.tokens import TokensConfig
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, Moment, Sampling, evaluate
from nalanda.train.optimizer import MuonConfig
from nalanda.train.precision import resolve
from nalanda.train.schedule import BudgetConfig


def config(**values: Any) -> LoopConfig:
    defaults = {
        "budget": {"steps": 12},
        "checkpoint": {"every": 4},
        "log_every": 1,
        "optimizer": {"lr": 0.02},
    }
    optimizer = {"kind": "adamw", **values.pop("optimizer", defaults.pop("optimizer"))}
    return parse(LoopConfig, {**defaults, "optimizer": optimizer, **values}, "test")


class StopAt(Hook):
    """As if the power went at a step: raises after that step's logging and before its checkpoint."""

    name = "stop"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise KeyboardInterrupt


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": {"kind": "muon", "lr": 0.02}, "ema": {"decay": 0.9}, "log_every": 5},
        {"optimizer": {"weight_decay": 0.1}, "workers": 0, "clip": 0.5},
    ],
)
def test_resumed_equals_uninterrupted(folder: Any, toy_source: Any, options: dict[str, Any]) -> None:
    def hooks() -> list[Hook]:
        dev = Evaluation(EvaluationConfig(every=3), toy_source(5), TokensConfig())
        return [dev, Sampling(6, lambda model: float(torch.rand(())))]

    whole, cut = folder("whole"), folder("cut")
    result = whole.fit(config(**options), hooks=hooks())
    for at in (3, 6, 7, 11):
        with pytest.raises(KeyboardInterrupt):
            cut.fit(config(**options), hooks=[*hooks(), StopAt(at)])
    again = cut.fit(config(**options), hooks=hooks())
    assert without_clock(cut.rows) == without_clock(whole.rows)
    assert equal(cut.weights(), whole.weights())
    clock = {"training_seconds", "waited_for_data"}
    assert {k: v for k, v in again.items() if k not in clock} == {
        k: v for k, v in result.items() if k not in clock
    }


def test_the_same_run_twice_is_bit_equal_and_another_seed_is_not(folder: Any) -> None:
    one, two, three = folder("1"), folder("2"), folder("3")
    one.fit(config())
    torch.manual_seed(99)
    two.fit(config(workers=2))
    three.fit(config(seed=1))
    assert equal(one.weights(), two.weights())
    assert one.losses() == two.losses()
    assert not equal(one.weights(), three.weights())


def test_a_finished_run_is_not_trained_again(folder: Any) -> None:
    run = folder()
    first = run.fit(config())
    weights, rows = run.weights(), list(run.rows)
    second = run.fit(config())
    assert equal(run.weights(), weights)
    assert run.rows == rows
    assert first == second
    assert second["steps"] == 12


def test_result_and_rows_say_what_happened(folder: Any) -> None:
    run = folder()
    result = run.fit(config(log_every=6))
    assert [row["step"] for row in run.rows] == [6, 12]
    assert {
        "loss",
        "nll",
        "perplexity",
        "accuracy",
        "lr",
        "gradient_norm",
        "tokens_per_second",
        "seconds",
    } <= set(run.rows[0])
    assert result["trained_tokens"] == run.rows[-1]["trained_tokens"] > 0
    assert result["loss"] == run.rows[-1]["loss"]
    assert result["threads"] == torch.get_num_threads()
    assert result["precision"] == resolve("auto", torch.device(result["device"]))
    assert run.losses()[12] < run.losses()[6]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(folder: Any, toy_source: Any) -> None:
    class Poison(toy_source):
        def step(self, step: int) -> Any:
            batches = super().step(step)
            if step == 6:
                batches[1]["target_weight"][0, 0] = float("inf")
            return batches

    run = folder()
    with pytest.raises(
        RunError, match=r"step 7: the loss is (inf|nan); the loss in micro-batch 2 of 2, .*; samples \d+"
    ):
        run.fit(config(), source=Poison())
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000004"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_goes_on(folder: Any, number: int) -> None:
    class Press(Hook):
        def after_step(self, moment: Moment) -> None:
            if moment.step == 5:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    whole, run = folder("whole"), folder("cut")
    whole.fit(config(log_every=3))
    with pytest.raises(Interrupted, match=r"stopped after step [56], which is saved") as caught:
        run.fit(config(log_every=3), hooks=[Press()])
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) == before
    assert run.path.joinpath("checkpoints").is_dir()
    run.fit(config(log_every=3))
    assert equal(run.weights(), whole.weights())
    assert run.losses() == whole.losses()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"config": config(seed=3)}, "training config"),
        ({"objective": TokensConfig(label_smoothing=0.1)}, "objective"),
        ({"source": 7}, "source of data"),
    ],
)
def test_checkpoints_of_another_run_are_refused(
    folder: Any, toy_source: Any, change: dict[str, Any], what: str
) -> None:
    run = folder()
    run.fit(config())
    if "source" in change:
        change = {"source": toy_source(change["source"])}
    with pytest.raises(RunError, match=f"made with another {what}; use the same one"):
        run.fit(change.pop("config", config()), **change)


def test_checkpoints_of_another_model_are_refused(folder: Any, toy: Any) -> None:
    run = folder()
    run.fit(config())
    other = toy()
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RunError, match="made with another model"):
        run.fit(config(), model=other)


def test_other_threads_are_said(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, threads = folder(), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run.fit(config(), hooks=[StopAt(7)])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    result = run.fit(config())
    assert any(f"threads was {threads} and is {threads + 1}" in note for note in result["notes"])
    assert any("threads was" in row.get("note", "") for row in run.rows)


def test_a_subclass_and_places_do_not_change_the_identity(tmp_path: Path) -> None:
    class Stage(LoopConfig):
        corpus: Path
        license: str = "other"

    def identity(**values: Any) -> Any:
        return Stage(corpus=tmp_path, **{"budget": {"steps": 3}, **values}).identity()

    one = Stage(corpus=Path("a"), budget=BudgetConfig(steps=3), license="mit")
    assert one.identity() == identity() == identity(workers=0, log_every=7, compile="off")
    assert identity(seed=2) != identity()
    assert identity(budget={"steps": 4}) != identity()
    places = [identity(budget={"replay": place}) for place in ("a", "b")]
    assert places[0] == places[1]


def test_another_replay_is_another_run(folder: Any) -> None:
    long, short, replay = folder("long"), folder("short"), folder("replay")
    long.fit(config())
    short.fit(config(budget={"steps": 8}))
    place = long.path / "checkpoints" / "step-000012"
    with pytest.raises(KeyboardInterrupt):
        replay.fit(config(budget={"replay": place}), hooks=[StopAt(5)])
    moved = place.rename(long.path / "moved")
    with pytest.raises(RunError, match="another training config"):
        replay.fit(config(budget={"replay": short.path / "checkpoints" / "step-000008"}))
    replay.fit(config(budget={"replay": moved}))
    assert equal(replay.weights(), long.weights())


def test_minutes_end_and_replay_repeats_them_exactly(folder: Any) -> None:
    run, replay = folder("minutes"), folder("replay")
    result = run.fit(config(budget={"minutes": 0.005}, checkpoint={"every": 3}))
    assert 0.3 <= result["training_seconds"] < 3
    newest = run.path / "checkpoints" / f"step-{result['steps']:06d}"
    again = replay.fit(config(budget={"replay": str(newest)}))
    assert again["steps"] == result["steps"]
    assert equal(run.weights(), replay.weights())
    progress = [row["progress"] for row in run.rows]
    assert progress == sorted(progress)
    assert progress[-1] > 0.5


def test_minutes_go_on_where_they_were(folder: Any) -> None:
    run = folder()
    values = {"budget": {"minutes": 0.01}, "checkpoint": {"every": 3}}
    with pytest.raises(KeyboardInterrupt):
        run.fit(config(**values), hooks=[StopAt(7)])
    spent = next(row["seconds"] for row in run.rows if row["step"] == 6)
    result = run.fit(config(**values))
    assert result["training_seconds"] >= 0.6
    seconds = [row["seconds"] for row in run.rows]
    assert seconds == sorted(seconds)
    assert spent in seconds


def test_evaluation_divides_once_and_has_no_dropout(toy: Any, toy_source: Any) -> None:
    model, source = toy(dropout=0.5).train(), toy_source()
    values = evaluate(model, MlmNextSentenceConfig(), source, device=torch.device("cpu"))
    assert model.training
    again = evaluate(model, MlmNextSentenceConfig(), source, device=torch.device("cpu"))
    assert values == again
    model.eval()
    total = count = 0.0
    for batch in source.epoch():
        logits = model.logits(model(batch).hidden_BTD).flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="none")
        total += float((losses * batch["target_weight"].flatten()).sum().detach())
        count += float(batch["target_weight"].sum())
    assert values["nll"] == pytest.approx(total / count, rel=1e-6)
    assert values["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert values["loss"] == pytest.approx(values["nll"] + values["next_sentence_nll"], rel=1e-6)
    part = evaluate(model, TokensConfig(), source, device=torch.device("cpu"), batches=1)
    assert part["nll"] != values["nll"]


def test_early_stopping_keeps_the_best_weights(folder: Any, toy_source: Any) -> None:
    class Scripted(Evaluation):
        """Gets better until step 6 and worse after."""

        def _judge(self, moment: Moment, values: dict[str, float]) -> None:
            seen[moment.step] = {n: p.detach().clone() for n, p in moment.model.named_parameters()}
            super()._judge(moment, {"loss": abs(moment.step - 6.0)})

    seen: dict[int, dict[str, torch.Tensor]] = {}
    for name, hooks in (("whole", []), ("cut", [StopAt(7)])):
        run = folder(name)
        evaluation = EvaluationConfig(every=2, patience=2)
        if hooks:
            with pytest.raises(KeyboardInterrupt):
                run.fit(config(), hooks=[Scripted(evaluation, toy_source(), TokensConfig()), *hooks])
        for _ in range(2):  # the second time nothing is left to do
            result = run.fit(config(), hooks=[Scripted(evaluation, toy_source(), TokensConfig())])
            assert result["steps"] == 10
            assert result["stopped"] == "dev_loss was not better in 2 evaluations"
            assert result["best_dev"] == {"monitor": "loss", "step": 6, "value": 0.0}
            weights = dict(run.model.named_parameters())
            assert all(torch.equal(value, weights[n]) for n, value in seen[6].items())


def test_averaged_weights_are_evaluated_and_exported(folder: Any, toy: Any) -> None:
    class Look(Hook):
        def after_step(self, moment: Moment) -> None:
            raw.append(moment.model.up.weight.detach().clone())
            with moment.weights():
                inside.append(moment.model.up.weight.detach().clone())
            assert torch.equal(moment.model.up.weight, raw[-1])

    raw: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    run = folder()
    run.fit(config(budget={"steps": 5}, ema={"decay": 0.5}), hooks=[Look()])
    mean = toy().up.weight.detach()
    for step, value in enumerate(raw, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
        torch.testing.assert_close(inside[step - 1], mean)
    assert torch.equal(run.model.up.weight, inside[-1])


def test_a_wrong_monitor_is_named(folder: Any, toy_source: Any) -> None:
    hook = Evaluation(EvaluationConfig(every=2, monitor="blue"), toy_source(), TokensConfig())
    with pytest.raises(RunError, match="no value 'blue'; there are accuracy, loss, nll, perplexity"):
        folder().fit(config(), hooks=[hook])


def test_two_hooks_of_one_name_are_refused(folder: Any, toy_source: Any) -> None:
    hooks = [Evaluation(EvaluationConfig(), toy_source(), TokensConfig()) for _ in range(2)]
    with pytest.raises(ValueError, match="one name"):
        folder().fit(config(), hooks=hooks)


def test_config_errors() -> None:
    with pytest.raises(ConfigError, match="leave nothing of a budget of 12 steps"):
        config(schedule={"warmup": 20})
    with pytest.raises(ConfigError, match=r"optimizer: unknown kind 'muo'; did you mean 'muon'"):
        config(optimizer={"kind": "muo"})
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rat"):
        config(optimizer={"learning_rat": 1})
    assert config(optimizer={"kind": "muon"}).optimizer == MuonConfig()


def test_global_switches_are_put_back(folder: Any) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    folder().fit(config(budget={"steps": 1}))
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_tensorboard_missing_is_one_line(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from nalanda.base.errors import UserError
    from nalanda.train.hooks import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[track\]'"):
        folder().fit(config(), hooks=[TensorBoard(tmp_path / "board")])


def test_waiting_for_data_is_counted(folder: Any, toy_source: Any) -> None:
    """Batches that take 5 ms to make: with no worker each is waited for."""
    source = toy_source(0)
    make = source.step
    source.step = lambda step: (time.sleep(0.005), make(step))[1]
    result = folder().fit(config(workers=0), source=source)
    assert result["waited_for_data"] >= 12 * 0.005
