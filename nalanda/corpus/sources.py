"""Where a corpus comes from: one frozen config per kind of source, and the files that each one means.

    - {kind: jsonl, path: "$DATA/{language}.train.jsonl.gz", languages: [hin_Deva, tam_Taml], text: en, target: xx}
    - {kind: text, path: "books/*.txt.zst", language: eng_Latn, unit: paragraph}
    - {kind: catalogs, package: pycountry, languages: [hin_Deva, tam_Taml]}

A path may hold wildcards, environment variables and `{language}`, which stands for each of `languages`.
"""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from nalanda.base.errors import DataError
from nalanda.config import Config
from nalanda.corpus.compressed import MAX_ROW_BYTES, extension
from nalanda.text.language import language_code


def _code(name: str) -> str:
    try:
        return language_code(name) if name else ""
    except DataError as error:
        raise ValueError(str(error)) from None


def _some(languages: tuple[str, ...]) -> tuple[str, ...]:
    if not languages:
        raise ValueError("at least one language is needed")
    return tuple(dict.fromkeys(languages))


Code = Annotated[str, AfterValidator(_code)]
Names = Literal[
    "languages", "territories", "scripts", "currencies", "variants", "cities", "units", "months", "days"
]


class SourceBase(Config):
    """What every source has. `share` keeps that part of the rows, chosen by their split key."""

    name: str = ""
    origin: str = ""
    split: Literal["train", "dev", "test"] | None = None
    share: float = Field(default=1.0, gt=0, le=1)
    rows: int | None = Field(default=None, gt=0, description="read at most so many rows, for trials")


class FileSource(SourceBase):
    """Files by path. `languages` fills `{language}`: the target's language where rows have one, else the text's."""

    path: str | tuple[str, ...]
    language: Code = ""
    target_language: Code = ""
    languages: tuple[Code, ...] = ()
    max_row_bytes: int = Field(default=MAX_ROW_BYTES, ge=1)

    @model_validator(mode="after")
    def _template(self) -> FileSource:
        if bool(self.languages) != any("{language}" in path for path in self.paths()):
            raise ValueError("'languages' and '{language}' in the path go together")
        return self

    def paths(self) -> tuple[str, ...]:
        """The paths as written."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def paired(self) -> bool:
        """Whether a row is a translation pair."""
        return False


class TextSource(FileSource):
    """Plain text: each line, paragraph (between blank lines) or whole file is a document."""

    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph", "file"] = "line"


class RecordSource(SourceBase):
    """Which fields of a record are what. A `_field` names the field that holds it, where rows differ."""

    text: str = "text"
    target: str | None = None
    id_field: str | None = None
    origin_field: str | None = None
    language_field: str | None = None
    target_language_field: str | None = None

    def fields(self) -> list[str]:
        """The fields that a record must have."""
        names = [self.text, self.target, self.id_field, self.origin_field, self.language_field]
        return [name for name in [*names, self.target_language_field] if name is not None]


class _RecordFiles(RecordSource, FileSource):
    def paired(self) -> bool:
        """Whether a row is a translation pair."""
        return self.target is not None


class JsonlSource(_RecordFiles):
    """One JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"


class TableSource(_RecordFiles):
    """Comma- or tab-separated values. `columns` names the columns of a file without a header row.

    Quotes enclose fields in csv; in tsv they are plain characters unless `quotes` is true.
    """

    kind: Literal["csv", "tsv"]
    columns: tuple[str, ...] = ()
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quotes: bool | None = None


class ParquetSource(_RecordFiles):
    """Parquet files with string columns."""

    kind: Literal["parquet"] = "parquet"


class GettextSource(FileSource):
    """Gettext catalogs, .po or .mo: msgid in `language`, msgstr in the target language."""

    kind: Literal["gettext"] = "gettext"
    language: Code = "eng_Latn"

    def paired(self) -> bool:
        """Whether a row is a translation pair."""
        return True


