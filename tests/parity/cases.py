"""All cases, and the pairs made for them, each once in a process."""

from __future__ import annotations

import importlib
import tempfile
from functools import cache
from pathlib import Path

from parity.case import Case
from parity.pair import Pair, build

MODULES = ("cases_llama", "cases_decoders", "cases_encoders", "cases_seq2seq")


def _all() -> tuple[Case, ...]:
    here = Path(__file__).parent
    found = [importlib.import_module(f"parity.{n}") for n in MODULES if (here / f"{n}.py").exists()]
    return tuple(case for module in found for case in module.CASES)


CASES = _all()


@cache
def pair_of(case: Case) -> Pair:
    """The pair of a case; its files are gone when the process ends."""
    return build(case, Path(_ROOT.name) / case.name)


_ROOT = tempfile.TemporaryDirectory(prefix="parity-")
