"""A step's examples cut into micro-batches, dealt out to ranks, and prepared ahead of the device.

An example's dropout mask is drawn for the whole step and handed out by position, so that memory
alone decides the cut: the result is the same for any token budget and any number of ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.network.packed_row import PackedRow
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.losses import IGNORED_LABEL
from xnli_gpt.training.order import Examples, cut_into_batches, dropout_masks
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.table_rows import TableRows


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    inputs: PackedRow
    labels: Tensor  # [B]
    dropout_mask: Tensor | None  # [B, width]

    def pin_memory(self) -> MicroBatch:
        """Return the same in memory that a GPU fetches by itself, while it computes."""
        mask = self.dropout_mask
        return MicroBatch(
            self.inputs.pin_memory(),
            self.labels.pin_memory(),
            None if mask is None else mask.pin_memory(),
        )


@dataclass(frozen=True)
class StepBatches:
    """A rank's examples of one optimizer step, cut to `max_tokens` a micro-batch."""

    micro_batches: Sequence[MicroBatch]
    total_weight: float  # of all ranks' examples
    num_examples: int  # of all ranks
    max_tokens: int
    most_tokens: int  # of the largest micro-batch
    table_rows: TableRows

    def pin_memory(self) -> StepBatches:
        """Return the same in memory that a GPU fetches by itself."""
        micro_batches = [one.pin_memory() for one in self.micro_batches]
        table_rows = self.table_rows.pin_memory()
        return replace(self, micro_batches=micro_batches, table_rows=table_rows)


@dataclass(frozen=True)
class StepCutter:
    """Cuts the examples of a step into this rank's micro-batches."""

    recipe: Recipe
    examples: Examples
    dropout_width: int
    ranks: Ranks = ALONE

    def batches(self, step: int, indices: np.ndarray, max_tokens: int) -> StepBatches:
        """Return this rank's share of the examples `indices` [B] of a step."""
        recipe, examples = self.recipe, self.examples
        lengths = examples.lengths[indices]
        masks = dropout_masks(recipe.seed, step, len(indices), self.dropout_width, recipe.dropout)
        premises = None if examples.premises is None else examples.premises.of(indices)
        share = self.ranks.share_of(lengths, premises)
        # A rank that gets none at the end of an epoch takes part with one that counts nothing.
        counts = len(share) > 0
        share = share if counts else np.zeros(1, dtype=int)
        micro_batches, most_tokens = [], 0
        own = None if premises is None else premises.of(share)
        for cut in cut_into_batches(lengths[share], own, max_tokens):
            positions = share[cut]
            inputs, labels = examples.get_batch(indices[positions])
            mask = None if masks is None else masks[torch.from_numpy(positions)]
            labels = labels if counts else torch.full_like(labels, IGNORED_LABEL)
            micro_batches.append(MicroBatch(inputs, labels, mask))
            most_tokens = max(most_tokens, int(lengths[positions].sum()))
        return StepBatches(
            micro_batches,
            _weight_of(examples.labels[indices], recipe.weight_of_class),
            len(indices),
            max_tokens,
            most_tokens,
            TableRows.of([batch.inputs.input_ids for batch in micro_batches]),
        )


def _weight_of(labels: np.ndarray, weight_of_class: tuple[float, ...] | None) -> float:
    if weight_of_class is None:
        return float(len(labels))
    return float(np.asarray(weight_of_class)[labels].sum())


def prefetched(items: Iterator[object], count: int) -> Iterator[object]:
    """Yield `items`, made by a thread up to `count` ahead; its exceptions are raised here."""
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
