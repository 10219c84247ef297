"""The processes that share a run's steps: how they are joined, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from xnli_gpt.data.premises import Premises
from xnli_gpt.errors import RunError, TrainingError
from xnli_gpt.messages import reason_of
from xnli_gpt.training.optimizer import with_gradients

# What torchrun sets for each of its processes.
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first rank tokenises, or saves to a slow file system.
RANKS_TIMEOUT = timedelta(minutes=60)


class Ranks:
    """The processes that share a run's steps; one alone is rank 0 of 1 and talks to nobody.

    Gradients are summed when all micro-batches of a step are done, and not by
    DistributedDataParallel while they are: ranks have different numbers of micro-batches, one
    that ran out of memory repeats its own, and NCCL takes no sparse gradients.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0):
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @property
    def is_main_process(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether a rank raises it. All ranks wait here for each other."""
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        with self._reaching_others():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return votes.bool().tolist()

    def all_gather_object(self, value: object) -> list:
        """Return what every rank gives, in the order of the ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            with self._reaching_others():
                dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, work: Callable[[], object]) -> object:
        """Return what `work()` gives on the first rank; the RunError that it raises there is
        raised on all."""
        outcome = None
        if self.is_main_process:
            try:
                outcome = work()
            except RunError as error:
                outcome = error
        outcome = self.all_gather_object(outcome)[0]
        if isinstance(outcome, RunError):
            raise outcome
        return outcome

    def broadcast_model(self, model: nn.Module) -> None:
        """Give every rank the first rank's weights."""
        if self.world_size > 1:
            with self._reaching_others():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def main_process_first(self, work: Callable[[], object]) -> object:
        """Return `work()`, done on the first rank before all others, and on each node's first
        before the rest of its node: what one puts into a cache, the others find there."""
        own_turn = 0 if self.is_main_process else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            if turn == own_turn:
                result = work()
            self.any(False)
        return result

    def share_of(self, lengths: np.ndarray, premises: Premises | None = None) -> np.ndarray:
        """Return this rank's positions among a step's examples, dealt out from the longest on;
        with `premises`, each with all its examples."""
        if premises is None:
            return np.argsort(-lengths, kind="stable")[self.rank :: self.world_size]
        groups = premises.groups()
        own = self.share_of(premises.tokens_once(lengths))
        return np.concatenate([np.empty(0, dtype=np.int64), *(groups[number] for number in own)])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by the sum of all ranks', and return it."""
        if self.world_size > 1:
            with self._reaching_others():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace every gradient by the sum of all ranks' gradients."""
        if self.world_size == 1:
            return
        with self._reaching_others():
            works = []
            for parameter in with_gradients(optimizer):
                if parameter.grad.is_sparse:
                    parameter.grad = self._summed_rows(parameter.grad.coalesce())
                else:
                    parameter.grad = parameter.grad.contiguous()
                    works.append(dist.all_reduce(parameter.grad, async_op=True))
            for work in works:
                work.wait()

    def _summed_rows(self, gradient: Tensor) -> Tensor:
        """Return the sum of all ranks' sparse gradients, by exchanging the rows that they have."""
        rows, values = gradient.indices()[0], gradient.values()  # [U], [U, D]
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(rows)]))
        most = max(map(int, counts))
        # All ranks have to send as much as the one with the most rows.
        padded_rows = F.pad(rows, (0, most - len(rows)))
        padded_values = F.pad(values, (0, 0, 0, most - len(rows)))
        all_rows = [torch.empty_like(padded_rows) for _ in counts]
        all_values = [torch.empty_like(padded_values) for _ in counts]
        dist.all_gather(all_rows, padded_rows)
        dist.all_gather(all_values, padded_values)
        rows = torch.cat([r[: int(n)] for r, n in zip(all_rows, counts, strict=True)])
        values = torch.cat([v[: int(n)] for v, n in zip(all_values, counts, strict=True)])
        with torch.sparse.check_sparse_tensor_invariants(False):
            return torch.sparse_coo_tensor(rows[None], values, gradient.shape).coalesce()

    @contextlib.contextmanager
    def _reaching_others(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank} of {self.world_size}: another rank has ended or can't be "
                f"reached ({reason_of(error)}); its own message says why"
            ) from error


ALONE = Ranks()


@contextlib.contextmanager
def joined_ranks(on_gpu: bool) -> Iterator[Ranks]:
    """Return the processes that torchrun (or a script that sets the same variables) started
    together.

    They talk through NCCL about what is on GPUs, else through gloo. Raises RunError where
    variables are missing or wrong.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    ranks = _ranks_of(os.environ)
    if on_gpu:
        torch.cuda.set_device(_gpu_of(ranks))
    try:
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, timeout=RANKS_TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"rank {ranks.rank}: can't reach the others at MASTER_ADDR "
            f"{os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']} ({error})"
        ) from error
    yield ranks
    # Left out after an exception: a process group without all its ranks may wait for ever.
    dist.destroy_process_group()


def _ranks_of(environment: Mapping[str, str]) -> Ranks:
    missing = [name for name in RANK_VARIABLES if not environment.get(name)]
    if missing:
        raise RunError(
            f"WORLD_SIZE {environment['WORLD_SIZE']} without {', '.join(missing)}: start with "
            "torchrun, or set what it sets"
        )
    try:
        return Ranks(*(int(environment[name]) for name in RANK_VARIABLES[:3]))
    except ValueError as error:
        raise RunError(f"RANK, WORLD_SIZE, LOCAL_RANK: expected numbers ({error})") from None


def _gpu_of(ranks: Ranks) -> int:
    count = torch.cuda.device_count()
    # A scheduler that binds a GPU to every task shows it that one alone.
    if count == 1:
        return 0
    if ranks.local_rank >= count:
        raise RunError(
            f"LOCAL_RANK {ranks.local_rank}: only {count} GPUs here; start one process a GPU"
        )
    return ranks.local_rank
