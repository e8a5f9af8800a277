"""From a corpus folder to a source of batches: tokenizes into stores once, and again only when something changed.

    source = build_source(config, "train", tokenizer, run.folder("data"), seed=1, progress=progress)

    folder/pairs-train-source  pairs-train-target        the two sides of translation pairs
           texts-train         romanized-train           single texts, each once, and the same in Latin letters
           sentences-train                               for next-sentence prediction
           part-0/ part-1/                               the stores of a mixture's parts

A store says what it was made from (hash of the corpus file, of the tokenizer, and the settings that matter); one
that does not fit, or is damaged, is made again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nalanda.base import io
from nalanda.base.errors import DataError
from nalanda.base.progress import ProgressFactory, silent
from nalanda.base.seeds import derive
from nalanda.corpus.document import Document
from nalanda.corpus.store import count, read_split
from nalanda.data.denoise import Denoise, DenoiseConfig
from nalanda.data.masking import Masked, MaskedConfig
from nalanda.data.mixture import Mixture, MixtureConfig
from nalanda.data.next_sentence import NextSentence, NextSentenceConfig, sentences
from nalanda.data.packing import CausalConfig, Packed
from nalanda.data.pairs import Pairs, PairsConfig
from nalanda.data.source import DataConfig, Source, TextConfig
from nalanda.data.store import FORMAT, TokenStore, open_store
from nalanda.generate.prompting import Prompting
from nalanda.text.transliterate import romanize as latin_letters

if TYPE_CHECKING:
    from nalanda.tokenizer.tokenizer import Tokenizer

AnyDataConfig = PairsConfig | DenoiseConfig | CausalConfig | MaskedConfig | NextSentenceConfig | MixtureConfig
Rows = Iterable[tuple[list[str], list[str], int | None]]
"""(a text for each store, its language for each store, sample id)"""

_CHUNK = 2048


def build_source(
    config: AnyDataConfig,
    split: str,
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    progress: ProgressFactory = silent,
    romanize: Callable[[str], str] = latin_letters,
    prompting: Prompting | None = None,
) -> Source:
    """The source that `config` describes, over one split of its corpus, with its stores under `folder`.

    `prompting`: how the model is spoken to; None: as ours are.
    Raises DataError when the corpus is missing, holds nothing of the wanted kind, or has a language without tag.
    """
    if isinstance(config, MixtureConfig):
        parts = [
            build_source(
                part,
                split,
                tokenizer,
                folder / f"part-{i}",
                derive(seed, "part", i),
                progress,
                romanize,
                prompting,
            )
            for i, part in enumerate(config.parts)
        ]
        return Mixture(parts, config.weights, config.picks)
    work = _Tokenizing(config, split, tokenizer, folder, progress)
    if isinstance(config, PairsConfig):
        names = [f"pairs-{split}-source", f"pairs-{split}-target"]
        counts: Counter[str] = Counter()
        source, target = work.stores(
            names, _pairs(work.documents(), config, counts), counts, [config.direction], [tokenizer.target]
        )
        return Pairs(config, source, target, tokenizer, seed, prompting)
    return _texts_source(config, split, work, seed, romanize, prompting)


def _texts_source(
    config: DenoiseConfig | CausalConfig | MaskedConfig | NextSentenceConfig,
    split: str,
    work: _Tokenizing,
    seed: int,
    romanize: Callable[[str], str],
    prompting: Prompting | None,
) -> Source:
    counts: Counter[str] = Counter()
    texts = _texts(work.documents(), config, counts)
    settings: list[Any] = [config.sides, *config.languages]
    if isinstance(config, NextSentenceConfig):
        (store,) = work.stores([f"sentences-{split}"], _sentences(texts, counts), counts, settings)
        return NextSentence(config, store, work.tokenizer, seed, prompting)
    if isinstance(config, DenoiseConfig) and config.noise.romanize:
        rows = (([text, _other(romanize(text), text)], [code, code], None) for text, code in texts)
        names = [f"texts-{split}", f"romanized-{split}"]
        store, romanized = work.stores(names, rows, counts, [*settings, "romanized"])
        return Denoise(config, store, work.tokenizer, seed, romanized, prompting)
    (store,) = work.stores(
        [f"texts-{split}"], (([text], [code], None) for text, code in texts), counts, settings
    )
    if isinstance(config, DenoiseConfig):
        return Denoise(config, store, work.tokenizer, seed, None, prompting)
    if isinstance(config, CausalConfig):
        return Packed(config, store, work.tokenizer, seed, prompting)
    return Masked(config, store, work.tokenizer, seed, prompting)


def _other(romanized: str, text: str) -> str:
    """The romanized text, or nothing where it is the text itself."""
    return "" if romanized == text else romanized


def _pairs(documents: Iterator[Document], config: PairsConfig, counts: Counter[str]) -> Rows:
    for document in documents:
        if document.target is None:
            counts["without_target"] += 1
            continue
        counts["pairs"] += 1
        texts, codes = [document.text, document.target], [document.language, document.target_language]
        if config.direction in ("forward", "both"):
            yield texts, codes, None
        if config.direction in ("backward", "both"):
            yield texts[::-1], codes[::-1], None


def _texts(
    documents: Iterator[Document], config: TextConfig, counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Every text of the wanted sides and languages once. Keeps 16 bytes for each text to know it again."""
    seen: set[bytes] = set()
    for document in documents:
        sides = []
        if config.sides != "target":
            sides.append((document.text, document.language))
        if config.sides != "text" and document.target is not None:
            sides.append((document.target, document.target_language))
        for text, code in sides:
            key = hashlib.blake2b(f"{code}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if config.languages and code not in config.languages:
                counts["other_language"] += 1
            elif key in seen:
                counts["repeated"] += 1
            else:
                seen.add(key)
                counts["texts"] += 1
                yield text, code


def _sentences(texts: Iterator[tuple[str, str]], counts: Counter[str]) -> Rows:
    for number, (text, code) in enumerate(texts):
        parts = sentences(text)
        counts["empty"] += not parts
        for part in parts:
            yield [part], [code], number


class _Tokenizing:
    """What all stores of one source have in common, and how they are made or found."""

    def __init__(
        self, config: DataConfig, split: str, tokenizer: Tokenizer, folder: Path, progress: ProgressFactory
    ) -> None:
        self.corpus, self.split, self.tokenizer = config.corpus, split, tokenizer
        self.folder, self.progress = folder, progress
        self._rows = count(config.corpus, split)
        self._corpus_hash = io.sha256_file(config.corpus / f"{split}.parquet")

    def documents(self) -> Iterator[Document]:
        """The split's rows, with progress; read only when a store has to be made."""
        if self._rows == 0:
            raise DataError(f"{self.corpus}: the split '{self.split}' has no rows")
        with self.progress(f"tokenizing {self.split}", total=self._rows, unit="rows") as bar:
            for document in read_split(self.corpus, self.split):
                yield document
                bar.update(1)

    def stores(
        self,
        names: list[str],
        rows: Rows,
        counts: Counter[str],
        settings: list[Any],
        others: Sequence[Tokenizer] = (),
    ) -> list[TokenStore]:
        """The stores called `names`, found or made from `rows`. Raises DataError when that gives no sequence.

        `others`: the tokenizers of all stores but the first; without them all have the first's.
        """
        tokenizers = [self.tokenizer, *(others or [self.tokenizer] * (len(names) - 1))]
        settings = [*settings, *(t.fingerprint for t in tokenizers if t is not self.tokenizer)]
        made_from = io.fingerprint(
            {
                "format": FORMAT,
                "corpus": self._corpus_hash,
                "tokenizer": self.tokenizer.fingerprint,
                "settings": [names, settings],
            }
        )
        paths = [self.folder / name for name in names]
        try:
            found = [TokenStore(path, verify=True) for path in paths]
        except DataError:
            found = []
        if not found or any(store.meta.get("made_from") != made_from for store in found):
            self._write(paths, tokenizers, iter(rows), counts, made_from)
            found = [TokenStore(path) for path in paths]
        if len(found[0]) == 0:
            told = ", ".join(f"{number} {reason}" for reason, number in found[0].meta["counts"].items())
            raise DataError(f"{self.corpus}: the split '{self.split}' gives no row for this data ({told})")
        return found

    def _write(
        self,
        paths: list[Path],
        tokenizers: list[Tokenizer],
        rows: Iterator[tuple[list[str], list[str], int | None]],
        counts: Counter[str],
        made_from: str,
    ) -> None:
        with ExitStack() as stack:
            writers = [
                stack.enter_context(open_store(path, tokenizer.vocabulary, {"made_from": made_from}))
                for path, tokenizer in zip(paths, tokenizers)
            ]
            while chunk := list(islice(rows, _CHUNK)):
                for index, writer in enumerate(writers):
                    encoded = tokenizers[index].encode_batch([texts[index] for texts, _, _ in chunk])
                    for tokens, (_, codes, sample) in zip(encoded, chunk):
                        writer.add(tokens, language=codes[index], sample=sample)
            for writer in writers:
                writer.meta["counts"] = dict(counts)
