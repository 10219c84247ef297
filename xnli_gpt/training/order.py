"""Which examples a step has, their dropout masks and weights, and how they are cut by tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.data.premises import Premises, cut_by_premises
from xnli_gpt.network.packed_row import PackedRow
from xnli_gpt.training.recipe import steps_per_epoch

# (positions in the split) -> what the model takes, labels [B]
GetBatch = Callable[[np.ndarray], tuple[PackedRow, Tensor]]


@dataclass(frozen=True)
class Examples:
    """The examples to train on, by position."""

    lengths: np.ndarray  # [N], in tokens
    labels: np.ndarray  # [N]
    get_batch: GetBatch
    # Positions of the sets that an epoch has as many examples of; None: every example once.
    even_sets: Sequence[np.ndarray] | None = None
    # Where premises are drawn, with all their examples; None: examples are drawn.
    premises: Premises | None = None


class ExampleOrder:
    """Which examples a step has: every one once an epoch, in a new order each.

    With `even_sets`, an epoch has as many steps, but as many examples of each set: those of a
    small one come several times, and of a large one others in the next epoch. With `premises`, it
    has as many steps, as equal as whole premises allow; only a premise of more examples than a step
    is drawn in parts.
    """

    def __init__(
        self,
        num_examples: int,
        examples_per_step: int,
        seed: int,
        even_sets: Sequence[np.ndarray] | None = None,
        premises: Premises | None = None,
    ):
        assert even_sets is None or premises is None
        self.num_examples, self.examples_per_step = num_examples, examples_per_step
        self.seed, self.even_sets = seed, even_sets
        self.epoch_steps = steps_per_epoch(num_examples, examples_per_step)
        self._drawn_together = None
        if premises is not None:
            # No part is larger than a step's equal share of the epoch, so every step gets a part.
            most = num_examples // self.epoch_steps
            self._drawn_together = [
                part
                for group in premises.groups()
                for part in np.split(group, range(most, len(group), most))
            ]
        self._latest: tuple[int, list[np.ndarray]] | None = None

    def of_step(self, step: int) -> np.ndarray:
        """Return positions [B], by nothing but the seed and the step."""
        epoch, step_in_epoch = divmod(step, self.epoch_steps)
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._of_epoch(epoch))
        return self._latest[1][step_in_epoch]

    def _of_epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the positions of every step."""
        generator = np.random.default_rng([self.seed, epoch])
        if self._drawn_together is not None:
            return self._whole_premises(generator)
        if self.even_sets is None:
            order = generator.permutation(self.num_examples)
        else:
            order = self._evenly_drawn(generator, epoch)
        return np.split(order, range(self.examples_per_step, len(order), self.examples_per_step))

    def _whole_premises(self, generator: np.random.Generator) -> list[np.ndarray]:
        drawn = [self._drawn_together[i] for i in generator.permutation(len(self._drawn_together))]
        ends = np.cumsum([0, *map(len, drawn)])
        # A step ends with the premise nearest to where equal steps would end.
        equal = np.arange(1, self.epoch_steps) * self.num_examples / self.epoch_steps
        after = np.searchsorted(ends, equal)
        is_nearer = ends[after] - equal < equal - ends[after - 1]
        return np.split(np.concatenate(drawn), ends[np.where(is_nearer, after, after - 1)])

    def _evenly_drawn(self, generator: np.random.Generator, epoch: int) -> np.ndarray:
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
    """Return `count` numbers from `start` on of permutations of `length`, one after the other."""
    first, last = start // length, (start + count - 1) // length
    rounds = [
        np.random.default_rng([*seed, number]).permutation(length)
        for number in range(first, last + 1)
    ]
    return np.concatenate(rounds)[start - first * length :][:count]


def dropout_masks(seed: int, step: int, num_examples: int, width: int, p: float) -> Tensor | None:
    """Return factors [examples of the step, width], 0 or 1/(1-p), by seed, step and position;
    None without dropout."""
    if p == 0:
        return None
    mixed_seed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed_seed >> 1)
    kept = torch.rand(num_examples, width, generator=generator) >= p
    return kept / (1 - p)


def cut_into_batches(
    lengths: np.ndarray, premises: Premises | None, max_tokens: int
) -> list[np.ndarray]:
    """Return the positions of examples cut into batches of at most `max_tokens`, the longest first;
    with `premises` each is counted once, and its examples stand side by side."""
    if premises is None:
        return cut_by_tokens(lengths, max_tokens)
    return cut_by_premises(lengths, premises, max_tokens)


def cut_by_tokens(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Return the positions of a step's examples, the longest first, cut into micro-batches of at
    most `max_tokens`; an example of more tokens has one of its own."""
    order = np.argsort(-lengths, kind="stable")
    cuts, tokens = [0], 0
    for place, length in enumerate(lengths[order]):
        if tokens + length > max_tokens and place > cuts[-1]:
            cuts.append(place)
            tokens = 0
        tokens += length
    return np.split(order, cuts[1:])
