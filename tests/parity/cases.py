"""All cases, and the pairs made for them, each once in a process."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from parity import cases_decoders, cases_encoders, cases_llama, cases_seq2seq
from parity.case import Case
from parity.pair import Pair, build

CASES: tuple[Case, ...] = (
    *cases_llama.CASES,
    *cases_decoders.CASES,
    *cases_encoders.CASES,
    *cases_seq2seq.CASES,
)


@cache
def pair_of(case: Case) -> Pair:
    """The pair of a case; its files are gone when the process ends."""
    return build(case, Path(_ROOT.name) / case.name)


_ROOT = tempfile.TemporaryDirectory(prefix="parity-")
