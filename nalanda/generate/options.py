"""What is asked of decoding and what comes back: `DecodeConfig`, `Generation`, and the tokenizer it needs.

    config = DecodeConfig(kind="beam", beams=4, length_penalty=1.0, max_length=60)
    config = DecodeConfig(kind="sample", temperature=0.8, top_p=0.95, stop=("\\n\\n",), seed=7)

Filters act in this order: repetition penalty, blocked tokens (forbidden, min_length, n-grams), temperature,
top-k, top-p, min-p. The last four matter only to `sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, field_validator, model_validator

from nalanda.config import Config

Finish = Literal["eos", "length", "stop"]


class DecodeConfig(Config):
    """How to choose tokens. Lengths count new tokens, the final EOS included."""

    kind: Literal["greedy", "sample", "beam"] = "greedy"
    max_length: int = Field(default=128, gt=0)
    min_length: int = Field(default=0, ge=0)  # new tokens before EOS may come
    beams: int = Field(default=4, gt=0)
    n_best: int = Field(default=1, gt=0)  # hypotheses kept by beam search, the best one included
    length_penalty: float = 1.0  # rank = sum of log-probabilities / length ** length_penalty
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)  # 0: all
    top_p: float = Field(default=1.0, gt=0, le=1)  # 1: all
    min_p: float = Field(default=0.0, ge=0, lt=1)  # 0: all
    repetition_penalty: float = Field(default=1.0, gt=0)  # 1: none
    no_repeat_ngram: int = Field(default=0, ge=0)  # 0: none
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_tokens: int = Field(default=16384, gt=0)  # cache places of a batch: rows x beams x (prompt + new)

    @field_validator("temperature", mode="before")
    @classmethod
    def _temperature_not_zero(cls, temperature: object) -> object:
        if temperature == 0 and not isinstance(temperature, bool):
            raise ValueError("0 leaves nothing to chance; say so with kind=greedy")
        return temperature

    @field_validator("stop")
    @classmethod
    def _stop_not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would stop every text at once; remove it")
        return stop

    @model_validator(mode="after")
    def _consistent(self) -> DecodeConfig:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        if self.kind == "beam" and self.n_best > self.beams:
            raise ValueError(f"n_best {self.n_best} is above beams {self.beams}")
        if self.kind != "beam" and self.n_best > 1:
            raise ValueError(f"n_best {self.n_best} needs kind: beam")
        return self

    @property
    def width(self) -> int:
        """How many hypotheses of one prompt are alive at once."""
        return self.beams if self.kind == "beam" else 1


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated text.

    `ids` has no special tokens (no BOS, no EOS) and stops before a stop string: a token that holds the first
    character of one is left out, while `text` is cut at the very character. `score` is the sum of the
    log-probabilities (nats) of every token chosen, EOS and stop text included, under the model's distribution
    after repetition penalty and before temperature and filters.
    """

    ids: list[int]
    text: str
    score: float
    finish: Finish
    alternatives: tuple[Generation, ...] = ()  # beam search's next best, best first


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A token sequence that has ended; `ids` still holds stop text, but no EOS. Higher ranks are better."""

    rank: float
    score: float
    ids: list[int]
    finish: Finish


class Vocabulary(Protocol):
    """What decoding needs to know of tokens; a Tokenizer has it, and `prompting.Prompting`.

    `ends` are all ids that end a text, `eos` the first of them; `special_ids` are never generated, `ends` apart.
    """

    @property
    def vocabulary(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def ends(self) -> tuple[int, ...]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
