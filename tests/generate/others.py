"""Tiny random networks of transformers and ours with the same weights, for tests that compare what they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from nalanda.models.exchange import load_model
from nalanda.nn.model import Model

V, D, L = 67, 32, 2


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=4, n_inner=48, n_positions=20)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=6, d_ff=48, num_layers=L, num_heads=4, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, feed_forward_proj="gated-gelu", tie_word_embeddings=True,
        decoder_start_token_id=0, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def marian() -> nn.Module:
    config = transformers.MarianConfig(
        vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=20,
        scale_embedding=True, activation_function="silu", pad_token_id=V - 1, decoder_start_token_id=V - 1,
        decoder_vocab_size=V,
    )  # fmt: skip
    return transformers.MarianMTModel(config)


MADE: dict[str, Callable[[], nn.Module]] = {"gpt2": gpt2, "llama": llama, "t5": t5, "marian": marian}


def randomize(module: nn.Module) -> None:
    """Weights large enough that every part matters: biases, norms and relative biases as well; fixed tables stay."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed_positions" in name:
                continue
            parameter.normal_(std=0.2)
            if parameter.dim() == 1 and "weight" in name:
                parameter.add_(1.0)


def build(name: str, folder: Path) -> tuple[Any, Model]:
    """Theirs, and ours read from what theirs saves in `folder`."""
    theirs = MADE[name]().eval()
    randomize(theirs)
    if name == "marian":
        theirs.final_logits_bias.normal_()
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)
