"""Seeds by name: each random stream is a pure function of one run seed and the words that name it."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`, the same on every machine and Python version."""
    text = "/".join([str(seed), *[str(name) for name in names]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
