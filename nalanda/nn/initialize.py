"""Where every weight starts, in one place.

normal   matrices (each expert's like any other) and embeddings: normal, std `init_std` (0.02: GPT-2, BERT)
scaled   matrices: normal, std 1/sqrt(fan in), so that any width keeps its activations' size;
         embeddings: std 1/sqrt(hidden), so that tied logits start near unit size
mup      matrices as scaled, embeddings as normal; the token head's own matrix: std 1/hidden, so that logits shrink
         with the width as its learning rate does (Yang et al. 2022; see the optimizer's `base_width`)
all      projections that end a residual branch (attention and feed-forward outputs): divided by sqrt(2 x layers),
         so that the residual stream does not grow with depth (Radford et al. 2019);
         biases 0; norms' weights 1; positions, token types and relative biases: std `init_std`;
         tables of values (value embeddings): as the embeddings; of bigrams: 0, so that they begin without a say

`init_zero` names matrices that start at 0 instead: `residual`, those that end a branch, so that every block begins as
the identity; `head`, the token head's own, so that all tokens begin equally likely (modded-nanogpt, 2024).
"""

from __future__ import annotations

import math

from torch import nn

from nalanda.nn.linear import ExpertLinear, Linear
from nalanda.nn.spec import Spec


def initialize(root: nn.Module, spec: Spec, layers: int, vocabulary_head: bool = False) -> None:
    """Draws all linear and embedding weights of `root` from torch's global generator, in order of their names.

    `layers` is the depth of the stack that `root` is or belongs to; `vocabulary_head` says that `root.output` is
    the token head's own matrix.
    """
    for name, module in root.named_modules():
        if isinstance(module, Linear | ExpertLinear):
            head = vocabulary_head and name == "output"
            std = spec.init_std if spec.init == "normal" else 1 / math.sqrt(module.in_features)
            if spec.init == "mup" and head:
                std = 1 / module.in_features
            if module.residual:
                std /= math.sqrt(2 * layers)
            nn.init.normal_(module.weight, std=std)
            if ("residual" in spec.init_zero and module.residual) or ("head" in spec.init_zero and head):
                nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            of_tokens = name.rpartition(".")[2] == "tokens" or "value_tables" in name.split(".")
            scaled = spec.init == "scaled" and of_tokens
            nn.init.normal_(module.weight, std=spec.hidden**-0.5 if scaled else spec.init_std)
            if name.rpartition(".")[2] == "bigrams":
                nn.init.zeros_(module.weight)
