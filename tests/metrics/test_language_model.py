"""Perplexity and bits, against cases worked by hand."""

from __future__ import annotations

import math

import pytest

from nalanda.metrics.language_model import bits_per_byte, bits_per_character, perplexity


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    assert perplexity(10 * math.log(50), 10) == pytest.approx(50)


def test_bits_by_hand() -> None:
    text = "कि ab"  # 5 characters, 9 bytes
    nats = 18 * math.log(2)
    assert bits_per_byte(nats, len(text.encode())) == pytest.approx(2)
    assert bits_per_character(nats, len(text)) == pytest.approx(18 / 5)


def test_extremes() -> None:
    assert perplexity(0, 3) == 1
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(math.nan, 1))
    for function in (perplexity, bits_per_byte, bits_per_character):
        with pytest.raises(ValueError, match="of 0 "):
            function(1.0, 0)
