"""Progress: plain lines with a total, a clock and readable numbers; silence on request."""

from __future__ import annotations

import io

from nalanda.base.progress import plain, silent


def test_plain_lines_say_how_far_and_how_fast() -> None:
    stream = io.StringIO()
    with plain(stream, every=0)("training", total=20, unit="steps") as bar:
        bar.update(10, loss=1.23456, speed=10250.4, budget="50%")
    first, last = stream.getvalue().splitlines()
    assert first.startswith("training: 10/20 steps  0:00  ETA 0:00")
    assert first.endswith("loss 1.235  speed 10,250  budget 50%")
    assert last == "training: 10/20 steps  0:00"


def test_lines_come_at_most_every_so_often() -> None:
    stream = io.StringIO()
    with plain(stream, every=3600)("reading") as bar:
        for _ in range(100):
            bar.update(1)
    assert stream.getvalue() == "reading: 100 rows  0:00\n"


def test_silence() -> None:
    with silent("x", total=3) as bar:
        bar.update(3, loss=1.0)
