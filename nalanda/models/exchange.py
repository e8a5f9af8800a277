"""Models on disk, in Hugging Face's layout: config.json and model.safetensors, nothing that runs code.

    model = load_model(place)                                  # ours, Hugging Face's, GGUF; with the heads it has
    model = load_model(place, {"labels": SequenceHeadSpec(classes=3)}, note=print)   # or with these
    save_model(model, run.folder("model"), files=[tokenizer_json])

A network that a family can say is saved as that family's checkpoint, which `transformers` reads; any other as our own
kind (own.py). manifest.json holds the checksums of all but the model card, README.md, which is there to be edited.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.base.io import MANIFEST, atomic_folder, read_mapping, verify_manifest, write_json
from nalanda.base.progress import unsaid
from nalanda.models import own
from nalanda.models.auto import BY_TYPE, FAMILIES, find
from nalanda.models.choice import check_layers, choose_heads, heads_said, read_spec
from nalanda.models.family import ConfigProblem, Family, one_line, shown
from nalanda.models.gguf import open_gguf
from nalanda.models.reading import Policy, build_empty, fill, settled
from nalanda.models.rows import Source, fused_sizes, parts, sources
from nalanda.models.safetensors_file import Writable, write_stream
from nalanda.models.sentence import NAME, kept, read_sentence, sentence_files
from nalanda.models.weights import SHARD_BYTES, Entry, Weights, open_weights, write_weights
from nalanda.nn.model import Model
from nalanda.nn.spec import HeadSpec

CONFIG = "config.json"
GENERATION = "generation_config.json"
CARD = "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """A folder or GGUF file that is open: config.json's values, generation_config.json's, the tensors."""

    config: dict[str, Any]
    generation: dict[str, Any]
    weights: Weights


_DECODING = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "num_beams", "length_penalty", "max_length",
)  # fmt: skip
"""What older files say of decoding in config.json."""


def open_checkpoint(place: Path, pickled: bool = False) -> Checkpoint:
    """What a folder or GGUF file holds, no tensor read yet. Raises RunError naming file and key."""
    if place.suffix == ".gguf" and not place.is_dir():
        file = open_gguf(place)
        return Checkpoint(dict(file.config), dict(file.generation), file.weights)
    config = read_mapping(place / CONFIG)
    path = place / GENERATION
    old = {key: config[key] for key in _DECODING if config.get(key) is not None}
    new = read_mapping(path) if path.exists() else {}
    _check_ids(old, place / CONFIG)
    _check_ids(new, path)
    return Checkpoint(config, old | new, open_weights(place, pickled))


def _check_ids(generation: Mapping[str, Any], path: Path) -> None:
    """Raises RunError where what decoding takes for ids of tokens is something else."""

    def is_id(value: Any) -> bool:
        return type(value) is int

    def are_ids(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_id, value))

    for key, value in generation.items():
        if key == "bad_words_ids":
            right = isinstance(value, list) and all(map(are_ids, value))
        elif key.endswith("_token_id"):
            right = is_id(value) or are_ids(value)
        else:
            right = key != "suppress_tokens" or are_ids(value)
        if value is not None and not right:
            raise RunError(f"{path}: {key} is {shown(value)}, which is no id of a token, nor a list of them")


def load_model(
    place: Path,
    heads: Mapping[str, HeadSpec] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
    pickled: bool = False,
    ignore: Sequence[str] = (),
    note: Callable[[str], None] = unsaid,
) -> Model:
    """The model in a folder or GGUF file, on the CPU, in evaluation mode, its floats as `dtype`.

    `heads`: those to have, by name; a family decides how one of that kind is built. None: those that the checkpoint
    has. A head that the checkpoint lacks is initialized and said to `note`. Any other weight must be there, with its
    shape, and none besides, unless a pattern (fnmatch) of `ignore` names it. `verify` compares the checksums of
    manifest.json, where there is one; `pickled` allows .bin files. Raises RunError naming file and key.
    """
    if verify and (place / MANIFEST).is_file():
        try:
            verify_manifest(place)
        except RunError as error:
            raise RunError(
                f"{error}; get it again, or, if you changed it yourself, remove {place / MANIFEST}"
            ) from None
    checkpoint = open_checkpoint(place, pickled)
    config, weights = checkpoint.config, checkpoint.weights
    path = place / CONFIG if place.is_dir() else place
    try:
        if config.get("model_type") == own.MODEL_TYPE:
            model = _load_own(config, path, weights, heads, Policy(ignore=ignore, note=note), dtype)
            model.generation = checkpoint.generation
            return model
        family = find(config, path, weights.keys())
        config = settled(family, config, weights)
        check_layers(family, config, weights.keys(), ignore)
        spec = read_spec(family, config)
        chosen, new = choose_heads(family, config, heads, weights.keys())
        sentence = read_sentence(place, note) if place.is_dir() else None
        if sentence is not None and heads is None:
            chosen.setdefault(NAME, sentence.head)
        model = build_empty(spec, chosen)
        model.origin, model.generation = kept(config, sentence), checkpoint.generation
        return fill(model, sources(family, model), weights, Policy(new, ignore, note, family), dtype)
    except (ConfigProblem, ValueError) as problem:
        raise RunError(f"{path}: {one_line(problem)}") from None


def _load_own(
    config: dict[str, Any],
    path: Path,
    weights: Weights,
    heads: Mapping[str, HeadSpec] | None,
    policy: Policy,
    dtype: torch.dtype,
) -> Model:
    spec, saved, tied = own.read_config(config, path)
    wanted = saved if heads is None else {name: saved.get(name, head) for name, head in heads.items()}
    model = build_empty(spec, wanted)
    lost = {name for name in tied if name not in model.state_dict()}
    if {**model.tied(), **{name: tied[name] for name in lost}} != tied and set(wanted) <= set(saved):
        raise RunError(f"{path}: its tied weights {tied} are not those of its spec {model.tied()}")
    found = {
        name: Source((name,), head=name.split(".")[1] if name.startswith("heads.") else "")
        for name in model.state_dict()
        if name not in model.tied()
    }
    unused = [f"heads.{name}.*" for name in saved if name not in wanted]
    new = {name for name in wanted if name not in saved}
    return fill(model, found, weights, Policy(new, (*policy.ignore, *unused), policy.note), dtype)


def save_model(
    model: Model, folder: Path, files: Iterable[Path] = (), *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model to `folder`, replacing what was there; the folder appears whole or not at all.

    `files` (the tokenizer's, a model card) are copied beside it; weights are split into files of at most
    `shard_bytes`. Raises UserError when the disk is full.
    """
    config, entries = checkpoint_of(model)
    with atomic_folder(folder, skip=(CARD,)) as draft:
        write_json(draft / CONFIG, config)
        write_weights(draft, entries, shard_bytes)
        for name, values in sentence_files(model).items() if config["model_type"] != own.MODEL_TYPE else ():
            (draft / name).parent.mkdir(exist_ok=True)
            write_json(draft / name, values)
        for file in files:
            shutil.copyfile(file, draft / file.name)


