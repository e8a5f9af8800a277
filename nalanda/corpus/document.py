"""The row of a corpus: a text, or a text with its translation.

Document(text="Sri Lanka", id="countries:17", language="eng_Latn", target="श्रीलंका", target_language="hin_Deva")
Document(text="once upon a time", id="tales:1", language="eng_Latn")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """`text` in `language`; a translation pair has `target` in `target_language` too, else None.

    `id` is unique in a corpus (source:file:row); `origin` says where the row comes from, for slices of a report.
    `meta["flag"]`, where a reader sets it (`fuzzy`, `obsolete`), is the reason for which the row is filtered.
    """

    text: str
    id: str
    language: str = ""
    target: str | None = None
    target_language: str = ""
    origin: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def group(self, english: str = "eng_Latn") -> str:
        """The language it is counted under: a pair's side that is not English, or the text's own language."""
        if self.target is None or self.target_language == english:
            return self.language
        return self.target_language
