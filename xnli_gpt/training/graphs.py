"""Whole steps as CUDA graphs: recorded once for every shape of a step, then launched as one.

A step of a small network is hundreds of short kernels, which a host launches more slowly than a
GPU runs them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xnli_gpt.choices import AUTO
from xnli_gpt.messages import reason_of
from xnli_gpt.network.config import next_multiple
from xnli_gpt.network.packed_row import PackedRow
from xnli_gpt.training.batches import StepBatches
from xnli_gpt.training.distributed import Ranks
from xnli_gpt.training.optimizer import RowAdamW
from xnli_gpt.training.options import TrainingMachineOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.state import StepResult
from xnli_gpt.training.step import train_step
from xnli_gpt.training.table_rows import TableRows

# Rows are filled up to multiples of so much of a mean step: half of it on average.
ROUNDING = 0.06
# Shapes beyond are too rare for recording to pay.
MOST_GRAPHS = 32


@dataclass(frozen=True)
class ShapedStep(StepBatches):
    """A step of one micro-batch in a shape that comes again. Its whole numbers are parts of one
    buffer, which one copy takes to a GPU."""

    integers: Tensor  # all parts, one after the other

    @classmethod
    def of(cls, batches: StepBatches) -> ShapedStep:
        """Return a step of one micro-batch with its parts in one buffer."""
        return cls(**vars(batches), integers=torch.cat(_parts_of(batches)))._with_parts()

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes of all parts."""
        return tuple(map(len, _parts_of(self)))

    @property
    def mask(self) -> Tensor | None:
        """Return the dropout mask [B, width]."""
        return self.micro_batches[0].dropout_mask

    def pin_memory(self) -> ShapedStep:
        """Return the same in memory that a GPU fetches by itself."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return replace(self, integers=self.integers.pin_memory())._with_parts(mask)

    def copied_to(self, device: torch.device) -> ShapedStep:
        """Return a copy on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, integers=self.integers.to(device))._with_parts(mask)

    def fetch(self, other: ShapedStep) -> None:
        """Take over the values of another step of this shape."""
        self.integers.copy_(other.integers, non_blocking=True)
        if self.mask is not None:
            self.mask.copy_(other.mask, non_blocking=True)

    def _with_parts(self, mask: Tensor | None = None) -> ShapedStep:
        """Return the same whose parts are those of its buffer."""
        ids, position_ids, docs, last, labels, *rows = self.integers.split(self.shape)
        (batch,) = self.micro_batches
        inputs = replace(
            batch.inputs, input_ids=ids, position_ids=position_ids, docs=docs, last_token_idx=last
        )
        batch = replace(batch, inputs=inputs, labels=labels)
        if mask is not None:
            batch = replace(batch, dropout_mask=mask)
        distinct, *kinds = rows
        table_rows = TableRows(distinct, *((kind,) for kind in kinds))
        return replace(self, micro_batches=[batch], table_rows=table_rows)


def _parts_of(batches: StepBatches) -> list[Tensor]:
    (batch,), rows = batches.micro_batches, batches.table_rows
    row = batch.inputs
    parts = [row.input_ids, row.position_ids, row.docs, row.last_token_idx, batch.labels]
    return [*parts, rows.ids, *rows.places, *rows.chunks, *rows.firsts]


@dataclass(frozen=True)
class StepShapes:
    """Fills up the rows of steps so that few shapes occur, of which each is one graph; no result
    changes."""

    multiple: int  # of the tokens of a row
    longest: int  # of all examples, in tokens
    vocab_size: int

    @classmethod
    def of(cls, lengths: Sequence[int], examples_per_step: int, vocab_size: int) -> StepShapes:
        """Return those of steps of examples with `lengths` [N]."""
        mean_tokens = sum(lengths) / len(lengths) * examples_per_step
        multiple = 1 << max(0, int(ROUNDING * mean_tokens).bit_length() - 1)
        return cls(multiple, int(max(lengths)), vocab_size)

    def shaped(self, batches: StepBatches) -> StepBatches:
        """Return a step of one micro-batch in its shape; one of several as it is."""
        if len(batches.micro_batches) > 1:
            return batches
        (batch,) = batches.micro_batches
        B = len(batch.inputs.last_token_idx)
        lengths = batch.inputs.seq_lens[:B]
        row = PackedRow.of(batch.inputs.input_ids[: sum(lengths)], lengths, self.multiple)
        # Kernels are launched for the longest that there may be, not for this step's.
        row = replace(row, seq_lens=(self.longest,) * B + (self.multiple,))
        rows = TableRows.of([row.input_ids])
        half_a_power = max(1, 1 << (len(rows.ids).bit_length() - 2))
        count = min(next_multiple(len(rows.ids), half_a_power), self.vocab_size)
        return ShapedStep.of(
            replace(
                batches,
                micro_batches=[replace(batch, inputs=row)],
                table_rows=rows.filled_up(count, self.vocab_size),
            )
        )


