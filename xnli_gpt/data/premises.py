"""Which rows have their premise in common, and batches in which such a premise stands once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xnli_gpt.data.encoded import EncodedSplit

# Attention in groups reads a premise for each of its examples: their tokens are bounded too.
MOST_ATTENDED = 2


@dataclass(frozen=True)
class Premises:
    """The premise of every row: those with one number begin with the same tokens."""

    numbers: np.ndarray  # [N]
    shared: np.ndarray  # [N], tokens from the beginning of a row to the end of its premise

    def of(self, rows: np.ndarray) -> Premises:
        """Return those of some rows."""
        return Premises(self.numbers[rows], self.shared[rows])

    def groups(self) -> list[np.ndarray]:
        """Return the positions of every premise's rows."""
        order = np.argsort(self.numbers, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.numbers[order])) + 1)

    def saved_share(self, lengths: np.ndarray) -> float:
        """Return the share of the tokens of rows of `lengths` [N] that repeat a premise."""
        _, firsts = np.unique(self.numbers, return_index=True)
        repeated = self.shared.sum() - self.shared[firsts].sum()
        return float(repeated / lengths.sum())

    def tokens_once(self, lengths: np.ndarray) -> np.ndarray:
        """Return for every group the tokens of its rows, with the premise counted once."""
        own = lengths - self.shared
        return np.array([int(own[g].sum() + self.shared[g[0]]) for g in self.groups()])


def premise_of(split: EncodedSplit, index: int) -> bytes:
    """Return what a row begins with, its premise included: rows with the same share it."""
    start, length = split.premise_spans[index]
    return split.row(index)[: start + length].tobytes()


def premises_of(split: EncodedSplit, rows: np.ndarray) -> Premises:
    """Return the premises of rows of a split."""
    numbers: dict[bytes, int] = {}
    of_row = [numbers.setdefault(premise_of(split, row), len(numbers)) for row in rows.tolist()]
    shared = np.asarray(split.premise_spans)[rows].sum(axis=1, dtype=np.int64)
    return Premises(np.array(of_row, dtype=np.int64), shared)


def cut_by_premises(lengths: np.ndarray, premises: Premises, max_tokens: int) -> list[np.ndarray]:
    """Return the positions of rows cut into batches of at most `max_tokens` in which a premise is
    counted once, those with one premise side by side, the longest first."""
    batches, batch, tokens, attended = [], [], 0, 0
    for group in sorted(premises.groups(), key=lambda group: -int(lengths[group].max())):
        shared, begins = int(premises.shared[group[0]]), True
        for row in group.tolist():
            length = int(lengths[row])
            cost = length if begins else length - shared
            full = tokens + cost > max_tokens or attended + length > MOST_ATTENDED * max_tokens
            if batch and full:
                batches.append(np.array(batch))
                batch, tokens, attended, cost = [], 0, 0, length
            batch.append(row)
            tokens, attended, begins = tokens + cost, attended + length, False
    return [*batches, np.array(batch)]