def checkpoint_of(model: Model) -> tuple[dict[str, Any], list[Entry]]:
    """config.json and the tensors, as the family of `model` has them; as our own kind where no family says it."""
    found = describe(model)
    if found is None:
        entries = [
            _entry(name, value) for name, value in model.state_dict().items() if name not in model.tied()
        ]
        return own.describe_model(model), entries
    family, config = found
    architecture = config["architectures"][0]
    state = model.state_dict()
    entries = []
    for name, source in sources(family, model).items():
        for key, view in parts(state[name], source, fused_sizes(model, name)):
            copies = () if model.spec.tie_embeddings else family.untied.get(key, ())
            entries += [_entry(family.stored_name(one, architecture), view) for one in (key, *copies)]
    return config, entries


def describe(model: Model) -> tuple[Family, dict[str, Any]] | None:
    """The family that says `model`, and its config.json; None where there is none.

    A model that was read from a checkpoint keeps its family and what else its config.json said; any other is a
    family's only with heads that the family has as well.
    """
    kind = str(model.origin.get("model_type", ""))
    for family in [BY_TYPE[kind]] if kind in BY_TYPE else FAMILIES.values():
        try:
            config = family.config(model.spec, model.origin)
            sources(family, model)
        except ValueError:
            continue
        if not model.origin and not heads_said(family, config, model.head_specs):
            continue
        return family, complete(family, config, model)
    return None


def complete(family: Family, config: dict[str, Any], model: Model) -> dict[str, Any]:
    """`config` with what says the heads: architectures, labels; and under "nalanda" what only we read."""
    names: dict[str, str] = {}
    shape = family.shape(config)
    for name, spec in model.head_specs.items():
        head = family.head(name, spec.kind)
        names[name] = head.name if head is not None else name
        if head is not None and head.says is not None and head.spec(shape, config) != spec:
            config |= head.says(spec)
        size = getattr(spec, "classes", 0) if spec.kind in ("sequence", "places") else 0
        if size and name != "next_sentence" and len(config.get("id2label") or {}) != size:
            config["id2label"] = {str(index): f"LABEL_{index}" for index in range(size)}
            config["label2id"] = {label: int(index) for index, label in config["id2label"].items()}
    wanted = set(names.values())
    order = sorted(family.architectures, key=lambda a: -len(wanted & set(family.architectures[a])))
    exact = [a for a in order if set(family.architectures[a]) == wanted]
    given = [a for a in config.get("architectures") or () if a in exact]
    fitting = [a for a in order if set(family.architectures[a]) <= wanted]
    config["architectures"] = [(given or exact or fitting or [family.base])[0]]
    weight = model.transformer.tokens.weight
    old = config.pop("torch_dtype", None)  # what "dtype" was called; readers round the weights to it
    if not model.origin or old is not None or "dtype" in config or weight.dtype != torch.float32:
        config["dtype"] = str(weight.dtype).removeprefix("torch.")
    config.pop("nalanda", None)
    own_words = own.extension(family, config, model)
    return config | ({"nalanda": own_words} if own_words else {})


def _entry(key: str, value: Tensor) -> Entry:
    return Entry(key, tuple(value.shape), value.dtype, lambda: value.detach().cpu().contiguous())


def write_tensors(file: Writable, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a safetensors file to `file`, which is open at `path`; a half-written one may be left."""
    write_stream(file, path, [_entry(name, value) for name, value in tensors.items()], {})
