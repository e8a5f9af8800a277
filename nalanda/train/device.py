"""On which device a run computes: `device: auto | cpu | cuda | cuda:1 | mps`.

place = find_device("cuda:1")       # torch.device, or a UserError that says what there is
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from nalanda.base.distributed import current
from nalanda.base.errors import UserError

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(name: str) -> torch.device:
    """The device that `name` means. Raises UserError where this machine, or this torch, has none such."""
    if name == "auto":
        return default_device()
    kind, _, number = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            built = "" if torch.version.cuda else ", and this torch is built without CUDA"
            raise UserError(f"device: {name}: no CUDA device was found{built}; set device=auto or device=cpu")
        if number and int(number) >= count:
            raise UserError(
                f"device: {name}: this machine has {count} CUDA devices, numbered from 0; "
                f"set device=cuda:{count - 1}"
            )
        if number and current().size > 1:
            raise UserError(
                f"device: {name}: each of {current().size} processes takes a GPU of its own; set device=cuda"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: mps: this machine or this torch has none; set device=auto or device=cpu")
    return torch.device(name)
