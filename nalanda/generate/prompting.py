"""How a model is spoken to: what stands around a text, what a decoder starts from, which tokens end it.

    prompting = Prompting(tokenizer, model.spec, model.generation)
    prompts = [prompting.prompt(text) for text in texts]                      # a decoder goes on from these
    sources = [prompting.source(text, to="hin_Deva") for text in texts]       # an encoder-decoder translates these
    generate(model, prompts, prompting, config)

Models of ours read BOS x, translators <2hin_Deva> x EOS. Models of others read what their tokenizer puts around a
text, and what they were trained to see as tags:

    source             decoder begins with   style of tags
    >>hin<< x </s>     start                 marian, indictrans (and ours)
    src x </s>         start, tag            nllb, m2m100, mbart (of 50 languages)
    x </s> src         tag                   mbart (of 25 languages), which has no other start
    x </s>             start                 none: T5, BART

Training reads the same: `frame` says what stands around a pair, `text_frame` around a text, `document` around a
decoder's document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nalanda.base.errors import DataError
from nalanda.generate.chat_template import render
from nalanda.nn.spec import Spec
from nalanda.text.language import Language
from nalanda.text.normalize import nfc
from nalanda.tokenizer.tokenizer import ROLES, Tokenizer

SOURCE_TAGGED = ("nalanda", "marian", "indictrans")
"""Styles in which the source names the language to write."""
ENGLISH = "eng_Latn"
_FILLING = re.compile(r"\[PAD\d+\]")
_VEIL = "\ufdd0"  # never a character: what Unicode keeps for a program's own use


def _veil(match: re.Match[str]) -> str:
    return match[0][:1] + _VEIL + match[0][1:]


def in_texts(tokenizer: Tokenizer, number: int) -> bool:
    """Whether a text can have the token: not a special one, and none of those that only fill (GGUF's)."""
    if not tokenizer.has(number) or number in tokenizer.special_ids:
        return False
    return _FILLING.fullmatch(tokenizer.token(number)) is None


def beyond(tokenizer: Tokenizer, vocabulary: int) -> int | None:
    """The first id from `vocabulary` on that a text can have; None: a model of that many vectors can read all texts.

    Special tokens may lie beyond: Gemma 3's mark of pictures does in its text models.
    """
    return next((i for i in range(vocabulary, tokenizer.vocabulary) if in_texts(tokenizer, i)), None)


@dataclass(frozen=True)
class Source:
    """An encoder's input; what the decoder starts from, and what it says first (None: what it likes)."""

    ids: list[int]
    start: int
    forced: int | None = None


@dataclass(frozen=True)
class Frame:
    """Around a pair: the encoder reads `before` text `behind`; the decoder starts from `start` and learns to write
    `opening` translation `closing`."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    start: int
    opening: tuple[int, ...]
    closing: tuple[int, ...]


@dataclass(frozen=True)
class Prompting:
    """See the heading of the file. It is also what decoding needs of a tokenizer (`options.Vocabulary`).

    spec: None where only data are laid out. generation: values of generation_config.json (or of an older
    config.json), with Hugging Face's names.
    """

    tokenizer: Tokenizer
    spec: Spec | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is a tokenizer that Nalanda trained: special tokens are ours, nothing stands around a text."""
        return self.tokenizer.roles.items() >= ROLES.items() and self.tokenizer.affixes == ([], [])

    @property
    def vocabulary(self) -> int:
        """How many ids the tokenizer has, those apart that the model has no vectors for and no text reaches."""
        count = self.tokenizer.vocabulary
        if self.spec is None or beyond(self.tokenizer, self.spec.vocabulary) is not None:
            return count
        return min(count, self.spec.vocabulary)

    @property
    def pad(self) -> int:
        """What fills rows."""
        return self.tokenizer.pad

    @property
    def bos(self) -> int:
        """What a decoder starts from; beside an encoder, its start token."""
        if self.spec is not None and self.spec.encoder:
            return self.start
        start = self.tokenizer.role("bos")
        return self.eos if start is None else start

    @property
    def start(self) -> int:
        """What the decoder beside an encoder starts from."""
        named = (
            self._number("decoder_start_token_id"),
            self.tokenizer.role("bos"),
            self.tokenizer.role("pad"),
        )
        return next((number for number in named if number is not None), self.eos)

    @property
    def eos(self) -> int:
        """The id that ends a text; where several do, the first."""
        return next(iter(self._numbers("eos_token_id")), self.tokenizer.eos)

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a text: chat models end their turn with one and a document with another."""
        return self._numbers("eos_token_id") or (self.eos,)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are never generated. Models of others may say what they like, unless their files forbid it."""
        if self.own:
            return self.tokenizer.special_ids
        bad = [row[0] for row in self.generation.get("bad_words_ids") or () if len(row) == 1]
        return frozenset(self._known([*(self.generation.get("suppress_tokens") or ()), *bad]))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.tokenizer.target.decode(ids)

    def prompt(self, text: str) -> list[int]:
        """What a decoder reads before it goes on from `text`."""
        ids = self.tokenizer.encode(nfc(text) if self.own else text)
        if self.own:
            return [self.tokenizer.bos, *ids]
        prefix = self.tokenizer.affixes[0]
        return [*prefix, *ids] or [self.bos]

    def around(self, text: str) -> list[int]:
        """What an encoder reads of `text` alone."""
        if self.own:
            return [self.tokenizer.bos, *self.tokenizer.encode(nfc(text)), self.tokenizer.eos]
        prefix, suffix = self.tokenizer.affixes
        return [*prefix, *self.tokenizer.encode(text), *suffix]

    def source(self, text: str, to: str | None = None, of: str = ENGLISH) -> Source:
        """What an encoder-decoder reads to write `text` in language `to`; `of`: the language of `text`.

        Raises DataError for a language that the model has no tag for, and where its tags need `to`.
        """
        tokenizer, style = self.tokenizer, self.tokenizer.tag_style
        ids = tokenizer.encode(nfc(text.strip()) if self.own else text)
        if style is None:
            prefix, suffix = tokenizer.affixes
            return Source([*prefix, *ids, *suffix], self.start, self._number("forced_bos_token_id"))
        if to is None:
            raise DataError(
                f"name the language to write; the model knows {', '.join(tokenizer.languages[:8])} ..."
            )
        frame = self.frame(of, Language.find(to).code if self.own else to)
        return Source([*frame.before, *ids, *frame.behind], frame.start, next(iter(frame.opening), None))

    def frame(self, of: str, to: str) -> Frame:
        """What stands around a text in language `of` and its translation into `to`; tags are trained as targets.

        Models without tags ask for no language. Raises DataError for a language that the model has no tag for.
        """
        tokenizer, style = self.tokenizer, self.tokenizer.tag_style
        if self.own:
            return Frame((tokenizer.language(to),), (tokenizer.eos,), self.start, (), (tokenizer.eos,))
        opening, closing = (tuple(part) for part in tokenizer.target.affixes)
        if style is None:
            before, behind = tokenizer.affixes
            return Frame(tuple(before), tuple(behind), self.start, opening, closing or (self.eos,))
        tag, end = tokenizer.language(self._code(to)), (tokenizer.eos,)
        if style in SOURCE_TAGGED:
            return Frame((tag,), end, self.start, (), closing or end)
        spoken = tokenizer.language(self._code(of))
        if self._starts_with_tag(style):
            return Frame((), (*end, spoken), tag, (), (*end, tag))
        return Frame((spoken,), end, self.start, (tag,), end)

    @property
    def tagged(self) -> Literal["", "target", "both"]:
        """Which languages `frame` must be told: none, the one to write, or both."""
        if self.own or self.tokenizer.tag_style in SOURCE_TAGGED:
            return "target"
        return "" if self.tokenizer.tag_style is None else "both"

    @property
    def text_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What an encoder reads before and behind a text: BOS x EOS, [CLS] x [SEP]."""
        if self.own:
            return (self.tokenizer.bos,), (self.tokenizer.eos,)
        before, behind = self.tokenizer.affixes
        return tuple(before), tuple(behind)

    @property
    def pair_frame(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """What an encoder reads before, between and behind two texts."""
        if self.own:
            return (self.tokenizer.bos,), (self.tokenizer.eos,), (self.tokenizer.eos,)
        before, between, behind = self.tokenizer.pair_affixes
        return tuple(before), tuple(between), tuple(behind)

    @property
    def document(self) -> tuple[tuple[int, ...], int]:
        """What a decoder reads before a document, and the token that ends it.

        Where the tokenizer puts nothing before a text (GPT-2, Qwen), that is the end of the document before.
        """
        end = self.tokenizer.role("eos")
        end = self.eos if end is None else end
        before = (self.tokenizer.bos,) if self.own else tuple(self.tokenizer.affixes[0])
        return before or (end,), end

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The conversation as the model's template writes it, ready for the model's answer.

        Raises DataError where there is no template, or it refuses the conversation.
        """
        template = self.tokenizer.chat_template
        if template is None:
            raise DataError("the model has no chat template; use 'nalanda generate', or give it one")
        roles = self.tokenizer.roles
        names = {f"{role}_token": token for role, token in roles.items()}
        special = self._special()
        if not any(special.search(message["content"]) for message in messages):
            return self.tokenizer.encode_marked([render(template, messages, names)])[0]
        veiled = [{**m, "content": special.sub(_veil, m["content"])} for m in messages]
        return self._encode_veiled(render(template, veiled, names), special)

    def _special(self) -> re.Pattern[str]:
        """Any special token as it is spelled, the longest first."""
        names = sorted(map(self.tokenizer.token, self.tokenizer.special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _encode_veiled(self, text: str, special: re.Pattern[str]) -> list[int]:
        """The ids of a rendered text in which what a user spelled like a special token is veiled: that stays text."""
        ids: list[int] = []
        end = 0
        for match in special.finditer(text):
            ids += self.tokenizer.encode(text[end : match.start()].replace(_VEIL, ""))
            ids += self.tokenizer.encode_marked([match[0]])[0]
            end = match.end()
        return ids + self.tokenizer.encode(text[end:].replace(_VEIL, ""))

    def _starts_with_tag(self, style: str) -> bool:
        """mBART of 25 languages: there is no start besides the tag."""
        if style != "mbart":
            return False
        start = self._number("decoder_start_token_id")
        return start is None or start in {self.tokenizer.language(code) for code in self.tokenizer.languages}

    def _code(self, name: str) -> str:
        return name if name in self.tokenizer.languages else Language.find(name).code

    def _number(self, key: str) -> int | None:
        value = self.generation.get(key)
        if not isinstance(value, int) or self._known([value]):
            return value if isinstance(value, int) else None
        raise DataError(f"generation_config.json: {key} is {value}, an id that the model does not have")

    def _numbers(self, key: str) -> tuple[int, ...]:
        value = self.generation.get(key)
        return tuple(self._known(value if isinstance(value, list) else [] if value is None else [value]))

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that the model has; others stand in files too and can never come."""
        count = self.tokenizer.vocabulary if self.spec is None else self.spec.vocabulary
        return [number for number in ids if 0 <= number < count]
