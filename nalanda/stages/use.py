"""A trained model at work: translate, generate, chat; ours, or one by its folder, GGUF file or name on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nalanda.base.errors import DataError, RunError
from nalanda.base.progress import unsaid
from nalanda.config import override, parse
from nalanda.generate.decode import generate as decode
from nalanda.generate.decode import transduce
from nalanda.generate.options import DecodeConfig
from nalanda.generate.prompting import ENGLISH, Prompting, beyond
from nalanda.models.exchange import load_model
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec
from nalanda.stages.pipeline import model_folder
from nalanda.text.language import Language
from nalanda.text.normalize import nfc
from nalanda.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model with its tokenizer, and how it is spoken to."""

    model: Model
    tokenizer: Tokenizer
    prompting: Prompting


def open_model(
    place: Path, heads: Mapping[str, HeadSpec] | None = None, note: Callable[[str], None] = unsaid
) -> Opened:
    """The model of a run, a stage, a folder, a GGUF file or a name on the hub.

    Raises RunError where there is none, and where its tokenizer has ids that the model has no vectors for.
    """
    folder = model_folder(place)
    tokenizer = Tokenizer.load(folder)
    model = load_model(folder, heads, note=note)
    check_size(tokenizer, model, folder)
    return Opened(model, tokenizer, Prompting(tokenizer, model.spec, model.generation))


def load(place: Path) -> tuple[Model, Tokenizer]:
    """The model and tokenizer of `open_model`."""
    opened = open_model(place)
    return opened.model, opened.tokenizer


def check_size(tokenizer: Tokenizer, model: Model, place: Path) -> None:
    """Raises RunError for a tokenizer whose texts can have ids that the model has no embeddings for."""
    for each in (tokenizer, tokenizer.target):
        if beyond(each, model.spec.vocabulary) is not None:
            raise RunError(
                f"{place}: its tokenizer has {each.vocabulary:,} ids, its model {model.spec.vocabulary:,} "
                "embeddings (vocab_size in config.json); they do not belong together"
            )


def options(default: DecodeConfig, assignments: list[str]) -> DecodeConfig:
    """Decoding options from the command line, laid over `default`."""
    return parse(DecodeConfig, override(default.to_dict(), assignments), "--set")


def check_translator(model: Model, place: Path) -> None:
    """Raises DataError unless the model is an encoder-decoder."""
    if not (model.spec.encoder and model.spec.decoder):
        raise DataError(
            f"{place}: not a translation model (it has no {'decoder' if model.spec.encoder else 'encoder'})"
        )


def _languages(codes: list[str], tokenizer: Tokenizer) -> list[str | None]:
    if not codes:
        if tokenizer.tag_style is None:
            return [None]  # a model of one language pair, or one that is told in words (T5)
        raise DataError("--to: name at least one language, for example --to hin_Deva")
    found = [code if code in tokenizer.languages else Language.find(code).code for code in codes]
    if tokenizer.tag_style is not None:
        for code in found:
            tokenizer.language(code)
    return list(found)


def translate(
    place: Path, texts: list[str], to: list[str], assignments: list[str], of: str = ENGLISH
) -> Iterator[str]:
    """One line for each text and language: text alone for one language, `code<TAB>text` for several."""
    opened = open_model(place)
    check_translator(opened.model, place)
    codes = _languages(to, opened.tokenizer)
    config = options(DecodeConfig(kind="beam", beams=4), assignments)
    wanted = [(text, code) for text in texts for code in codes]
    sources = [opened.prompting.source(text, code, of) for text, code in wanted if text.strip()]
    results = iter(transduce(opened.model, sources, opened.prompting, config) if sources else [])
    for text, code in wanted:
        line = next(results).text.replace("\n", " ") if text.strip() else ""
        yield line if len(codes) == 1 else f"{code}\t{line}"


def generate(place: Path, prompts: list[str], assignments: list[str]) -> Iterator[str]:
    """Each prompt with what the model adds to it."""
    opened = open_model(place)
    _check_decoder(opened.model, place)
    config = options(DecodeConfig(kind="sample", temperature=0.8, top_p=0.95), assignments)
    ids = [opened.prompting.prompt(prompt) for prompt in prompts]
    for prompt, result in zip(prompts, decode(opened.model, ids, opened.prompting, config) if ids else []):
        yield prompt + result.text


def _check_decoder(model: Model, place: Path) -> None:
    if not model.spec.decoder:
        raise DataError(
            f"{place}: an encoder, which cannot write; it can be trained or looked at (nalanda inspect)"
        )
    if model.spec.encoder:
        raise DataError(f"{place}: not a decoder model; use 'nalanda translate' for an encoder-decoder")


def chat(
    place: Path, to: str, assignments: list[str], ask: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    """Answers line by line until `ask` gives None.

    A model with a chat template sees the conversation as that writes it, another decoder the lines so far, a
    translator each line alone.
    """
    opened = open_model(place)
    if opened.model.spec.encoder:
        check_translator(opened.model, place)
        code = _languages([to] if to else [], opened.tokenizer)[0]
        config = options(DecodeConfig(kind="beam", beams=4), assignments)
        while (line := ask()) is not None:
            say(
                transduce(opened.model, [opened.prompting.source(line, code)], opened.prompting, config)[
                    0
                ].text
            )
    elif opened.tokenizer.chat_template is not None:
        _converse(opened, assignments, ask, say)
    else:
        _go_on(opened, assignments, ask, say)


def _converse(
    opened: Opened, assignments: list[str], ask: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    config = options(DecodeConfig(kind="sample", temperature=0.8, top_p=0.95, max_length=512), assignments)
    messages: list[dict[str, str]] = []
    while (line := ask()) is not None:
        messages.append({"role": "user", "content": line})
        answer = decode(opened.model, [opened.prompting.chat(messages)], opened.prompting, config)[
            0
        ].text.strip()
        messages.append({"role": "assistant", "content": answer})
        say(answer)


def _go_on(
    opened: Opened, assignments: list[str], ask: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    tokenizer = opened.tokenizer
    config = options(DecodeConfig(kind="sample", temperature=0.8, top_p=0.95, stop=("\n",)), assignments)
    start, history = opened.prompting.prompt("")[:1], []
    while (line := ask()) is not None:
        history += tokenizer.encode(nfc(line) + "\n")
        seen = [*start, *history[-_room(opened.model, config) :]]
        answer = decode(opened.model, [seen], opened.prompting, config)[0]
        history += [*answer.ids, *tokenizer.encode("\n")]
        say(answer.text.strip())


def _room(model: Model, config: DecodeConfig) -> int:
    limits = [position.limit for _, _, position in model.spec.stacks() if position.limit is not None]
    return max(1, min(limits, default=1 << 20) - config.max_length - 1)
