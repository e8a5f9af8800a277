"""Which way of sharing a run out to devices fits and is fastest, by rules of thumb that are written down here.

    found = search(job, find("h100x8"), mfu=0.4)
    found[0].layout, found[0].seconds, found[0].memory.peak       # the fastest that fits comes first

What a layout costs, for a step:

    products      FLOPs x recomputation / (devices x peak x share), the share less for micro-batches of few places:
                  share x places / (places + HALF_SPEED)
    launches      LAUNCHES kernels of LAUNCH seconds for each layer and micro-batch, where products are faster
    update        weights, gradients and optimizer state through memory once, and Muon's products
    messages      tensor   four sums of the stream for each layer: nothing hides them
                  context  keys and values to every rank, thrice: half hidden behind products
                  expert   four exchanges of the routed places for each mixture: nothing hides them
                  data     the gradient's sum, twice its size (or, sharded, as much for each micro-batch): half hidden

Tensor parallelism stays inside a node and divides heads, key/value heads and inner features; context parallelism is
for decoders and encoders of long rows; an expert axis divides the experts. USABLE of a device's memory is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nalanda.nn.rotary import DynamicScaling, LongRopeScaling
from nalanda.nn.spec import FeedForwardSpec, MoESpec, Spec
from nalanda.train.machines import Machine
from nalanda.train.optimizer import AdamWConfig, MuonConfig
from nalanda.train.plan_memory import MODES, Memory, Mode, Rows, Sizes, Split, step_memory

MFU = 0.40
"""The share of peak that is assumed where nobody says another: what good trainers reach on one node."""
HALF_SPEED = 256
LAUNCHES, LAUNCH = 90, 5e-6
USABLE = 0.92
ALIKE = 0.03
LONG_ROWS = 8192
"""Rows that are worth sharing out by context."""
_RECOMPUTED = {"none": 1.0, "selective": 1.05, "full": 4 / 3}


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel axes, named as in a recipe's `parallel`; `rows`: of one rank's micro-batch."""

    data: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    shard: bool = False
    checkpointing: str = "none"
    rows: float = 1.0

    @property
    def shares(self) -> int:
        """Ranks that share a step's rows."""
        return self.data * self.expert


@dataclass(frozen=True)
class Job:
    """What is to be trained. `rows`: all rows of an optimizer step; `flops_per_place`: forward and backward."""

    spec: Spec
    sizes: Sizes
    rows: Rows
    flops_per_place: float
    precision: str
    optimizer: AdamWConfig | MuonConfig
    chunk: int
    block: int
    average: bool = False
    device: str = "cuda"

    @property
    def mode(self) -> Mode:
        """Bytes per number."""
        return MODES[self.precision]


@dataclass(frozen=True)
class Estimate:
    """What a layout needs and takes. `times`: seconds of a step by what for; `fits`: into USABLE of the memory."""

    layout: Layout
    memory: Memory
    times: dict[str, float]
    fits: bool

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return sum(self.times.values())


def _blocks(spec: Spec) -> int:
    return len(spec.encoder) + len(spec.decoder)


def _divides(size: int, spec: Spec) -> bool:
    """Whether tensor parallelism can cut every layer in `size` parts."""
    for _, blocks, _ in spec.stacks():
        for block in blocks:
            if block.attention.qk_norm is not None and block.attention.qk_norm_over == "all":
                return False
            for attention in (block.attention, block.cross):
                if attention is not None and (attention.heads % size or attention.groups % size):
                    return False
            if isinstance(block.feedforward, FeedForwardSpec) and block.feedforward.inner % size:
                return False
    return True


def _powers(most: float) -> list[int]:
    return [1 << n for n in range(int(math.log2(max(most, 1))) + 1)]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0] if number <= 64 else _powers(number)


