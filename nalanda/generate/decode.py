"""Text from a model: `generate` for many prompts, `stream` for one.

    config = DecodeConfig(kind="beam", beams=4)
    for generation in generate(model, prompts, tokenizer, config):
        print(generation.text, generation.score, generation.finish)

A prompt of a decoder is what the text goes on from, BOS included: [BOS] + tokens. A prompt of an encoder-decoder
is the source as the encoder was trained on it: [TAG] + tokens + [EOS]; its decoder starts from BOS.

Prompts are sorted by length and cut into batches. What a prompt gives does not depend on the others of its batch
(up to the rounding of sums), and a sampled text depends only on (config.seed, the prompt's request number).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from nalanda.base import seeds
from nalanda.base.progress import ProgressFactory, silent
from nalanda.generate.batching import check_prompts, check_tokenizer, evaluating, in_lanes, plan
from nalanda.generate.engine import Session
from nalanda.generate.options import DecodeConfig, Generation, Vocabulary
from nalanda.generate.prompting import Prompting, Source
from nalanda.nn.model import Model

__all__ = ["DecodeConfig", "Generation", "generate", "stream", "transduce"]


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokenizer: Vocabulary,
    config: DecodeConfig,
    *,
    requests: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
    forced: Sequence[int | None] | None = None,
    progress: ProgressFactory = silent,
) -> list[Generation]:
    """Continues (decoder) or transduces (encoder-decoder) every prompt; results in the prompts' order.

    `requests` numbers the prompts for sampling's random numbers; by default 0, 1, 2 ... `starts` and `forced`: what
    each prompt's decoder starts from, beside an encoder, and the token that it says first (prompting.Source).
    Raises DataError for an empty prompt, one longer than the model's positions, an id outside its vocabulary, and
    for a model that has no decoder or a tokenizer that does not belong to it.
    """
    numbers = list(range(len(prompts)) if requests is None else requests)
    if len(numbers) != len(prompts):
        raise ValueError(f"{len(numbers)} request numbers for {len(prompts)} prompts")
    check_tokenizer(model, tokenizer)
    check_prompts(model, prompts)
    lengths = [len(prompt) for prompt in prompts]
    batches = plan(lengths, config.batch_tokens, extra=config.max_length, width=config.width)

    def work(batch: list[int]) -> list[Generation]:
        row_seeds = [_seed(config, numbers[i]) for i in batch]
        session = Session(
            model,
            [prompts[i] for i in batch],
            row_seeds,
            tokenizer,
            config,
            None if starts is None else [starts[i] for i in batch],
            None if forced is None else [forced[i] for i in batch],
        )
        while session.alive:
            session.advance()
        return session.results()

    results: dict[int, Generation] = {}
    with (
        evaluating(model),
        progress("generating", total=len(prompts), unit="texts") as bar,
        closing(in_lanes(work, batches, model)) as lanes,
    ):
        for batch, found in lanes:
            results.update(zip(batch, found))
            bar.update(len(batch))
    return [results[i] for i in range(len(prompts))]


def transduce(
    model: Model,
    sources: Sequence[Source],
    prompting: Prompting,
    config: DecodeConfig,
    *,
    progress: ProgressFactory = silent,
) -> list[Generation]:
    """What a model writes for each source, a decoder beside an encoder started as the source says; see `generate`."""
    return generate(
        model,
        [source.ids for source in sources],
        prompting,
        config,
        starts=[source.start for source in sources],
        forced=[source.forced for source in sources],
        progress=progress,
    )


def _seed(config: DecodeConfig, request: int) -> int:
    return seeds.derive(config.seed, "generate", request)


def stream(
    model: Model,
    prompt: Sequence[int],
    tokenizer: Vocabulary,
    config: DecodeConfig,
    *,
    request: int = 0,
) -> Iterator[str]:
    """The text of one prompt piece by piece, as it comes; the pieces joined are the text that `generate` gives.

    What may still become a stop string or a character of several tokens is held back. Raises as `generate` does,
    and ValueError for beam search, whose text is not known before its end.
    """
    if config.kind == "beam":
        raise ValueError("beam search cannot be streamed; use kind greedy or sample")
    check_tokenizer(model, tokenizer)
    check_prompts(model, [prompt])
    shown = 0
    # The model is put back into its own mode at every piece: the caller may do with it what it likes meanwhile.
    with evaluating(model):
        session = Session(model, [prompt], [_seed(config, request)], tokenizer, config)
    while True:
        with evaluating(model):
            session.advance()
        if not session.alive:
            break
        text = tokenizer.decode(session.search.history_NT[0].tolist())
        end = settled(text, config.stop)
        if end > shown:
            yield text[shown:end]
            shown = end
    rest = session.results()[0].text[shown:]
    if rest:
        yield rest


def settled(text: str, stops: Sequence[str]) -> int:
    """How many leading characters of a growing text can neither change any more nor be cut off."""
    end = len(text.rstrip("\ufffd"))  # what a character that is not complete decodes to
    for stop in stops:
        longest = min(len(stop) - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
        end = min(end, len(text) - held)
    return end
