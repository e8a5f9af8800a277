"""Folders of other tools: tokenizer.json with whatever pipeline, the files beside it, what is found in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nalanda.base.errors import DataError, RunError
from nalanda.tokenizer.tokenizer import Tokenizer

Made = tuple[tokenizers.Tokenizer, dict[str, Any]]


def _train(model: Any, trainer: Any, texts: list[str], **parts: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(texts, trainer=trainer)
    return made


def llama_like(texts: list[str]) -> Made:
    special = ["<unk>", "<s>", "</s>"]
    made = _train(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))]),
        texts,
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made, {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}


def unigram_like(texts: list[str]) -> Made:
    made = _train(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=700, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"),
        texts,
        normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        ),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoder=decoders.Metaspace(),
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def roberta_like(texts: list[str]) -> Made:
    made = _train(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        texts,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
        decoder=decoders.ByteLevel(),
        post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    )
    return made, {
        f"{role}_token": f"<{name}>" for role, name in (("bos", "s"), ("eos", "/s"), ("pad", "pad"))
    }


def chat_like(texts: list[str]) -> Made:
    made = _train(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
        texts,
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        decoder=decoders.ByteLevel(),
    )
    made.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    made.add_tokens([AddedToken("<think>", special=False)])
    return made, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": "{{ messages }}"}


def albert_like(texts: list[str]) -> Made:
    made = _train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        texts,
        normalizer=normalizers.Sequence(
            [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
        ),
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=decoders.WordPiece(),
        post_processor=processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
    )
    return made, {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}


def words(texts: list[str]) -> Made:
    made = _train(
        models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer(special_tokens=["<unk>"]),
        texts,
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    )
    return made, {}


PIPELINES = [llama_like, unigram_like, roberta_like, chat_like, albert_like, words]


@pytest.fixture
def foreign(corpus: list[str], tmp_path: Path) -> Callable[..., tuple[tokenizers.Tokenizer, Path]]:
    """Writes a pipeline into a folder as transformers would; gives it and the folder."""

    def make(pipeline: Callable[[list[str]], Made], **more: Any) -> tuple[tokenizers.Tokenizer, Path]:
        made, config = pipeline(corpus)
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")
        return made, tmp_path

    return make


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_any_pipeline_gives_its_own_ids(
    pipeline: Callable[[list[str]], Made], foreign: Callable[..., Any], awkward: list[str], corpus: list[str]
) -> None:
    made, folder = foreign(pipeline)
    tokenizer = Tokenizer.load(folder)
    made.encode_special_tokens = True
    texts = [text for text in awkward + corpus if len(text) < 2000]
    ids = tokenizer.encode_batch(texts)
    assert ids == [e.ids for e in made.encode_batch(texts, add_special_tokens=False)]
    prefix, suffix = tokenizer.affixes
    for text, row in zip(texts, ids, strict=True):
        assert [*prefix, *row, *suffix] == made.encode(text).ids
    first, middle, last = tokenizer.pair_affixes
    a, b = tokenizer.encode_batch(["the file", "an act"])
    assert [*first, *a, *middle, *b, *last] == made.encode("the file", "an act").ids
    assert tokenizer.vocabulary == made.get_vocab_size()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_saved_it_gives_transformers_the_same_ids_with_special_tokens(
    pipeline: Callable[[list[str]], Made], foreign: Callable[..., Any], awkward: list[str], corpus: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    _, folder = foreign(pipeline)
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(folder / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "saved")
    special = [tokenizer.token(i) for i in tokenizer.special_ids]
    texts = [t for t in awkward + corpus if len(t) < 2000 and not any(name in t for name in special)]
    prefix, suffix = tokenizer.affixes
    ours = [[*prefix, *ids, *suffix] for ids in tokenizer.encode_batch(texts)]
    assert theirs(texts)["input_ids"] == ours
    assert theirs.chat_template == tokenizer.chat_template
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        if role in tokenizer.roles:
            assert getattr(theirs, f"{role}_token") == tokenizer.roles[role]
    again = Tokenizer.load(folder / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.affixes == tokenizer.affixes
    if tokenizer.chat_template:
        assert theirs("<|im_end|>")["input_ids"] == tokenizer.encode_marked(["<|im_end|>"])[0]


def test_what_a_chat_template_wrote_keeps_its_special_tokens(foreign: Callable[..., Any]) -> None:
    made, folder = foreign(chat_like)
    tokenizer = Tokenizer.load(folder)
    text = "<|im_start|>user\nhello <think> 12<|im_end|>\n"
    assert tokenizer.encode_marked([text])[0] == made.encode(text).ids
    assert made.token_to_id("<|im_end|>") in tokenizer.encode_marked([text])[0]
    assert not tokenizer.special_ids & set(tokenizer.encode(text))
    assert made.token_to_id("<think>") in tokenizer.encode(text)


def test_a_template_file_goes_before_the_config(foreign: Callable[..., Any]) -> None:
    _, folder = foreign(chat_like)
    assert Tokenizer.load(folder).chat_template == "{{ messages }}"
    (folder / "chat_template.jinja").write_text("{{ other }}", encoding="utf-8")
    assert Tokenizer.load(folder).chat_template == "{{ other }}"


def test_bos_and_eos_as_the_config_says(foreign: Callable[..., Any]) -> None:
    _, folder = foreign(llama_like, add_bos_token=True, add_eos_token=True)
    assert Tokenizer.load(folder).affixes == ([1], [2])
    _, folder = foreign(llama_like, add_bos_token=False)
    assert Tokenizer.load(folder).affixes == ([], [])
    _, folder = foreign(llama_like)
    assert Tokenizer.load(folder).affixes == ([1], [])


def test_roles_come_from_the_other_files_too(foreign: Callable[..., Any]) -> None:
    made, folder = foreign(chat_like)
    (folder / "tokenizer_config.json").unlink()
    end = made.token_to_id("<|im_end|>")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [end, 0], "bos_token_id": 10**9})
    )
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.eos, tokenizer.role("bos")) == (end, None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_start|>"}}))
    assert Tokenizer.load(folder).token(Tokenizer.load(folder).eos) == "<|im_start|>"


def test_added_tokens_beside_are_added_where_they_follow(foreign: Callable[..., Any]) -> None:
    made, folder = foreign(chat_like)
    size = made.get_vocab_size()
    (folder / "added_tokens.json").write_text(
        json.dumps({"<new>": size, "<|im_end|>": made.token_to_id("<|im_end|>")})
    )
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.vocabulary, tokenizer.token(size)) == (size + 1, "<new>")
    assert size in tokenizer.special_ids
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": size + 5}))
    with pytest.raises(
        DataError, match=f"added token '<new>' has id {size + 5}, but the ids of tokenizer.json end at"
    ):
        Tokenizer.load(folder)


def test_a_damaged_charsmap_in_a_tokenizer_json_is_refused(foreign: Callable[..., Any]) -> None:
    _, folder = foreign(unigram_like)
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for blob, error in (("!!", "not base64"), ("/////w==", "damaged charsmap")):
        value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": blob}
        (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(
            (RunError, DataError), match=rf"tokenizer\.json: normalizer\.precompiled_charsmap.*{error}"
        ):
            Tokenizer.load(folder)


def test_an_empty_folder_and_two_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"no such file; is .* a folder that holds a tokenizer\? \(tokenizer\.json, "
    ):
        Tokenizer.load(tmp_path)
    with pytest.raises(RunError, match="no such file"):
        Tokenizer.load(tmp_path / "nothing")
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"expected one file .*, found a\.model, b\.model; name the file itself"
    ):
        Tokenizer.load(tmp_path)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    for place in (tmp_path, tmp_path / "x.gguf"):
        with pytest.raises((RunError, DataError), match=r"x\.gguf"):
            Tokenizer.load(place)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("normalizer",), 3, "not a tokenizer"),
        (("model", "vocab", 2), [], "not a tokenizer"),
        (("model", "unk_id"), None, "its model cannot encode this text"),
        (("post_processor", "special_tokens"), {}, "its post_processor does not fit"),
    ],
)
def test_malformed_parts_are_one_clear_error(
    keys: tuple[str | int, ...], value: Any, message: str, foreign: Callable[..., Any]
) -> None:
    _, folder = foreign(unigram_like)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(RunError, match=rf"tokenizer\.json: ({message})"):
        assert Tokenizer.load(folder).encode("中 a") == Tokenizer.load(folder).affixes
