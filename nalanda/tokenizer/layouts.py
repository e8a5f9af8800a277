"""How families number SentencePiece's pieces: T5, XLM-R and mBART, NLLB, M2M-100, Marian, Llama, fairseq.

from_model(path, settings)                 # the family named in tokenizer_config.json or config.json
from_dictionary(path, names, settings)     # ids by another file: dict.txt, vocab.json

T5           the model's ids, then <extra_id_99> ... <extra_id_0>
fairseq      <s> <pad> </s> <unk>, the model's pieces from its fourth on, language tags, <mask>
Llama ...    the model's ids, then added tokens
dictionary   the dictionary's ids; pieces that it lacks become <unk>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nalanda.base.errors import DataError
from nalanda.tokenizer.blueprint import Affixes, Blueprint, read_mapping, read_text
from nalanda.tokenizer.sentencepiece import USER_DEFINED, Model, build, read
from nalanda.tokenizer.settings import Settings
from nalanda.tokenizer.tag_lists import BY_CODES, BY_FAMILY
from nalanda.tokenizer.tags import is_tag

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
"""What stands first in every dictionary of fairseq."""
_MADE_UP = re.compile(r"madeupword\d+")
_FAIRSEQ_KINDS = ("xlmroberta", "xlm-roberta", "mbart", "mbart50", "nllb")
_SEPARATED = ("albert", "deberta-v2", "debertav2")


def from_model(path: Path, settings: Settings) -> Blueprint:
    """The tokenizer of a SentencePiece file, numbered as its family does. Raises DataError where that fails."""
    model = read(path)
    # NLLB calls itself M2M-100 in config.json; that one has a vocab.json besides.
    kind = {"mt5": "t5", "umt5": "t5", "m2m_100": "nllb"}.get(settings.kind, settings.kind)
    if kind == "t5":
        return _t5(model, settings)
    if kind in _FAIRSEQ_KINDS:
        return _fairseq(model, settings, kind)
    names = _with_added(model.pieces, settings, model.origin)
    special = [*model.control, *_added_special(model, settings, names)]
    bos, eos = model.roles.get("bos"), model.roles.get("eos")
    affixes = Affixes(
        prefix=[bos] if bos and settings.flag("add_bos_token", bool(kind)) else [],
        suffix=[eos] if eos and settings.flag("add_eos_token", False) else [],
    )
    if kind in _SEPARATED:
        affixes = Affixes(["[CLS]"], ["[SEP]"], ["[SEP]"])
    plan = build(model, names, special, _unk(model), affixes)
    return _finish(plan, settings, names, dict(model.roles))


def _t5(model: Model, settings: Settings) -> Blueprint:
    count = settings.tokenizer.get("extra_ids", 100 if settings.kind == "t5" else 0)
    if not isinstance(count, int) or not 0 <= count <= 10_000:
        raise DataError(
            f"{settings.folder / 'tokenizer_config.json'}: extra_ids: expected a count, found {count!r}"
        )
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(count))]
    names = _with_added(
        [*model.pieces, *(s for s in sentinels if s not in model.pieces)], settings, model.origin
    )
    special = [*model.control, *(s for s in sentinels if s in names)]
    plan = build(model, names, special, _unk(model), Affixes(suffix=["</s>"]))
    return _finish(plan, settings, names, dict(model.roles))


def _fairseq(model: Model, settings: Settings, kind: str) -> Blueprint:
    if len(model.pieces) < 4 or sorted(model.pieces[:3]) != ["</s>", "<s>", "<unk>"]:
        raise DataError(f"{model.origin}: its first pieces are {model.pieces[:3]}; expected <unk> <s> </s>")
    tags = [name for name in settings.extra if is_tag(name)] or list(BY_FAMILY.get(kind, ()))
    names = [*FAIRSEQ, *model.pieces[3:], *tags, "<mask>"]
    names = _with_added(names, settings, model.origin)
    source = settings.text("src_lang", "eng_Latn" if kind == "nllb" else "en_XX")
    if kind in ("xlmroberta", "xlm-roberta"):
        affixes = Affixes(["<s>"], ["</s>"], ["</s>", "</s>"])
    elif kind == "mbart" or settings.flag("legacy_behaviour", False):
        affixes = Affixes([], ["</s>", source], [])
    else:
        affixes = Affixes([source], ["</s>"], [])
    plan = build(model, names, [*FAIRSEQ, *tags, "<mask>"], "<unk>", affixes)
    return _finish(plan, settings, names, {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"})


def from_dictionary(path: Path, names: list[str], settings: Settings, origin: Path) -> Blueprint:
    """The tokenizer that cuts as the SentencePiece file does and numbers by `names` (from the file `origin`)."""
    model = read(path)
    tags = [name for name in names if is_tag(name)]
    if settings.kind.startswith("m2m"):  # its tags follow the dictionary
        codes = BY_CODES.get(settings.text("language_codes", "m2m100"), ())
        tags = [name for name in settings.extra if is_tag(name)] or [f"__{code}__" for code in codes]
        names = [*names, *(tag for tag in tags if tag not in set(names))]
        names += [f"madeupword{i}" for i in range(int(settings.tokenizer.get("num_madeup_words", 8)))]
    names = _with_added(names, settings, str(origin))
    if "<unk>" not in names or "</s>" not in names:
        raise DataError(f"{origin}: expected a dictionary with the tokens <unk> and </s>")
    special = [
        name for name in dict.fromkeys([*FAIRSEQ, "<mask>", *settings.extra, *tags]) if name in set(names)
    ]
    source = f"__{settings.text('src_lang', 'en')}__"
    affixes = Affixes([source] if settings.kind.startswith("m2m") and source in names else [], ["</s>"], [])
    users = set(model.of_type(USER_DEFINED))
    plan = build(model, names, [name for name in special if name not in users], "<unk>", affixes)
    return _finish(plan, settings, names, {"eos": "</s>"})


def read_dictionary(path: Path) -> list[str]:
    """The tokens of a fairseq dictionary in the order of their ids, <s> <pad> </s> <unk> first.

    Raises DataError for a line that is not `token count` and for a token that stands twice.
    """
    names, seen = list(FAIRSEQ), set(FAIRSEQ)
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        line = line.removesuffix("\r")
        overwrite = line.endswith(" #fairseq:overwrite")
        token, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not token or not count.isdecimal():
            raise DataError(f"{path}: line {number}: expected a token and its count, found {line[:60]!r}")
        if token in seen and not overwrite:
            raise DataError(f"{path}: line {number}: token {token!r} stands twice")
        # Overwritten, the name means the later id; the earlier one keeps its place under a name of no text.
        if token in seen:
            names[names.index(token)] = f" {token} overwritten at {number}"
        names.append(token)
        seen.add(token)
    return names


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocab.json (token: id) in the order of their ids; ids without a token get a made-up name."""
    values = read_mapping(path)
    if not values or not all(isinstance(i, int) and 0 <= i < 1 << 24 for i in values.values()):
        raise DataError(f"{path}: expected tokens with ids from 0 on")
    names = {i: name for name, i in values.items()}
    if len(names) < len(values):
        twice = next(name for name, i in values.items() if names[i] != name)
        raise DataError(
            f"{path}: tokens {twice!r} and {names[values[twice]]!r} have the same id {values[twice]}"
        )
    if max(names) > 2 * len(names) + 1000:
        raise DataError(f"{path}: ids go up to {max(names)}, but there are only {len(names)} tokens")
    return [names.get(i, f" no token {i}") for i in range(max(names) + 1)]


