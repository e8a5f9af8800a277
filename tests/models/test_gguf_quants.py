"""Number formats, bit for bit against the gguf package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from nalanda.base.errors import RunError
from nalanda.models.gguf_quants import TYPE_BY_NAME, dequantize, quantize

gguf = pytest.importorskip("gguf")
PLAIN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS")
OURS = (*PLAIN, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")  # Q8_K has a test of its own
THEIRS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4")


def random_blocks(name: str, count: int = 300) -> np.ndarray:
    """Blocks of random bytes: every field takes every value, NaN and infinite scales included."""
    return np.random.default_rng(len(name)).integers(0, 256, (count, TYPE_BY_NAME[name].size), dtype=np.uint8)


def test_sizes_are_theirs() -> None:
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        ours = TYPE_BY_NAME.get(kind.name)
        assert ours is None or (ours.number, ours.block, ours.size) == (kind.value, block, size)
    known = {kind.name for kind in gguf.GGML_QUANT_SIZES}
    assert known <= set(TYPE_BY_NAME)


@pytest.mark.parametrize("name", OURS + THEIRS)
def test_dequantize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(name)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(-1)
    if name in OURS:
        monkeypatch.setitem(sys.modules, "gguf.quants", None)  # an import of it fails
    found = dequantize(blocks.tobytes(), TYPE_BY_NAME[name])
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_dequantize_q8_k() -> None:
    """The gguf package does not know it: a float32 scale, 256 signed bytes, and sums that are not needed."""
    scale, q = np.float32(0.37), np.arange(-128, 128, dtype=np.int8)
    raw = scale.tobytes() + q.tobytes() + np.zeros(16, np.int16).tobytes()
    assert np.array_equal(dequantize(raw, TYPE_BY_NAME["Q8_K"]), q.astype(np.float32) * scale)


def test_rare_types_need_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(RunError, match=r"IQ1_S need the gguf package: pip install"):
        dequantize(random_blocks("IQ1_S").tobytes(), TYPE_BY_NAME["IQ1_S"])


@pytest.mark.parametrize("name", ["Q8_1", "I32", "Q1_0"])
def test_unreadable_types(name: str) -> None:
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        dequantize(random_blocks(name).tobytes(), TYPE_BY_NAME[name])


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0"])
def test_quantize(name: str) -> None:
    random = np.random.default_rng(1)
    rows = [random.standard_normal((200, 64)) * scale for scale in (1, 1e-3, 1e-12)]
    halves = (
        np.arange(-320, 320).reshape(10, 64) * 0.5 / 127
    )  # many integers and a half: which way do they go?
    values = np.concatenate([*rows, halves, np.zeros((2, 64))]).astype(np.float32)
    values[-1, 3] = 127
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    assert quantize(values, TYPE_BY_NAME[name]) == expected.tobytes()


@pytest.mark.parametrize(("name", "value"), [("F16", 7e4), ("F16", np.nan), ("Q8_0", np.inf), ("Q8_0", 1e7)])
def test_values_that_do_not_fit(name: str, value: float) -> None:
    values = np.ones(32, np.float32)
    values[7] = value
    with pytest.raises(ValueError, match=f"too large for {name}"):
        quantize(values, TYPE_BY_NAME[name])
