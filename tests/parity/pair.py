"""The two networks of a case, with equal weights, and what each of them says of a few random texts.

pair = build(case, folder)                     # transformers' model, saved to `folder`; ours, read from there
theirs, ours = pair.their_outputs(pair.theirs, text), pair.our_outputs(pair.ours, pair.batch([text]))
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.case import Case
from torch import Tensor, nn

from nalanda.models.auto import FAMILIES
from nalanda.models.exchange import load_model
from nalanda.models.family import Family
from nalanda.models.rows import Source, fused_sizes, parts, sources
from nalanda.nn.model import Model

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
Outputs = dict[str, Tensor]
POOLED = ("sequence", "embedding")
"""Kinds of heads that say one thing of a whole text."""


@dataclass(frozen=True)
class Text:
    """One text's ids, token types where the network reads them, and for an encoder-decoder what it is turned into."""

    ids: list[int]
    types: list[int] | None = None
    target: list[int] | None = None


@dataclass
class Pair:
    """See the heading of this file."""

    case: Case
    folder: Path
    theirs: Any
    ours: Model
    notes: list[str] = field(default_factory=list)

    @property
    def family(self) -> Family:
        """The family whose rows the test is of."""
        return FAMILIES[self.case.family]

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Our parameters and their keys."""
        return sources(self.family, self.ours)

    @property
    def both(self) -> bool:
        """Whether it is an encoder-decoder."""
        return self.ours.transformer.both

    @cached_property
    def reserved(self) -> set[int]:
        """Ids that texts do not have: those with a meaning."""
        config = self.theirs.config
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "mask_token_id")
        found = [getattr(config, name, None) for name in names]
        return (
            {i for i in found if isinstance(i, int) and i < self.ours.spec.vocabulary}
            | self.case.reserved
            | {0}
        )

    @property
    def pad(self) -> int:
        """The id of padding."""
        pad = self.theirs.config.pad_token_id
        return pad if isinstance(pad, int) and pad < self.ours.spec.vocabulary else 0

    @cached_property
    def texts(self) -> list[Text]:
        """Random texts of the case's lengths; targets are a little shorter than their sources."""
        free = torch.tensor(sorted(set(range(self.ours.spec.vocabulary)) - self.reserved))
        generator = torch.Generator().manual_seed(7)

        def draw(length: int) -> list[int]:
            return free[torch.randint(len(free), (length,), generator=generator)].tolist()

        def text(length: int) -> Text:
            ids, target = draw(length), draw(max(length - 2, 1))
            types = (
                torch.randint(self.ours.spec.token_types, (length,), generator=generator).tolist()
                if self.ours.spec.token_types
                else None
            )
            if self.both and self.case.architecture.endswith("ForSequenceClassification"):
                config = (
                    self.theirs.config
                )  # they read the classes at EOS, and the target is the source, shifted
                ids = [*ids[:-1], config.eos_token_id]
                target = [config.decoder_start_token_id, *ids[:-1]]
            return Text(ids, types, target if self.both else None)

        return [text(length) for length in self.case.lengths]

    def their_outputs(self, model: Any, text: Text) -> Outputs:
        """What `model` says of one text: by the names of our heads, "encoder" and, of a network alone, "hidden"."""
        arguments = {
            "input_ids": torch.tensor([text.ids]),
            "attention_mask": torch.ones(1, len(text.ids)).long(),
        }
        if text.types is not None:
            arguments["token_type_ids"] = torch.tensor([text.types])
        if text.target is not None:
            arguments["decoder_input_ids"] = torch.tensor([text.target])
        forget(model)
        return self.named(model(**arguments))

    def named(self, output: Any) -> Outputs:
        """Their outputs by our names."""
        found: Outputs = {}
        for name, spec in self.ours.head_specs.items():
            special = {"tokens": "prediction_logits", "sequence": "seq_relationship_logits"}.get(
                spec.kind, ""
            )
            if spec.kind == "span":
                found[name] = torch.stack([output.start_logits, output.end_logits], dim=-1)
            elif spec.kind == "embedding":
                found[name] = output.pooler_output
            else:
                found[name] = getattr(output, special) if hasattr(output, special) else output.logits
        for name, theirs in (("encoder", "encoder_last_hidden_state"), ("hidden", "last_hidden_state")):
            if getattr(output, theirs, None) is not None:
                found[name] = getattr(output, theirs)
        return found

    def our_outputs(self, model: Model, batch: dict[str, Tensor]) -> Outputs:
        """The same from ours; "hidden" always."""
        output = model(batch)
        segments = (
            batch.get("segments") if any(s.kind == "sequence" for s in model.head_specs.values()) else None
        )
        found = {
            name: model.logits(output.hidden_BTD, name, segments if spec.kind in POOLED else None)
            for name, spec in model.head_specs.items()
        }
        if output.memory is not None:
            found["encoder"] = output.memory.states_BSD
        return {**found, "hidden": output.hidden_BTD}

    def batch(self, texts: Sequence[Text], side: str = "right") -> dict[str, Tensor]:
        """Texts as rows, padded on one side."""
        batch: dict[str, Tensor] = {}
        streams = {"": [t.ids for t in texts]}
        if self.both:
            streams = {"": [t.target or [] for t in texts], "source_": [t.ids for t in texts]}
        for prefix, rows in streams.items():
            width = max(map(len, rows))
            fill = lambda row, value: [value] * (width - len(row)) if side == "left" else []  # noqa: B023, E731
            tail = lambda row, value: [value] * (width - len(row)) if side == "right" else []  # noqa: B023, E731
            batch[f"{prefix}ids"] = torch.tensor([[*fill(r, self.pad), *r, *tail(r, self.pad)] for r in rows])
            batch[f"{prefix}segments"] = torch.tensor(
                [[*fill(r, 0), *[1] * len(r), *tail(r, 0)] for r in rows]
            )
            if texts[0].types is not None:
                types = [t.types or [] for t in texts]
                batch["token_types"] = torch.tensor([[*fill(r, 0), *r, *tail(r, 0)] for r in types])
        return batch

    def packed(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Texts one after another in one row, a segment each."""
        alone = [self.batch([text]) for text in texts]
        batch = {key: torch.cat([one[key] for one in alone], dim=1) for key in alone[0]}
        for prefix in ("", "source_") if self.both else ("",):
            marked = [one[f"{prefix}segments"] * (n + 1) for n, one in enumerate(alone)]
            batch[f"{prefix}segments"] = torch.cat(marked, dim=1)
        return batch

    def tensors(self, model: Model, gradient: bool = False) -> dict[str, list[tuple[str, Tensor]]]:
        """Each parameter of ours as views with their keys; the keys as the file has them."""
        state = model.state_dict(keep_vars=True)
        found = {}
        for name, source in self.sources.items():
            value = state[name].grad if gradient else state[name].detach()
            if value is None:
                value = torch.zeros_like(state[name])
            views = parts(value, source, fused_sizes(model, name))
            found[name] = [(self.family.stored_name(k, self.case.architecture), v) for k, v in views]
        return found


@torch.no_grad()
def randomize(module: nn.Module, spread: float, seed: int) -> None:
    """Every weight far from zero, or, where it is a vector, from the value that does nothing: 1 or 0."""
    generator = torch.Generator().manual_seed(seed)
    buffers = [
        b for name, b in module.state_dict(keep_vars=True).items() if name.endswith("final_logits_bias")
    ]
    for value in [*(p for p in module.parameters() if p.requires_grad), *buffers]:
        noise = torch.randn(value.shape, generator=generator) * spread
        value.copy_(value + noise if value.dim() == 1 else noise)


def forget(model: Any) -> None:
    """Dynamic rotations of theirs keep the frequencies of the longest text so far, for shorter ones too."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_max_seq_len"):
            module.max_seq_len_cached = module.original_max_seq_len


def build(case: Case, folder: Path) -> Pair:
    """Makes their model with random weights, saves it, and reads it as ours."""
    torch.manual_seed(0)
    config = case.config()
    config._attn_implementation = "eager"
    theirs = getattr(transformers, case.architecture)(config).eval()
    randomize(theirs, case.spread, zlib.crc32(case.name.encode()))
    theirs.save_pretrained(folder)
    notes: list[str] = []
    return Pair(case, folder, theirs, load_model(folder, note=notes.append), notes)