class MessagesSource(FileSource):
    """JSON message files (MediaWiki, Chrome, ARB, i18next), paired by key with the file in `source_path`."""

    kind: Literal["messages"] = "messages"
    source_path: str | None = None
    language: Code = "eng_Latn"

    def paired(self) -> bool:
        """Whether a row is a translation pair."""
        return self.source_path is not None


class CatalogsSource(SourceBase):
    """The gettext catalogs inside an installed package, which is not imported."""

    kind: Literal["catalogs"] = "catalogs"
    package: str
    languages: Annotated[tuple[Code, ...], AfterValidator(_some)]
    language: Code = "eng_Latn"


class BabelSource(SourceBase):
    """Names of languages, territories, scripts, currencies ... in the locales of the package babel."""

    kind: Literal["babel"] = "babel"
    languages: Annotated[tuple[Code, ...], AfterValidator(_some)]
    names: tuple[Names, ...] = ("languages", "territories", "scripts", "currencies")
    language: Code = "eng_Latn"


class HubSource(RecordSource):
    """A data set of the Hugging Face hub, streamed (extra `hub`); its own code is never run."""

    kind: Literal["hub"] = "hub"
    dataset: str
    subset: str | None = None
    part: str = "train"
    revision: str | None = None
    language: Code = ""
    target_language: Code = ""


SourceConfig = Annotated[
    TextSource
    | JsonlSource
    | TableSource
    | ParquetSource
    | GettextSource
    | MessagesSource
    | CatalogsSource
    | BabelSource
    | HubSource,
    Field(discriminator="kind"),
]

EXTENSIONS = {
    "text": (),  # text is text, whatever its name
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (),
    "tsv": (),
    "parquet": (".parquet",),
    "gettext": (".po", ".mo", ".pot", ".gmo"),
    "messages": (".json", ".arb"),
}


class Input(NamedTuple):
    """One file of a source: a short name unique in the source, and the languages of its rows."""

    path: Path
    name: str
    language: str
    target_language: str


def expand(template: str, language: str = "") -> list[Path]:
    """The files that a path with variables and wildcards means, sorted. Raises DataError where there is none."""
    text = os.path.expanduser(os.path.expandvars(template.replace("{language}", language)))
    path = Path(text)
    if path.is_file():
        return [path]
    if "$" in text:
        raise DataError(f"{template}: the environment variable in this path is not set")
    found = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
    if found:
        return found
    if path.is_dir():
        raise DataError(f"{text}: is a folder, not a file; write {text.rstrip('/')}/* for the files in it")
    raise DataError(f"{text}: no such file{_near(path)}")


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        above = next((p for p in parent.parents if p.is_dir()), Path("."))
        missing = parent.relative_to(above).parts[0] if parent.is_relative_to(above) else str(parent)
        near = difflib.get_close_matches(missing, [p.name for p in above.iterdir() if p.is_dir()], n=3)
        hint = f"; did you mean {' or '.join(str(above / name) for name in near)}?" if near else ""
        return f": there is no folder {above / missing}{hint}"
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=3)
    return f"; did you mean {' or '.join(str(parent / name) for name in near)}?" if near else f" in {parent}"


def inputs(source: FileSource) -> list[Input]:
    """The files of `source` with their languages. Raises DataError for one that is missing or of another kind."""
    kind = getattr(source, "kind", "text")
    found: list[tuple[Path, str, str]] = []
    for template in source.paths():
        for language in source.languages or ("",):
            texts, target = source.language, source.target_language
            if language and source.paired():
                target = language
            elif language:
                texts = language
            found += [(path, texts, target) for path in expand(template, language)]
    for path, _, _ in found:
        wanted = EXTENSIONS[kind]
        if wanted and extension(path) not in wanted:
            raise DataError(
                f"{path}: kind '{kind}' reads {' '.join(wanted)} (also .gz, .zst), not '{path.suffix}'"
            )
    parent = os.path.commonpath([path.parent for path, _, _ in found])
    return [Input(path, os.path.relpath(path, parent), texts, target) for path, texts, target in found]