class StepGraphs:
    """Does steps of a shape as `train_step` does when it is met first, from then on by its graph.

    Of one process in bfloat16, with AdamW's exact update of all tables: nothing in such a step
    makes the host look at a number.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: RowAdamW,
        recipe: Recipe,
        shapes: StepShapes,
    ):
        assert recipe.dtype is not torch.float16 and recipe.weight_of_class is None
        self.model, self.optimizer, self.recipe, self.shapes = model, optimizer, recipe, shapes
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.resting = optimizer.defer_resting_rows(recipe.num_steps)
        # Of every group of parameters; a number would be recorded as it is.
        self.rates = torch.zeros(len(optimizer.param_groups), device=self.device)
        self.met: Counter[tuple[int, ...]] = Counter()
        self.graphs: dict[tuple[int, ...], _StepGraph] = {}
        # None once there are MOST_GRAPHS or one could not be recorded: no more are made.
        self.pool = torch.cuda.graph_pool_handle()

    def step(self, batches: StepBatches) -> StepResult:
        """Do a step; raises what `train_step` does."""
        if self.resting is not None:
            self.resting.begin_step()
        if not isinstance(batches, ShapedStep):
            return self._train_step(batches)
        shape = batches.shape
        self.met[shape] += 1
        if shape not in self.graphs and self.met[shape] > 1 and self.pool is not None:
            self._record(batches)
        if shape not in self.graphs:
            return self._train_step(batches)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return self.graphs[shape].replay(batches)

    def settle(self) -> None:
        """Make up for all moves of table rows that are due."""
        if self.resting is not None:
            self.resting.settle()

    def _record(self, batches: ShapedStep) -> None:
        """Record a step, which computes nothing; where that fails, go on without graphs."""
        static, graph = batches.copied_to(self.device), torch.cuda.CUDAGraph()
        # Batches are pinned by a thread meanwhile.
        recording = torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local")
        try:
            with recordable(self.optimizer, self.rates), recording:
                result = self._train_step(static)
                numbers = torch.stack([result.loss, result.grad_norm])
        except RuntimeError as error:
            self.pool = None
            print(f"note: no CUDA graph of a step ({reason_of(error)}): slower, the same result")
        else:
            self.graphs[batches.shape] = _StepGraph(graph, static, numbers)
            if len(self.graphs) == MOST_GRAPHS:
                self.pool = None
        # Of the graph's own memory.
        self.optimizer.zero_grad(set_to_none=True)

    def _train_step(self, batches: StepBatches) -> StepResult:
        if self.resting is not None:
            self.resting.catch_up(batches.table_rows.ids.to(self.device, non_blocking=True))
        return train_step(self.model, self.optimizer, self.scaler, self.recipe, batches)


@dataclass(frozen=True)
class _StepGraph:
    graph: torch.cuda.CUDAGraph
    static: ShapedStep  # what it reads
    numbers: Tensor  # [2], the loss and the gradient's norm, where it writes them

    def replay(self, batches: ShapedStep) -> StepResult:
        self.static.fetch(batches)
        self.graph.replay()
        # Another graph may write at the same place.
        loss, norm = self.numbers.clone()
        return StepResult(loss, norm, skipped=False)


def step_graphs_of(
    machine: TrainingMachineOptions,
    model: nn.Module,
    optimizer: RowAdamW,
    recipe: Recipe,
    examples: Examples,
    ranks: Ranks,
) -> StepGraphs | None:
    """Return the graphs of a run's steps; None where a step can't be one."""
    trunk = model.pretrained_model
    possible = (
        machine.cuda_graphs == AUTO
        and next(model.parameters()).device.type == "cuda"
        and ranks.world_size == 1
        and recipe.dtype is not torch.float16
        and recipe.weight_of_class is None
        and trunk.row_attention == "varlen"
        and not trunk.gradient_checkpointing
        and optimizer.embedding_update == "exact"
    )
    if not possible:
        return None
    shapes = StepShapes.of(examples.lengths, recipe.examples_per_step, trunk.config.vocab_size)
    return StepGraphs(model, optimizer, recipe, shapes)


@contextlib.contextmanager
def recordable(optimizer: torch.optim.Optimizer, rates: Tensor) -> Iterator[None]:
    """Let an optimizer read the rate of each of its groups from `rates` [G] on the device."""
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(groups, before, strict=True):
            group["lr"], group["capturable"] = rate, capturable
