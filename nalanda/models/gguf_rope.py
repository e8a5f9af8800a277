"""Rotary positions between config.json and GGUF: base, linear and YaRN scaling by keys, Llama 3's by a table.

Llama 3 divides slow frequencies by `factor`, leaves fast ones alone and blends between. A GGUF file has only the
outcome, `rope_freqs.weight`, one divisor per pair of a head's numbers; `_llama3` finds the parameters behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nalanda.base.errors import RunError
from nalanda.models.gguf_header import Header, TensorInfo
from nalanda.models.gguf_names import Family
from nalanda.models.gguf_quants import dequantize

FACTORS = "rope_freqs.weight"
_Array = npt.NDArray[np.float32]
# YaRN: key below "rope.scaling." beside the key of rope_scaling.
_YARN = (
    ("original_context_length", "original_max_position_embeddings", int),
    ("yarn_attn_factor", "attention_factor", float),
    ("yarn_beta_fast", "beta_fast", float),
    ("yarn_beta_slow", "beta_slow", float),
)
_YARN_UNSAID = {"mscale": None, "mscale_all_dim": None, "truncate": True}  # and what readers take
_LOCAL = {"gemma3": 10_000.0}  # base of the layers that see a window, where the file does not say it


def read_rope(header: Header, architecture: str, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` where there is one, and Gemma 3's `rope_local_base_freq`."""

    def number(key: str, default: float | None = None) -> float | None:
        value = header.metadata.get(f"{architecture}.rope.{key}", default)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise RunError(
                f"{path}: key '{architecture}.rope.{key}': {str(value)[:60]!r} is no positive number"
            )
        return float(str(np.float32(value)))

    rope: dict[str, Any] = {"rope_theta": number("freq_base", 10_000.0)}
    if architecture in _LOCAL:
        rope["rope_local_base_freq"] = number("freq_base_swa", _LOCAL[architecture])
    kind = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    factor = number("scaling.factor") or number("scale_linear")
    if FACTORS in header.tensors:
        rope["rope_scaling"] = _llama3(
            _factors(header.tensors[FACTORS]), rope["rope_theta"], config["head_dim"], path
        )
    elif kind == "yarn" and factor is not None:
        rope["rope_scaling"] = {"rope_type": "yarn", "factor": factor}
        for key, theirs, cast in _YARN:
            if (value := number(f"scaling.{key}")) is not None:
                rope["rope_scaling"][theirs] = cast(value)
    elif kind == "linear" or (kind == "none" and factor not in (None, 1.0)):
        if factor not in (None, 1.0):
            rope["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind != "none":
        raise RunError(
            f"{path}: key '{architecture}.rope.scaling.type': {str(kind)[:60]!r} is not none, linear or yarn"
        )
    return rope


def _factors(info: TensorInfo) -> _Array:
    if len(info.shape) != 1 or info.size > 2**16:
        raise RunError(f"{info.path}: tensor {FACTORS!r} has shape {info.shape}")
    with info.path.open("rb") as file:
        file.seek(info.start)
        return dequantize(file.read(info.size), info.kind)


def llama3_factors(theta: float, head: int, scaling: Mapping[str, Any]) -> _Array:
    """Llama 3's divisor of each rotary frequency, [head / 2]; reckoned in float32, as llama.cpp's converter does."""
    frequency = 1.0 / (theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    factor, length = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wave = 2 * math.pi / frequency
    smooth = (length / wave - low) / (high - low)
    blend = 1 / ((1 - smooth) / factor + smooth)
    slow = torch.where(wave > length / low, torch.full_like(wave, factor), blend)
    return np.asarray(torch.where(wave < length / high, torch.ones_like(wave), slow).numpy())


def _llama3(factors: _Array, theta: float, head: int, path: Path) -> dict[str, Any]:
    """Parameters whose factors are those. Only ratios of length, low and high show: low is 1, as Meta has it."""
    factor = float(factors.max(initial=1.0))
    for length, high in _guesses(factors, theta, head, factor):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
        again = llama3_factors(theta, head, scaling)
        if again.shape == factors.shape and np.allclose(again, factors, rtol=1e-4):
            return scaling
    raise RunError(
        f"{path}: tensor {FACTORS!r}: these rotary factors are not Llama 3's scaling; they cannot be read"
    )


def _guesses(factors: _Array, theta: float, head: int, factor: float) -> list[tuple[int, float]]:
    """Pairs of original length and high_freq_factor to try. Between fast and slow frequencies the blend is a straight
    line over the frequency, which two of them fix; one is enough if high_freq_factor is 4."""
    guesses = [(8192, 4.0)]
    if len(factors) != head // 2 or not np.isfinite(factors).all() or factor <= 1 or factors.min() < 1:
        return guesses
    turns = (theta ** -(np.arange(0, head, 2) / head)) / (2 * math.pi)  # per position
    middle = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    smooth = (1 / factors[middle] - 1 / factor) / (1 - 1 / factor)
    guesses += [(round(value), 4.0) for value in (smooth * 3 + 1) / turns[middle]]
    if middle.sum() > 1:
        slope, start = np.polyfit(turns[middle], smooth, 1)
        if start < 0:
            high = 1 - 1 / start
            guesses.append((round(slope * (high - 1)), float(f"{high:.4g}")))
    return [(length, high) for length, high in guesses if length > 0]


def write_rope(
    config: Mapping[str, Any], family: Family, path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata below the architecture's name, and the table of factors where the scaling is Llama 3's."""
    parameters = config.get("rope_parameters") or {}
    everywhere = parameters.get("full_attention", parameters)
    scaling = dict(config.get("rope_scaling") or everywhere)
    theta = float(everywhere.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    metadata: dict[str, Any] = {"rope.freq_base": theta}
    if family.architecture in _LOCAL:
        nearby = parameters.get("sliding_attention", {})
        local = nearby.get("rope_theta") or config.get("rope_local_base_freq") or _LOCAL[family.architecture]
        metadata["rope.freq_base_swa"] = float(local)
        if nearby.get("rope_type", "default") != "default":
            raise RunError(
                f"{path}: config.json scales rotary positions of windowed layers; GGUF cannot say it"
            )
    elif "sliding_attention" in parameters and parameters["sliding_attention"] != everywhere:
        raise RunError(
            f"{path}: config.json has two kinds of rotary positions; {family.architecture} has one"
        )
    if float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise RunError(f"{path}: config.json has a partial_rotary_factor; it is not written")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    tables: dict[str, Tensor] = {}
    if kind in ("linear", "yarn"):
        metadata |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
        if kind == "yarn":
            for key, usual in _YARN_UNSAID.items():
                if scaling.get(key, usual) != usual:
                    raise RunError(
                        f"{path}: config.json has {key} {scaling[key]!r}; GGUF's yarn cannot say it"
                    )
            scaling.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
            for key, theirs, cast in _YARN:
                if scaling.get(theirs) is not None:
                    metadata[f"rope.scaling.{key}"] = cast(scaling[theirs])
    elif kind == "llama3" and family.architecture in ("llama", "smollm3"):
        tables[FACTORS] = torch.from_numpy(llama3_factors(theta, int(config["head_dim"]), scaling))
    elif kind != "default":
        raise RunError(
            f"{path}: config.json has rope_type {kind!r}, which GGUF's {family.architecture} has not"
        )
    return metadata, tables
