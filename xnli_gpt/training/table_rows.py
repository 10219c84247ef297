"""The rows of embedding tables that a step reads, found on the host: a GPU would be waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# So many gradients are summed one after the other, and then their sums: a GPU that sums those of a
# token at once would wait for the most frequent token.
CHUNK = 32


@dataclass(frozen=True)
class TableRows:
    """The distinct tokens of a step, and in each micro-batch the places of every token."""

    ids: Tensor  # [U]
    places: tuple[Tensor, ...]  # of each micro-batch [N], where its tokens stand, ordered by id
    chunks: tuple[Tensor, ...]  # [C], where in `places` each chunk of one token's begins
    firsts: tuple[Tensor, ...]  # [U], where in `chunks` those of each distinct token begin

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> TableRows:
        """Return those of the ids [N] of every micro-batch."""
        distinct = np.unique(np.concatenate([ids.numpy() for ids in rows]))
        of_rows = [_places_of(ids.numpy(), distinct) for ids in rows]
        return cls(
            torch.from_numpy(distinct),
            *(tuple(map(torch.from_numpy, kind)) for kind in zip(*of_rows, strict=True)),
        )

    def filled_up(self, count: int, vocab_size: int) -> TableRows:
        """Return the same with `count` distinct tokens, those that are not in the step with no
        places. Raises ValueError where the vocabulary has not so many."""
        others = np.ones(vocab_size, dtype=bool)
        others[self.ids.numpy()] = False
        more = torch.from_numpy(np.flatnonzero(others)[: count - len(self.ids)])
        if len(self.ids) + len(more) != count:
            raise ValueError(f"{count} distinct tokens of a vocabulary of {vocab_size}")
        firsts = tuple(
            F.pad(first, (0, len(more)), value=len(chunks))
            for first, chunks in zip(self.firsts, self.chunks, strict=True)
        )
        # As many as there are at most, the last of them with no places.
        chunks = tuple(
            F.pad(chunk, (0, count + len(places) // CHUNK - len(chunk)), value=len(places))
            for chunk, places in zip(self.chunks, self.places, strict=True)
        )
        return TableRows(torch.cat([self.ids, more]), self.places, chunks, firsts)

    def pin_memory(self) -> TableRows:
        """Return the same in memory that a GPU fetches by itself."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> TableRows:
        """Return the same on a device, without waiting for the copy where memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TableRows:
        others = (tuple(map(change, kind)) for kind in (self.places, self.chunks, self.firsts))
        return TableRows(change(self.ids), *others)


def _places_of(ids: np.ndarray, distinct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `places`, `chunks` and `firsts` of a row's ids [N]."""
    places = np.argsort(ids, kind="stable")
    begins = np.searchsorted(ids[places], distinct)  # [U]
    counts = -(-np.diff(begins, append=len(ids)) // CHUNK)  # [U], in chunks
    firsts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(firsts, counts)  # [C]
    return places, np.repeat(begins, counts) + CHUNK * within, firsts
