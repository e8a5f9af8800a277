"""The bottom of a stack: token vectors, plus positions and token types, normalized, dropped out.

The token matrix itself belongs to the Transformer: encoder, decoder and a tied head share it.
"""

from __future__ import annotations

from torch import Tensor, nn

from nalanda.nn.dropout import Dropout
from nalanda.nn.norm import build_norm
from nalanda.nn.position import ADDED
from nalanda.nn.spec import PositionSpec, Spec


class Embed(nn.Module):
    """What a stack does to token vectors before its first block."""

    def __init__(self, spec: Spec, position: PositionSpec) -> None:
        super().__init__()
        self.scale = spec.hidden**0.5 if spec.scale_embeddings else None
        self.positions = ADDED[position.kind](position, spec.hidden) if position.kind in ADDED else None
        self.types = nn.Embedding(spec.token_types, spec.hidden) if spec.token_types else None
        self.norm = build_norm(spec.embedding_norm, spec.hidden) if spec.embedding_norm is not None else None
        self.dropout = Dropout(spec.embedding_dropout)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, token_types_BT: Tensor | None) -> Tensor:
        """B x T x D. Without `token_types_BT` all tokens are of type 0."""
        if self.scale is not None:
            x_BTD = x_BTD * self.scale
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT).to(x_BTD.dtype)  # sinusoids are kept in fp32
        if self.types is not None:
            x_BTD = x_BTD + (self.types.weight[0] if token_types_BT is None else self.types(token_types_BT))
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return self.dropout(x_BTD)