def _unk(model: Model) -> str:
    return model.roles.get("unk") or model.control[0]


def _with_added(names: Sequence[str], settings: Settings, origin: str) -> list[str]:
    """`names` and the added tokens that follow them. Raises DataError where one's id is not the next."""
    result = list(names)
    known = {name: i for i, name in enumerate(result)}
    for number, (name, _) in sorted(settings.added.items()):
        if name in known:
            if known[name] != number:
                raise DataError(
                    f"{settings.folder}: added token {name!r} has id {number}, but {origin} gives it {known[name]}"
                )
            continue
        if number < len(result):
            raise DataError(
                f"{settings.folder}: added token {name!r} has id {number}, which {origin} has already given"
            )
        if number > len(result) + 10_000:
            raise DataError(
                f"{settings.folder}: added token {name!r} has id {number}, far beyond {len(result)} tokens"
            )
        result += [f" no token {i}" for i in range(len(result), number)]
        result.append(name)
        known[name] = number
    return result


def _added_special(model: Model, settings: Settings, names: Sequence[str]) -> list[str]:
    """Added tokens and further special ones that are in the vocabulary and are not pieces of text."""
    known, control = set(names), set(model.control)
    users = set(model.of_type(USER_DEFINED))
    given = [*(name for name, _ in settings.added.values()), *settings.extra]
    return [n for n in dict.fromkeys(given) if n in known and n not in control and n not in users]


def _finish(plan: Blueprint, settings: Settings, names: Sequence[str], usual: dict[str, str]) -> Blueprint:
    """`plan` with roles and chat template."""
    numbers = {name: i for i, name in enumerate(names)}
    roles = {**usual, **plan.roles, **settings.roles(numbers)}
    roles = {role: name for role, name in roles.items() if name in numbers}
    return Blueprint(plan.definition, roles, plan.origin, settings.chat_template, plan.exact)
