"""What a language model's total loss means: perplexity, and bits per byte or character of the text.

    perplexity(nats, tokens)             # depends on the tokenizer: compare only under the same one
    bits_per_byte(nats, len(text.encode()))   # does not: compares any two models of the same text

`nats` is the sum of the negative natural log-likelihoods of all tokens, never their mean.
"""

from __future__ import annotations

import math


def perplexity(nats: float, tokens: float) -> float:
    """exp of the mean loss per token; infinite where that is too large for a float. ValueError for no tokens."""
    try:
        return math.exp(_mean(nats, tokens, "tokens"))
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, size: float) -> float:
    """Bits that the model needs for one byte of the text's UTF-8. Raises ValueError for no bytes."""
    return _mean(nats, size, "bytes") / math.log(2)


def bits_per_character(nats: float, characters: float) -> float:
    """Bits that the model needs for one code point of the text. Raises ValueError for no characters."""
    return _mean(nats, characters, "characters") / math.log(2)


def _mean(nats: float, count: float, unit: str) -> float:
    if count <= 0:
        raise ValueError(f"the loss of {count} {unit} has no mean")
    return nats / count
