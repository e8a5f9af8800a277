"""What a model writes while it trains, logged to metrics.jsonl: in a training stage's recipe

translations: {every: 500, rows: 200}                     # pairs: `dev_chrf`, which the report draws, and `samples`
samples: {every: 500, prompts: ["Once", "The king"]}      # a decoder: `samples`, continued by chance from a seed
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from nalanda.base.errors import DataError
from nalanda.config import Config
from nalanda.corpus.document import Document
from nalanda.generate.decode import generate, transduce
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import ENGLISH, Prompting
from nalanda.metrics.overlap import chrf
from nalanda.nn.model import Model
from nalanda.train.hooks import Hook, Moment, Sampling, evaluating


class TranslationsConfig(Config):
    """Every `every` steps and at the end, translate the dev split's first `rows` rows and show `shown` of them."""

    every: int = Field(default=500, gt=0)
    rows: int = Field(default=200, gt=0)
    shown: int = Field(default=3, ge=0)
    max_length: int = Field(default=64, gt=0)


class Translations(Hook):
    """Greedy translations of dev rows, scored."""

    name = "translations"

    def __init__(self, config: TranslationsConfig, rows: list[Document], prompting: Prompting) -> None:
        if not rows:
            raise DataError("translations: the dev split has no pairs to translate; set translations: null")
        self.config, self.rows, self.prompting = config, rows, prompting
        self.sources = [prompting.source(d.text, d.target_language, d.language or ENGLISH) for d in rows]
        self.decoding = DecodeConfig(kind="greedy", max_length=config.max_length, batch_tokens=65536)

    def after_step(self, moment: Moment) -> None:
        """Translates with the weights that evaluation uses (averaged ones, where there are any)."""
        if moment.step % self.config.every and not moment.last:
            return
        with moment.weights(), evaluating(moment.model):
            moment.log({"step": moment.step, **self.translate(moment.model)})

    def translate(self, model: Model) -> dict[str, Any]:
        """The score of all rows and the first ones in full."""
        found = [result.text for result in transduce(model, self.sources, self.prompting, self.decoding)]
        score = chrf(found, [row.target or "" for row in self.rows])
        samples = [
            {"source": row.text, "reference": row.target, "hypothesis": text}
            for row, text in zip(self.rows[: self.config.shown], found)
        ]
        return {"dev_chrf": round(score.value, 3), "samples": samples}


class SamplesConfig(Config):
    """Every `every` steps and at the end, continue each prompt by at most `max_length` tokens."""

    every: int = Field(default=500, gt=0)
    prompts: tuple[str, ...] = ("",)
    max_length: int = Field(default=40, gt=0)
    temperature: float = Field(default=0.8, gt=0)


def continuations(config: SamplesConfig, prompting: Prompting) -> Sampling:
    """The hook that writes them; the same seeds each time, so that samples show the model's change alone."""
    decoding = DecodeConfig(
        kind="sample", temperature=config.temperature, max_length=config.max_length, seed=0
    )
    prompts = [prompting.prompt(prompt) for prompt in config.prompts]

    def sample(model: Model) -> list[str]:
        found = generate(model, prompts, prompting, decoding)
        return [prompt + result.text for prompt, result in zip(config.prompts, found)]

    return Sampling(config.every, sample)
