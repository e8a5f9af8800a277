"""`nalanda convert`: a model from any form that is read to any that is written.

convert(Path("org/name"), Path("model.gguf"), Options(quantization="q8_0"), note=print)
convert(Path("model.gguf"), Path("folder"), Options(dtype="bfloat16"), note=print)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nalanda.base.errors import DataError
from nalanda.models.exchange import CARD, checkpoint_of, load_model
from nalanda.models.gguf_write import Quantization, write_gguf
from nalanda.models.weights import SHARD_BYTES
from nalanda.stages import export
from nalanda.stages.pipeline import model_folder
from nalanda.stages.use import check_size
from nalanda.tokenizer.gguf_write import to_metadata
from nalanda.tokenizer.tokenizer import Tokenizer

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Options:
    """How to write. `quantization`: of a GGUF file. `ignore`: patterns of weights that may go without a place."""

    dtype: DType = "float32"
    quantization: Quantization = "f16"
    shard_bytes: int = SHARD_BYTES
    ignore: tuple[str, ...] = ()
    pickled: bool = False


def convert(place: Path, out: Path, options: Options, note: Callable[[str], None]) -> None:
    """Writes the model at `place` to `out`, a folder in Hugging Face's layout or, by its name, a .gguf file.

    Raises DataError where `out` exists and is no model, RunError for what cannot be read, or said in GGUF.
    """
    if out.exists() and not (out.suffix == ".gguf" or (out / "config.json").is_file()):
        raise DataError(f"{out}: exists and is no model; it would be replaced: give another name")
    folder = model_folder(place, pickled=options.pickled)
    tokenizer = Tokenizer.load(folder)
    model = load_model(
        folder,
        dtype=getattr(torch, options.dtype),
        ignore=options.ignore,
        pickled=options.pickled,
        note=note,
    )
    check_size(tokenizer, model, folder)
    if out.suffix != ".gguf":
        card = folder / CARD
        kept = card.read_bytes() if card.is_file() else None  # now: `out` may be the folder itself
        export.write(model, tokenizer, out, shard_bytes=options.shard_bytes)
        if kept is not None:
            (out / CARD).write_bytes(kept)
        return
    config, entries = checkpoint_of(model)
    numbers = {key: value for key, value in model.generation.items() if key.endswith("_token_id")}
    write_gguf(out, {**config, **numbers}, entries, to_metadata(tokenizer), options.quantization)
