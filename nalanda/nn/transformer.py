"""The network: token ids in, hidden states out; an encoder, a decoder, or both, as its `Spec` says.

transformer = Transformer(spec)
output = transformer(ids_BT, segments_BT, positions_BT)                     # encoder or decoder alone
output = transformer(ids_BT, segments_BT, source_ids_BS=ids, source_segments_BS=segments)
memory = transformer.encode(source_ids_BS, source_segments_BS)              # or encode once, use often
output = transformer(ids_BT, memory=memory, capture=("attention",))

      source_ids                     ids
          |          tokens           |          one matrix, shared with a tied head
       encoder ------ memory ---> decoder        without an encoder the decoder reads ids alone (and vice versa)
                                      |
                                 hidden_BTD  ---> heads.py
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nalanda.base.errors import DataError
from nalanda.nn.cache import Cache
from nalanda.nn.initialize import initialize
from nalanda.nn.mask import Places, is_plain, positions_in_segments
from nalanda.nn.spec import Spec
from nalanda.nn.stack import CAPTURES, Memory, Stack, Tokens


class Output(NamedTuple):
    """Hidden states; the encoder's output, where there is one beside a decoder; what was asked for with `capture`.

    `captured["decoder.attention"]` is a list with one tensor per block; `residuals` begin with the embeddings;
    `router` (B x T x E logits) and `experts` (B x T x K chosen) have one for each block with experts.
    """

    hidden_BTD: Tensor
    memory: Memory | None
    captured: dict[str, list[Tensor]]


class Transformer(nn.Module):
    """The network that `spec` describes, with weights drawn as nn/initialize.py says."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(spec.vocabulary, spec.hidden)
        initialize(self, spec, layers=1)
        stacks = {
            name: Stack(spec, blocks, position, causal=name == "decoder")
            for name, blocks, position in spec.stacks()
        }
        self.encoder = stacks.get("encoder")
        self.decoder = stacks.get("decoder")

    @property
    def both(self) -> bool:
        """Whether there is an encoder beside a decoder, so that a source is read as well."""
        return self.encoder is not None and self.decoder is not None

    def forward(
        self,
        ids_BT: Tensor | None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        *,
        source_ids_BS: Tensor | None = None,
        source_segments_BS: Tensor | None = None,
        source_positions_BS: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        prefix_BT: Tensor | None = None,
        memory: Memory | None = None,
        inputs_embeds_BTD: Tensor | None = None,
        cache: Cache | None = None,
        capture: Collection[str] = (),
    ) -> Output:
        """Hidden states of the stream.

        segments: 0 padding, k >= 1 the k-th document of the row; None: one document per row, no padding.
        positions: inside their segment; None: counted from the segments. `inputs_embeds_BTD` stands in for `ids_BT`
        (give None). With a `cache`, the stream goes on where the last call ended, and the source is needed only in
        the first call. `prefix_BT` (bool, decoders): these places are seen by all of their segment, also by earlier
        ones; with a cache, a prefix is given in one call. `capture`: any of CAPTURES. Raises DataError for a
        position beyond a table of positions.
        """
        unknown = set(capture) - set(CAPTURES)
        if unknown:
            raise ValueError(f"capture knows {CAPTURES}, not {sorted(unknown)}")
        captured: dict[str, list[Tensor]] = {}
        x_BTD = self._vectors(ids_BT, inputs_embeds_BTD)
        if self.both and memory is None and source_ids_BS is not None:
            memory = self._encode(source_ids_BS, source_segments_BS, source_positions_BS, capture, captured)
        source = None if memory is None else Places(memory.segments_BS, memory.positions_BS)
        if cache is None:
            query = key = self._places(x_BTD, segments_BT, positions_BT)
        else:
            query, key = cache.extend(x_BTD.shape[0], x_BTD.shape[1], segments_BT, positions_BT, x_BTD.device)
            cache.source = source = cache.source or source
        name, stack = self._stream()
        if prefix_BT is not None:
            query, key = _with_prefix(query, key, prefix_BT, stack.causal)
        self._check(name, query)
        found = {kind: captured.setdefault(f"{name}.{kind}", []) for kind in capture}
        states = None if memory is None else memory.states_BSD
        tokens = None if ids_BT is None else self._tokens(stack, ids_BT, query, cache)
        hidden_BTD = stack(x_BTD, query, key, token_types_BT, states, source, cache, found, tokens)
        return Output(hidden_BTD, memory, captured)

    def encode(
        self,
        source_ids_BS: Tensor,
        source_segments_BS: Tensor | None = None,
        source_positions_BS: Tensor | None = None,
    ) -> Memory:
        """The encoder's output for a source: encode once, decode often. For encoder-decoders only."""
        return self._encode(source_ids_BS, source_segments_BS, source_positions_BS, (), {})

    def _encode(
        self,
        ids_BS: Tensor,
        segments_BS: Tensor | None,
        positions_BS: Tensor | None,
        capture: Collection[str],
        captured: dict[str, list[Tensor]],
    ) -> Memory:
        if self.encoder is None:
            raise ValueError("this network has no encoder")
        x_BSD = self.tokens(ids_BS)
        places = self._places(x_BSD, segments_BS, positions_BS)
        self._check("encoder", places)
        found = {kind: captured.setdefault(f"encoder.{kind}", []) for kind in capture}
        tokens = self._tokens(self.encoder, ids_BS, places, None)
        states_BSD = self.encoder(x_BSD, places, places, None, None, None, None, found, tokens)
        return Memory(states_BSD, places.segments_BT, places.positions_BT)

    def _stream(self) -> tuple[str, Stack]:
        if self.decoder is not None:
            return "decoder", self.decoder
        assert self.encoder is not None
        return "encoder", self.encoder

    def _vectors(self, ids_BT: Tensor | None, inputs_embeds_BTD: Tensor | None) -> Tensor:
        if (ids_BT is None) is (inputs_embeds_BTD is None):
            raise ValueError("give either ids_BT or inputs_embeds_BTD")
        return self.tokens(ids_BT) if inputs_embeds_BTD is None else inputs_embeds_BTD

    def _tokens(self, stack: Stack, ids_BT: Tensor, places: Places, cache: Cache | None) -> Tokens | None:
        """Each token with the one before it, of its own document, where the stack looks at that."""
        if not stack.reads_tokens:
            return None
        before_BT = torch.nn.functional.pad(ids_BT[:, :-1], (1, 0), value=-1)
        segments_BT = places.segments_BT
        if segments_BT is not None:
            starts_BT = segments_BT != torch.nn.functional.pad(segments_BT[:, :-1], (1, 0), value=-1)
            before_BT = before_BT.masked_fill(starts_BT, -1)
        if cache is not None:
            before_BT = cache.follow(ids_BT, before_BT, segments_BT)
        if stack.previous_mix is None:
            return Tokens(ids_BT, before_BT)
        return Tokens(ids_BT, before_BT, self.tokens(before_BT.clamp(min=0)) * (before_BT >= 0)[..., None])

    def _places(self, x_BTD: Tensor, segments_BT: Tensor | None, positions_BT: Tensor | None) -> Places:
        if segments_BT is None or is_plain(segments_BT):
            segments_BT = None
            if positions_BT is None:
                positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        elif positions_BT is None:
            positions_BT = positions_in_segments(segments_BT)
        return Places(segments_BT, positions_BT)

    def _check(self, name: str, places: Places) -> None:
        limit = {stack: position.limit for stack, _, position in self.spec.stacks()}[name]
        if limit is None or torch.compiler.is_compiling() or places.positions_BT.device.type != "cpu":
            return
        longest = int(places.positions_BT.max()) + 1 if places.positions_BT.numel() else 0
        if longest > limit:
            raise DataError(
                f"a sequence of {longest} tokens is longer than the {limit} positions of the model's {name}; "
                f"shorten it, or build the model with {name}_position.max_length >= {longest}"
            )


def _with_prefix(query: Places, key: Places, prefix_BT: Tensor, causal: bool) -> tuple[Places, Places]:
    if not causal:
        raise ValueError("prefix_BT is for decoders: in an encoder every place is seen by all of its segment")
    if query is key:
        query = key = replace(key, prefix_BT=prefix_BT)
        return query, key
    # Columns of earlier calls are seen by all that is new without further ado.
    old = key.length - query.length
    return query, replace(key, prefix_BT=torch.nn.functional.pad(prefix_BT, (old, 0)))
