"""Fine-tuning: optimizer, schedule, one exact step, the loop, its saves, signals and processes.

A step is the gradient of its examples' mean loss, however they are cut into micro-batches and
dealt out to processes: each micro-batch adds its summed loss divided by the summed weights of the
whole step, and an example's dropout mask is drawn for the step and handed out by position. So
memory alone decides the cut, and everything that a run depends on fits into its save.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pickle
import queue
import random
import signal
import socket
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from xnli_gpt.choices import EMBEDDING_UPDATES, SCHEDULES
from xnli_gpt.errors import EXIT_FAILED, XNLIError
from xnli_gpt.evaluation.metrics import figures_in_words
from xnli_gpt.training.records import RecentRate, StepLog

# The group's recipe: the rate falls to a tenth at 90 % of the steps and stays there.
FINAL_LR_FRACTION = 0.1
DECAY_END = 0.9
MAX_SKIPPED_IN_A_ROW = 20
# Without a terminal a line comes this often, and in a run of hours up to so rarely.
SECONDS_BETWEEN_LINES = (10.0, 60.0)
# A run of ten minutes has a line every 20 seconds.
LINE_INTERVALS_OF_A_RUN = 30

# Tokens of a forward pass: beyond this nothing gets faster.
MAX_TOKENS = 65536
TRIAL_TOKENS = 4096
GPU_MEMORY_SHARE = 0.8
CPU_ACTIVATION_BYTES = 4 << 30
# Values kept for the backward pass, a token, a block and a unit of width.
ACTIVATIONS_PER_UNIT = 32
# Steps prepared ahead of the one that is computed.
PREFETCHED_STEPS = 4
# On a GPU a loss is looked at so many steps late: the host does not wait for it.
UNSETTLED_STEPS = 16
SECONDS_BETWEEN_SAVES = 600
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# What torchrun sets for each of its processes.
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first rank tokenises, or saves to a slow file system.
RANKS_TIMEOUT = timedelta(minutes=60)
SAVE_KIND = "hindi-xnli-save"
# What F.cross_entropy leaves out of the sum.
IGNORED_LABEL = -100

# (positions in the split) -> what the model takes (with `to` and `pin_memory`), labels [B]
GetBatch = Callable[[np.ndarray], tuple[object, Tensor]]


class TrainingError(XNLIError, RuntimeError):
    """Training can't go on; the message says what was seen and what to try."""

    exit_code = EXIT_FAILED


class RunError(XNLIError, ValueError):
    """A save, an output folder or a group of processes can't be used; the message says why."""


