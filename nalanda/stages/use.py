"""A trained model at work: translate, generate, chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from nalanda.base.errors import DataError
from nalanda.config import override, parse
from nalanda.generate.decode import generate as decode
from nalanda.generate.options import DecodeConfig
from nalanda.models.exchange import load_model
from nalanda.nn.model import Model
from nalanda.stages.pipeline import model_folder
from nalanda.text.language import Language
from nalanda.text.normalize import nfc
from nalanda.tokenizer.tokenizer import Tokenizer


def load(place: Path) -> tuple[Model, Tokenizer]:
    """The model and tokenizer of a run, a stage or a model folder. Raises RunError where there is none."""
    folder = model_folder(place)
    return load_model(folder), Tokenizer.load(folder)


def options(default: DecodeConfig, assignments: list[str]) -> DecodeConfig:
    """Decoding options from the command line, laid over `default`."""
    return parse(DecodeConfig, override(default.to_dict(), assignments), "--set")


def source_ids(tokenizer: Tokenizer, texts: list[str], codes: list[str]) -> list[list[int]]:
    """Encoder input as in training: [TAG of the target language] tokens [EOS]."""
    encoded = tokenizer.encode_batch([nfc(text.strip()) for text in texts])
    return [[tokenizer.language(code), *ids, tokenizer.eos] for ids, code in zip(encoded, codes)]


def check_translator(model: Model, place: Path) -> None:
    """Raises DataError unless the model is an encoder-decoder."""
    if not (model.spec.encoder and model.spec.decoder):
        raise DataError(
            f"{place}: not a translation model (it has no {'decoder' if model.spec.encoder else 'encoder'})"
        )


def _languages(codes: list[str], tokenizer: Tokenizer) -> list[str]:
    if not codes:
        raise DataError("--to: name at least one language, for example --to hin_Deva")
    found = [Language.find(code).code for code in codes]
    for code in found:
        tokenizer.language(code)
    return found


def translate(place: Path, texts: list[str], to: list[str], assignments: list[str]) -> Iterator[str]:
    """One line for each text and language: text alone for one language, `code<TAB>text` for several."""
    model, tokenizer = load(place)
    check_translator(model, place)
    codes = _languages(to, tokenizer)
    config = options(DecodeConfig(kind="beam", beams=4), assignments)
    wanted = [(text, code) for text in texts for code in codes]
    full = [(text, code) for text, code in wanted if text.strip()]
    prompts = source_ids(tokenizer, [text for text, _ in full], [code for _, code in full])
    results = iter(decode(model, prompts, tokenizer, config) if prompts else [])
    for text, code in wanted:
        line = next(results).text.replace("\n", " ") if text.strip() else ""
        yield line if len(codes) == 1 else f"{code}\t{line}"


def generate(place: Path, prompts: list[str], assignments: list[str]) -> Iterator[str]:
    """Each prompt with what the model adds to it."""
    model, tokenizer = load(place)
    if model.spec.encoder or not model.spec.decoder:
        raise DataError(f"{place}: not a decoder model; use 'nalanda translate' for an encoder-decoder")
    config = options(DecodeConfig(kind="sample", temperature=0.8, top_p=0.95), assignments)
    ids = [[tokenizer.bos, *tokenizer.encode(nfc(prompt))] for prompt in prompts]
    for prompt, result in zip(prompts, decode(model, ids, tokenizer, config) if ids else []):
        yield prompt + result.text


def chat(
    place: Path, to: str, assignments: list[str], ask: Callable[[], str | None], say: Callable[[str], None]
) -> None:
    """Answers line by line until `ask` gives None. A decoder sees the whole conversation, a translator each line."""
    model, tokenizer = load(place)
    if model.spec.encoder:
        check_translator(model, place)
        code = _languages([to] if to else [], tokenizer)[0]
        config = options(DecodeConfig(kind="beam", beams=4), assignments)
        while (line := ask()) is not None:
            say(decode(model, source_ids(tokenizer, [line], [code]), tokenizer, config)[0].text)
        return
    config = options(DecodeConfig(kind="sample", temperature=0.8, top_p=0.95, stop=("\n",)), assignments)
    history = [tokenizer.bos]
    while (line := ask()) is not None:
        history += tokenizer.encode(nfc(line) + "\n")
        room = _room(model, config)
        answer = decode(model, [[tokenizer.bos, *history[1:][-room:]]], tokenizer, config)[0]
        history += [*answer.ids, *tokenizer.encode("\n")]
        say(answer.text.strip())


def _room(model: Model, config: DecodeConfig) -> int:
    limits = [position.limit for _, _, position in model.spec.stacks() if position.limit is not None]
    return max(1, min(limits, default=1 << 20) - config.max_length - 1)
