"""Translations that installed packages carry: gettext catalogs (pycountry, django ...) and babel's locale names.

The packages of catalogs are found, not imported: importing django would want its settings.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nalanda.base.errors import DataError
from nalanda.corpus.document import Document
from nalanda.corpus.gettext_files import read_gettext
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.sources import BabelSource, CatalogsSource, Input
from nalanda.text.language import LANGUAGES


def check(source: CatalogsSource | BabelSource) -> None:
    """Raises DataError where the package is not installed or holds none of the source's languages."""
    if isinstance(source, CatalogsSource):
        found = catalogs(source)
        if not any(found.values()):
            raise DataError(
                f"package '{source.package}' has no gettext catalogs for {', '.join(source.languages)}"
            )
    else:
        _babel()


def _locales(language: str) -> tuple[str, ...]:
    return LANGUAGES[language].locales if language in LANGUAGES else (language, language.partition("_")[0])


def _root(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise DataError(
            f"package '{package}' is not installed; run: pip install -e '.[demo]'   (or: pip install {package})"
        )
    return Path(places[0])


def catalogs(source: CatalogsSource) -> dict[str, list[Input]]:
    """For each language the package's catalogs, the compiled one where both stand; raises DataError without it."""
    root = _root(source.package)
    folders: dict[str, list[Path]] = {}
    for place, names, _ in os.walk(root):
        names.sort()
        if "LC_MESSAGES" in names:
            folder = Path(place)
            folders.setdefault(folder.name, []).append(folder / "LC_MESSAGES")
            names.clear()
    found: dict[str, list[Input]] = {}
    for language in source.languages:
        found[language] = []
        for folder in [f for locale in _locales(language) for f in sorted(folders.get(locale, []))]:
            compiled = {path.stem: path for path in sorted(folder.glob("*.mo"))}
            files = {path.stem: path for path in sorted(folder.glob("*.po"))} | compiled
            for path in (files[stem] for stem in sorted(files)):
                name = path.relative_to(root).as_posix().replace("LC_MESSAGES/", "")
                found[language].append(Input(path, name, source.language, language))
    return found


def read_catalogs(source: CatalogsSource, quarantine: Quarantine) -> Iterator[Document]:
    """The pairs of the package's catalogs, language by language; one without any is noted."""
    for language, files in catalogs(source).items():
        if not files:
            quarantine.notes.append(f"package '{source.package}' has no catalogs for {language}")
        for file in files:
            yield from read_gettext(file, quarantine, source.origin)


def _babel() -> Any:
    try:
        import babel
    except ImportError:
        raise DataError("package 'babel' is not installed; run: pip install -e '.[demo]'") from None
    return babel


def read_babel(source: BabelSource, quarantine: Quarantine) -> Iterator[Document]:
    """(English name, name) for each code that both locales name; a code without an English name is flagged."""
    babel = _babel()
    english = _names(babel, source.language, source)
    if english is None:
        raise DataError(f"babel has no locale for {source.language}")
    for language in source.languages:
        names = _names(babel, language, source)
        if names is None:
            quarantine.notes.append(f"babel has no locale for {language}")
            continue
        for kind in source.names:
            for code, name in names[kind].items():
                quarantine.saw()
                original = english[kind].get(code, "")
                if kind == "cities" and not original:  # CLDR leaves out what the zone's code tells in English
                    original = code.rpartition("/")[2].replace("_", " ")
                yield Document(
                    text=original,
                    id=f"{quarantine.source}:{language}:{kind}:{code}",
                    language=source.language,
                    target=name,
                    target_language=language,
                    origin=source.origin or quarantine.source,
                    meta={} if original else {"flag": "no_source"},
                )


def _names(babel: Any, language: str, source: BabelSource) -> dict[str, dict[str, str]] | None:
    """{kind: {code: name}} of the locale that names `language`; None where babel has none."""
    for name in _locales(language):
        try:
            locale = babel.Locale.parse(name)
        except (babel.UnknownLocaleError, ValueError):
            continue
        return {kind: _kind(locale, kind) for kind in source.names}
    return None


def _kind(locale: Any, kind: str) -> dict[str, str]:
    """Names of one kind by a code that all locales share, in the order of the codes."""
    names: Mapping[Any, Any]
    if kind == "cities":
        names = {zone: row.get("city") for zone, row in locale.time_zones.items()}
    elif kind == "units":
        names = {unit: row.get("long") for unit, row in locale.unit_display_names.items()}
    elif kind in ("months", "days"):
        names = getattr(locale, kind)["stand-alone"]["wide"]
    else:
        names = getattr(locale, kind)
    return {str(code): names[code] for code in sorted(names, key=str) if isinstance(names[code], str)}
