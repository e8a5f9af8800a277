"""A tiny builder of HTML and SVG in which nothing is unescaped by accident.

    element("td", "a < b", class_="name")      -> <td class="name">a &lt; b</td>
    element("svg", element("path", d="M0 0"), viewBox="0 0 10 10")

A `str` child is escaped; only `Markup`, which this file alone makes, passes as it is. The output is well-formed XML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

VOID = frozenset({"br", "hr", "img", "meta", "link", "wbr"})
# C0 controls other than tab and newline have no place in XML or HTML; so have lone surrogates and noncharacters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9:-]*\Z")


class Markup(str):
    """Text that is already markup."""

    __slots__ = ()


Child = str | Markup | Iterable["Child"] | None


def escape(text: str) -> Markup:
    """`text` as markup: the five special characters as entities, forbidden ones as U+FFFD."""
    if isinstance(text, Markup):
        return text
    text = _FORBIDDEN.sub("\ufffd", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(text.replace('"', "&quot;").replace("'", "&#39;"))


def join(children: Child) -> Markup:
    """Children one after another; None is nothing."""
    if children is None:
        return Markup("")
    if isinstance(children, str):
        return escape(children)
    return Markup("".join(join(child) for child in children))


def element(tag: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """One element. `class_` is class, other `_` are hyphens; None and False leave an attribute out, True sets it."""
    shown = []
    for key, item in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if not _NAME.match(name):
            raise ValueError(f"'{name}' is not an attribute's name")
        if item is None or item is False:
            continue
        shown.append(f' {name}="{escape(name if item is True else _text(item))}"')
    opening = f"<{tag}{''.join(shown)}"
    if tag in VOID:
        return Markup(opening + " />")
    return Markup(f"{opening}>{join(children)}</{tag}>")


def _text(item: str | int | float) -> str:
    return f"{item:.2f}".rstrip("0").rstrip(".") if isinstance(item, float) else str(item)


def document(title: str, style: str, body: Child) -> Markup:
    """A whole page with its style inside; `style` is trusted CSS and must not close its element."""
    if "</" in style:
        raise ValueError("the style sheet must not hold '</'")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    return Markup("<!DOCTYPE html>\n" + element("html", head, "\n", element("body", body), lang="en") + "\n")
