"""Token cross-entropy: masked and causal language models, denoising, translation, instruction tuning are all this.

    objective = TokensConfig(label_smoothing=0.1)

What is predicted where was decided by the data (`targets`, `target_weight`); only places with a weight go through
the head, and never more than a chunk of them at once.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.objectives.cross_entropy import linear_cross_entropy
from nalanda.objectives.loss import HeadedModel, Loss


class TokensConfig(Config):
    """Cross-entropy of the head `tokens`; one term, `tokens`, counted by the sum of `target_weight`.

    Metrics: `nll` (nats per token, without smoothing) and `accuracy`. chunk: places whose logits are held at once.
    """

    kind: Literal["tokens"] = "tokens"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    z_loss: float = Field(default=0.0, ge=0)
    chunk: int | None = Field(default=None, gt=0)

    def weights(self, batch: Batch) -> dict[str, float]:
        """The weight of all trained places."""
        return {"tokens": float(batch["target_weight"].sum(dtype=torch.float64))}

    def __call__(self, model: HeadedModel, batch: Batch, totals: dict[str, float]) -> Loss:
        """The summed cross-entropy over the batch."""
        return self.of_hidden(model, model(batch).hidden_BTD, batch)

    def of_hidden(self, model: HeadedModel, hidden_BTD: Tensor, batch: Batch) -> Loss:
        """The same from hidden states that another objective shares."""
        place_N = batch["target_weight"].reshape(-1).nonzero().squeeze(1)
        weight_N = batch["target_weight"].reshape(-1)[place_N]
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).index_select(0, place_N)
        head = model.heads["tokens"]
        features_ND, weight_VD, bias_V = head.affine(hidden_ND)
        loss, nll, correct = linear_cross_entropy(
            features_ND,
            weight_VD,
            bias_V,
            batch["targets"].reshape(-1)[place_N],
            weight_N,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=head.softcap,
            chunk=self.chunk,
        )
        count = weight_N.sum(dtype=torch.float32)
        return Loss({"tokens": loss}, {"nll": (nll, count), "accuracy": (correct, count)})
