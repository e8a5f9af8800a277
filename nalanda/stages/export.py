"""A trained model as a folder that stands on its own: weights, tokenizer, decoding defaults, model card.

model/ config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json  README.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nalanda
from nalanda.base import io
from nalanda.models.exchange import CARD, save_model
from nalanda.models.weights import SHARD_BYTES
from nalanda.nn.model import Model
from nalanda.text.language import Language
from nalanda.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nalanda.stages.train import TrainStage


@dataclass(frozen=True)
class Card:
    """What a model card says."""

    name: str
    license: str
    languages: tuple[str, ...]
    base: str
    facts: dict[str, Any]

    @staticmethod
    def of(name: str, config: TrainStage, result: dict[str, Any]) -> Card:
        """The card of a training stage's model."""
        data = result.get("data", {})
        languages = config.languages or tuple(data.get("rows_by_language", ()))
        base = str(config.model) if isinstance(config.model, Path) else ""
        facts: dict[str, Any] = {
            "parameters": f"{result['parameters']:,}",
            "data": f"{data.get('kind', config.data.kind)}, {data.get('rows', 0):,} rows",
            "objective": config.objective.kind,
            "optimizer": config.optimizer.kind,
            "steps": f"{result['steps']:,}",
            "training time": f"{result['training_seconds']:.0f} s",
            "precision": result.get("precision", config.precision),
            "seed": config.seed,
        }
        best = result.get("best_dev")
        if best:
            facts[f"best dev {best['monitor']}"] = f"{best['value']:.4f} at step {best['step']}"
        return Card(name, config.license, languages, base, facts)

    def text(self) -> str:
        """The card as Markdown with the front matter that model hubs read."""
        found = [Language.find(code) for code in self.languages]
        codes = list(dict.fromkeys(language.code.split("_")[0] for language in found))
        head = ["---", f"license: {self.license}", "library_name: nalanda"]
        if codes:
            head += ["language:", *[f"- {code}" for code in codes]]
        if self.base:
            head.append(f"base_model: {self.base}")
        names = ", ".join(f"{language.name} ({language.code})" for language in found)
        body = [f"# {self.name}", "", f"Trained with Nalanda {nalanda.__version__}.", ""]
        if names:
            body += [f"Languages: {names}.", ""]
        body += ["| | |", "| --- | --- |", *[f"| {key} | {value} |" for key, value in self.facts.items()]]
        return "\n".join([*head, "---", "", *body, ""])


def write(
    model: Model,
    tokenizer: Tokenizer,
    folder: Path,
    card: Card | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes everything into `folder`, atomically; the manifest leaves the card out, so that it may be edited."""
    with io.atomic_folder(folder, skip=(CARD,)) as draft:
        save_model(model, draft, shard_bytes=shard_bytes)
        tokenizer.save(draft)
        io.write_json(draft / "generation_config.json", generation_config(model, tokenizer))
        if card is not None:
            io.write_text(draft / CARD, card.text())


def generation_config(model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids that decoding starts, pads and ends with, under Hugging Face's names."""
    values: dict[str, Any] = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }
    if model.spec.encoder and model.spec.decoder:
        values["decoder_start_token_id"] = tokenizer.bos
    return values
