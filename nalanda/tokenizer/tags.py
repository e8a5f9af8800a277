"""Language tags of multilingual translators: which tokens they are, and which of our codes each one means.

    style, tags = find_tags({7: "__hi__", 8: "__ta__"})      # "m2m100", {"hin_Deva": 7, "tam_Taml": 8}

A tag that means no language of ours keeps its own name as code (`fra_Latn`, `fr`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nalanda.base.errors import DataError
from nalanda.text.language import LANGUAGES, Language

STYLES: dict[str, re.Pattern[str]] = {
    "nalanda": re.compile(r"<2([^<>\s]+)>"),
    "marian": re.compile(r">>([^<>\s]+)<<"),
    "m2m100": re.compile(r"__([a-z]{2,4})__"),
    "indictrans": re.compile(r"__tgt__([a-z]{2,3})__"),
    "nllb": re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"),
    "mbart": re.compile(r"([a-z]{2,3}_[A-Z]{2})"),
}
"""How each family of translators writes a language tag; the group is the language."""


def is_tag(token: str) -> bool:
    """Whether a token has the form of a language tag in any style."""
    return token.startswith("__src__") or any(style.fullmatch(token) for style in STYLES.values())


def find_tags(special: Mapping[int, str]) -> tuple[str | None, dict[str, int]]:
    """The style that most special tokens (id -> name) have, and the id of each code's tag; None without any."""
    found = {
        name: {number: match[1] for number, token in special.items() if (match := style.fullmatch(token))}
        for name, style in STYLES.items()
    }
    best = max(found, key=lambda name: len(found[name]))
    if not found[best]:
        return None, {}
    codes: dict[str, int] = {}
    # A tag that is a code itself goes before another name of the same language.
    for number, body in sorted(found[best].items(), key=lambda item: (item[1] not in LANGUAGES, item[0])):
        codes.setdefault(_code(body), number)
    return best, dict(sorted(codes.items(), key=lambda item: item[1]))


def _code(body: str) -> str:
    name = body.removesuffix("_XX")
    try:
        return Language.find(name).code
    except DataError:
        return name
