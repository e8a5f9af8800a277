"""Which rows a corpus does not want, and why: one reason per row, the first that applies.

    reason = FiltersConfig().reason(document)      # "" keeps it

| reason | row |
| --- | --- |
| fuzzy, obsolete, no_source | its reader said so (`meta["flag"]`) |
| empty | no text on the source side, or none at all |
| untranslated | a pair whose target is empty or equals the source, whatever the case |
| too_short, too_long | characters of either side outside `min_characters` .. `max_characters` |
| length_ratio | the longer side is more than `max_ratio` times the other, both counted with 20 more |
| wrong_script | too few letters of the script that its language is written in |
"""

from __future__ import annotations

from pydantic import Field, model_validator

from nalanda.config import Config
from nalanda.corpus.document import Document
from nalanda.text.language import script_letters, script_of

_SLACK = 20  # so that "Yes" and a short phrase for it are no suspects


class FiltersConfig(Config):
    """Bounds; the table in this file's heading says what each does.

    `script_share` is the least share of the letters and marks on the target side (of the text, where there is no
    target) that must be of the language's script; at 0 one such letter is enough. `keep_flags` are reader's flags
    that are no reason to filter.
    """

    min_characters: int = Field(default=1, ge=1)
    max_characters: int = Field(default=1_000_000, ge=1)
    max_ratio: float = Field(default=0.0, ge=0)
    untranslated: bool = True
    script: bool = True
    script_share: float = Field(default=0.0, ge=0, le=1)
    keep_flags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _bounds(self) -> FiltersConfig:
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters is above max_characters")
        return self

    def reason(self, document: Document) -> str:
        """Why `document` is filtered; empty where it is kept."""
        flag = str(document.meta.get("flag", ""))
        if flag and flag not in self.keep_flags:
            return flag
        text, target = document.text, document.target
        if not text.strip():
            return "empty"
        if target is not None and self.untranslated and _untranslated(text, target):
            return "untranslated"
        sides = [text] if target is None else [text, target]
        if any(len(side) < self.min_characters for side in sides):
            return "too_short"
        if any(len(side) > self.max_characters for side in sides):
            return "too_long"
        if target is not None and self.max_ratio:
            short, long = sorted((len(text) + _SLACK, len(target) + _SLACK))
            if long > self.max_ratio * short:
                return "length_ratio"
        return "wrong_script" if self.script and self._wrong_script(document) else ""

    def _wrong_script(self, document: Document) -> bool:
        language = document.language if document.target is None else document.target_language
        script = script_of(language)
        if not script:
            return False
        inside, total = script_letters(document.text if document.target is None else document.target, script)
        return inside == 0 or inside < self.script_share * total


def _untranslated(text: str, target: str) -> bool:
    return not target.strip() or text.strip().casefold() == target.strip().casefold()
