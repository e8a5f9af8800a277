"""The corpus stage: sources in, three splits and a ledger out.

    result = build(config, folder, progress)

    folder/train.parquet dev.parquet test.parquet   id, text, language, target, target_language, origin
    folder/ledger.json                              what became of every row, by source and language
    folder/quarantine/SOURCE.jsonl                  rows that could not be read: place, reason, bytes

Each row goes: reader -> NFC and strip -> filters -> exact duplicates -> split by hash -> near to a test row?
Memory does not grow with the corpus but for 16 bytes of hash per row and the keys of the held-out rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from nalanda.base.errors import DataError
from nalanda.base.io import atomic_writer, remove_partials, write_json
from nalanda.base.progress import ProgressFactory, silent
from nalanda.config import Config
from nalanda.corpus.dedup import ExactDedup
from nalanda.corpus.document import Document
from nalanda.corpus.filters import FiltersConfig
from nalanda.corpus.ledger import Ledger
from nalanda.corpus.quarantine import Quarantine
from nalanda.corpus.readers import check, read
from nalanda.corpus.sources import Code, FileSource, MessagesSource, SourceBase, SourceConfig, expand, inputs
from nalanda.corpus.split import SPLITS, NearIndex, Split, SplitConfig, key_side
from nalanda.corpus.store import COLUMNS, SplitWriter, read_parquet_rows
from nalanda.text.normalize import nfc, split_key


class CorpusConfig(Config):
    """What a recipe writes. `seed` decides which rows a source's `share` keeps, and nothing else."""

    sources: tuple[SourceConfig, ...]
    split: SplitConfig = SplitConfig()
    filters: FiltersConfig = FiltersConfig()
    dedup: bool = True
    strip: bool = True
    english: Code = "eng_Latn"
    max_quarantined: float = Field(default=0.05, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _some(self) -> CorpusConfig:
        if not self.sources:
            raise ValueError("sources: at least one is needed")
        return self


def source_names(config: CorpusConfig) -> list[str]:
    """A name for each source, the given one or its kind, made unique by a number."""
    names: list[str] = []
    for source in config.sources:
        base = source.name or getattr(source, "package", "") or str(getattr(source, "kind", "source"))
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def input_files(config: CorpusConfig) -> dict[str, Path]:
    """Every file that the sources name, under its config key (with its name, where a key means several).

    Raises DataError for one that is missing. Installed packages and the hub are not files.
    """
    places: dict[str, Path] = {}
    for index, source in enumerate(config.sources):
        if isinstance(source, FileSource):
            found = inputs(source)
            for file in found:
                key = f"sources.{index}.path"
                places[key if len(found) == 1 else f"{key}:{file.name}"] = file.path
        if isinstance(source, MessagesSource) and source.source_path is not None:
            for language in source.languages or ("",):
                path = expand(source.source_path, language)[0]
                places[f"sources.{index}.source_path:{path.name}"] = path
    return places


def build(config: CorpusConfig, folder: Path, progress: ProgressFactory = silent) -> dict[str, Any]:
    """Reads the sources and writes the corpus into `folder`; returns counts, ledger, notes and a hash of the rows.

    Raises DataError where a source is missing, too many of its rows cannot be read, or nothing is kept. The three
    splits take their places together, at the end.
    """
    for source in config.sources:
        check(source)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    shutil.rmtree(folder / "quarantine", ignore_errors=True)
    (folder / "quarantine").mkdir()
    with contextlib.ExitStack() as stack:
        draft = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".partial-corpus", dir=folder)))
        writers: dict[Split, SplitWriter] = {}
        for split in SPLITS:
            file = stack.enter_context(atomic_writer(folder / f"{split}.parquet", "wb"))
            writers[split] = stack.enter_context(SplitWriter(file))
        work = _Work(config, folder, writers)
        work.gather(draft / "train.parquet", progress)
        work.separate(draft / "train.parquet", progress)
        work.ledger.check()
    write_json(folder / "ledger.json", work.ledger.to_dict())
    return work.result()


