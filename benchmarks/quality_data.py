"""The data of benchmarks/quality.py: corpora and tokenizers made by the pipelines under recipes/, and the same
tokens as plain arrays for peers.

    work/quality_text/     corpus and tokenizer        work/quality_pairs/
    work/text/train.bin    uint16: every document's tokens after a separator, one after the other, as nanoGPT reads
    work/text/causal.npz   held-out rows of CONTEXT places, cut from documents laid end to end
    work/text/rows.npy     uint16 rows of WIDTH: <s> piece </s> and padding, as BERT reads
    work/text/masked.npz   held-out rows, masked once for all contestants
    work/pairs/            train.npz (source and target ids), dev.json (texts)
    work/NAME/tokens.json  vocabulary and special ids
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nalanda.corpus.store import read_split
from nalanda.data.masking import MaskedConfig, Masker
from nalanda.data.noise import row_keys
from nalanda.data.packing import concatenated
from nalanda.data.ragged import Ragged
from nalanda.data.source import Collator
from nalanda.tokenizer.tokenizer import Tokenizer

HERE = Path(__file__).parent
CONTEXT, WIDTH = 256, 128
HELD_BYTES = 300_000
DEV_ROWS = 300
_CHUNK = 2000


def prepare(job: str, work: Path) -> dict[str, Path]:
    """Makes what the job reads, once. Returns the places of corpus, tokenizer and arrays."""
    name = "quality_pairs" if job == "translation" else "quality_text"
    work.mkdir(parents=True, exist_ok=True)
    run = work / "runs" / name
    command = [sys.executable, "-m", "nalanda.cli", "run", str(HERE / "recipes" / f"{name}.yaml")]
    subprocess.run(command, cwd=work, check=True)
    arrays = work / ("pairs" if job == "translation" else "text")
    places = {"corpus": run / "corpus", "tokenizer": run / "tokenizer", "arrays": arrays}
    if not (arrays / "tokens.json").exists():
        arrays.mkdir(exist_ok=True)
        tokenizer = Tokenizer.load(places["tokenizer"])
        (_pairs if job == "translation" else _text)(places["corpus"], tokenizer, arrays)
        facts = {key: getattr(tokenizer, key) for key in ("vocabulary", "bos", "eos", "pad", "mask")}
        (arrays / "tokens.json").write_text(json.dumps(facts), encoding="utf-8")
    return places


def _text(corpus: Path, tokenizer: Tokenizer, folder: Path) -> None:
    with (folder / "train.bin").open("wb") as stream:
        rows = []
        documents = read_split(corpus, "train")
        while chunk := list(islice(documents, _CHUNK)):
            for tokens in tokenizer.encode_batch([d.text for d in chunk]):
                stream.write(np.array([tokenizer.eos, *tokens], dtype=np.uint16).tobytes())
                rows += _rows(tokens, tokenizer)
        np.save(folder / "rows.npy", np.array(rows, dtype=np.uint16))
    texts, size = [], 0
    for document in read_split(corpus, "test"):
        texts.append(document.text)
        size += len(document.text.encode())
        if size >= HELD_BYTES:
            break
    held = tokenizer.encode_batch(texts)
    np.savez(folder / "causal.npz", **_windows(held, tokenizer), bytes=size)
    np.savez(folder / "masked.npz", **_masked(held, tokenizer, corpus), bytes=size)


def _rows(tokens: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """<s> piece </s> of WIDTH, the last one padded."""
    room = WIDTH - 2
    pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
    return [
        [tokenizer.bos, *piece, tokenizer.eos, *[tokenizer.pad] * (room - len(piece))] for piece in pieces
    ]


def _windows(held: list[list[int]], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Documents end to end, each reading <s> first and predicting </s> last, cut every CONTEXT places."""
    places = np.array([len(tokens) + 1 for tokens in held])
    _, _, lengths, bounds = concatenated(places, CONTEXT)
    read = np.concatenate([[tokenizer.bos, *tokens] for tokens in held])
    predicted = np.concatenate([[*tokens, tokenizer.eos] for tokens in held])
    rows = len(bounds) - 1
    segment = np.concatenate([np.repeat(np.arange(1, b - a + 1), lengths[a:b]) for a, b in pairwise(bounds)])
    inside = np.concatenate([np.arange(n) for n in lengths])

    def fill(values: np.ndarray, padding: int = 0) -> np.ndarray:
        out: np.ndarray = np.full(rows * CONTEXT, padding, dtype=np.int32)
        out[: len(values)] = values
        return out.reshape(rows, CONTEXT)

    return {
        "ids": fill(read, tokenizer.pad),
        "targets": fill(predicted, tokenizer.pad),
        "weight": fill(np.ones(len(read), dtype=np.int32)),
        "segments": fill(segment),
        "positions": fill(inside),
    }


def _masked(held: list[list[int]], tokenizer: Tokenizer, corpus: Path) -> dict[str, np.ndarray]:
    """BERT's masking: 15 %, of these 80 % hidden, 10 % replaced, 10 % kept."""
    config = MaskedConfig(corpus=corpus, max_length=WIDTH)
    rows = [[i for i in row if i != tokenizer.pad] for tokens in held for row in _rows(tokens, tokenizer)]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ragged = Ragged(np.concatenate(rows), lengths)
    keys = row_keys(2026, "held-out", 0, np.arange(len(rows)))
    values = Masker(config, tokenizer).batch(
        ragged, keys, Collator(tokenizer.pad, WIDTH), np.arange(len(rows))
    )
    names = {
        "ids": "ids",
        "targets": "targets",
        "target_weight": "weight",
        "segments": "segments",
        "positions": "positions",
    }
    return {ours: values[key].astype(np.int32) for key, ours in names.items()}


def _pairs(corpus: Path, tokenizer: Tokenizer, folder: Path) -> None:
    def sides(split: str, count: int | None = None) -> tuple[list[str], list[str]]:
        rows = [(d.text, d.target) for d in read_split(corpus, split) if d.target is not None]
        return [text for text, _ in rows[:count]], [target for _, target in rows[:count]]

    values: dict[str, Any] = {}
    for name, texts in zip(("source", "target"), sides("train")):
        encoded = tokenizer.encode_batch(texts)
        values[name] = np.concatenate([np.array(row, dtype=np.uint16) for row in encoded])
        values[f"{name}_lengths"] = np.array([len(row) for row in encoded], dtype=np.int32)
    np.savez(folder / "train.npz", **values)
    source, target = sides("test", DEV_ROWS)
    held = {"source": source, "target": target, "ids": tokenizer.encode_batch(source)}
    (folder / "held.json").write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
