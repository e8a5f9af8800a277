"""Multi-head attention: to the own stream (`SelfAttention`) and to the encoder's (`CrossAttention`).

           x_BTD                                x_BTD        memory_BSD
             |  qkv (one product)                 | query        | key_value (one product)
      q_BHTK k_BGTK v_BGTK                      q_BHTK      k_BGSK v_BGSK
       |  norm, rotate  |                          |  norm, rotate  |
       `--- attend -----'  mask from mask.py       `---- attend ----'
               |  output                                  |  output

Grouped queries: H query heads share G key/value heads (Ainslie et al. 2023). Value embeddings: values become a
learned mix of themselves and of a row that each token has in a table (Zhou et al. 2024; modded-nanogpt, 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nalanda.nn.attend import attend, attention_map
from nalanda.nn.cache import LayerCache
from nalanda.nn.linear import Linear
from nalanda.nn.mask import AttentionMask
from nalanda.nn.norm import build_norm
from nalanda.nn.rotary import Tables, rotate
from nalanda.nn.spec import AttentionSpec


class _Attention(nn.Module):
    """What both kinds share: sizes, head norms, output projection."""

    def __init__(self, spec: AttentionSpec, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = spec.heads, spec.groups, spec.dim(hidden)
        self.scale = spec.scale if spec.scale is not None else self.dim**-0.5
        self.dropout, self.softcap = spec.dropout, spec.softcap
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if spec.sinks else None
        self.norm_over_all = spec.qk_norm_over == "all"
        widths = (self.heads * self.dim, self.groups * self.dim) if self.norm_over_all else (self.dim,) * 2
        norms = [None if spec.qk_norm is None else build_norm(spec.qk_norm, width) for width in widths]
        self.query_norm, self.key_norm = norms
        output_bias = spec.bias if spec.output_bias is None else spec.output_bias
        self.output = Linear(self.heads * self.dim, hidden, output_bias, residual=True)

    def _normalize(self, norm: nn.Module | None, x_BTHK: Tensor) -> Tensor:
        if norm is None:
            return x_BTHK
        x = norm(x_BTHK.flatten(2)).unflatten(-1, x_BTHK.shape[2:]) if self.norm_over_all else norm(x_BTHK)
        return x.to(x_BTHK.dtype)

    def _attend(
        self, q_BTHK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: AttentionMask, maps: list[Tensor] | None
    ) -> Tensor:
        q_BHTK = q_BTHK.transpose(1, 2)
        if maps is not None:
            maps.append(attention_map(q_BHTK, k_BGSK, mask, self.scale, self.softcap, self.sinks))
        dropout = self.dropout if self.training else 0.0
        x_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, mask, self.scale, dropout, self.softcap, self.sinks)
        return self.output(x_BHTK.transpose(1, 2).flatten(2))


class SelfAttention(_Attention):
    """Attention of a stream to itself. The rows of `qkv` are queries (head by head), keys, values."""

    def __init__(self, spec: AttentionSpec, hidden: int) -> None:
        super().__init__(spec, hidden)
        self.qkv = Linear(hidden, (self.heads + 2 * self.groups) * self.dim, spec.bias)
        rows = self.heads * self.dim, self.groups * self.dim, self.groups * self.dim
        self.fused_rows = {"qkv.weight": rows}  # for optimizers that treat each matrix by itself
        self.value_mix = nn.Parameter(torch.tensor([0.5, 0.5])) if spec.value_table is not None else None

    def forward(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        tables: Tables | None,
        cache: LayerCache | None,
        maps: list[Tensor] | None,
        token_values: Tensor | None = None,
    ) -> Tensor:
        """B x T x D. `tables` turn queries and keys; `cache` takes the new keys and values; `maps` collects maps;
        `token_values` (B x T x G*K) are mixed into the values where the spec has a value table."""
        heads, groups = self.heads, self.groups
        qkv = self.qkv(x_BTD).unflatten(-1, (heads + 2 * groups, self.dim))
        qk, v = qkv.split([heads + groups, groups], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = qk.split([heads, groups], dim=2)
            qk = torch.cat([self._normalize(self.query_norm, q), self._normalize(self.key_norm, k)], dim=2)
        if tables is not None:
            qk = rotate(qk, tables)
        q, k = qk.split([heads, groups], dim=2)
        if self.value_mix is not None and token_values is not None:
            own, tokens = self.value_mix.to(v.dtype).unbind()
            v = own * v + tokens * token_values.unflatten(-1, (groups, self.dim)).to(v.dtype)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self._attend(q, k, v, mask, maps)


class CrossAttention(_Attention):
    """Attention of a decoder's stream to the encoder's output. The rows of `key_value` are keys, then values."""

    def __init__(self, spec: AttentionSpec, hidden: int) -> None:
        super().__init__(spec, hidden)
        self.query = Linear(hidden, self.heads * self.dim, spec.bias)
        self.key_value = Linear(hidden, 2 * self.groups * self.dim, spec.bias)
        self.fused_rows = {"key_value.weight": (self.groups * self.dim,) * 2}

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None,
        mask: AttentionMask,
        tables: Tables | None,
        memory_tables: Tables | None,
        cache: LayerCache | None,
        maps: list[Tensor] | None,
    ) -> Tensor:
        """B x T x D. With a `cache`, the source's keys and values are worked out once, in the first call."""
        q = self.query(x_BTD).unflatten(-1, (self.heads, self.dim))
        q = self._normalize(self.query_norm, q)
        if tables is not None:
            q = rotate(q, tables)
        if cache is None or cache.cross is None:
            k, v = self._key_value(memory_BSD, memory_tables)
            if cache is not None:
                cache.cross = (k, v)
        else:
            k, v = cache.cross
        return self._attend(q, k, v, mask, maps)

    def _key_value(self, memory_BSD: Tensor | None, tables: Tables | None) -> tuple[Tensor, Tensor]:
        if memory_BSD is None:
            raise ValueError(
                "cross-attention needs the source: give source_ids_BS, memory, or a cache that holds it"
            )
        k, v = self.key_value(memory_BSD).unflatten(-1, (2 * self.groups, self.dim)).chunk(2, dim=2)
        k = self._normalize(self.key_norm, k)
        if tables is not None:
            k = rotate(k, tables)
        return k.transpose(1, 2), v.transpose(1, 2)