class Stopped(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, no handler of errors catches it."""


class StopSignals:
    """SIGTERM, SIGUSR1 and Ctrl-C, within `with`: they raise Stopped at once, and inside of
    `deferred` they are only noted, for the next step boundary to look at."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.raised: Stopped | None = None
        self._deferring = False
        self._earlier: dict = {}

    def __enter__(self) -> StopSignals:
        # Python gives signals to the main thread, and only it may set them.
        if threading.current_thread() is threading.main_thread():
            self._earlier = {s: signal.signal(s, self._receive) for s in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name
        if not self._deferring:
            self.raised = Stopped(f"stopped by {self.received} outside of training")
            raise self.raised

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A second signal is noted like the first: it breaks no save."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


class Ranks:
    """The processes that share a run's steps; one alone is rank 0 of 1 and talks to nobody.

    Gradients are summed when all micro-batches of a step are done, and not by
    DistributedDataParallel while they are: ranks have different numbers of micro-batches, one
    that ran out of memory repeats its own, and NCCL takes no sparse gradients.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0):
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a rank raises it. All wait here for each other."""
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        with self._reaching_others():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return votes.bool().tolist()

    def gathered(self, value: object) -> list:
        """What every rank gives, in their order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            with self._reaching_others():
                dist.all_gather_object(values, value)
        return values

    def from_first(self, work: Callable[[], object]) -> object:
        """What `work()` gives on the first rank; the RunError that it raises there, on all."""
        outcome = None
        if self.is_first:
            try:
                outcome = work()
            except RunError as error:
                outcome = error
        outcome = self.gathered(outcome)[0]
        if isinstance(outcome, RunError):
            raise outcome
        return outcome

    def copy_from_first(self, model: nn.Module) -> None:
        """The first rank's weights for all."""
        if self.world_size > 1:
            with self._reaching_others():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def in_turns(self, work: Callable[[], object]) -> object:
        """`work()`, on the first rank before all others and on each node's first before the
        rest of its node: what one puts into a cache, the others find there."""
        own_turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            if turn == own_turn:
                result = work()
            self.any(False)
        return result

    def share_of(self, lengths: np.ndarray) -> np.ndarray:
        """This rank's positions among a step's examples, dealt out from the longest on."""
        return np.argsort(-lengths, kind="stable")[self.rank :: self.world_size]

    def sum_over_all(self, tensor: Tensor) -> Tensor:
        """`tensor` becomes the sum of every rank's."""
        if self.world_size > 1:
            with self._reaching_others():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Every gradient becomes the sum of all ranks' gradients."""
        if self.world_size == 1:
            return
        with self._reaching_others():
            works = []
            for parameter in _with_gradients(optimizer):
                if parameter.grad.is_sparse:
                    parameter.grad = self._summed_rows(parameter.grad.coalesce())
                else:
                    parameter.grad = parameter.grad.contiguous()
                    works.append(dist.all_reduce(parameter.grad, async_op=True))
            for work in works:
                work.wait()

    def _summed_rows(self, gradient: Tensor) -> Tensor:
        """The sum of all ranks' sparse gradients, by exchanging the rows that they have."""
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
        summed = torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False)
        return summed.coalesce()

    @contextlib.contextmanager
    def _reaching_others(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(
                f"rank {self.rank} of {self.world_size}: another rank has ended or can't be "
                f"reached ({reason}); its own message says why"
            ) from error


ALONE = Ranks()


@contextlib.contextmanager
def joined_ranks(on_gpu: bool) -> Iterator[Ranks]:
    """The processes that torchrun (or a script that sets the same variables) started together.

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


@dataclass(frozen=True)
class Examples:
    """The examples to train on, by position."""

    lengths: np.ndarray  # [N], in tokens
    labels: np.ndarray  # [N]
    get_batch: GetBatch
    # Positions of the sets that an epoch has as many examples of; None: every example once.
    even_sets: Sequence[np.ndarray] | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes, besides model and data."""

    examples_per_step: int
    num_steps: int
    eval_interval: int
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.1
    lr_schedule: str = "linear"
    grad_clip: float = 1.0
    dropout: float = 0.1
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    early_stopping: int = 0  # evaluations without a better one; 0 never stops
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0  # steps whose examples were seen
    updates: int = 0  # steps that moved the weights: the schedule's clock
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict | None = None  # the validation metrics of the best evaluation
    best_step: int = 0
    best_of_sets: dict[str, dict] = field(default_factory=dict)  # by set, with their "step"
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    examples: int = 0
    max_tokens_per_batch: int = 0
    learning_rate: float = 0.0  # of the last step
    evaluated_step: int = 0
    lines: list[dict] = field(default_factory=list)  # of the metrics file
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    before_last: dict | None = None  # of the evaluation at the end, see `take_back_last_evaluation`
    unsettled: list[UnsettledStep] = field(default_factory=list)  # not yet looked at
    recent: RecentRate = field(default_factory=RecentRate)  # of this process

    @property
    def examples_per_second(self) -> float:
        """The mean over the whole run, whatever processes it had."""
        return self.examples / self.train_seconds if self.train_seconds else 0.0


# Fields of Progress that do not outlive their process, and those that an evaluation changes,
# besides the lines of the metrics file.
OF_THIS_PROCESS = ("unsettled", "recent")
OF_EVALUATIONS = ("best", "best_step", "best_of_sets", "evaluations_since_best")
OF_EVALUATIONS += ("evaluated_step", "losses")


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step's examples, the gradient's norm, and whether the scaler skipped it."""

    loss: Tensor
    grad_norm: Tensor
    skipped: bool


@dataclass(frozen=True)
class UnsettledStep:
    """A step whose loss nobody has looked at."""

    step: int
    learning_rate: float
    result: StepResult


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    inputs: object
    labels: Tensor  # [B]
    dropout_mask: Tensor | None  # [B, width]


@dataclass(frozen=True)
class StepBatches:
    """A rank's examples of one optimizer step, cut to `max_tokens` a micro-batch."""

    micro_batches: Sequence[MicroBatch]
    total_weight: float  # of all ranks' examples
    num_examples: int  # of all ranks
    max_tokens: int
    most_tokens: int  # of the largest micro-batch


class RowAdamW(torch.optim.AdamW):
    """AdamW that also takes the sparse gradients of embedding tables.

    `embedding_update` "exact" does with them what AdamW does with dense ones: a row without a
    gradient goes on moving by its momentum. With "lazy" such a row rests, and only the rows of
    the step's tokens are read and written: when a row is met again its moments have decayed as
    they would have, but the moves of the steps in between are left out.
    """

    def __init__(self, params: object, embedding_update: str = "exact", **options: object):
        assert embedding_update in EMBEDDING_UPDATES, embedding_update
        super().__init__(params, fused=True, **options)
        self.embedding_update = embedding_update
        self._dense_gradients: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; the sparse gradients are used up."""
        touched, resting = [], []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    gradient = parameter.grad.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()  # [U], [U, D]
                    parameter.grad = None
                    if self.embedding_update == "lazy":
                        resting.append((group, parameter, rows, values))
                    else:
                        parameter.grad = self._as_dense(parameter, rows, values)
                        touched.append((parameter, rows))
        # All memory is taken before anything moves: there is no half of an update.
        self._allocate()
        if resting and not self._overflowed():
            moved = [self._moved_rows(*table) for table in resting]
            for (_, parameter, rows, _), new in zip(resting, moved, strict=True):
                self._write_rows(parameter, rows, *new)
        result = super().step(closure)
        for parameter, rows in touched:
            parameter.grad.index_fill_(0, rows, 0)
            parameter.grad = None
        return result

    def _overflowed(self) -> bool:
        """What the scaler of float16 found; the fused update looks at it by itself."""
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found)

    def _allocate(self) -> None:
        """The moments of all dense gradients, as the first update would make them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if parameter.grad is not None and not state:
                    state["step"] = torch.zeros((), device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _as_dense(self, parameter: nn.Parameter, rows: Tensor, values: Tensor) -> Tensor:
        """A gradient of the table's shape. Its memory is kept and is zero between steps, since
        filling it anew would cost half as much as the update."""
        if parameter not in self._dense_gradients:
            self._dense_gradients[parameter] = torch.zeros_like(parameter)
        return self._dense_gradients[parameter].index_copy_(0, rows, values)

    def _moved_rows(
        self, group: dict, table: nn.Parameter, rows: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new values and moments of `rows` [U], each [U, D]."""
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["last_step"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        # Loading a state makes a tensor of the number.
        step = int(state["step"]) + 1
        beta1, beta2 = group["betas"]
        gap = (step - state["last_step"][rows]).float()[:, None]  # [U, 1]
        average = state["exp_avg"][rows] * beta1**gap + (1 - beta1) * grad
        square = state["exp_avg_sq"][rows] * beta2**gap + (1 - beta2) * grad.square()
        rate = group["lr"] / (1 - beta1**step)
        scale = math.sqrt(1 - beta2**step)
        decayed = table[rows] * (1 - group["lr"] * group["weight_decay"])
        return decayed - rate * average / (square.sqrt() / scale + group["eps"]), average, square

    def _write_rows(
        self, table: nn.Parameter, rows: Tensor, values: Tensor, average: Tensor, square: Tensor
    ) -> None:
        state = self.state[table]
        state["step"] = int(state["step"]) + 1
        state["last_step"][rows] = state["step"]
        table[rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = values, average, square


def configure_optimizers(
    device_type: str,
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    backbone_lr_scale: float = 1.0,
    embedding_update: str = "exact",
) -> RowAdamW:
    """AdamW (0.9, 0.999) with decay on matrices only: none on embeddings, scalars and biases.

    Every group keeps its `lr_scale` (the trunk's is `backbone_lr_scale`), which
    `set_learning_rate` applies at every step. Frozen parameters are left out. The embeddings of
    `model` are made to give sparse gradients: a step touches few of their rows.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = backbone_lr_scale if name.startswith("pretrained_model.") else 1.0
            is_matrix = parameter.dim() >= 2 and "embed" not in name
            groups.setdefault((scale, weight_decay if is_matrix else 0.0), []).append(parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    optimizer = RowAdamW(
        [
            {"params": params, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), params in groups.items()
        ],
        embedding_update=embedding_update,
        lr=learning_rate,
        betas=(0.9, 0.999),
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def learning_rate_factor(schedule: str, update: int, num_steps: int, warmup_ratio: float) -> float:
    """The share of the peak rate at an update counted from 0.

    Warm-up rises linearly over `warmup_ratio` of the steps; then linear or cosine decay reaches
    a tenth at 90 % of the steps and stays there (the group's recipe); constant stays at 1.
    """
    assert schedule in SCHEDULES, schedule
    warmup_steps = warmup_steps_of(num_steps, warmup_ratio)
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = max(1.0, DECAY_END * num_steps - warmup_steps)
    done = min(1.0, (update - warmup_steps) / decay_steps)
    shape = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * shape


def warmup_steps_of(num_steps: int, warmup_ratio: float) -> int:
    """The updates over which the rate rises."""
    return math.ceil(warmup_ratio * num_steps)


def steps_per_epoch(num_examples: int, examples_per_step: int) -> int:
    """Steps that see every example once; the last of an epoch may be smaller."""
    return math.ceil(num_examples / examples_per_step)


class ExampleOrder:
    """Which examples a step has: every one once an epoch, in a new order each.

    With `even_sets`, the positions of every set's examples, an epoch has as many steps, but as
    many examples of each set: those of a small one come several times, and of a large one others
    in the next epoch.
    """

    def __init__(
        self,
        num_examples: int,
        examples_per_step: int,
        seed: int,
        even_sets: Sequence[np.ndarray] | None = None,
    ):
        self.num_examples, self.examples_per_step = num_examples, examples_per_step
        self.seed, self.even_sets = seed, even_sets
        self.epoch_steps = steps_per_epoch(num_examples, examples_per_step)
        self._latest: tuple[int, np.ndarray] | None = None

    def of_step(self, step: int) -> np.ndarray:
        """Positions [B], by nothing but the seed and the step."""
        epoch, step_in_epoch = divmod(step, self.epoch_steps)
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._of_epoch(epoch))
        first = step_in_epoch * self.examples_per_step
        return self._latest[1][first : first + self.examples_per_step]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        if self.even_sets is None:
            return generator.permutation(self.num_examples)
        # What does not divide evenly goes to the last sets.
        shares = np.diff(
            np.arange(len(self.even_sets) + 1) * self.num_examples // len(self.even_sets)
        )
        drawn = [
            own[_part_of_stream(len(own), epoch * share, share, [self.seed, number])]
            for number, (own, share) in enumerate(zip(self.even_sets, shares.tolist(), strict=True))
        ]
        return generator.permutation(np.concatenate(drawn))


def _part_of_stream(length: int, start: int, count: int, seed: list[int]) -> np.ndarray:
    """`count` numbers from `start` on of permutations of `length`, one after the other."""
    first, last = start // length, (start + count - 1) // length
    rounds = [
        np.random.default_rng([*seed, number]).permutation(length)
        for number in range(first, last + 1)
    ]
    return np.concatenate(rounds)[start - first * length :][:count]


def dropout_masks(seed: int, step: int, num_examples: int, width: int, p: float) -> Tensor | None:
    """[examples of the step, width] of 0 and 1/(1-p): a function of seed, step and position."""
    if p == 0:
        return None
    mixed_seed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed_seed >> 1)
    kept = torch.rand(num_examples, width, generator=generator) >= p
    return kept / (1 - p)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """N / (classes × examples of the class), scikit-learn's "balanced"."""
    counts = np.bincount(labels, minlength=num_classes)
    assert counts.all(), "a class without examples is refused when the data is read"
    return tuple((len(labels) / (num_classes * counts)).tolist())


def cut_by_tokens(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Positions of a step's examples, the longest first, cut into micro-batches of at most
    `max_tokens`; an example of more tokens has one of its own."""
    order = np.argsort(-lengths, kind="stable")
    cuts, tokens = [0], 0
    for place, length in enumerate(lengths[order]):
        if tokens + length > max_tokens and place > cuts[-1]:
            cuts.append(place)
            tokens = 0
        tokens += length
    return np.split(order, cuts[1:])


def find_max_tokens(model: nn.Module, recipe: Recipe, examples: Examples) -> int:
    """Tokens that a forward and backward pass may take: on a CPU those of some gigabytes of
    activations, on a GPU what a trial pass on the longest examples says that its memory holds."""
    device = next(model.parameters()).device
    config = model.pretrained_model.config
    itemsize = recipe.dtype.itemsize
    if device.type != "cuda":
        per_token = config.num_layers * config.model_dim * itemsize * ACTIVATIONS_PER_UNIT
        return min(MAX_TOKENS, CPU_ACTIVATION_BYTES // per_token)
    # The longest examples: what they need a token is the most that is needed.
    trial = cut_by_tokens(examples.lengths, TRIAL_TOKENS)[0]
    trial_tokens = int(examples.lengths[trial].sum())
    inputs, _ = examples.get_batch(trial)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(device.type, recipe.dtype):
        logits = model(inputs.to(device))
    logits.sum().backward()
    per_token = (torch.cuda.max_memory_allocated(device) - held) / trial_tokens
    model.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    torch.cuda.empty_cache()
    # Gradients and two moments, float32, are not there yet.
    free = torch.cuda.mem_get_info(device)[0] - 3 * 4 * trained
    within_memory = GPU_MEMORY_SHARE * free / per_token
    return int(min(MAX_TOKENS, max(examples.lengths.max(), within_memory)))


def compile_ahead(model: nn.Module, recipe: Recipe, examples: Examples) -> None:
    """Run what training runs through the compiler, before it starts.

    A step is not left half way when a signal comes, so compiling within the first would hold up the
    end for a minute. Two rows of unlike sizes tell the compiler that sizes vary.
    """
    longest = cut_by_tokens(examples.lengths, TRIAL_TOKENS)[0]
    shortest = np.argsort(examples.lengths, kind="stable")[: len(longest) // 2 + 1]
    model.train()
    for row in (longest, shortest):
        loss_of(MicroBatch(*examples.get_batch(row), None), len(row), model, recipe).backward()
    model.zero_grad(set_to_none=True)


def prepare_step(
    recipe: Recipe,
    step: int,
    indices: np.ndarray,
    examples: Examples,
    max_tokens: int,
    dropout_width: int,
    ranks: Ranks = ALONE,
) -> StepBatches:
    """This rank's share of the examples `indices` [B], ready for `train_step`."""
    lengths = examples.lengths[indices]
    masks = dropout_masks(recipe.seed, step, len(indices), dropout_width, recipe.dropout)
    share = ranks.share_of(lengths)
    # A rank that gets none at the end of an epoch takes part with one that counts nothing.
    counts = len(share) > 0
    share = share if counts else np.zeros(1, dtype=int)
    micro_batches, most_tokens = [], 0
    for cut in cut_by_tokens(lengths[share], max_tokens):
        positions = share[cut]
        inputs, labels = examples.get_batch(indices[positions])
        mask = None if masks is None else masks[torch.from_numpy(positions)]
        labels = labels if counts else torch.full_like(labels, IGNORED_LABEL)
        micro_batches.append(MicroBatch(inputs, labels, mask))
        most_tokens = max(most_tokens, int(lengths[positions].sum()))
    total_weight = _weight_of(examples.labels[indices], recipe.class_weights)
    return StepBatches(micro_batches, total_weight, len(indices), max_tokens, most_tokens)


def _weight_of(labels: np.ndarray, class_weights: tuple[float, ...] | None) -> float:
    if class_weights is None:
        return float(len(labels))
    return float(np.asarray(class_weights)[labels].sum())


def _pinned(batches: StepBatches) -> StepBatches:
    """The same in memory that a GPU fetches by itself, while it computes."""
    pinned = [
        MicroBatch(
            batch.inputs.pin_memory(),
            batch.labels.pin_memory(),
            None if batch.dropout_mask is None else batch.dropout_mask.pin_memory(),
        )
        for batch in batches.micro_batches
    ]
    return replace(batches, micro_batches=pinned)


def prefetched(items: Iterator[object], count: int) -> Iterator[object]:
    """`items`, made by a thread up to `count` ahead; its exceptions are raised here."""
    ready: queue.Queue = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def put(entry: tuple[str, object]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(("item", item))
                if stopped.is_set():
                    return
            put(("end", None))
        except Exception as error:  # handed over to the consumer, whatever it is
            put(("error", error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
    ranks: Ranks = ALONE,
) -> StepResult:
    """One optimizer step, by the gradient of sum(w·loss) / sum(w), w the class weights.

    Raises torch.OutOfMemoryError with the weights as they were.
    """
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    total_loss = torch.zeros((), device=device)
    for batch in batches.micro_batches:
        loss = loss_of(batch, batches.total_weight, model, recipe)
        scaler.scale(loss).backward()
        total_loss += loss.detach()
    try:
        ranks.sum_gradients(optimizer)
        return apply_gradient(optimizer, scaler, recipe, ranks.sum_over_all(total_loss))
    except torch.OutOfMemoryError:
        if ranks.world_size == 1:
            raise
        # The others have gone on: this rank can't repeat the step by itself.
        raise TrainingError(
            f"rank {ranks.rank}: out of GPU memory in the update: use a smaller "
            "--max_tokens_per_batch, or a larger GPU"
        ) from None


def loss_of(batch: MicroBatch, total_weight: float, model: nn.Module, recipe: Recipe) -> Tensor:
    """A micro-batch's share of the step's mean loss, a scalar on the model's device."""
    device = next(model.parameters()).device
    mask = batch.dropout_mask
    with autocast(device.type, recipe.dtype):
        logits = model(
            batch.inputs.to(device),
            dropout_mask=None if mask is None else mask.to(device, non_blocking=True),
        )
    summed = F.cross_entropy(
        logits,
        batch.labels.to(device, non_blocking=True),
        weight=_class_weights_on(device, recipe.class_weights),
        label_smoothing=recipe.label_smoothing,
        reduction="sum",
    )
    return summed / total_weight


@lru_cache(maxsize=1)
def _class_weights_on(device: torch.device, weights: tuple[float, ...] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, device=device)


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in `dtype`; float32 is none."""
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not torch.float32)


def apply_gradient(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    loss: Tensor,
) -> StepResult:
    """Clip the gradient and update the weights; `loss` is the step's, for the result."""
    scaler.unscale_(optimizer)
    gradients = _gradients(optimizer)
    norm = nn.utils.get_total_norm(gradients)
    if recipe.grad_clip:
        torch._foreach_mul_(gradients, (recipe.grad_clip / (norm + 1e-6)).clamp(max=1.0))
    # Only float16's scaler makes the host wait: it leaves out the update where a gradient
    # overflowed, and the schedule's clock with it.
    skipped = scaler.is_enabled() and not bool(torch.isfinite(norm))
    scaler.step(optimizer)
    scaler.update()
    return StepResult(loss, norm, skipped)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All gradients; of sparse ones, whose rows are summed first, the rows."""
    gradients = []
    for parameter in _with_gradients(optimizer):
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    return gradients


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [parameter for parameter in parameters if parameter.grad is not None]


def fine_tune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    examples: Examples,
    evaluate: Callable[[], dict | None],
    is_better: Callable[[dict, dict | None], bool],
    on_evaluation: Callable[[Progress, dict], None],
    on_best: Callable[[Progress, dict], None],
    save: Callable[[Progress], None],
    progress: Progress,
    save_interval: int | None = None,
    stop: StopSignals | None = None,
    ranks: Ranks = ALONE,
    log: StepLog | None = None,
) -> Progress:
    """Train from where `progress` is to `recipe.num_steps`, or to early stopping.

    A forward pass takes at most `progress.max_tokens_per_batch` tokens: fewer where the GPU's
    memory does not suffice. `evaluate` gives the validation metrics, or None where a signal
    broke it off; `on_best` is called first where they are the best so far, then `on_evaluation`
    with the line for the metrics file. `save` is called every `save_interval` steps (without it
    every ten minutes), at the end, and before a signal's Stopped is raised. `log` gets every step.
    Raises TrainingError where the loss is no number, or where a single example does not fit into
    memory.
    """
    stop = stop or StopSignals()
    saves = _SaveTimes(save_interval, progress.step)
    order = ExampleOrder(
        len(examples.lengths), recipe.examples_per_step, recipe.seed, examples.even_sets
    )
    epoch_steps = order.epoch_steps
    on_gpu = next(model.parameters()).device.type == "cuda"

    def prepare(step: int) -> StepBatches:
        indices = order.of_step(step)
        max_tokens = progress.max_tokens_per_batch
        batches = prepare_step(
            recipe, step, indices, examples, max_tokens, model.dropout_width, ranks
        )
        return _pinned(batches) if on_gpu else batches

    def take_step(batches: StepBatches, line: _ProgressLine) -> None:
        started = time.perf_counter()
        progress.learning_rate = _learning_rate(recipe, progress)
        set_learning_rate(optimizer, progress.learning_rate)
        model.train()
        result = _step_within_memory(
            model, optimizer, scaler, recipe, batches, prepare, progress, line, ranks
        )
        _count_step(progress, result, batches.num_examples)
        evaluating = _evaluation_is_due(progress, recipe)
        if not on_gpu or evaluating or len(progress.unsettled) >= UNSETTLED_STEPS:
            _settle(progress, log)
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        progress.recent.add(seconds, batches.num_examples)
        line.show(progress, progress.step / epoch_steps)

    def take_in(metrics: dict, line: _ProgressLine) -> None:
        progress.before_last = _state_before(progress, recipe)
        progress.lines.append(_metrics_line(progress, metrics, epoch_steps))
        if is_better(metrics, progress.best):
            progress.best, progress.best_step = metrics, progress.step
            progress.evaluations_since_best = 0
            on_best(progress, metrics)
        else:
            progress.evaluations_since_best += 1
        on_evaluation(progress, progress.lines[-1])
        line.say(_evaluation_sentence(progress, metrics))
        progress.evaluated_step = progress.step
        progress.losses.clear()

    steps = map(prepare, range(progress.step, recipe.num_steps))
    steps = prefetched(steps, PREFETCHED_STEPS) if on_gpu else steps
    with (
        _ProgressLine(recipe.num_steps, progress.step) as line,
        stop.deferred(),
        _written_at_the_end(log),
    ):
        while True:
            if _evaluation_is_due(progress, recipe):
                with line.evaluating(progress.step):
                    metrics = evaluate()
                if metrics is not None:
                    take_in(metrics, line)
                    if log is not None:
                        log.flush()
            finished = _is_finished(progress, recipe)
            stopping, saving = ranks.any(stop.received is not None, saves.due_at(progress.step))
            if stopping or saving or (finished and saves.last_step < progress.step):
                _settle(progress, log)
                if log is not None:
                    log.flush(to_disk=True)
                save(progress)
                saves.note(progress.step)
            if stopping:
                raise Stopped(
                    f"stopped by {stop.received or 'a signal to another rank'} after step "
                    f"{progress.step}, which is saved"
                )
            if finished:
                return progress
            take_step(next(steps), line)


@contextlib.contextmanager
def _written_at_the_end(log: StepLog | None) -> Iterator[None]:
    """Whatever ends the run, what waits to be written is; the error that ended it counts more."""
    try:
        yield
    except BaseException:
        if log is not None:
            with contextlib.suppress(OSError):
                log.flush()
        raise
    if log is not None:
        log.flush()


def _state_before(progress: Progress, recipe: Recipe) -> dict | None:
    """What the evaluation at the last step changes, where a longer run would not have it: it
    would evaluate at its interval alone."""
    if progress.step % recipe.eval_interval == 0:
        return None
    kept = {name: getattr(progress, name) for name in OF_EVALUATIONS}
    return kept | {"losses": list(progress.losses), "best_of_sets": dict(progress.best_of_sets)}


def take_back_last_evaluation(progress: Progress) -> None:
    """Make of the state of a finished run that of a longer one at the same step."""
    for name, value in progress.before_last.items():
        setattr(progress, name, value)
    progress.lines.pop()
    progress.before_last = None


class _SaveTimes:
    """When a save is due: every `interval` steps, or for None every ten minutes."""

    def __init__(self, interval: int | None, step: int):
        self.interval = interval
        self.note(step)

    def note(self, step: int) -> None:
        self.last_step, self.last_time = step, time.monotonic()

    def due_at(self, step: int) -> bool:
        if step == self.last_step:
            return False
        if self.interval is not None:
            return step % self.interval == 0
        return time.monotonic() - self.last_time >= SECONDS_BETWEEN_SAVES


def _evaluation_is_due(progress: Progress, recipe: Recipe) -> bool:
    at_interval = progress.step % recipe.eval_interval == 0 or progress.step == recipe.num_steps
    return at_interval and progress.evaluated_step < progress.step


def _is_finished(progress: Progress, recipe: Recipe) -> bool:
    stopped_early = 0 < recipe.early_stopping <= progress.evaluations_since_best
    return stopped_early or progress.step == recipe.num_steps


def _learning_rate(recipe: Recipe, progress: Progress) -> float:
    """The rate of the next update."""
    return recipe.learning_rate * learning_rate_factor(
        recipe.lr_schedule, progress.updates, recipe.num_steps, recipe.warmup_ratio
    )


def _step_within_memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
    prepare: Callable[[int], StepBatches],
    progress: Progress,
    line: _ProgressLine,
    ranks: Ranks,
) -> StepResult:
    """A step, in smaller micro-batches where memory does not suffice: the result is the same."""
    while True:
        if batches.max_tokens > progress.max_tokens_per_batch:
            batches = prepare(progress.step)
        try:
            return train_step(model, optimizer, scaler, recipe, batches, ranks)
        except torch.OutOfMemoryError:
            if all(len(batch.labels) == 1 for batch in batches.micro_batches):
                raise TrainingError(
                    "out of GPU memory with one example a micro-batch: use "
                    "--gradient_checkpointing, a smaller --block_size or a larger GPU"
                ) from None
            progress.max_tokens_per_batch = min(batches.max_tokens, batches.most_tokens) // 2
        # Outside of the handler, whose exception holds on to the tensors of the failed pass.
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        line.say(
            f"note: out of GPU memory; step {progress.step + 1} again with at most "
            f"{progress.max_tokens_per_batch} tokens a micro-batch (--max_tokens_per_batch)"
        )


def _count_step(progress: Progress, result: StepResult, examples: int) -> None:
    progress.step += 1
    progress.examples += examples
    progress.updates += not result.skipped
    progress.skipped += result.skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise TrainingError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row overflowed float16 (last loss "
            f"{float(result.loss)}): use --dtype bfloat16 or float32, or lower --learning_rate"
        )
    progress.unsettled.append(UnsettledStep(progress.step, progress.learning_rate, result))


def _settle(progress: Progress, log: StepLog | None = None) -> None:
    """Look at the steps since the last look and write them down; raises TrainingError where
    training diverged."""
    if not progress.unsettled:
        return
    steps, progress.unsettled = progress.unsettled, []
    results = [one.result for one in steps]
    numbers = torch.stack([torch.stack([r.loss, r.grad_norm]) for r in results]).tolist()
    for one, (loss, norm) in zip(steps, numbers, strict=True):
        if log is not None:
            log.add(one.step, _step_numbers(one, loss, norm))
        if one.result.skipped:
            continue
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} are not finite: lower "
                "--learning_rate, use --grad_clip, or use --dtype float32"
            )
        progress.losses.append(loss)


def _step_numbers(one: UnsettledStep, loss: float, norm: float) -> dict[str, object]:
    """A line of steps.jsonl; a skipped step (of float16) moved no weight."""
    return {
        "loss": loss if math.isfinite(loss) else None,
        "learning_rate": one.learning_rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        **({"skipped": True} if one.result.skipped else {}),
    }


def _metrics_line(progress: Progress, metrics: dict, epoch_steps: int) -> dict:
    return {
        "step": progress.step,
        "epoch": progress.step / epoch_steps,
        "train_loss": float(np.mean(progress.losses)) if progress.losses else None,
        "learning_rate": progress.learning_rate,
        "skipped_steps": progress.skipped,
        "examples_per_second": progress.recent.examples_per_second,
        "validation": metrics,
    }


def _evaluation_sentence(progress: Progress, metrics: dict) -> str:
    best = " (best so far)" if progress.best_step == progress.step else ""
    return f"step {progress.step}: validation {figures_in_words(metrics)}{best}"


class LineTimes:
    """When a line of progress is due where there is no terminal."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.started = self.last_line = self.last_step = clock()
        self.has_steps = False

    def is_due_after_step(self) -> bool:
        """Whether a line is due after a step: the first has one, and then there is none before it
        would be late; a step that takes longer than the interval has a line of its own."""
        now = self.clock()
        step_seconds, self.last_step = now - self.last_step, now
        first, self.has_steps = not self.has_steps, True
        shortest, longest = SECONDS_BETWEEN_LINES
        interval = min(longest, max(shortest, (now - self.started) / LINE_INTERVALS_OF_A_RUN))
        return first or now + step_seconds - self.last_line >= interval

    def note_line(self) -> None:
        """Count from here: a line was said."""
        self.last_line = self.last_step = self.clock()


class _ProgressLine:
    """A bar on a terminal; elsewhere plain lines, at the times of `LineTimes`."""

    def __init__(self, num_steps: int, first_step: int):
        self.num_steps, self.first_step = num_steps, first_step
        self.bar = tqdm(
            total=num_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True
        )
        self.times = LineTimes()
        self.started = time.perf_counter()
        self.evaluation_seconds: float | None = None
        # The last one looked at: showing must not make the host wait for a GPU.
        self.loss: float | None = None

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, progress: Progress, epoch: float) -> None:
        speed, rate = progress.recent.examples_per_second, progress.learning_rate
        self.loss = progress.losses[-1] if progress.losses else self.loss
        # No loss yet is no loss of nan.
        loss = "" if self.loss is None else f"loss {self.loss:.4f}, "
        if not self.bar.disable:
            self.bar.update()
            self.bar.set_postfix_str(f"{loss}lr {rate:.1e}, {speed:.0f} examples/s", refresh=False)
        elif self.times.is_due_after_step() or progress.step == self.num_steps:
            elapsed = time.perf_counter() - self.started
            own_steps = progress.step - self.first_step
            left = elapsed / own_steps * (self.num_steps - progress.step)
            self.say(
                f"step {progress.step}/{self.num_steps}, epoch {epoch:.2f}: "
                f"{loss}lr {rate:.2e}, {speed:.1f} examples/s, {left:.0f} s left"
            )

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Say that an evaluation begins, where it may be long: the first, or as the last was."""
        seconds = self.evaluation_seconds
        if seconds is None:
            self.say(f"step {step}: evaluating on the validation split")
        elif seconds >= SECONDS_BETWEEN_LINES[0]:
            self.say(f"step {step}: evaluating on the validation split, about {seconds:.0f} s")
        started = time.perf_counter()
        yield
        self.evaluation_seconds = time.perf_counter() - started

    def say(self, sentence: str) -> None:
        self.bar.write(sentence, file=sys.stdout)
        sys.stdout.flush()
        self.times.note_line()


def captured(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
) -> dict:
    """All that a run depends on besides its command: what `restore` takes."""
    assert not progress.unsettled, "a step that nobody has looked at may have diverged"
    kept = {
        f.name: getattr(progress, f.name) for f in fields(progress) if f.name not in OF_THIS_PROCESS
    }
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "progress": kept,
        "random": _random_states(),
    }


def restore(
    content: Mapping[str, dict],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Put model, optimizer, scaler and random states where `captured` found them."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    _set_random_states(content["random"])
    return Progress(**content["progress"])


def _random_states() -> dict:
    """Of every generator there is, in types that load with `weights_only=True`."""
    words = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (words[0], words[1].tolist(), *words[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _set_random_states(states: Mapping[str, object]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


class Saves:
    """NAME-last.pt in a run's folder, and the one before it as NAME-prev.pt."""

    def __init__(self, folder: Path, name: str):
        self.last, self.previous = folder / f"{name}-last.pt", folder / f"{name}-prev.pt"

    def write(self, content: Mapping[str, object]) -> None:
        """`content` as NAME-last.pt. At every instant one of the two is whole."""
        partial = _written_beside(self.last, _torch_writer({"kind": SAVE_KIND} | dict(content)))
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(partial, self.last)
        _sync_folder(self.last.parent)

    def newest(self) -> tuple[Path, dict] | None:
        """The newest whole save and its content; says so where one is damaged.

        None where there is no save. Raises RunError where all that there are are damaged.
        """
        damages = []
        for path in (self.last, self.previous):
            try:
                if path.exists():
                    return path, read_save(path)
            except RunError as error:
                print(f"note: {error}; looking for the save before it")
                damages.append(path.name)
        if damages:
            raise RunError(
                f"{self.last.parent}: no save is whole ({', '.join(damages)}): remove them to "
                "begin anew"
            )
        return None


def read_save(path: Path) -> dict:
    """The content of a save. Raises RunError where it is damaged, or no save."""
    content = read_whole(path)
    if not isinstance(content, dict) or content.get("kind") != SAVE_KIND:
        raise RunError(f"{path}: not a save to resume from")
    return content


def read_whole(path: Path, mapped: bool = False) -> object:
    """The content of a torch file whose every byte is as it was written.

    A torch file is a zip with a CRC-32 of every record, which `torch.load` does not look at.
    `mapped` leaves tensors in the file until they are used, which is much faster where few are,
    and for a process that ends soon: a file that changes meanwhile would change them. Raises
    RunError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        reason = f"record {damaged} has another checksum than it was written with"
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "a folder, expected a file"
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError) as error:
        reason = _first_line(error)
    except (EOFError, ValueError, KeyError, NotImplementedError, OSError) as error:
        reason = _first_line(error)
    raise RunError(f"{path}: can't be loaded ({reason})")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make `folder` where it is not there, and keep others from running in it meanwhile.

    Raises RunError where another process does. A folder in which nothing was left is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "a+", encoding="utf-8") as file:
        _lock(file, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def _lock(file: TextIO, folder: Path) -> None:
    """The kernel gives the lock back when its process ends, however it ends; on a file system
    without locks a run goes on without."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise RunError(
            f"{folder}: {owner} is running here; wait for it, or use another --out_dir"
        ) from None
    except OSError as error:
        print(f"note: {folder} can't be locked ({error.strerror}): don't start two runs in it")
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for half in folder.glob("*.partial"):
            half.unlink()


def save_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, sync and rename: a reader sees the old file or the whole new one."""
    os.replace(_written_beside(path, write), path)
    _sync_folder(path.parent)


def _written_beside(path: Path, write: Callable[[Path], None]) -> Path:
    """The synced file that is to become `path`; nothing of it is left where that fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return partial


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is synced; not all file systems can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """A torch file that loads with `weights_only=True`."""
    save_atomically(path, _torch_writer(content))


def _torch_writer(content: Mapping[str, object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        # Through Python's file, whose errors tell a full disk; torch's own words hide it.
        try:
            with open(path, "wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise

    return write


def save_json(path: Path, content: object) -> None:
    """Indented JSON, Devanagari left readable."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    save_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
