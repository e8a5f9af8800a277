"""Token sequences on disk, memory-mapped: what every source of batches reads.

with open_store(folder, vocabulary=tokenizer.vocabulary, meta={...}) as writer:
    writer.add(tokens, language="hin_Deva", sample=row)       # streamed; memory does not grow with the text
store = TokenStore(folder)
store[5]                       # one sequence
store.gather(rows)             # many at once, as Ragged

folder/tokens.bin      all tokens, little-endian uint16 (uint32 for vocabularies above 65,536)
       offsets.npy     int64, sequences + 1
       languages.npy   int16, index into meta's "languages" (-1 = none)        only where given
       samples.npy     int64, the caller's own stable id of each sequence      only where given
       meta.json       format, counts, fingerprint, and what the writer was given
       manifest.json   SHA-256 of each file
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from nalanda.base import io
from nalanda.base.errors import DataError, RunError
from nalanda.data.ragged import Ragged, gather

FORMAT = 1
_FLUSH = 1 << 18


def _dtype(vocabulary: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


class StoreWriter:
    """Takes sequences one by one; `meta` may be added to until the store is closed."""

    def __init__(self, file: IO[bytes], vocabulary: int, meta: dict[str, Any]) -> None:
        self.meta = meta
        self.vocabulary = vocabulary
        self.offsets = array("q", [0])
        self.languages: array[int] = array("h")
        self.samples: array[int] = array("q")
        self._codes: dict[str, int] = {}
        self._file, self._buffer, self._hash = file, array("q"), hashlib.sha256()

    def add(self, tokens: Sequence[int], language: str = "", sample: int | None = None) -> None:
        """Appends one sequence. Raises DataError for a token outside the vocabulary."""
        self._buffer.extend(tokens)
        self.offsets.append(self.offsets[-1] + len(tokens))
        self.languages.append(self._codes.setdefault(language, len(self._codes)) if language else -1)
        if sample is not None:
            self.samples.append(sample)
        if len(self._buffer) >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered."""
        if not self._buffer:
            return
        values = np.frombuffer(self._buffer, dtype=np.int64)
        worst = values[(values < 0) | (values >= self.vocabulary)]
        if len(worst):
            raise DataError(
                f"token store: token {int(worst[0])} is outside the vocabulary of {self.vocabulary}; "
                "the sequences were made by another tokenizer"
            )
        data = values.astype(_dtype(self.vocabulary)).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._buffer = array("q")

    def finish(self, folder: Path) -> None:
        """Writes the index and meta.json beside the tokens."""
        self.flush()
        parts: dict[str, np.ndarray] = {"offsets": np.frombuffer(self.offsets, dtype=np.int64)}
        if self._codes:
            parts["languages"] = np.frombuffer(self.languages, dtype=np.int16)
        if self.samples:
            if len(self.samples) != len(self.offsets) - 1:
                raise ValueError("a sample id must be given for every sequence or for none")
            parts["samples"] = np.frombuffer(self.samples, dtype=np.int64)
        for name, part in parts.items():
            np.save(folder / f"{name}.npy", part, allow_pickle=False)
            self._hash.update(name.encode() + part.tobytes())
        content = {"meta": self.meta, "languages": list(self._codes), "vocabulary": self.vocabulary}
        values: dict[str, Any] = {
            "format": FORMAT,
            "sequences": len(self.offsets) - 1,
            "tokens": self.offsets[-1],
            **content,
            "fingerprint": io.fingerprint({"tokens": self._hash.hexdigest(), **content}),
        }
        io.write_json(folder / "meta.json", values)


@contextlib.contextmanager
def open_store(folder: Path, vocabulary: int, meta: dict[str, Any] | None = None) -> Iterator[StoreWriter]:
    """A writer whose store takes its place at `folder`, whole, when the block ends well."""
    with io.atomic_folder(folder) as draft:
        with (draft / "tokens.bin").open("wb") as file:
            writer = StoreWriter(file, vocabulary, dict(meta or {}))
            yield writer
            writer.flush()
        writer.finish(draft)


class TokenStore:
    """A store opened for reading; safe to share between threads.

    Raises DataError when the folder is no token store or a file's size does not fit (`verify=True` also
    compares every byte with the manifest's SHA-256).
    """

    def __init__(self, folder: Path, verify: bool = False) -> None:
        self.folder = folder
        try:
            values = io.read_json(folder / "meta.json")
            if verify:
                io.verify_manifest(folder)
        except RunError as error:
            raise DataError(f"token store {error}; delete {folder} and run again to rebuild it") from None
        if values.get("format") != FORMAT:
            raise DataError(
                f"{folder}: token store format {values.get('format')}, expected {FORMAT}; delete it"
            )
        self.meta: dict[str, Any] = values["meta"]
        self.codes: list[str] = values["languages"]
        self.vocabulary: int = values["vocabulary"]
        self.fingerprint: str = values["fingerprint"]
        self.tokens = self._tokens(int(values["tokens"]))
        offsets = self._index("offsets", int(values["sequences"]) + 1)
        assert offsets is not None
        self.offsets: np.ndarray = offsets
        self.languages = self._index("languages", len(self)) if self.codes else None
        self.samples = self._index("samples", len(self)) if (folder / "samples.npy").exists() else None
        if int(self.offsets[-1]) != len(self.tokens):
            raise self._damaged("offsets.npy", "does not end where the tokens end")

    @classmethod
    def write(
        cls,
        folder: Path,
        sequences: Iterable[Sequence[int]],
        vocabulary: int,
        meta: dict[str, Any] | None = None,
        languages: Iterable[str] | None = None,
    ) -> TokenStore:
        """Writes `sequences` (streamed), with a language code for each where given, and opens the store."""
        codes = iter(languages) if languages is not None else None
        with open_store(folder, vocabulary, meta) as writer:
            for sequence in sequences:
                writer.add(sequence, language=next(codes) if codes is not None else "")
        return cls(folder)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of every sequence."""
        return np.diff(self.offsets)

    def gather(self, rows: np.ndarray) -> Ragged:
        """The sequences of the given numbers, in the given order."""
        starts = self.offsets[rows]
        return gather(self.tokens, starts, self.offsets[rows + 1] - starts)

    def _damaged(self, name: str, problem: str) -> DataError:
        return DataError(f"{self.folder / name}: {problem}: damaged; delete {self.folder} and run again")

    def _tokens(self, count: int) -> np.ndarray:
        path, dtype = self.folder / "tokens.bin", _dtype(self.vocabulary)
        size = path.stat().st_size if path.is_file() else -1
        if size != count * dtype.itemsize:
            raise self._damaged("tokens.bin", f"{size} bytes, expected {count * dtype.itemsize}")
        if count == 0:
            return np.empty(0, dtype=dtype)
        # A plain view: slicing np.memmap itself is several times slower.
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def _index(self, name: str, count: int) -> np.ndarray:
        try:
            values = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f"{name}.npy", f"cannot be read ({error})") from None
        if values.shape != (count,):
            raise self._damaged(f"{name}.npy", f"shape {values.shape}, expected ({count},)")
        return values
