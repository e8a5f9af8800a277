"""Memory that runs out: smaller micro-batches with the same loss, and a line with settings that would fit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Texts, Work, model_of, trained
from torch import nn

from nalanda.base import machine
from nalanda.base.errors import UserError
from nalanda.config import parse
from nalanda.nn.model import Model
from nalanda.objectives.tokens import TokensConfig
from nalanda.train import memory_advice
from nalanda.train.config import LoopConfig
from nalanda.train.loop import Trainer
from nalanda.train.memory import in_parts, is_shortage
from nalanda.train.memory_advice import advice, forecast, free, needed, setup_of

pytestmark = pytest.mark.usefixtures("one_thread")
SAID = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


class Tight(Model):
    """Has room for `rows` rows at once."""

    rows = 2
    error: BaseException = RuntimeError(SAID)

    def forward(self, batch: Any, **more: Any) -> Any:
        if batch["ids"].shape[0] > self.rows:
            raise self.error
        return super().forward(batch, **more)


WORK: dict[str, Any] = {"source": {"micros": 2, "rows": 8}}


@pytest.mark.parametrize(
    "error",
    [RuntimeError(SAID), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")],
)
def test_a_step_is_done_again_with_smaller_micro_batches(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tight, "error", error)
    roomy, tight = trained(Work(**WORK)), trained(Work(**WORK), Tight)
    assert "health" not in roomy.result
    assert [(event["step"], event["parts"]) for event in tight.result["health"]] == [(1, 2), (1, 4)]
    assert "the rows of each micro-batch are cut in 4 parts from here on" in tight.result["notes"][1]
    assert len(roomy.losses) == len(tight.losses) == 6
    for one, other in zip(roomy.losses, tight.losses, strict=True):
        assert abs(one - other) <= 1e-6 * abs(one)
    assert [row["tokens"] for row in roomy.rows if "tokens" in row] == [
        row["tokens"] for row in tight.rows if "tokens" in row
    ]


def test_lanes_that_run_out_are_waited_for() -> None:
    torch.set_num_threads(2)
    tight = trained(Work({"deterministic": True}, **WORK), Tight)
    assert tight.result["lanes"] == 2
    assert tight.result["health"][-1]["parts"] == 2


def test_a_resume_cuts_as_before_without_running_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(Work(**WORK), Tight)
    work = Work(folder=str(tmp_path), **WORK)
    with pytest.raises(KeyboardInterrupt):
        trained(work, _cut_off_at(4))
    assert (tmp_path / "checkpoints" / "step-000001").is_dir(), "a cut is saved at once"
    monkeypatch.setattr(Tight, "rows", 99)
    again = trained(work, Tight)
    assert again.result["health"] == whole.result["health"]
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())


def _cut_off_at(step: int) -> type[Model]:
    """A tight model whose process is gone at the first micro-batch of a step (2 of them, in 4 parts)."""

    class Gone(Tight):
        passes = 0

        def forward(self, batch: Any, **more: Any) -> Any:
            output = super().forward(batch, **more)
            type(self).passes += 1
            if type(self).passes > 8 * (step - 1):
                raise KeyboardInterrupt
            return output

    return Gone


def test_one_row_that_does_not_fit_names_three_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tight, "rows", 0)
    monkeypatch.setattr(memory_advice, "free", lambda device: 10 * 2**20)
    line = r"step 1: out of memory \(.*can't allocate memory.*\); a step needs about \d+ MiB for micro-batches of "
    model = {"max_length": 4096, "layers": 6, "hidden": 64, "inner": 256}
    with pytest.raises(
        UserError, match=line + r"1 x 1,024 places, and there are \d+ MiB; would fit: "
    ) as caught:
        trained(Work(source={"micros": 1, "rows": 4, "width": 1024}, model=model), Tight)
    said = str(caught.value)
    assert "\n" not in said
    assert said.partition("would fit: ")[2].count("(about ") == 3
    assert "data.max_length=" in said


def test_splitting_may_be_forbidden() -> None:
    with pytest.raises(UserError, match=r"step 1: out of memory .*; a step needs about"):
        trained(Work({"health": {"split": False}}, **WORK), Tight)


def test_other_places_that_run_out_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from nalanda.train.optimizer import Optimizer

    def step(self: Optimizer, factor: float) -> float:
        raise MemoryError

    monkeypatch.setattr(Optimizer, "step", step)
    with pytest.raises(UserError, match=r"step \d: out of memory \(MemoryError\); a step needs about"):
        trained(Work(**WORK))


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tight, "error", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trained(Work(**WORK), Tight)
    assert not is_shortage(ValueError("out of memory"))


def test_rows_are_kept_in_order() -> None:
    batches = Texts(micros=2, rows=5).step(0)
    parts = in_parts(batches, 4)
    assert [part["ids"].shape[0] for part in parts] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert torch.equal(torch.cat([p["ids"] for p in parts]), torch.cat([b["ids"] for b in batches]))
    assert in_parts(batches, 1) is batches


# -- before the first step -----------------------------------------------------------------------------------------


def trainer(tmp_path: Path, model: nn.Module, **values: Any) -> Trainer:
    config = parse(LoopConfig, {"budget": {"steps": 2}, "precision": "fp32", **values}, "test")
    source = Texts(micros=1, rows=16, width=64)
    return Trainer(
        model, TokensConfig(), source, config, tmp_path, [], lambda row: None, lambda step: None,
        torch.device("cpu"),
    )  # fmt: skip


def test_what_surely_does_not_fit_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, model_of(Work(model={"layers": 4, "hidden": 64, "inner": 256})))
    assert forecast(made) == []
    monkeypatch.setattr(memory_advice, "free", lambda device: 12 * 2**20)
    (line,) = forecast(made)
    assert "12 MiB are free: it will run out of memory; would fit: data.micro_batch_tokens=" in line
    assert line.count("(about ") == 3
    monkeypatch.setattr(memory_advice, "free", lambda device: None)
    assert forecast(made) == []


def test_estimates_fall_with_each_setting(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, model_of(Work(model={"layers": 4, "hidden": 64, "inner": 256})), ema={"decay": 0.9}
    )
    setup = setup_of(made, made.source.step(0))
    whole = needed(made, setup)
    assert whole is not None
    seen = set()
    for what, text, change in memory_advice._options(made, setup):
        less = needed(made, memory_advice._changed(setup, [change]))
        assert less is not None
        assert less < whole or what in ("threads", "precision", "optimizer"), text
        seen.add(what)
    assert {"micro", "checkpointing", "ema", "length"} <= seen


def test_a_model_that_says_nothing_of_itself_gets_general_advice(tmp_path: Path, toy: Any) -> None:
    made = trainer(tmp_path, toy())
    assert forecast(made) == []
    assert "lower data.max_length" in advice(made, made.source.step(0))


def test_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 5000)
    assert free(torch.device("cpu")) == 5000
    monkeypatch.setattr(memory_advice, "_limits", lambda: iter([7000, 300]))
    assert free(torch.device("cpu")) == 300
    assert free(torch.device("meta")) is None


LIMITED = """
    import resource, sys, torch
    sys.path.insert(0, "tests")
    torch.set_num_threads(1)
    from small_runs import Work, trained
    from nalanda.base import machine
    from nalanda.base.errors import UserError
    model = {"layers": 4, "hidden": 128, "inner": 512, "max_length": 512}
    source = {"micros": 1, "rows": int(sys.argv[2]), "width": 512}
    trained(Work({"budget": {"steps": 1}, "deterministic": False}, model=model, source={**source, "rows": 2}))
    used = machine.mapped_memory()["RLIMIT_AS"]
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
    try:
        run = trained(Work({"budget": {"steps": 2}, "deterministic": False}, model=model, source=source))
        print(run.result.get("health", [{}])[-1].get("parts", 1), *run.losses)
    except UserError as error:
        print(error)
"""


def limited(mebibytes: int, rows: int) -> str:
    """What a process says that may take so much address space beside what it has after a first small run."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(mebibytes), str(rows)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(not machine.mapped_memory(), reason="needs Linux's /proc")
def test_a_host_that_gives_no_more() -> None:
    """For real: the allocator is refused by the kernel."""
    parts, *roomy = limited(8000, 24).split()
    assert int(parts) == 1
    parts, *tight = limited(500, 24).split()
    assert int(parts) > 1
    assert [float(x) for x in tight] == pytest.approx([float(x) for x in roomy], rel=1e-6)
    assert "out of memory" in limited(20, 24)
