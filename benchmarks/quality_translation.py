"""The score of our translation models in benchmarks/quality.py: chrF++ of greedy translations of the held-out
rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import quality_common as common

from nalanda.generate.decode import transduce
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import Prompting
from nalanda.metrics.overlap import chrf
from nalanda.stages.starting import data_tokenizer
from nalanda.stages.train import TrainStage
from nalanda.train.hooks import Hook, Moment, evaluating


class Translated(Hook):
    """Writes the curve: every so many seconds of training, and at the end."""

    name = "translated"

    def __init__(self, curve: common.Curve, arrays: Path, config: TrainStage) -> None:
        self.curve, self.seconds = curve, 0.0
        self.held = json.loads((arrays / "held.json").read_text(encoding="utf-8"))
        self.prompting = Prompting(data_tokenizer(config))
        self.sources = [self.prompting.source(text, "hin_Deva", "eng_Latn") for text in self.held["source"]]
        self.decoding = DecodeConfig(kind="greedy", max_length=96, batch_tokens=65536)

    def logged(self, row: dict[str, Any]) -> None:
        """Reads the clock."""
        self.seconds = row.get("seconds", self.seconds)

    def after_step(self, moment: Moment) -> None:
        """A point where one is due."""
        if not (self.curve.due(self.seconds) or moment.last):
            return
        with moment.weights(), evaluating(moment.model):
            found = [r.text for r in transduce(moment.model, self.sources, self.prompting, self.decoding)]
        self.curve.add(self.seconds, float(chrf(found, self.held["target"]).value), steps=moment.step)
