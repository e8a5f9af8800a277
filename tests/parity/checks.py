"""What must hold for every family: each check gives the largest difference that it found, or None where it has no
meaning for the case (beam search for an encoder).

    for name, check in CHECKS.items():
        found = check.measure(pair, folder)
        assert found is None or found <= check.limit
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.pair import POOLED, Outputs, Pair, forget
from safetensors.torch import load_file
from torch import Tensor, nn

from nalanda.generate.decode import DecodeConfig, generate
from nalanda.models.exchange import load_model, save_model
from nalanda.nn.cache import Cache

GREEDY, BEAM = 64, 12
"""New tokens of a greedy text and of a beam search."""
_KEY_BIAS = re.compile(r"(^|\.)(k|key|k_proj|k_lin)\.bias$")
"""Softmax does not see what is added to all scores of a query: without rotation, a key's bias moves nothing."""


class Broken(AssertionError):
    """Something other than a number differs."""


def _gap(ours: Outputs, theirs: Outputs) -> float:
    missing = set(theirs) - set(ours)
    if missing:
        raise Broken(f"ours has no output {missing}")
    gaps = []
    for name, value in theirs.items():
        if value.shape != ours[name].shape:
            raise Broken(f"{name}: {tuple(ours[name].shape)} in ours, {tuple(value.shape)} in theirs")
        gaps.append(float((ours[name] - value).abs().max()))
    return max(gaps)


@torch.no_grad()
def logits(pair: Pair, folder: Path) -> float:
    """Every head's output, and the encoder's states, for texts one by one."""
    return max(
        _gap(pair.our_outputs(pair.ours, pair.batch([text])), pair.their_outputs(pair.theirs, text))
        for text in pair.texts
    )


def _loss(outputs: Outputs, names: set[str]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack(
        [(outputs[n] * torch.randn(outputs[n].shape, generator=generator)).sum() for n in sorted(names)]
    ).sum()


def gradients(pair: Pair, folder: Path) -> float:
    """Of a random sum of all outputs, by every parameter: relative to the largest of its tensor.

    Theirs are saved as if they were weights, so that they are named and cut as the checkpoint's tensors are. A tensor
    whose gradient is nothing but rounding (a key's bias) is measured by the matrix that ours is a part of.
    """
    text = pair.texts[0]
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    theirs = pair.their_outputs(pair.theirs, text)
    _loss(theirs, set(theirs)).backward()
    _loss(pair.our_outputs(pair.ours, pair.batch([text])), set(theirs)).backward()
    state = pair.theirs.state_dict(keep_vars=True)
    found = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in state.items()}
    pair.theirs.save_pretrained(folder, state_dict=found)
    expected = load_file(folder / "model.safetensors")
    for key, copies in pair.family.untied.items():
        found_in = [expected[k] for k in (key, *copies) if k in expected]
        if found_in:
            expected[key] = torch.stack(found_in).sum(0)
    worst = 0.0
    learned = dict(pair.ours.named_parameters())
    buffers = {name for name, value in state.items() if not isinstance(value, nn.Parameter)}
    for name, views in pair.tensors(pair.ours, gradient=True).items():
        if name not in learned or any(key in buffers for key, _ in views):
            continue  # they do not train it: BART's bias of the logits
        largest = [float(expected[key].abs().max()) for key, _ in views]
        for (key, view), own in zip(views, largest):
            scale = own if own > 1e-4 * max(largest) else max(largest)
            worst = max(worst, float((view - expected[key]).abs().max()) / (scale or 1.0))
    return worst


@torch.no_grad()
def padded(pair: Pair, folder: Path) -> float:
    """Rows of different lengths in one batch against each alone; for decoders on the left as well, and cached."""
    decoder = not pair.both and bool(pair.ours.spec.decoder)
    worst = 0.0
    alone = [pair.our_outputs(pair.ours, pair.batch([text])) for text in pair.texts]
    for side in ("right", "left") if decoder else ("right",):
        batch = pair.batch(pair.texts, side)
        together = pair.our_outputs(pair.ours, batch)
        for row, one in enumerate(alone):
            for name, value in one.items():
                kind = pair.ours.head_specs[name].kind if name in pair.ours.head_specs else ""
                whole = together[name][row]
                if kind not in POOLED:
                    real = batch["source_segments" if name == "encoder" else "segments"][row] > 0
                    whole = whole[real]
                worst = max(worst, float((whole - value[0]).abs().max()))
    return max(worst, _cached(pair, [one["hidden"] for one in alone])) if decoder else worst


def _cached(pair: Pair, alone: list[Tensor]) -> float:
    """Left padding, a prompt, then two steps of one token.

    Where rotations grow with the text, keys in a cache keep those of their time, in transformers too: then each text
    is held against itself cached alone.
    """
    whole, segments = _in_steps(pair, pair.texts)
    if _grows(pair):
        alone = [_in_steps(pair, [text])[0] for text in pair.texts]
    return max(
        float((whole[row][segments[row] > 0] - value[0]).abs().max()) for row, value in enumerate(alone)
    )


