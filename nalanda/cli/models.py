"""The commands that put a model to use: one of ours by its run, others by folder, GGUF file or name on the hub."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from nalanda.base.errors import DataError

ModelPlace = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A run, a stage's or model's folder, a .gguf file, or a name on the hub: org/name",
    ),
]
Decoding = Annotated[
    list[str] | None, typer.Option("--set", help="A decoding option: beams=1, temperature=0.8")
]


def _lines(given: list[str] | None) -> Iterator[str]:
    if given:
        yield from given
    else:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"standard input, line {number}: not UTF-8 text ({error.reason})") from None


@contextlib.contextmanager
def _quiet_pipe() -> Iterator[None]:
    with contextlib.suppress(BrokenPipeError):
        yield


def translate(
    model: ModelPlace,
    text: Annotated[
        list[str] | None, typer.Argument(help="Sentences; without any, lines of standard input.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="Language codes, separated by commas: hin_Deva,tam_Taml")
    ] = "",
    of: Annotated[str, typer.Option("--from", help="The language of the text.")] = "eng_Latn",
    overrides: Decoding = None,
) -> None:
    """Translate text with a trained model.

    nalanda translate runs/quickstart "Sri Lanka" --to hin_Deva,tam_Taml

    nalanda translate runs/quickstart --to hin_Deva < names.txt
    """
    from nalanda.stages.use import translate as use

    with _quiet_pipe():
        codes = [code for code in to.split(",") if code]
        for line in use(model, list(_lines(text)), codes, overrides or [], of):
            typer.echo(line)


def generate(
    model: ModelPlace,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, lines of standard input.")
    ] = None,
    overrides: Decoding = None,
) -> None:
    """Continue prompts with a decoder model.

    nalanda generate runs/causal "To be" --set kind=sample --set temperature=0.8 --set seed=1
    """
    from nalanda.stages.use import generate as use

    with _quiet_pipe():
        for line in use(model, list(_lines(prompt)), overrides or []):
            typer.echo(line)


def chat(
    model: ModelPlace,
    to: Annotated[str, typer.Option("--to", help="For a translation model: the language to answer in.")] = "",
    overrides: Decoding = None,
) -> None:
    """Talk with a model, a line at a time; an empty line or Ctrl-D ends it.

    nalanda chat runs/quickstart --to hin_Deva
    """
    from nalanda.stages.use import chat as use

    use(model, to, overrides or [], _ask, typer.echo)


def inspect(
    model: ModelPlace,
    text: Annotated[str, typer.Option("--text", help="What the model reads.")],
    to: Annotated[str, typer.Option("--to", help="A translator's target language: hin_Deva")] = "",
    of: Annotated[str, typer.Option("--from", help="The text's language, where a translator is told.")] = "",
    target: Annotated[str | None, typer.Option("--target", help="A target, not its own output.")] = None,
    count: Annotated[int | None, typer.Option("--generate", min=1, help="Tokens it adds first.")] = None,
    layers: Annotated[str, typer.Option("--layers", help="Only these, from 1: 1,6-8")] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=512, help="The longest text.")] = 64,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("inspect.html"),
) -> None:
    """See inside a model: attention, the stream layer by layer, probabilities; one HTML page.

    nalanda inspect runs/quickstart --text "Sri Lanka" --to hin_Deva
    """
    from nalanda.evaluate.inspection import Limits
    from nalanda.stages.inspect import Asked, layer_numbers, write

    limits = Limits(layers=layer_numbers(layers), tokens=tokens)
    for line in write(model, Asked(text, to, of, target, count, limits), out):
        typer.echo(line, err=True)
    typer.echo(f"page in {out}")


def convert(
    model: ModelPlace,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a file whose name ends in .gguf.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the weights in a folder.")
    ] = "float32",
    quantization: Annotated[
        Literal["f32", "f16", "q8_0"], typer.Option("--quantization", help="Of a GGUF file's matrices.")
    ] = "f16",
    shard: Annotated[
        float, typer.Option("--shard", min=0.001, help="GB of weights in one file, at most.")
    ] = 5.0,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", help="A pattern of weights that may go without a place.")
    ] = None,
    pickled: Annotated[
        bool, typer.Option("--pickled", help="Read .bin files (with torch's weights_only reader) too.")
    ] = False,
) -> None:
    """Write a model in another form: Hugging Face's layout, or GGUF for llama.cpp.

    nalanda convert HuggingFaceTB/SmolLM2-135M-Instruct smollm2.gguf --quantization q8_0

    nalanda convert smollm2.gguf smollm2 --dtype bfloat16
    """
    from nalanda.stages.convert import Options
    from nalanda.stages.convert import convert as use

    options = Options(dtype, quantization, round(shard * 1e9), tuple(ignore or ()), pickled)
    use(model, out, options, lambda line: typer.echo(line, err=True))
    typer.echo(f"model in {out}")


def _ask() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    return line or None
