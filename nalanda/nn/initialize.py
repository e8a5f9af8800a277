"""Where every weight starts, in one place.

normal   matrices (each expert's like any other) and embeddings: normal, std `init_std` (0.02: GPT-2, BERT)
scaled   matrices: normal, std 1/sqrt(fan in), so that any width keeps its activations' size;
         embeddings: std 1/sqrt(hidden), so that tied logits start near unit size
both     projections that end a residual branch (attention and feed-forward outputs): divided by sqrt(2 x layers),
         so that the residual stream does not grow with depth (Radford et al. 2019);
         biases 0; norms' weights 1; positions, token types and relative biases: std `init_std`
"""

from __future__ import annotations

import math

from torch import nn

from nalanda.nn.linear import ExpertLinear, Linear
from nalanda.nn.spec import Spec


def initialize(root: nn.Module, spec: Spec, layers: int) -> None:
    """Draws all linear and embedding weights of `root` from torch's global generator, in order of their names.

    `layers` is the depth of the stack that `root` is or belongs to.
    """
    for name, module in root.named_modules():
        if isinstance(module, Linear | ExpertLinear):
            std = spec.init_std if spec.init == "normal" else 1 / math.sqrt(module.in_features)
            if module.residual:
                std /= math.sqrt(2 * layers)
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            scaled = spec.init == "scaled" and name.rpartition(".")[2] == "tokens"
            nn.init.normal_(module.weight, std=spec.hidden**-0.5 if scaled else spec.init_std)
