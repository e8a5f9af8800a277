"""A trained model as a folder that stands on its own: weights, tokenizer, decoding defaults, model card.

model/ config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json  README.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nalanda
from nalanda.base import io
from nalanda.base.errors import DataError, RunError
from nalanda.generate.prompting import Prompting
from nalanda.models.exchange import CARD, save_model
from nalanda.models.weights import SHARD_BYTES
from nalanda.nn.model import Model
from nalanda.stages.pipeline import model_folder
from nalanda.text.language import Language
from nalanda.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nalanda.stages.train import TrainStage

_LICENSE = re.compile(r"^license: *['\"]?([\w.-]+)", re.M)
_FRONT = re.compile(r"---\r?\n(.*?)\n---", re.S)


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
        base, license = "", config.license
        if isinstance(config.model, Path):
            base = str(config.model).removeprefix("hub:").partition("@")[0]
            license = license or license_of(config.model)
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
        return Card(name, license or "other", languages, base, facts)

    def _languages(self) -> list[tuple[str, str]]:
        """Code and name of each language; a code of others has no name here."""
        found = []
        for code in self.languages:
            try:
                language = Language.find(code)
                found.append((language.code, language.name))
            except DataError:
                found.append((code, ""))
        return found

    def text(self) -> str:
        """The card as Markdown with the front matter that model hubs read."""
        codes = list(dict.fromkeys(code.split("_")[0] for code, _ in self._languages()))
        head = ["---", f"license: {self.license}", "library_name: nalanda"]
        if codes:
            head += ["language:", *[f"- {code}" for code in codes]]
        if self.base:
            head.append(f"base_model: {self.base}")
        names = ", ".join(f"{name} ({code})" if name else code for code, name in self._languages())
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
    """How to decode, under Hugging Face's names: what the model came with, and the ids that it does not say."""
    prompting = Prompting(tokenizer, model.spec, model.generation)
    roles = {"bos": tokenizer.role("bos"), "eos": tokenizer.role("eos"), "pad": tokenizer.pad}
    values: dict[str, Any] = {f"{role}_token_id": i for role, i in roles.items() if i is not None}
    # An mBART of 25 languages starts from the tag of the language that it is to write, which no file can say.
    if model.spec.encoder and model.spec.decoder and (prompting.own or tokenizer.tag_style != "mbart"):
        values["decoder_start_token_id"] = prompting.start
    return values | {key: value for key, value in model.generation.items() if value is not None}


def license_of(place: Path) -> str | None:
    """The licence that a model's card names in its front matter; None where it does not."""
    try:
        folder = model_folder(place)
        text = (folder / CARD).read_text(encoding="utf-8") if folder.is_dir() else ""
    except (OSError, UnicodeDecodeError, RunError):
        return None
    front = _FRONT.match(text)
    found = _LICENSE.search(front[1]) if front else None
    return found[1] if found and found[1] != "other" else None
