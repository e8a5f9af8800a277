"""Training on several processes: who computes which part of a step, and how the parts become one gradient.

    torchrun --nproc-per-node 8 -m nalanda train recipe.yaml parallel.data=4 parallel.tensor=2

    parallel: {data: 8, tensor: 2, context: 1, expert: 1, shard: true, checkpointing: selective, mode: fast}

    data     ranks share the micro-batches of a step; `shard` (FSDP2) also shares out weights and optimizer state
    expert   as data, and each rank owns some of a mixture's experts
    context  ranks share the places of each row, for long texts
    tensor   ranks share heads, inner features and vocabulary of each layer

A step's micro-batches are a pure function of the data's config, whatever the ranks. In deterministic mode their
gradients are added in a fixed tree, so losses and weights are equal to the last bit on 1, 2 and 4 ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nalanda.base.distributed import Ranks, current
from nalanda.base.errors import UserError
from nalanda.base.io import remove_partials
from nalanda.data.batch import Batch
from nalanda.objectives.loss import Loss
from nalanda.train.checkpoint import Checkpoints, Snapshot, all_tensors, state_of
from nalanda.train.compile import Decision
from nalanda.train.lanes import split
from nalanda.train.optimizer import Optimizer
from nalanda.train.parallel_files import write_pieces
from nalanda.train.parallel_layout import Layouts, local_of
from nalanda.train.parallel_memory import recompute, undo
from nalanda.train.parallel_model import Arrangement, arrange, blocks_of
from nalanda.train.parallel_muon import spread
from nalanda.train.parallel_sizes import ParallelConfig, sizes_of
from nalanda.train.parallel_sum import Gradients, Plain, Summed, Tree
from nalanda.train.parallel_tensor import places
from nalanda.train.writer import Writer


@dataclass(frozen=True)
class Part:
    """What goes through the model at once. `micro`: its micro-batch; `stream`: names of its random numbers;
    `counted`: False for a pass that only keeps pace with the other ranks; `last`: of this rank's in the step."""

    micro: int
    batch: Batch
    stream: tuple[str | int, ...]
    counted: bool = True
    last: bool = False