def layouts(job: Job, machine: Machine) -> Iterator[Layout]:
    """Every layout that is tried."""
    mixtures = [
        block.feedforward.experts
        for _, blocks, _ in job.spec.stacks()
        for block in blocks
        if isinstance(block.feedforward, MoESpec)
    ]
    experts = math.gcd(*mixtures) if mixtures else 1
    rotations = [block.attention.rotary for _, blocks, _ in job.spec.stacks() for block in blocks]
    by_length = any(
        r is not None and isinstance(r.scaling, DynamicScaling | LongRopeScaling) for r in rotations
    )
    for tensor in (n for n in _divisors(min(machine.count, machine.device.node)) if _divides(n, job.spec)):
        for context in _powers(machine.count / tensor):
            long = job.rows.length >= LONG_ROWS and not (job.spec.encoder and job.spec.decoder)
            if context > 1 and (not long or by_length or job.rows.length % (2 * context)):
                continue
            rest, left = divmod(machine.count, tensor * context)
            if left:
                continue
            for expert in (n for n in _powers(min(rest, experts)) if experts % n == 0 and rest % n == 0):
                if rest > max(1, job.rows.count):
                    continue
                yield from _variants(job, Layout(rest // expert, expert, context, tensor))


def _variants(job: Job, layout: Layout) -> Iterator[Layout]:
    share = max(1.0, job.rows.count / layout.shares)
    for shard in (False, True) if layout.data * layout.context > 1 else (False,):
        for checkpointing in _RECOMPUTED:
            for rows in sorted({*map(float, _powers(share)), share}):
                yield replace(layout, shard=shard, checkpointing=checkpointing, rows=rows)


def _micro_batches(job: Job, layout: Layout) -> int:
    return max(1, math.ceil(job.rows.count / (layout.shares * layout.rows) - 1e-9))


def memory_of(job: Job, layout: Layout) -> Memory:
    """The memory of one device."""
    split = Split(
        tensor=layout.tensor,
        context=layout.context,
        expert=layout.expert,
        shard=layout.data * layout.context if layout.shard else 1,
        checkpointing=layout.checkpointing,
    )
    return step_memory(
        job.spec,
        job.sizes,
        replace(job.rows, count=layout.rows),
        job.mode,
        job.optimizer,
        device=job.device,
        chunk=job.chunk,
        block=job.block,
        micro_batches=_micro_batches(job, layout),
        average=job.average,
        split=split,
    )


def _messages(job: Job, layout: Layout, machine: Machine) -> dict[str, float]:
    """Seconds of a step that are spent waiting for other devices."""
    c, places = job.mode.compute, layout.rows * (job.rows.length + job.rows.source) / layout.context
    stream, micro = places * job.spec.hidden * c, _micro_batches(job, layout)
    times = {}
    if layout.tensor > 1:
        share = 2 * (layout.tensor - 1) / layout.tensor
        times["tensor"] = micro * _blocks(job.spec) * 4 * share * stream / machine.between(layout.tensor)
    if layout.context > 1:
        widths = [
            b.attention.groups * b.attention.dim(job.spec.hidden)
            for _, bs, _ in job.spec.stacks()
            for b in bs
        ]
        moved = 3 * 2 * sum(widths) * c * places * (layout.context - 1) / layout.tensor
        times["context"] = 0.5 * micro * moved / machine.between(layout.tensor * layout.context)
    if layout.expert > 1:
        routed = sum(
            b.feedforward.top_k
            for _, bs, _ in job.spec.stacks()
            for b in bs
            if isinstance(b.feedforward, MoESpec)
        )
        reach = layout.tensor * layout.context * layout.expert
        times["expert"] = (
            micro * 4 * routed * stream / machine.between(reach) * (layout.expert - 1) / layout.expert
        )
    ranks = layout.shares * layout.context
    if ranks > 1:
        held = job.sizes.held(Split(tensor=layout.tensor, expert=layout.expert))
        once = held * (ranks - 1) / ranks / machine.between(machine.count)
        # Sharded: weights gathered forwards and backwards; the gradient's sum is the same either way.
        gathered = 2 * micro * once * c if layout.shard else 0.0
        times["data"] = 0.5 * (2 * once * job.mode.gradients + gathered)
    return times


def estimate(job: Job, layout: Layout, machine: Machine, mfu: float = MFU) -> Estimate:
    """Memory and time of a step in one layout."""
    device, micro = machine.device, _micro_batches(job, layout)
    memory = memory_of(job, layout)
    rows = layout.rows * micro * layout.shares
    places = rows * (job.rows.length + job.rows.source)
    share = layout.rows * (job.rows.length + job.rows.source) / layout.context
    peak = device.peak(job.precision)
    again = _RECOMPUTED[layout.checkpointing]
    products = job.flops_per_place * places * again / (machine.count * peak * mfu)
    products *= (share + HALF_SPEED) / share
    launches = LAUNCHES * LAUNCH * again * _blocks(job.spec) * micro if job.device == "cuda" else 0.0
    held = job.sizes.held(Split(tensor=layout.tensor, expert=layout.expert))
    own = held / (layout.data * layout.context) if layout.shard else held
    traffic = own * 2 * (job.mode.weights + job.mode.masters + job.mode.gradients + 8) / device.bandwidth
    if isinstance(job.optimizer, MuonConfig):
        newton = job.sizes.newton * job.optimizer.newton_schulz_steps * own / job.sizes.total
        traffic += newton / (device.peak("bf16" if job.device == "cuda" else "fp32") * mfu)
    times = {"products": max(products, launches), "update": traffic, **_messages(job, layout, machine)}
    return Estimate(layout, memory, times, memory.peak <= USABLE * device.memory)


def search(job: Job, machine: Machine, mfu: float = MFU) -> list[Estimate]:
    """Every layout: those that fit first, and of them those as fast as the fastest (to within ALIKE), the plainest in
    front; then by time, and what does not fit by memory."""
    found = [estimate(job, layout, machine, mfu) for layout in layouts(job, machine)]
    limit = min((each.seconds for each in found if each.fits), default=0.0) * (1 + ALIKE)

    def order(each: Estimate) -> tuple[bool, bool, int, bool, bool, float]:
        layout, alike = each.layout, each.seconds <= limit
        cuts = layout.tensor * layout.context * layout.expert if alike else 0
        worth = each.seconds if each.fits else each.memory.peak
        recomputes = layout.checkpointing != "none"
        return not each.fits, not alike, cuts, alike and layout.shard, alike and recomputes, worth

    return sorted(found, key=order)


def enough(job: Job, machine: Machine, mfu: float = MFU, most: int = 4096) -> int | None:
    """The least number of such devices, twice as many each time, that something fits on; None beyond `most`."""
    count = machine.count
    while count <= most:
        found = search(job, replace(machine, count=count), mfu)
        if found and found[0].fits:
            return count
        count *= 2
    return None
