"""The table of languages, `languages.toml`, as objects: one per language-script code.

    Language.find("hi-IN").code        # "hin_Deva"; so do hi, hin, Hindi, hin_Deva, hi-Deva
    LANGUAGES["hin_Deva"].name         # "Hindi"
    language_code("fra_Latn")          # a well-formed code outside the table passes, a mistyped one does not
    script_letters("नमस्ते x", "Deva")  # (6, 7): letters and marks of the script, letters and marks in all

An adding of a language is a row in the table and nothing else.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
import unicodedata
from dataclasses import dataclass
from importlib import resources

from nalanda.base.errors import DataError

_CODE = re.compile(r"[a-z]{2,5}_[A-Z][a-z]{3}")


@dataclass(frozen=True, slots=True)
class Language:
    """A language in one script. `locales` are the names that packages file it under, the main one first."""

    code: str
    name: str
    script: str
    direction: str
    locales: tuple[str, ...]
    aliases: tuple[str, ...]

    @staticmethod
    def find(name: str) -> Language:
        """The row that `name` means: a code, alias, locale or English name, in any case, `-` or `_`.

        Raises DataError with the nearest codes for a name that no row has.
        """
        found = _names().get(_plain(name))
        if found is None:
            raise DataError(f"language '{name}' is not in the table; {_nearest(name)}")
        return found


@functools.cache
def _table() -> dict[str, dict[str, object]]:
    text = resources.files("nalanda.text").joinpath("languages.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _rows() -> dict[str, Language]:
    rows: dict[str, Language] = {}
    for code, row in _table()["languages"].items():
        assert isinstance(row, dict)
        rows[code] = Language(
            code=code,
            name=row["name"],
            script=row["script"],
            direction=row.get("direction", "ltr"),
            locales=tuple(row["locales"]),
            aliases=tuple(row["aliases"]),
        )
    return rows


LANGUAGES: dict[str, Language] = _rows()


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", "_", name.strip().lower())


@functools.cache
def _names() -> dict[str, Language]:
    """Every spelling of every row; a locale also with the script said, as in `hi-Deva` or `hi-Deva-IN`."""
    names: dict[str, Language] = {}
    for language in LANGUAGES.values():
        spellings = [language.code, language.name, *language.locales, *language.aliases]
        for locale in language.locales:
            base, _, region = locale.partition("_")
            if len(region) != 4:
                spellings.append("_".join(part for part in (base, language.script, region) if part))
        for spelling in spellings:
            other = names.setdefault(_plain(spelling), language)
            if other is not language:
                raise AssertionError(f"languages.toml: '{spelling}' is in {other.code} and {language.code}")
    return names


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(_plain(name), list(_names()), n=6, cutoff=0.5)
    codes = list(dict.fromkeys(_names()[spelling].code for spelling in near))[:3]
    if not codes:
        return "known codes look like hin_Deva (language_Script); see nalanda/text/languages.toml"
    return f"did you mean {' or '.join(codes)}?"


def language_code(name: str) -> str:
    """The code for `name`: from the table, or `name` itself where it has the form of a code (`fra_Latn`).

    Raises DataError with the nearest codes otherwise. A name of the right form whose script is unknown is
    refused too, since that is nearly always a slip (`hin_Dev`, `hin_Devq`).
    """
    found = _names().get(_plain(name))
    if found is not None:
        return found.code
    if _CODE.fullmatch(name) and name.partition("_")[2] in _table()["scripts"]:
        return name
    raise DataError(f"language '{name}' is unknown; {_nearest(name)}")


def script_of(code: str) -> str:
    """The ISO 15924 script of a language code (`hin_Deva` -> `Deva`); empty where the code names none."""
    return LANGUAGES[code].script if code in LANGUAGES else code.partition("_")[2]


class _Letters(dict[str, tuple[int, int]]):
    """For each character met: whether it is a letter or mark of the script, and whether it is one of any."""

    def __init__(self, script: str) -> None:
        self.prefix = str(_table()["scripts"].get(script, "no script begins so"))

    def __missing__(self, character: str) -> tuple[int, int]:
        name = unicodedata.name(character, "") if unicodedata.category(character)[0] in "LM" else ""
        found = bool(name) and not name.startswith("COMBINING")
        self[character] = (int(found and name.startswith(self.prefix)), int(found))
        return self[character]


_letters = functools.cache(_Letters)


def script_letters(text: str, script: str) -> tuple[int, int]:
    """How many letters and marks of `text` are of `script`, and how many letters and marks it has in all.

    Marks that serve every script (`COMBINING ACUTE ACCENT`) count in neither.
    """
    letters = _letters(script)
    inside = total = 0
    for character in text:
        one, any_script = letters[character]
        inside += one
        total += any_script
    return inside, total
