"""Cross-entropy of one label for each row: classification, next sentence.

objective = LabelsConfig(head="next_sentence")
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.objectives.loss import HeadedModel, Loss


class LabelsConfig(Config):
    """Cross-entropy of `head` against `labels`; one term, named as the head, counted by the sum of `label_weight`.

    Metrics: `HEAD_nll` and `HEAD_accuracy`.
    """

    kind: Literal["labels"] = "labels"
    head: str = "labels"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def weights(self, batch: Batch) -> dict[str, float]:
        """The weight of all labelled rows."""
        return {self.head: float(label_weight(batch).sum(dtype=torch.float64))}

    def __call__(self, model: HeadedModel, batch: Batch, totals: dict[str, float]) -> Loss:
        """The summed cross-entropy over the batch."""
        return self.of_hidden(model, model(batch).hidden_BTD, batch)

    def of_hidden(self, model: HeadedModel, hidden_BTD: Tensor, batch: Batch) -> Loss:
        """The same from hidden states that another objective shares."""
        logits_BC = model.logits(hidden_BTD, self.head, batch["segments"])
        logits_BC = logits_BC if logits_BC.dtype == torch.float64 else logits_BC.float()
        labels_B, weight_B = batch["labels"], label_weight(batch)
        with torch.autocast(logits_BC.device.type, enabled=False):
            known_B = torch.where(weight_B != 0, labels_B, 0)  # a label without weight may be anything
            loss_B = F.cross_entropy(
                logits_BC, known_B, reduction="none", label_smoothing=self.label_smoothing
            )
            nll_B = -logits_BC.detach().log_softmax(-1).gather(1, known_B.unsqueeze(1)).squeeze(1)
        right_B = (logits_BC.argmax(-1) == labels_B).float()
        count = weight_B.sum()
        metrics = {
            f"{self.head}_nll": ((nll_B * weight_B).sum(), count),
            f"{self.head}_accuracy": ((right_B * weight_B).sum(), count),
        }
        return Loss({self.head: (loss_B * weight_B).sum()}, metrics)


def label_weight(batch: Batch) -> Tensor:
    """B: the rows' weights, 1 where the batch gives none."""
    weight = batch.get("label_weight")
    return torch.ones_like(batch["labels"], dtype=torch.float32) if weight is None else weight
