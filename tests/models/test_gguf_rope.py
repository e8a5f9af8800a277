"""Llama 3's scaling of rotary frequencies, found again behind the divisors that a GGUF file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nalanda.base.errors import RunError
from nalanda.models.gguf_header import Header, TensorInfo
from nalanda.models.gguf_names import FAMILIES
from nalanda.models.gguf_quants import TYPE_BY_NAME
from nalanda.models.gguf_rope import FACTORS, llama3_factors, read_rope, write_rope


def scaling(factor: float, length: int, low: float = 1.0, high: float = 4.0) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def read(folder: Path, factors: np.ndarray, theta: float, head: int) -> dict[str, Any]:
    path = folder / "factors"
    path.write_bytes(factors.astype("<f4").tobytes())
    info = TensorInfo(path, FACTORS, factors.shape, TYPE_BY_NAME["F32"], 0, factors.size * 4)
    header = Header({"llama.rope.freq_base": theta}, {FACTORS: info})
    return read_rope(header, "llama", {"head_dim": head}, path)["rope_scaling"]


@pytest.mark.parametrize(
    ("head", "theta", "given"),
    [
        (128, 5e5, scaling(8.0, 8192)),  # Llama 3.1
        (64, 5e5, scaling(32.0, 8192)),  # Llama 3.2
        (16, 1e4, scaling(4.0, 64)),
        (128, 5e5, scaling(16.0, 4096, 1.0, 8.0)),
    ],
)
def test_parameters_are_found(head: int, theta: float, given: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, llama3_factors(theta, head, given), theta, head) == given


def test_only_ratios_can_be_found(tmp_path: Path) -> None:
    """Twice the length with twice both bounds is the same scaling: one of low 1 is given, with the same factors."""
    given = scaling(8.0, 4096, 2.0, 6.0)
    factors = llama3_factors(5e5, 128, given)
    found = read(tmp_path, factors, 5e5, 128)
    assert (found["low_freq_factor"], found["original_max_position_embeddings"]) == (1.0, 2048)
    assert np.allclose(llama3_factors(5e5, 128, found), factors, rtol=1e-4)


@pytest.mark.parametrize("key", ["mscale", "truncate"])
def test_what_yarn_cannot_say_is_refused(key: str) -> None:
    usual = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "truncate": True}
    write_rope({"rope_scaling": usual}, FAMILIES["llama"], Path("x"))
    with pytest.raises(RunError, match=key):
        write_rope({"rope_scaling": usual | {key: False}}, FAMILIES["llama"], Path("x"))


def test_factors_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = scaling(8.0, 8192)
    config = transformers.LlamaConfig(
        rope_theta=5e5, rope_scaling=given, head_dim=128, max_position_embeddings=131072
    )
    frequency, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (5e5 ** (torch.arange(0, 128, 2).float() / 128))
    assert np.allclose(llama3_factors(5e5, 128, given), (plain / frequency).numpy(), rtol=1e-5)


@pytest.mark.parametrize("factors", [np.full(64, 3.0), np.arange(64.0), np.full(64, np.nan), np.ones(5)])
def test_other_factors_are_refused(factors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"factors: tensor 'rope_freqs\.weight'.*not Llama 3's"):
        read(tmp_path, factors, 5e5, 128)
