"""How likely a model finds given texts (forced decoding): for reranking, and to check what decoding reports.

    rows = log_probabilities(model, prompts, targets, bos=tokenizer.bos)
    scores = [sum(row) for row in rows]

A target is scored exactly as given: append EOS to score a complete text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from nalanda.base.errors import DataError
from nalanda.base.progress import ProgressFactory, silent
from nalanda.generate.batching import check_prompts, evaluating, in_lanes, pad, plan, room
from nalanda.nn.model import Model

_CHUNK = 2**22  # logits held at once: 16 MiB


def log_probabilities(
    model: Model,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    bos: int | Sequence[int],
    batch_tokens: int = 16384,
    progress: ProgressFactory = silent,
) -> list[list[float]]:
    """For each prompt, the log-probability (nats) of each token of its target given all that stands before it.

    Prompts are as for `generate`: a decoder's target follows its prompt, an encoder-decoder's follows `bos`,
    which may be another id for each prompt.
    `batch_tokens` bounds the places of a batch, padding included. Raises DataError as `generate` does, and for a
    target that is empty, holds an unknown id or does not fit the model's positions after its prompt.
    """
    if len(targets) != len(prompts):
        raise ValueError(f"{len(targets)} targets for {len(prompts)} prompts")
    check_prompts(model, prompts)
    _check_targets(model, prompts, targets)
    batches = plan([len(p) + len(t) for p, t in zip(prompts, targets)], batch_tokens)

    def work(batch: list[int]) -> list[list[float]]:
        starts = [bos if isinstance(bos, int) else bos[i] for i in batch]
        return _score(model, [prompts[i] for i in batch], [targets[i] for i in batch], starts)

    results: dict[int, list[float]] = {}
    with (
        evaluating(model),
        progress("scoring", total=len(prompts), unit="texts") as bar,
        closing(in_lanes(work, batches, model)) as lanes,
    ):
        for batch, rows in lanes:
            results.update(zip(batch, rows))
            bar.update(len(batch))
    return [results[i] for i in range(len(prompts))]


def _check_targets(model: Model, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
    longest = max((len(target) for target in targets), default=0)
    for number, (target, places) in enumerate(zip(targets, room(model, prompts, longest))):
        if not target:
            raise DataError(f"target {number} is empty; give it at least one token (EOS for an empty text)")
        if len(target) > places:
            raise DataError(
                f"target {number} has {len(target)} tokens, but after its prompt there is room for {places}"
            )
        if not 0 <= min(target) <= max(target) < model.spec.vocabulary:
            raise DataError(
                f"target {number} has an id outside the model's vocabulary of {model.spec.vocabulary}"
            )


@torch.inference_mode()
def _score(
    model: Model, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[list[float]]:
    device = next(model.parameters()).device
    if model.transformer.both:
        memory = model.transformer.encode(*pad(prompts, 0, "right", device))
        heads = [[start] for start in starts]
    else:
        memory, heads = None, [list(prompt) for prompt in prompts]
    streams = [[*head, *target] for head, target in zip(heads, targets)]
    ids_BT, segments_BT, positions_BT = pad([row[:-1] for row in streams], 0, "right", device)
    hidden_BTD = model.transformer(ids_BT, segments_BT, positions_BT, memory=memory).hidden_BTD
    # The place before each target token predicts it; rows one behind the other, as the targets below.
    first_B1 = torch.tensor([[len(head) - 1] for head in heads], device=device)
    place_T = torch.arange(ids_BT.shape[1], device=device)
    hidden_ND = hidden_BTD[(place_T >= first_B1) & (segments_BT > 0)]
    target_N = torch.tensor([token for target in targets for token in target], device=device)
    flat = _chosen(model, hidden_ND, target_N).tolist()
    ends = torch.tensor([len(target) for target in targets]).cumsum(0).tolist()
    return [flat[end - len(target) : end] for end, target in zip(ends, targets)]


def _chosen(model: Model, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """The targets' log-probabilities, a chunk of logits at a time."""
    rows = max(1, _CHUNK // model.spec.vocabulary)
    parts = []
    for hidden_CD, target_C in zip(hidden_ND.split(rows), target_N.split(rows)):
        logits_CV = model.logits(hidden_CD).float()
        parts.append(logits_CV.gather(1, target_C[:, None])[:, 0] - logits_CV.logsumexp(dim=1))
    return torch.cat(parts)
