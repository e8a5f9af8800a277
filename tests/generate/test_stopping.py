"""Stop strings across token borders, cut at the character; what a stream may show."""

from __future__ import annotations

import pytest
import torch

from nalanda.generate.decode import settled
from nalanda.generate.stopping import StopStrings

PIECES = ["", "he", "llo", " wor", "ld", "l", "o ", "w", "\n", "\nUs", "er:", "Us"]


class Pieces:
    """A tokenizer of written pieces."""

    vocabulary, pad, bos, eos, special_ids = len(PIECES), 0, 0, 0, frozenset({0})

    def decode(self, ids: list[int]) -> str:
        return "".join(PIECES[i] for i in ids)


@pytest.mark.parametrize(
    ("ids", "stops", "kept", "text"),
    [
        ([1, 2, 3, 4], ("o wor",), [1], "hell"),  # begins in one token and ends in another
        ([1, 2, 3, 4], ("hello",), [], ""),
        ([1, 2, 3, 4], ("ld", "lo"), [1], "hel"),  # the earliest counts, whichever is named first
        ([1, 2, 9, 10], ("User:", "\nUser:"), [1, 2], "hello"),
        ([1, 2, 3], ("xyz",), [1, 2, 3], "hello wor"),
    ],
)
def test_text_is_cut_at_the_stop_string(
    ids: list[int], stops: tuple[str, ...], kept: list[int], text: str
) -> None:
    assert StopStrings(stops, Pieces()).cut(ids) == (kept, text)


def test_hits_are_found_at_the_token_that_completes_them_however_long_the_text() -> None:
    stops = StopStrings(("User:",), Pieces())
    head = [5] * 50
    rows = torch.tensor([[*head, 9, 10], [*head, 10, 9], [*head, 11, 10], [*head, 1, 2]])
    assert stops.hits(rows) == [True, False, True, False]
    assert stops.hits(rows[:, :-1]) == [False] * 4


def test_a_stream_holds_back_what_may_still_be_cut_or_change() -> None:
    assert settled("hello\nUs", ("\nUser:",)) == 5
    assert settled("hello\nUx", ("\nUser:",)) == 8
    assert settled("a\ufffd\ufffd", ()) == 1
    assert settled("aab", ("abc", "bb")) == 1
    assert settled("", ("abc",)) == 0
