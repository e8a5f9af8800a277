"""A conversation as the one text that a model was trained on, by the Jinja template that came with it.

    text = render(tokenizer.chat_template, [{"role": "user", "content": "Hello"}], {"eos_token": "</s>"})

A template comes with a model and so from a stranger: it runs in Jinja's sandbox, without files, imports or
attributes that could be changed, and what it writes is bounded.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nalanda.base.errors import DataError

MAX_TEXT = 10_000_000
"""Characters; longer than any model reads."""


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the model said, for training; here it is just text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way of saying it)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def render(
    template: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str], *, answer: bool = True
) -> str:
    """The conversation as text; `tokens` are the template's `bos_token` and so on.

    `answer`: end with what begins the model's turn. Raises DataError where the template is damaged, refuses the
    conversation (some allow no system message), or writes more than any model reads.
    """
    try:
        made = _environment().from_string(template)
        pieces, size = [], 0
        # Templates are written for a caller that always says whether there are tools and documents: none.
        values: dict[str, Any] = {**tokens, "tools": None, "documents": None, "add_generation_prompt": answer}
        for piece in made.generate(messages=list(messages), **values):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_TEXT:
                raise TemplateError(f"it writes more than {MAX_TEXT:,} characters")
    except (
        TemplateError,
        TypeError,
        ValueError,
        KeyError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = str(error).partition("\n")[0] or repr(error)
        raise DataError(f"the model's chat template: {reason}") from None
    return "".join(pieces)
