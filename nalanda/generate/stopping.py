"""Stop strings: found across token borders, cut off at the character.

stops = StopStrings(("\\n\\n", "User:"), tokenizer)
stops.hits(history_NT)       # which rows have just completed a stop string
ids, text = stops.cut(ids)   # what comes before it
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nalanda.generate.options import Vocabulary

# A word-joining decoder may strip a space from the first token it sees, and a byte-fallback character may be
# cut at the front of the window: two tokens more than the stop string has bytes.
_MARGIN = 2


class StopStrings:
    """The stop strings of one request; none of them is empty."""

    def __init__(self, stops: Sequence[str], tokenizer: Vocabulary) -> None:
        self.stops = tuple(stops)
        self.tokenizer = tokenizer
        # A token gives at least one byte, so the last stop string lies within this many tokens.
        self.window = max((len(stop.encode()) for stop in stops), default=0) + _MARGIN

    def hits(self, history_NT: Tensor) -> list[bool]:
        """For each row of generated ids, whether its text holds a stop string; called after every token."""
        if not self.stops:
            return [False] * history_NT.shape[0]
        tails = history_NT[:, -self.window :].tolist()
        return [
            self._find(tail) >= 0 and self._find(row.tolist()) >= 0 for tail, row in zip(tails, history_NT)
        ]

    def _find(self, ids: list[int]) -> int:
        return first_stop(self.tokenizer.decode(ids), self.stops)

    def cut(self, ids: list[int]) -> tuple[list[int], str]:
        """The text before the first stop string, and the leading ids that lie wholly in it."""
        text = self.tokenizer.decode(ids)
        place = first_stop(text, self.stops)
        if place < 0:
            return ids, text
        text = text[:place]
        kept = len(ids)
        while kept and not text.startswith(self.tokenizer.decode(ids[:kept])):
            kept -= 1
        return ids[:kept], text


def first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the earliest of `stops` begins in `text`, or -1."""
    return min((place for place in (text.find(stop) for stop in stops) if place >= 0), default=-1)
