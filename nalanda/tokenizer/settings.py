"""The small JSON files beside a foreign tokenizer: which token plays which role, added tokens, chat template.

    settings = Settings.read(folder)
    settings.roles(numbers)              # {"bos": "<s>", ...}; `numbers` is the vocabulary, token -> id
    settings.added                       # tokens that the vocabulary's own file may lack, id -> (name, special)

Read are tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json, config.json and
chat_template.jinja; all of them may be absent. What is said first in this order counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nalanda.base.errors import DataError, RunError
from nalanda.tokenizer.blueprint import read_mapping, read_text

ROLE_NAMES = ("pad", "unk", "bos", "eos", "mask", "cls", "sep")
_USUAL = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
"""Names by which special tokens are known where no file says their role."""


@dataclass(frozen=True)
class Settings:
    """The files' contents; see the file's heading."""

    folder: Path
    tokenizer: dict[str, Any]
    special: dict[str, Any]
    ids: list[dict[str, Any]]
    """generation_config.json and config.json."""
    added: dict[int, tuple[str, bool]]
    chat_template: str | None

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """What lies in `folder`. Raises RunError for a damaged file."""
        tokenizer = _optional(folder / "tokenizer_config.json")
        added = {i: (name, True) for name, i in _optional(folder / "added_tokens.json").items()}
        for key, row in _mapping(tokenizer, "added_tokens_decoder", folder).items():
            if (
                not isinstance(row, dict)
                or not isinstance(row.get("content"), str)
                or not str(key).isdecimal()
            ):
                raise RunError(
                    f"{folder / 'tokenizer_config.json'}: added_tokens_decoder: '{key}' is damaged"
                )
            added[int(key)] = row["content"], bool(row.get("special"))
        if not all(isinstance(i, int) and isinstance(name, str) for i, (name, _) in added.items()):
            raise RunError(f"{folder / 'added_tokens.json'}: damaged, expected token: id")
        ids = [_optional(folder / name) for name in ("generation_config.json", "config.json")]
        special = _optional(folder / "special_tokens_map.json")
        return cls(folder, tokenizer, special, ids, added, _template(folder, tokenizer))

    @property
    def kind(self) -> str:
        """The family: tokenizer_class without its ending, in small letters, else config.json's model_type."""
        name = str(self.tokenizer.get("tokenizer_class") or "")
        if name and name not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
            return name.removesuffix("Fast").removesuffix("Tokenizer").lower()
        return str(self.ids[1].get("model_type") or "").lower()

    @property
    def extra(self) -> list[str]:
        """The names of further special tokens (language tags, sentinels)."""
        found: list[str] = []
        for source in (self.tokenizer, self.special):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                rows = source.get(key) or []
                found += [_name(row) or "" for row in (rows.values() if isinstance(rows, dict) else rows)]
        return [name for name in dict.fromkeys(found) if name]

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no of tokenizer_config.json. Raises DataError for anything else."""
        value = self.tokenizer.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise DataError(
                f"{self.folder / 'tokenizer_config.json'}: {key}: expected true or false, found {value!r}"
            )
        return value

    def text(self, key: str, default: str) -> str:
        """A string of tokenizer_config.json."""
        value = self.tokenizer.get(key)
        return value if isinstance(value, str) else default

    def roles(self, numbers: Mapping[str, int]) -> dict[str, str]:
        """Role -> token. Tokens named in tokenizer_config.json are given even where the vocabulary lacks them."""
        names = {number: name for name, number in numbers.items()}
        found: dict[str, str] = {}
        for role in ROLE_NAMES:
            said = _name(self.tokenizer.get(f"{role}_token")) or _name(self.special.get(f"{role}_token"))
            by_id = (names.get(_id(values.get(f"{role}_token_id"))) for values in self.ids)
            usual = (name for name in _USUAL[role] if name in numbers)
            name = said or next((name for name in by_id if name), None) or next(usual, None)
            if name:
                found[role] = name
        if "pad" in found and not self._says("pad") and found["pad"] == found.get("eos"):
            del found["pad"]
        return found

    def _says(self, role: str) -> bool:
        return any(source.get(f"{role}_token") for source in (self.tokenizer, self.special))


def _optional(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.is_file() else {}


def _mapping(values: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise RunError(f"{folder / 'tokenizer_config.json'}: {key}: damaged, not a mapping")
    return found


def _template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    """The default chat template: a file of its own goes before tokenizer_config.json, as in transformers."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        rows = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
        found = rows.get("default", next(iter(rows.values()), None))
    if found is not None and not isinstance(found, str):
        raise RunError(
            f"{folder / 'tokenizer_config.json'}: chat_template: expected text, found {type(found).__name__}"
        )
    return found


def _name(value: Any) -> str | None:
    """The token's text, where it is a string or a described token."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None


def _id(value: Any) -> int:
    """An id where it is one, or the first of several; -1 for none."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
