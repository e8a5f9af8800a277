"""The public surface, the scripts and the documents are what they say they are."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import tomllib
from pathlib import Path

import pytest

from nalanda import cli

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = [
    "chat",
    "convert",
    "corpus",
    "data preview",
    "evaluate",
    "generate",
    "inspect",
    "plan",
    "report",
    "run",
    "schema",
    "status",
    "tokenizer",
    "train",
    "translate",
]

PUBLIC = {
    "nalanda.base.distributed": ["Ranks", "current", "joined", "world_size"],
    "nalanda.train.parallel": ["Part", "Team", "team_for"],
    "nalanda.train.parallel_sizes": ["ParallelConfig", "Sizes", "sizes_of"],
    "nalanda.base.journal": ["Journal", "metrics_row"],
    "nalanda.base.outputs": ["verify_outputs", "verify_part", "write_outputs"],
    "nalanda.base.lock": ["Lock", "is_held"],
    "nalanda.base.run": ["Run", "difference", "fingerprint", "fingerprint_of"],
    "nalanda.config": [
        "Config",
        "ConfigError",
        "dump_yaml",
        "load_yaml",
        "override",
        "parse",
        "parse_yaml",
        "unset",
    ],
    "nalanda.nn.model": ["Model"],
    "nalanda.nn.spec": [
        "AttentionSpec",
        "BlockSpec",
        "EmbeddingHeadSpec",
        "FeedForwardSpec",
        "MoESpec",
        "NormSpec",
        "PlacesHeadSpec",
        "PositionSpec",
        "SequenceHeadSpec",
        "SpanHeadSpec",
        "Spec",
        "TokensHeadSpec",
    ],
    "nalanda.train.config": ["LoopConfig"],
    "nalanda.train.device": ["default_device", "find_device"],
    "nalanda.train.health": ["Health", "HealthConfig", "SpikeConfig", "Trouble", "line", "target_of"],
    "nalanda.train.loop": ["Trainer", "fit"],
    "nalanda.data.source": ["Bucketed", "Collator", "DataConfig", "Source", "TextConfig", "to_batch"],
    "nalanda.data.batch": ["Batch", "check", "move", "tensors", "trained_tokens"],
    "nalanda.objectives.loss": ["HeadedModel", "Loss", "Objective", "add_counts"],
    "nalanda.generate.decode": ["generate", "settled", "stream", "transduce"],
    "nalanda.tokenizer.tokenizer": ["Tokenizer", "special_tokens"],
    "nalanda.stages.stage": ["Context", "Stage", "fingerprint_input"],
    "nalanda.generate.prompting": ["Frame", "Prompting", "Source", "beyond", "in_texts"],
    "nalanda.models.exchange": [
        "Checkpoint",
        "checkpoint_of",
        "complete",
        "describe",
        "load_model",
        "open_checkpoint",
        "save_model",
        "write_tensors",
    ],
    "nalanda.models.family": [
        "Codec",
        "ConfigProblem",
        "Family",
        "Fixed",
        "Head",
        "Key",
        "Part",
        "Row",
        "classes",
        "layer_count",
        "one_line",
        "shown",
    ],
    "nalanda.data.synthetic": ["SyntheticPacked", "SyntheticRows", "synthetic"],
    "nalanda.models.empty": ["empty_model"],
    "nalanda.stages.plan": ["Options", "plan"],
    "nalanda.study.scaling": ["Choice", "Fit", "tradeoff"],
    "nalanda.train.machines": ["Device", "Machine", "find"],
    "nalanda.train.plan_layout": [
        "Estimate",
        "Job",
        "Layout",
        "enough",
        "estimate",
        "layouts",
        "memory_of",
        "search",
    ],
    "nalanda.train.plan_memory": [
        "Kept",
        "Memory",
        "Mode",
        "Rows",
        "Sizes",
        "Split",
        "activations",
        "block_kept",
        "keeps_scores",
        "step_memory",
    ],
    "nalanda.models.weights": ["Weights", "open_weights", "write_weights"],
}
"""The classes and functions that other code may use; a change here is a change of what users rely on."""


def test_the_command_line_has_exactly_these_commands() -> None:
    found: list[str] = []
    for name, command in cli.commands().items():
        below = getattr(command, "commands", None)
        found += [name] if below is None else [f"{name} {action}" for action in below]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("module", PUBLIC)
def test_a_module_defines_exactly_these_public_names(module: str) -> None:
    names = [
        name
        for name, value in vars(importlib.import_module(module)).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module
        and not name.startswith("_")
    ]
    assert sorted(names) == PUBLIC[module]


def test_scripts_can_be_run() -> None:
    for name in ("scripts/quickstart", "scripts/test", "scripts/check", "scripts/setup", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), f"{name} is not executable"


def test_every_core_dependency_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in wanted}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def test_links_between_documents_hold() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
