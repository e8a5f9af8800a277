"""Machines to plan for, by name: what they can do at best, what they hold, draw and cost.

    machine = find("h100x8")
    machine.count, machine.device.bf16          # 8, 9.89e14

The figures and where they are from stand in machines.toml.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from nalanda.base.errors import UserError
from nalanda.config import Config, parse

_NAME = re.compile(r"(?P<device>[a-z0-9][a-z0-9-]*?)(?:x(?P<count>[0-9]+))?")
_MOST = 1 << 20


class Device(Config):
    """One accelerator or CPU. Units stand in machines.toml."""

    about: str
    bf16: float = Field(ge=0)
    fp32: float = Field(gt=0)
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    link: float = Field(gt=0)
    network: float = Field(gt=0)
    node: int = Field(gt=0)
    watts: float = Field(gt=0)
    overhead: float = Field(ge=0)
    price: float = Field(ge=0)

    def peak(self, precision: str) -> float:
        """Operations a second at best in `precision` ("fp32" or "bf16"); bf16 that it lacks runs as fp32."""
        return self.bf16 if precision == "bf16" and self.bf16 else self.fp32


@dataclass(frozen=True)
class Machine:
    """`count` devices of one kind, called `name`."""

    name: str
    device: Device
    count: int

    def between(self, ranks: int) -> float:
        """Bytes a second, one way, of each device when `ranks` neighbours exchange: inside a node or across."""
        return self.device.link if ranks <= self.device.node else self.device.network


@functools.cache
def devices() -> dict[str, Device]:
    """Every known device by name."""
    path = Path(__file__).with_name("machines.toml")
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: parse(Device, value, f"{path.name}: {name}") for name, value in values.items()}


def find(name: str) -> Machine:
    """The machine called `name`: a device, or NAMExN for N of them. Raises UserError naming those that are near."""
    known = devices()
    if name in known:
        return Machine(name, known[name], 1)
    match = _NAME.fullmatch(name.lower())
    device = match["device"] if match else name
    if match is None or device not in known:
        near = difflib.get_close_matches(device.lower(), known, n=3, cutoff=0.4)
        starts = [other for other in known if other.startswith(device.lower()) and other not in near]
        hint = f"did you mean {' or '.join([*near, *starts])}?" if near or starts else ""
        raise UserError(
            f"--hardware: no machine is called '{name}'; {hint or 'one of: ' + ', '.join(known)} "
            "(eight of one kind: h100x8; this machine: here)"
        )
    count = int(match["count"] or 1)
    if not 0 < count <= _MOST:
        raise UserError(f"--hardware: {name}: a number of devices is from 1 to {_MOST:,}")
    return Machine(name.lower(), known[device], count)