class Team:
    """This rank's part in a run. `Team()` is a process alone, which does everything in the usual way."""

    def __init__(
        self, config: ParallelConfig | None = None, ranks: Ranks | None = None, model: nn.Module | None = None
    ) -> None:
        """`model`: the one to arrange, where ranks hold parts of it. Raises UserError for sizes that are not the
        run's."""
        self.config = config or ParallelConfig()
        self.ranks = ranks or Ranks()
        self.sizes = sizes_of(self.config, self.ranks.size)
        self.shares = self.sizes.data * self.sizes.expert
        self._scale = 1.0
        self.model = model
        self.arrangement: Arrangement | None = None
        self.share_index = self.ranks.rank // (self.sizes.context * self.sizes.tensor)

    @property
    def first(self) -> bool:
        """Whether this rank writes files."""
        return self.ranks.first

    def parts(self, batches: Sequence[Batch]) -> list[Part]:
        """What this rank computes of a step: a contiguous share of its micro-batches, or of their rows in fast mode
        where there are not as many micro-batches as ranks."""
        whole = [Part(i, batch, (i,)) for i, batch in enumerate(batches)]
        if self.shares == 1:
            return [*whole[:-1], replace(whole[-1], last=True)]
        if self.config.mode == "deterministic":
            slots = self._slots(len(batches))
            return whole[self.share_index * slots : (self.share_index + 1) * slots]
        pieces = self.shares // math.gcd(len(batches), self.shares)
        if pieces > 1:
            cut = [(part, split(part.batch, pieces)) for part in whole]
            whole = [
                Part(p.micro, rows, (p.micro, "rows", i)) for p, few in cut for i, rows in enumerate(few)
            ]
        bounds = [len(whole) * i // self.shares for i in range(self.shares + 1)]
        mine = whole[bounds[self.share_index] : bounds[self.share_index + 1]]
        if self.keeps_pace:
            most = max(high - low for low, high in itertools.pairwise(bounds))
            mine += [replace(whole[0], counted=False)] * (most - len(mine))
        return [*mine[:-1], *(replace(part, last=True) for part in mine[-1:])]

    def _slots(self, batches: int) -> int:
        """Leaves of the tree that each rank has, empty ones counted."""
        return int(max(self.shares, 1 << (batches - 1).bit_length()) // self.shares)

    @property
    def keeps_pace(self) -> bool:
        """Whether the ranks meet inside forward and backward passes, so that all must make as many."""
        return self.config.shard or self.sizes.expert > 1

    def turns(self, batches: Iterable[Batch]) -> Iterator[tuple[list[Batch], Batch, bool]]:
        """Batches shared out in turn: those of a turn, this rank's, and whether its values count.

        Every rank has something to compute in every turn, because ranks may meet in it.
        """
        left = iter(batches)
        leads = self.ranks.rank % (self.sizes.context * self.sizes.tensor) == 0
        while turn := list(itertools.islice(left, self.shares)):
            has = self.share_index < len(turn)
            yield turn, turn[self.share_index] if has else turn[0], has and leads

    def in_turn(self, found: list[Any]) -> list[Any]:
        """What all ranks found, in the order of the batches that `turns` shared out."""
        everyone = [each for each in self.ranks.gather(found) if each]
        turns = max(map(len, everyone), default=0)
        return [values[turn] for turn in range(turns) for values in everyone if turn < len(values)]

    def compiling(self, decision: Decision) -> Decision:
        """Ranks that meet inside a pass, and passes that are worked out again, run as written."""
        if decision.compiled and self.one_thread:
            return Decision(
                False, "parallel: with shard, checkpointing or a size but data, torch.compile is not used"
            )
        return decision

    def gradients(self, weights: Sequence[nn.Parameter], batches: int) -> Gradients:
        """What adds the gradients of the parts of a step of `batches` micro-batches, here and among the ranks."""
        if self.config.mode == "deterministic":
            slots = self._slots(batches)
            return Tree(weights, self.ranks, [rank * slots < batches for rank in range(self.ranks.size)])
        if self.ranks.size == 1:
            return Plain()
        if self.arrangement is None or self.model is None:
            return Summed(weights, [(list(weights), None)])
        return Summed(weights, self.arrangement.groups(self.model))

    def computing(self, part: Part) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward passes of `part`."""
        self._scale = 1.0 if part.counted else 0.0
        if self.config.shard and self.model is not None:  # weights' gradients wait for the step's last part
            self.model.set_requires_gradient_sync(part.last)  # type: ignore[operator]
        context = self.arrangement and self.arrangement.context
        return context.around() if context else contextlib.nullcontext()

    def own(self, batch: Batch) -> Batch:
        """What this rank sees of a part's batch: its columns, and its share of the trained places."""
        if self.arrangement is not None and self.arrangement.context is not None:
            batch = self.arrangement.context.own(batch)
        index, count = self.ranks.rank % self.sizes.tensor, self.sizes.tensor
        if count > 1:
            batch = Batch(**batch)
            for key in ("target_weight", "label_weight"):
                if key in batch:
                    batch[key] = places(batch[key], index, count)
        return batch

    def check_terms(self, loss: Loss) -> None:
        """Raises UserError for an objective that looks at more than the places that this rank was given."""
        if self.sizes.tensor > 1 and loss.tallies:
            raise UserError(
                "parallel.tensor: an objective of kind 'experts' counts each place once; set it to 1"
            )

    def backward(self, total: Tensor) -> None:
        """The backward pass of a part's loss; nothing of a part that only keeps pace is added."""
        (total if self._scale else total * 0.0).backward()

    @property
    def meets(self) -> bool:
        """Whether ranks exchange tensors inside forward and backward passes, which then run in one thread."""
        return self.keeps_pace or self.sizes.context > 1 or self.sizes.tensor > 1

    @property
    def one_thread(self) -> bool:
        """Whether passes must not run in several threads."""
        return self.meets or self.config.checkpointing != "none"

    def clip(self, named: dict[str, nn.Parameter], limit: float) -> float:
        """Scales the gradient down where its norm is above `limit`; returns the norm, that of all ranks' parts."""
        if self.arrangement is None:
            return float(nn.utils.clip_grad_norm_(named.values(), limit))
        norm = math.sqrt(math.fsum(self.ranks.gather(self.arrangement.layouts.squares(named))))
        if norm > limit:
            gradients = [local_of(weight.grad) for weight in named.values() if weight.grad is not None]
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return norm

    def longest(self, seconds: float) -> float:
        """The slowest rank's time, so that budgets in minutes end on all ranks at once."""
        return self.ranks.largest(seconds)[0]

    def settled(self, stop: str, signal: int, overdue: bool) -> tuple[str, int, bool]:
        """What the ranks agree on after a step, in one exchange: the first one's reason to end, the signal by which
        any of them was asked to stop (0: none), and whether the first one has a checkpoint to write."""
        everyone = self.ranks.gather([stop, signal, overdue])
        return everyone[0][0], max(each[1] for each in everyone), everyone[0][2]

    def of_first(self, value: Any) -> Any:
        """The first rank's value, on all."""
        return self.ranks.of_first(value)

    def alone(self, work: Callable[[], Any]) -> None:
        """Lets the first rank do `work` while the others wait."""
        self.ranks.lead(work)

    def save(self, writer: Writer, snapshot: Snapshot, wait: bool) -> None:
        """Writes a checkpoint: by the first rank where all hold the same, else by all, who then wait for it."""
        if self.arrangement is None:
            self.alone(lambda: writer.save(snapshot, wait))
        else:
            checkpoints = writer.begin()
            self.alone(lambda: remove_partials(checkpoints.folder))
            place, layouts = checkpoints.path(snapshot.step), self.arrangement.layouts
            write_pieces(place, all_tensors(snapshot), state_of(snapshot), layouts, self.ranks)
            self.alone(lambda: checkpoints.remove_before(snapshot.step))

    def newest(self, checkpoints: Checkpoints) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint, of which each rank reads its own part.

        The first rank chooses it and checks its hashes. Run folders are shared by all machines.
        """
        if self.ranks.size == 1:
            return checkpoints.newest()
        step, damaged = self.ranks.lead(checkpoints.newest_step) or (None, [])
        step = self.of_first(step)
        if step is None:
            return None, damaged
        own = (lambda key, whole: whole) if self.arrangement is None else self.arrangement.layouts.own
        return checkpoints.read(step, own), damaged

    def parameters(self, weights: Mapping[str, Tensor]) -> int:
        """How many numbers whole weights have."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes(weights).values())

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """The shapes of whole weights."""
        layouts = Layouts({}) if self.arrangement is None else self.arrangement.layouts
        return layouts.shapes(tensors)

    @contextlib.contextmanager
    def gathered(self, weights: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
        """Inside `weights()`, with all that is outside of blocks gathered: a model's parts can be called alone."""
        with weights():
            if not self.config.shard or self.model is None:
                yield
                return
            self.model.unshard()  # type: ignore[operator]
            try:
                yield
            finally:
                self.model.reshard()  # type: ignore[operator]

    def spread(self, optimizer: Optimizer) -> None:
        """Lets the optimizer update weights of which ranks hold parts."""
        if self.arrangement is not None:
            spread(optimizer, self.arrangement)

    def restore(self) -> None:
        """Makes the model plain again."""
        if self.config.checkpointing != "none" and self.model is not None:
            undo(blocks_of(self.model))
        if self.arrangement is not None and self.model is not None:
            self.arrangement.restore(self.model, self.ranks)

    def exchange(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Plain values of all ranks, in the order of the micro-batches."""
        return self.ranks.gather(found)


def team_for(config: ParallelConfig, model: nn.Module, device: torch.device) -> Team:
    """This process's part in training `model`, which is changed to be the rank's part of it.

    Raises UserError for sizes that do not multiply to the number of processes or do not divide the model.
    """
    team = Team(config, current(), model)
    if team.meets:
        team.arrangement = arrange(model, config, team.sizes, device)
    if config.checkpointing != "none":
        recompute(blocks_of(model), config.checkpointing)
    return team
