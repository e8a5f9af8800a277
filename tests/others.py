"""Small models of others, as their makers publish them: random weights and a small tokenizer in one folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

from nalanda.corpus.document import Document
from nalanda.corpus.store import SplitWriter

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

ENGLISH = [
    "the tea is hot",
    "the water is cold",
    "save the file",
    "close the window before you go",
    "go home",
]
HINDI = ["चाय गरम है", "पानी ठंडा है", "फ़ाइल सहेजें", "जाने से पहले खिड़की बंद करें", "घर जाओ"]
_STACKS = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.3,
}  # fmt: skip
_LAYERS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


def write_corpus(folder: Path) -> Path:
    """English sentences and their translations as a corpus with two splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        with (folder / f"{split}.parquet").open("wb") as file, SplitWriter(file) as writer:
            for i, (text, target) in enumerate(zip(ENGLISH, HINDI)):
                writer.write(Document(text, f"a:{i}", "eng_Latn", target, "hin_Deva", "a"))
    return folder


@cache
def _pieces(bytes_too: bool = False) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH + HINDI) * 3), model_writer=model, vocab_size=400 if bytes_too else 100,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, model_type="bpe" if bytes_too else "unigram",
        byte_fallback=bytes_too, normalization_rule_name="identity" if bytes_too else "nmt_nfkc",
    )  # fmt: skip
    return model.getvalue()


def _names() -> list[str]:
    read = sentencepiece.SentencePieceProcessor(model_proto=_pieces())
    return [read.id_to_piece(i) for i in range(3, read.vocab_size())]


def _spm(folder: Path, file: str, kind: str, resave: bool = True, **config: Any) -> Any:
    """transformers' tokenizer of a SentencePiece file; saved again, as models on the hub have it, where asked."""
    (folder / file).write_bytes(_pieces())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}))
    read = getattr(transformers, kind).from_pretrained(folder)
    if resave:
        (folder / file).unlink()
        read.save_pretrained(folder)
    return read


def _m2m(folder: Path) -> Any:
    names = ["<s>", "<pad>", "</s>", "<unk>", *_names()]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return _spm(folder, "sentencepiece.bpe.model", "M2M100Tokenizer", False, src_lang="en", tgt_lang="hi")


def _marian(folder: Path, *tags: str) -> Any:
    names = ["</s>", "<unk>", *_names(), *tags, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "target.spm").write_bytes(_pieces())
    return _spm(folder, "source.spm", "MarianTokenizer", False, source_lang="en", target_lang="hi")


def _byte_level(folder: Path, **roles: str) -> Any:
    rust = tokenizers.Tokenizer(tokenizers.models.BPE())
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.train_from_iterator(
        ENGLISH + HINDI,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(dict.fromkeys(roles.values())),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if roles.get("pad_token"):  # BART's and RoBERTa's
        rust.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    read = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, **roles)
    read.save_pretrained(folder)
    return read


def _llama(folder: Path) -> Any:
    (folder / "tokenizer.model").write_bytes(_pieces(bytes_too=True))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return transformers.LlamaTokenizer.from_pretrained(folder)


def _bert(folder: Path) -> Any:
    words = sorted({word for text in ENGLISH + HINDI for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False})
    )
    return transformers.BertTokenizer.from_pretrained(folder)


BART_ROLES = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
_NLLB = {
    "src_lang": "eng_Latn",
    "tgt_lang": "hin_Deva",
    "additional_special_tokens": ["eng_Latn", "hin_Deva", "tam_Taml"],
}
_MBART = {"src_lang": "en_XX", "tgt_lang": "hi_IN"}
_TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "nllb": lambda f: _spm(f, "sentencepiece.bpe.model", "NllbTokenizer", **_NLLB),
    "m2m": _m2m,
    "mbart50": lambda f: _spm(f, "sentencepiece.bpe.model", "MBart50Tokenizer", **_MBART),
    "mbart": lambda f: _spm(f, "sentencepiece.bpe.model", "MBartTokenizer", **_MBART),
    "t5": lambda f: _spm(f, "spiece.model", "T5Tokenizer", extra_ids=10),
    "marian": _marian,
    "marian, tags": lambda f: _marian(f, ">>hin<<", ">>tam<<"),
    "bart": lambda f: _byte_level(f, **BART_ROLES),
    "llama": _llama,
    "gpt2": lambda f: _byte_level(f, bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
    "bert": _bert,
}
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nllb": ("M2M100Config", "M2M100ForConditionalGeneration", {**_STACKS, "decoder_start_token_id": 2}),
    "m2m": ("M2M100Config", "M2M100ForConditionalGeneration", {**_STACKS, "decoder_start_token_id": 2}),
    "mbart50": ("MBartConfig", "MBartForConditionalGeneration", {**_STACKS, "decoder_start_token_id": 2}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", _STACKS),
    "t5": (
        "T5Config", "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0,
         "dropout_rate": 0.0},
    ),
    "marian": ("MarianConfig", "MarianMTModel", {**_STACKS, "forced_eos_token_id": 0, "eos_token_id": 0}),
    "marian, tags": ("MarianConfig", "MarianMTModel", {**_STACKS, "forced_eos_token_id": 0, "eos_token_id": 0}),
    "bart": ("BartConfig", "BartForConditionalGeneration", {**_STACKS, "forced_eos_token_id": 2}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LAYERS),
    "gpt2": (
        "GPT2Config", "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
         "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3},
    ),
    "bert": (
        "BertConfig", "BertForMaskedLM",
        {**_LAYERS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
}  # fmt: skip
TRANSLATORS = ("nllb", "m2m", "mbart50", "mbart", "t5", "marian", "marian, tags", "bart")


def publish(name: str, folder: Path) -> tuple[Any, Any]:
    """Writes model and tokenizer of a kind to `folder`; returns transformers' model (evaluating) and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _TOKENIZERS[name](folder)
    kind, architecture, values = _MODELS[name]
    size = len(tokenizer) + (108 if name == "m2m" else 3)  # M2M-100 has its tags behind the vocabulary
    if "marian" in name:
        pad = tokenizer.pad_token_id
        values = {**values, "pad_token_id": pad, "decoder_start_token_id": pad}
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, kind)(vocab_size=size, **values)).eval()
    model.save_pretrained(folder)
    return model, tokenizer
