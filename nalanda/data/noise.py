"""Counter-based random numbers: noise that depends on (seed, step, sample) and on nothing else.

    keys = row_keys(seed, "mask", step, sample_ids)     # one key for each row
    u = uniform(keys[rows], places)                     # in [0, 1), one for each token

A row gets the same noise whichever batch, worker or order it is drawn in, and a whole batch is drawn at once.
The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014). It is written out here rather
than taken from `numpy.random`, whose streams may change between versions: a resumed run must not.
"""

from __future__ import annotations

import numpy as np

from nalanda.base.seeds import derive

EVALUATION = -1  # the step that keys the noise of an evaluation pass

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def row_keys(seed: int, stream: str, step: int, sample_ids: np.ndarray) -> np.ndarray:
    """One 64-bit key for each sample of the step; streams of different names are independent."""
    base = np.uint64(derive(seed, "noise", stream, step))
    return _mix(_mix((sample_ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN ^ base))


def uniform(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1): the `counters`-th of each key's stream."""
    bits = _mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, seed: int, *names: str | int) -> np.ndarray:
    """A permutation of 0..count-1 that is a pure function of the seed and the names; O(count log count)."""
    key = np.full(count, derive(seed, "permutation", *names), dtype=np.uint64)
    return np.argsort(_mix(_mix(key + np.arange(count, dtype=np.uint64) * _GOLDEN)), kind="stable")
