"""What is read from hidden states: logits over the vocabulary, over classes of rows or places, sentence vectors.

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
from nalanda.nn.spec import (
    EmbeddingHeadSpec,
    HeadSpec,
    PlacesHeadSpec,
    SequenceHeadSpec,
    SpanHeadSpec,
    Spec,
    TokensHeadSpec,
)


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary. A tied head's `output.weight` is the embedding matrix itself."""

    def __init__(self, head: TokensHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.scale, self.softcap = head.scale, head.softcap
        self.activation = ACTIVATIONS[head.activation]
        self.transform = Linear(spec.hidden, spec.hidden, head.transform_bias) if head.transform else None
        self.norm = build_norm(head.norm, spec.hidden) if head.transform else None
        self.output = Linear(spec.hidden, spec.vocabulary, bias=head.bias)
        initialize(self, spec, layers=1, vocabulary_head=True)
        if spec.tie_embeddings:
            self.output.weight = tokens.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """... x V logits from ... x D hidden states: pass only the places that are needed."""
        features, weight, bias = self.affine(hidden)
        logits = F.linear(features, weight, bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def affine(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last product's factors, features, weight and bias: a loss takes the logits in chunks, and caps them
        by `softcap` itself."""
        if self.transform is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        if self.scale != 1.0:
            hidden = hidden * self.scale
        return hidden, self.output.weight, self.output.bias


class SequenceHead(nn.Module):
    """Logits over classes from one vector of each row."""

    def __init__(self, head: SequenceHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.pool = POOLS[head.place]
        self.activation = ACTIVATIONS[head.pooler_activation]
        self.pooler = Linear(spec.hidden, spec.hidden, head.pooler_bias) if head.pooler else None
        self.norm = build_norm(head.pooler_norm, spec.hidden) if head.pooler and head.pooler_norm else None
        self.dropout = Dropout(head.dropout)
        self.output = Linear(spec.hidden, head.classes, head.bias)
        initialize(self, spec, layers=1)

    def forward(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """B x C logits. Without segments, rows have no padding."""
        pooled_BD = self.pool(hidden_BTD, segments_BT)
        if self.pooler is not None:
            pooled_BD = self.activation(self.pooler(pooled_BD))
        if self.norm is not None:
            pooled_BD = self.norm(pooled_BD)
        return self.output(self.dropout(pooled_BD))


class PlacesHead(nn.Module):
    """Logits over classes at every place."""

    def __init__(self, head: PlacesHeadSpec | SpanHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[head.activation]
        self.transform = Linear(spec.hidden, spec.hidden, head.transform_bias) if head.transform else None
        self.norm = build_norm(head.norm, spec.hidden) if head.transform else None
        self.dropout = Dropout(head.dropout)
        self.output = Linear(spec.hidden, head.classes, head.bias)
        initialize(self, spec, layers=1)

    def forward(self, hidden: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """... x C logits from ... x D; a span head's two are start and end. Segments are not looked at."""
        if self.transform is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        return self.output(self.dropout(hidden))


class EmbeddingHead(nn.Module):
    """One vector for each row."""

    def __init__(self, head: EmbeddingHeadSpec, spec: Spec, tokens: nn.Embedding) -> None:
        super().__init__()
        self.pool, self.normalize = POOLS[head.place], head.normalize
        self.pooler = Linear(spec.hidden, spec.hidden, bias=True) if head.pooler else None
        initialize(self, spec, layers=1)

    def forward(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """B x D. Without segments, rows have no padding."""
        pooled_BD = self.pool(hidden_BTD, segments_BT)
        if self.pooler is not None:
            pooled_BD = torch.tanh(self.pooler(pooled_BD))
        return F.normalize(pooled_BD, dim=-1) if self.normalize else pooled_BD


def first_place(hidden_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """B x D: each row's first token that is not padding."""
    if segments_BT is None:
        return hidden_BTD[:, 0]
    return _at(hidden_BTD, (segments_BT > 0).int().argmax(dim=1))


def last_place(hidden_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """B x D: each row's last token that is not padding."""
    if segments_BT is None:
        return hidden_BTD[:, -1]
    last = hidden_BTD.shape[1] - 1
    return _at(hidden_BTD, last - (segments_BT > 0).int().flip(1).argmax(dim=1))


def _at(hidden_BTD: Tensor, column_B: Tensor) -> Tensor:
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), column_B]


def mean_place(hidden_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """B x D: the mean over each row's tokens that are not padding; zeros for a row of padding."""
    if segments_BT is None:
        return hidden_BTD.mean(dim=1)
    real_BT1 = (segments_BT > 0).to(hidden_BTD.dtype).unsqueeze(-1)
    return (hidden_BTD * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)


POOLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "first": first_place,
    "last": last_place,
    "mean": mean_place,
}

HEADS: dict[str, type[nn.Module]] = {
    "tokens": LanguageModelHead,
    "sequence": SequenceHead,
    "places": PlacesHead,
    "span": PlacesHead,
    "embedding": EmbeddingHead,
}


def build_head(head: HeadSpec, spec: Spec, tokens: nn.Embedding) -> nn.Module:
    """The head that `head` describes, on a network of `spec` whose embedding matrix is `tokens`."""
    return HEADS[head.kind](head, spec, tokens)
