"""When code is compiled, what is said when it cannot be, and that compiled runs resume to the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nalanda.config import parse
from nalanda.objectives.tokens import TokensConfig
from nalanda.train import compile as compiling
from nalanda.train.compile import Decision, decide
from nalanda.train.config import LoopConfig
from nalanda.train.hooks import Evaluation, EvaluationConfig, Hook, Moment
from nalanda.train.schedule import BudgetConfig

SHORT, LONG = BudgetConfig(steps=100), BudgetConfig(minutes=60)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_long_runs_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")
    assert decide("auto", GPU, LONG) == Decision(True)
    assert (
        decide("auto", GPU, SHORT) == decide("auto", CPU, LONG) == decide("off", GPU, LONG) == Decision(False)
    )
    assert decide("on", CPU, SHORT) == Decision(True)


def test_without_a_compiler_it_runs_and_says_so(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compiler", lambda: None)
    run = folder()
    result = run.fit(parse(LoopConfig, {"budget": {"steps": 2}, "compile": "on"}, "test"))
    assert not result["compiled"]
    assert ["no C++ compiler was found" in note for note in result["notes"]] == [True]
    assert decide("auto", CPU, LONG).note == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_runs_resume_to_the_same_bits_and_compile_once(folder: Any, toy_source: Any) -> None:
    if compiling.compiler() is None:
        pytest.skip("no C++ compiler")

    class Stop(Hook):
        def after_step(self, moment: Moment) -> None:
            if moment.step == 5:
                raise KeyboardInterrupt

    def hooks() -> list[Hook]:
        return [Evaluation(EvaluationConfig(every=3), toy_source(5), TokensConfig())]

    from torch._dynamo.utils import counters

    values = {"budget": {"steps": 9}, "checkpoint": {"every": 4}, "log_every": 1, "compile": "on"}
    config = parse(LoopConfig, values, "test")
    whole, cut = folder("whole"), folder("cut")
    counters.clear()
    result = whole.fit(config, hooks=hooks())
    assert result["compiled"]
    assert counters["stats"]["unique_graphs"] == 2  # training and evaluation: no batch's shape adds one
    torch._dynamo.reset()
    with pytest.raises(KeyboardInterrupt):
        cut.fit(config, hooks=[*hooks(), Stop()])
    torch._dynamo.reset()
    cut.fit(config, hooks=hooks())
    assert cut.losses() == whole.losses()
    weights = whole.weights()
    assert all(torch.equal(value, weights[name]) for name, value in cut.weights().items())
