"""What a parity case is: a tiny network of a family, as transformers' config says it; `checks.py` does the rest.

CASES = (
    Case("llama", "LlamaForCausalLM", lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2), "grouped"),
    *each("bert", ("BertForMaskedLM", "BertForTokenClassification"), lambda: transformers.BertConfig(...)),
)

Sizes are tiny (SIZES), yet every part has a weight of its own and sizes that differ, so that no two can be mixed up:
4 heads of 8, an inner size of 48, 67 tokens. Positions: 96 at least, or what a greedy text of 64 tokens needs.
`config` is called once, in the test's process, so that a module of cases does not import transformers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 67,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
    }
)
"""For the configs that have these names."""


@dataclass(frozen=True)
class Case:
    """One network to compare.

    family: its name in nalanda.models.auto.FAMILIES. architecture: transformers' class, "BertForMaskedLM".
    config: makes transformers' config. label: tells cases of one architecture apart ("yarn", "untied").
    lengths: of the texts that are read; longer ones where windows or scalings begin later.
    spread: standard deviation of the random weights. reserved: ids that no text has, besides pad, BOS, EOS and the
    decoder's start.
    """

    family: str
    architecture: str
    config: Callable[[], Any]
    label: str = ""
    lengths: tuple[int, ...] = (11, 6, 8)
    spread: float = 0.2
    reserved: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """What the test and the table call it."""
        return f"{self.architecture}-{self.label}" if self.label else self.architecture

    def __hash__(self) -> int:
        return hash(self.name)


def each(
    family: str, architectures: Sequence[str], config: Callable[[], Any], **more: Any
) -> tuple[Case, ...]:
    """The same network under several heads."""
    return tuple(Case(family, architecture, config, **more) for architecture in architectures)