def _in_steps(pair: Pair, texts: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Hidden states of texts padded on the left, all but the last two tokens at once; and the segments."""
    batch = pair.batch(texts, "left")
    ids, segments = batch["ids"], batch["segments"]
    cache, end = Cache(ids.shape[1]), ids.shape[1] - 2
    steps = [(0, end), (end, end + 1), (end + 1, end + 2)]
    seen = [
        pair.ours.transformer(ids[:, one:two], segments[:, one:two], cache=cache).hidden_BTD
        for one, two in steps
    ]
    return torch.cat(seen, dim=1), segments


@torch.no_grad()
def packed(pair: Pair, folder: Path) -> float:
    """Texts one after another in a row, told apart by their segments, against each alone."""
    batch = pair.packed(pair.texts)
    together = pair.our_outputs(pair.ours, batch)
    worst = 0.0
    for number, text in enumerate(pair.texts):
        for name, value in pair.our_outputs(pair.ours, pair.batch([text])).items():
            if name in pair.ours.head_specs and pair.ours.head_specs[name].kind in POOLED:
                continue
            mine = batch["source_segments" if name == "encoder" else "segments"][0] == number + 1
            worst = max(worst, float((together[name][0][mine] - value[0]).abs().max()))
    return worst


class _Numbers:
    """Every id is a token; the text is the ids."""

    def __init__(self, pair: Pair, eos: int) -> None:
        start = getattr(pair.theirs.config, "decoder_start_token_id", None)
        self.vocabulary, self.pad, self.eos = pair.ours.spec.vocabulary, pair.pad, eos
        self.bos = start if isinstance(start, int) else pair.pad
        self.ends = (eos,)
        self.special_ids = frozenset(pair.reserved - {eos})

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def _grows(pair: Pair) -> bool:
    """Whether rotations depend on the length: of each document in ours, of the longest of the batch in theirs."""
    decoder = pair.ours.transformer.decoder
    return decoder is not None and any(rotary.by_length for rotary in decoder.rotaries)


def _generate(pair: Pair, numbers: _Numbers, length: int, texts: Sequence[Any], **options: Any) -> Any:
    """Theirs, from `texts`, in one batch."""
    side = "right" if pair.both else "left"
    batch = pair.batch(texts, side)
    prefix = "source_" if pair.both else ""
    pair.theirs.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=numbers.eos,
        pad_token_id=pair.pad,
        bos_token_id=numbers.bos,
        decoder_start_token_id=numbers.bos if pair.both else None,
        suppress_tokens=sorted((numbers.special_ids | {pair.pad, numbers.bos}) - {numbers.eos}),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    forget(pair.theirs)
    return pair.theirs.generate(batch[f"{prefix}ids"], attention_mask=(batch[f"{prefix}segments"] > 0).long())


def _writes(pair: Pair) -> bool:
    return bool(pair.ours.spec.decoder) and "tokens" in pair.ours.heads


def greedy(pair: Pair, folder: Path) -> float | None:
    """How many of 64 cached greedy tokens differ."""
    if not _writes(pair):
        return None
    eos = pair.theirs.config.eos_token_id
    numbers = _Numbers(
        pair, eos if isinstance(eos, int) and eos < pair.ours.spec.vocabulary else max(pair.reserved)
    )
    config = DecodeConfig(max_length=GREEDY, min_length=GREEDY)
    ours = generate(pair.ours, [text.ids for text in pair.texts], numbers, config)
    batches = [[text] for text in pair.texts] if _grows(pair) else [pair.texts]
    found = [_generate(pair, numbers, GREEDY, texts, min_new_tokens=GREEDY).sequences for texts in batches]
    theirs = torch.cat([sequences[:, -GREEDY:] for sequences in found])
    mine = torch.tensor([generation.ids for generation in ours])
    if mine.shape != theirs.shape:
        raise Broken(f"{tuple(mine.shape)} tokens of ours, {tuple(theirs.shape)} of theirs")
    return float((mine != theirs).sum())


def _an_end(pair: Pair) -> int:
    """A token that greedy texts come to, but not at once: it is made the EOS of a search."""
    numbers = _Numbers(pair, max(pair.reserved))
    config = DecodeConfig(max_length=BEAM, min_length=BEAM)
    rows = [g.ids for g in generate(pair.ours, [text.ids for text in pair.texts], numbers, config)]
    late = {token for row in rows for token in row[3:]}
    return max(sorted(late), key=lambda token: (sum(token in row for row in rows), -rows[0].count(token)))


def beam(pair: Pair, folder: Path) -> float | None:
    """How many of the best texts of a search with 4 beams differ, of an encoder-decoder.

    Theirs rank texts that the limit cut off with complete ones, ours only where there is no complete one: theirs is
    the best complete text of the four that they keep.
    """
    if not (_writes(pair) and pair.both):
        return None
    numbers = _Numbers(pair, _an_end(pair))
    found = _generate(pair, numbers, BEAM, pair.texts, num_beams=4, num_return_sequences=4, length_penalty=1.0,
                      early_stopping="never").sequences.tolist()  # fmt: skip
    ends = [row.index(numbers.eos, 1) + 1 if numbers.eos in row[1:] else len(row) for row in found]
    kept = [row[1:end] for row, end in zip(found, ends)]
    config = DecodeConfig(kind="beam", beams=4, length_penalty=1.0, max_length=BEAM)
    wrong = complete = 0
    for number, mine in enumerate(generate(pair.ours, [text.ids for text in pair.texts], numbers, config)):
        four = kept[4 * number : 4 * number + 4]
        ended = [row for row in four if row and row[-1] == numbers.eos]
        if not ended and mine.finish == "eos":
            continue  # four texts that were cut off have pushed it out of their pool
        complete += bool(ended)
        wrong += [*mine.ids, *[numbers.eos] * (mine.finish == "eos")] != (ended or four)[0]
    if not complete:
        raise Broken("no search came to an end: it says nothing")
    return float(wrong)


@torch.no_grad()
def nudged(pair: Pair, folder: Path) -> float:
    """How many tensors of the checkpoint can be changed in our model without moving an output."""
    batch = pair.batch(pair.texts)
    names = {*pair.their_outputs(pair.theirs, pair.texts[0]), "hidden"}
    before = pair.our_outputs(pair.ours, batch)
    generator = torch.Generator().manual_seed(5)
    still = []
    for views in pair.tensors(pair.ours).values():
        for key, view in views:
            old = view.clone()
            view.add_(torch.randn(view.shape, generator=generator))
            after = pair.our_outputs(pair.ours, batch)
            view.copy_(old)
            moved = max(float((after[n] - before[n]).abs().max()) for n in names)
            if moved < 1e-4 and not (_KEY_BIAS.search(key) and _some_do_not_turn(pair)):
                still.append(key)
    if still:
        raise Broken(f"changing {still} moves nothing")
    return float(len(still))


def _some_do_not_turn(pair: Pair) -> bool:
    spec = pair.ours.spec
    return any(block.attention.rotary is None for block in (*spec.encoder, *spec.decoder))


AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "MTModel": "AutoModelForSeq2SeqLM",
    "EncoderModel": "AutoModelForTextEncoding",
    "Model": "AutoModel",
}
"""The end of an architecture's name -> the Auto class that finds it."""


@torch.no_grad()
def saved(pair: Pair, folder: Path) -> float:
    """What we save: the same bytes when read and saved again; for their Auto class a model with equal outputs."""
    save_model(pair.ours, folder / "one")
    save_model(load_model(folder / "one"), folder / "two")
    files = {path.name: path.read_bytes() for path in (folder / "one").iterdir()}
    again = {path.name: path.read_bytes() for path in (folder / "two").iterdir()}
    if files != again:
        differ = sorted(n for n in files | again if files.get(n) != again.get(n))
        raise Broken(f"saved twice, {differ} differ")
    auto = next(name for end, name in AUTO.items() if pair.case.architecture.endswith(end))
    model, report = getattr(transformers, auto).from_pretrained(
        folder / "one", output_loading_info=True, attn_implementation="eager"
    )
    if type(model).__name__ != pair.case.architecture or any(report.values()):
        raise Broken(f"{auto} makes a {type(model).__name__}: {report}")
    text = pair.texts[0]
    return _gap(pair.their_outputs(model.eval(), text), pair.their_outputs(pair.theirs, text))


@torch.no_grad()
def base(pair: Pair, folder: Path) -> float | None:
    """The network alone, saved without the prefix that its keys have under a head."""
    inner = pair.theirs.base_model
    if inner is pair.theirs:
        return None
    inner.save_pretrained(folder)
    text = pair.texts[0]
    arguments = {"input_ids": torch.tensor([text.ids])}
    if text.types is not None:
        arguments["token_type_ids"] = torch.tensor([text.types])
    if text.target is not None:
        arguments["decoder_input_ids"] = torch.tensor([text.target])
    forget(inner)
    model = load_model(folder)
    mine = model(pair.batch([text])).hidden_BTD
    return float((mine - inner(**arguments).last_hidden_state).abs().max())


@dataclass(frozen=True)
class Check:
    """`measure(pair, an empty folder)`, and what it may find at most."""

    measure: Callable[[Pair, Path], float | None]
    limit: float
    heading: str


CHECKS = {
    "logits": Check(logits, 1e-5, "logits"),
    "gradients": Check(gradients, 1e-4, "gradients, relative"),
    "padded": Check(padded, 1e-5, "padded"),
    "packed": Check(packed, 1e-5, "packed"),
    "greedy": Check(greedy, 0, "64 greedy tokens"),
    "beam": Check(beam, 0, "beam 4"),
    "nudged": Check(nudged, 0, "tensors with effect"),
    "saved": Check(saved, 1e-6, "saved and read back"),
    "base": Check(base, 1e-5, "without a head"),
}
