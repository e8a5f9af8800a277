"""From prompts to batches: what is checked before any work, which prompts share a batch, how rows are padded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.generate.options import Vocabulary
from nalanda.nn.model import Model

Result = TypeVar("Result")


def check_tokenizer(model: Model, tokenizer: Vocabulary) -> None:
    """Raises DataError when `tokenizer` has ids that the model does not know."""
    vocabulary = model.transformer.spec.vocabulary
    if tokenizer.vocabulary > vocabulary:
        raise DataError(
            f"the tokenizer has {tokenizer.vocabulary} tokens and the model {vocabulary}: "
            "they do not belong together; use the tokenizer the model was trained with"
        )


def check_prompts(model: Model, prompts: Sequence[Sequence[int]]) -> None:
    """Raises DataError for a model that cannot generate, or naming the prompt that it cannot start from."""
    spec = model.transformer.spec
    if not spec.decoder:
        raise DataError("this model is an encoder: it has no decoder to generate text with")
    name, position = (
        ("encoder", spec.encoder_position) if spec.encoder else ("decoder", spec.decoder_position)
    )
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {number} is empty; give it at least one token (BOS for a decoder)")
        if position.limit is not None and len(prompt) > position.limit:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens and the model's {name} {position.limit} positions; "
                "shorten the prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < spec.vocabulary:
            raise DataError(f"prompt {number} has an id outside the model's vocabulary of {spec.vocabulary}")


def room(model: Model, prompts: Sequence[Sequence[int]], wanted: int) -> list[int]:
    """How many new tokens each prompt can get, at most `wanted`: the last one is not read, so it needs no place."""
    spec = model.transformer.spec
    limit = spec.decoder_position.limit
    if limit is None:
        return [wanted] * len(prompts)
    return [min(wanted, limit if spec.encoder else limit - len(prompt) + 1) for prompt in prompts]


def plan(lengths: Sequence[int], places: int, extra: int = 0, width: int = 1) -> list[list[int]]:
    """Which rows share a batch, longest first: as many as `places` holds, at least one.

    A row of the batch takes `width` x (longest length in the batch + `extra`) places.
    """
    batches: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or len(batches[-1]) == rows:
            batches.append([])
            rows = max(1, places // (width * (lengths[index] + extra)))
        batches[-1].append(index)
    return batches


def pad(
    rows: Sequence[Sequence[int]], value: int, side: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """ids, segments (1, padding 0) and positions (from 0 at a row's first token), each B x longest row.

    `side` is "left" or "right": where the padding goes.
    """
    width = max(len(row) for row in rows)
    length_B1 = torch.tensor([[len(row)] for row in rows])
    if side == "left":
        ids_BT = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])
        positions_BT = torch.arange(width) - (width - length_B1)
    else:
        ids_BT = torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])
        positions_BT = torch.arange(width).expand(len(rows), width)
    real_BT = (positions_BT >= 0) & (positions_BT < length_B1)
    positions_BT = (positions_BT * real_BT).int()
    return ids_BT.to(device), real_BT.int().to(device), positions_BT.to(device)


def in_lanes(
    work: Callable[[list[int]], Result], batches: Sequence[list[int]], model: Model
) -> Generator[tuple[list[int], Result], None, None]:
    """Each batch with its `work`, in the batches' order; on a CPU, one batch per core at a time.

    A step of decoding is many short operations. Two threads inside each of them meet at a barrier every few
    microseconds, which costs several times the work on a busy machine; a batch that one core does alone never waits.
    Use it in `contextlib.closing`, which gives the threads back whatever happens.
    """
    threads = torch.get_num_threads()
    device = next(model.parameters()).device
    # Autocast belongs to the calling thread: under it, that thread does the work.
    if device.type != "cpu" or threads == 1 or len(batches) == 1 or torch.is_autocast_enabled("cpu"):
        yield from zip(batches, map(work, batches))
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        yield from zip(batches, pool.map(work, batches))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model without dropout; afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