class _Work:
    """One run of `build`: what is counted on the way."""

    def __init__(self, config: CorpusConfig, folder: Path, writers: dict[Split, SplitWriter]) -> None:
        self.config, self.folder, self.writers = config, folder, writers
        self.ledger = Ledger()
        self.names = source_names(config)
        self.notes: list[str] = []
        self.damaged: list[str] = []
        self._dedup = ExactDedup()
        self._held_out: dict[str, dict[str, None]] = {split: {} for split in config.split.near_to}
        self._drafted: list[int] = []  # rows of each source in the draft, which holds them in order
        self._counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._digest = hashlib.sha256()

    def gather(self, draft: Path, progress: ProgressFactory) -> None:
        """First pass: dev and test are written; training rows wait in `draft` until all test rows are known."""
        with draft.open("wb") as file, SplitWriter(file) as train, progress("reading", unit="rows") as bar:
            for name, source in zip(self.names, self.config.sources):
                before = train.count
                with Quarantine(
                    self.ledger, self.folder / "quarantine", name, self.config.max_quarantined
                ) as quarantine:
                    for row, document in enumerate(islice(read(source, quarantine), source.rows), start=1):
                        if row % 1000 == 0:
                            bar.update(1000, source=name)
                        self._place(self._normal(document), name, source, train)
                self.notes += quarantine.notes
                self.damaged += quarantine.damaged
                self._drafted.append(train.count - before)
        if not self.ledger.total("kept"):
            raise DataError(self._why_empty())

    def _place(self, document: Document, name: str, source: SourceBase, train: SplitWriter) -> None:
        """Decides one row's fate."""
        config, language = self.config, document.group(self.config.english)
        self.ledger.arrived(name, language)
        reason = config.filters.reason(document)
        key = "" if reason else split_key(key_side(document, config.english))
        if not reason and not self._sampled(key, source.share):
            reason = "not_sampled"
        if reason:
            self.ledger.count(name, language, "filtered", reason)
        elif config.dedup and not self._dedup.is_new(document):
            self.ledger.count(name, language, "duplicate")
        else:
            self.ledger.count(name, language, "kept")
            split = source.split or config.split.of(key)
            if split in self._held_out:
                self._held_out[split][key] = None
            if split == "train":
                train.write(document)
            else:
                self._write(document, split)

    def _normal(self, document: Document) -> Document:
        text, target = nfc(document.text), document.target
        target = nfc(target) if target is not None else None
        if self.config.strip:
            text, target = text.strip(), target.strip() if target is not None else None
        if text == document.text and target == document.target:
            return document
        return dataclasses.replace(document, text=text, target=target)

    def _sampled(self, key: str, share: float) -> bool:
        if share >= 1:
            return True
        digest = hashlib.sha256(f"{self.config.seed}:{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    def _write(self, document: Document, split: Split) -> None:
        self.writers[split].write(document)
        self._counts[split][document.group(self.config.english)] += 1
        row = [split, *(getattr(document, name) for name in COLUMNS)]
        self._digest.update(json.dumps(row).encode("ascii") + b"\n")

    def _why_empty(self) -> str:
        total = self.ledger.to_dict()["total"]
        if not total["read"]:
            return f"the corpus is empty: the sources ({', '.join(self.names)}) hold no rows"
        fates = {**total["filtered"], "duplicate": total["duplicate"], "quarantined": total["quarantined"]}
        return (
            f"the corpus is empty: of {total['read']:,} rows read from {', '.join(self.names)} none is kept "
            f"({', '.join(f'{n:,} {fate}' for fate, n in fates.items() if n)}); check languages, fields and filters"
        )

    def separate(self, draft: Path, progress: ProgressFactory) -> None:
        """Second pass: training rows near to a held-out row are filtered, the others written."""
        threshold = self.config.split.near
        indexes = {s: NearIndex(keys, threshold) for s, keys in self._held_out.items() if keys and threshold}

        @functools.lru_cache(maxsize=1 << 16)
        def near(key: str) -> str:
            return next((f"near_{split}" for split, index in indexes.items() if index.has_neighbour(key)), "")

        rows = read_parquet_rows(draft)
        with progress("comparing with held-out rows", total=sum(self._drafted), unit="rows") as bar:
            for name, number in zip(self.names, self._drafted):
                for row, document in enumerate(islice(rows, number), start=1):
                    if row % 1000 == 0:
                        bar.update(1000, source=name)
                    reason = near(split_key(key_side(document, self.config.english)))
                    if reason:
                        self.ledger.move(name, document.group(self.config.english), reason)
                    else:
                        self._write(document, "train")

    def result(self) -> dict[str, Any]:
        """What the stage stores: plain JSON values, equal for equal inputs."""
        return {
            "rows": {split: sum(self._counts[split].values()) for split in SPLITS},
            "languages": {split: dict(sorted(self._counts[split].items())) for split in SPLITS},
            "ledger": self.ledger.to_dict(),
            "notes": self.notes,
            "damaged": self.damaged,
            "content": self._digest.hexdigest()[:16],
        }
