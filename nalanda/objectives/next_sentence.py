"""BERT's pre-training: masked tokens and next sentence, two terms with a count each (Devlin et al., 2019).

    objective = MlmNextSentenceConfig()

A step's masked-token loss is divided by its masked tokens and its sentence loss by its rows, whatever the split
into micro-batches: a mean of micro-batch means would weigh a micro-batch's tokens by how few there are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nalanda.config import Config
from nalanda.data.batch import Batch
from nalanda.objectives.labels import LabelsConfig
from nalanda.objectives.loss import HeadedModel, Loss
from nalanda.objectives.tokens import TokensConfig


class MlmNextSentenceConfig(Config):
    """Terms `tokens` and `next_sentence`; the second is multiplied by `next_sentence_weight`."""

    kind: Literal["mlm_next_sentence"] = "mlm_next_sentence"
    tokens: TokensConfig = TokensConfig()
    next_sentence: LabelsConfig = LabelsConfig(head="next_sentence")
    next_sentence_weight: float = Field(default=1.0, gt=0)

    def weights(self, batch: Batch) -> dict[str, float]:
        """The masked tokens and the labelled rows."""
        return {**self.tokens.weights(batch), **self.next_sentence.weights(batch)}

    def __call__(self, model: HeadedModel, batch: Batch, totals: dict[str, float]) -> Loss:
        """Both sums, from one forward pass."""
        hidden_BTD = model(batch).hidden_BTD
        tokens = self.tokens.of_hidden(model, hidden_BTD, batch)
        sentence = self.next_sentence.of_hidden(model, hidden_BTD, batch)
        terms = {name: term * self.next_sentence_weight for name, term in sentence.terms.items()}
        return Loss({**tokens.terms, **terms}, {**tokens.metrics, **sentence.metrics})
