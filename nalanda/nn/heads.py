"""What is read from hidden states: logits over the vocabulary, or over classes.

head = build_head(TokensHeadSpec(), spec, tokens=transformer.tokens)
logits_BTV = head(hidden_BTD)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nalanda.nn.dropout import Dropout
from nalanda.nn.feedforward import ACTIVATIONS
from nalanda.nn.initialize import initialize
from nalanda.nn.linear import Linear
from nalanda.nn.norm import build_norm
from nalanda.nn.spec import SequenceHeadSpec, Spec, TokensHeadSpec


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary. A tied head's `output.weight` is the embedding matrix itself."""

    def __init__(self, head: TokensHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.scale = head.scale
        self.activation = ACTIVATIONS[head.activation]
        self.transform = Linear(spec.hidden, spec.hidden, bias=True) if head.transform else None
        self.norm = build_norm(head.norm, spec.hidden) if head.transform else None
        self.output = Linear(spec.hidden, spec.vocabulary, bias=head.bias)
        initialize(self, spec, layers=1)
        if spec.tie_embeddings:
            self.output.weight = tokens.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """... x V logits from ... x D hidden states: pass only the places that are needed."""
        features, weight, bias = self.affine(hidden)
        return F.linear(features, weight, bias)

    def affine(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last product's factors, features, weight and bias: a loss takes the logits in chunks."""
        if self.transform is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        if self.scale != 1.0:
            hidden = hidden * self.scale
        return hidden, self.output.weight, self.output.bias


class SequenceHead(nn.Module):
    """Logits over classes from one real place of each row."""

    def __init__(self, head: SequenceHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.place = PLACES[head.place]
        self.pooler = Linear(spec.hidden, spec.hidden, bias=True) if head.pooler else None
        self.dropout = Dropout(head.dropout)
        self.output = Linear(spec.hidden, head.classes, bias=True)
        initialize(self, spec, layers=1)

    def forward(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """B x C logits. Without segments, rows have no padding."""
        column_B = self.place(hidden_BTD, segments_BT)
        pooled_BD = hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), column_B]
        if self.pooler is not None:
            pooled_BD = torch.tanh(self.pooler(pooled_BD))
        return self.output(self.dropout(pooled_BD))


def first_place(hidden_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """B: the column of each row's first token that is not padding."""
    if segments_BT is None:
        return torch.zeros(len(hidden_BTD), dtype=torch.int64, device=hidden_BTD.device)
    return (segments_BT > 0).int().argmax(dim=1)


def last_place(hidden_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """B: the column of each row's last token that is not padding."""
    width = hidden_BTD.shape[1]
    if segments_BT is None:
        return torch.full((len(hidden_BTD),), width - 1, dtype=torch.int64, device=hidden_BTD.device)
    return width - 1 - (segments_BT > 0).int().flip(1).argmax(dim=1)


PLACES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"first": first_place, "last": last_place}


HEADS: dict[str, type[LanguageModelHead] | type[SequenceHead]] = {
    "tokens": LanguageModelHead,
    "sequence": SequenceHead,
}


def build_head(head: TokensHeadSpec | SequenceHeadSpec, spec: Spec, tokens: nn.Embedding) -> nn.Module:
    """The head that `head` describes, on a network of `spec` whose embedding matrix is `tokens`."""
    return HEADS[head.kind](head, spec, tokens)  # type: ignore[arg-type]
