"""Datasets as token ids: their splits, several joined into one, and rows packed into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.errors import DataError

CACHED_ARRAYS = ("tokens", "offsets", "premise_spans", "labels")


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split as token ids, mapped from the cache."""

    tokens: np.ndarray  # [sum of lengths], all rows one after the other
    offsets: np.ndarray  # [N + 1] int64, where the rows begin
    premise_spans: np.ndarray  # [N, 2] int32, first token of the premise in its row, and its length
    labels: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Return [N] tokens of every row, its special tokens included."""
        return np.diff(self.offsets)

    @property
    def has_labels(self) -> bool:
        """Return whether the rows have labels: -1 is none."""
        return bool(len(self.labels)) and int(self.labels.min()) >= 0

    def row(self, index: int) -> np.ndarray:
        """Return the token ids of one row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def premise(self, index: int) -> np.ndarray:
        """Return the token ids of one row's premise."""
        start, length = self.premise_spans[index]
        return self.row(index)[start : start + length]


@dataclass(frozen=True)
class EncodedDataset:
    """All splits asked for, the classes in label order, and what was counted while encoding."""

    splits: dict[str, EncodedSplit]
    classes: tuple[str, ...]
    statistics: dict[str, dict]
    content_hash: str
    # Of other splits than train, the rows whose pair stands in train, too.
    leaked: dict[str, list[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # for the user
    label_kind: str = "names"  # or "numbers", which nothing gives names to


@dataclass(frozen=True)
class JoinedDatasets:
    """One dataset or several of the same classes, by name; what is trained on is one split."""

    sets: dict[str, EncodedDataset]
    train: EncodedSplit | None  # the rows of all sets one after the other
    train_sets: np.ndarray  # [N], the place in `sets` of the set that a row of `train` is of

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.sets.values())).classes

    @property
    def longest_row(self) -> int:
        """Return the tokens of the longest row of all splits."""
        splits = (split for one in self.sets.values() for split in one.splits.values())
        return int(max(split.lengths.max() for split in splits))

    def splits(self, split: str) -> dict[str, EncodedSplit]:
        """Return the split of every set that has it."""
        return {n: data.splits[split] for n, data in self.sets.items() if split in data.splits}

    def scored_splits(self, split: str) -> dict[str, EncodedSplit]:
        """Return the split of every set that has it with labels."""
        return {name: one for name, one in self.splits(split).items() if one.has_labels}


def joined(sets: Mapping[str, EncodedDataset]) -> JoinedDatasets:
    """Return the sets as one. Raises DataError where the sets have not the same classes."""
    sets = dict(sets)
    first_name, first = next(iter(sets.items()))
    for name, data in sets.items():
        if data.classes != first.classes:
            raise DataError(
                f"`dataset` {name}: classes {', '.join(data.classes)}, but {first_name} has "
                f"{', '.join(first.classes)}: sets of other classes can't be joined"
            )
        if data.label_kind != first.label_kind:
            raise DataError(
                f"`dataset` {name}: labels that are {data.label_kind}, but those of {first_name} "
                f"are {first.label_kind}: which name each number has is not known; say it by "
                "`label_names`, the names in the order of their numbers"
            )
    trains = [data.splits["train"] for data in sets.values() if "train" in data.splits]
    train_sets = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    return JoinedDatasets(sets, _joined_split(trains), train_sets)


def _joined_split(splits: Sequence[EncodedSplit]) -> EncodedSplit | None:
    if len(splits) <= 1:
        return splits[0] if splits else None
    return EncodedSplit(
        tokens=np.concatenate([split.tokens for split in splits]),
        offsets=offsets_of(np.concatenate([split.lengths for split in splits])),
        premise_spans=np.concatenate([split.premise_spans for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
    )


def pack(split: EncodedSplit, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows one after the other in the order of `indices`, without padding: ids [sum of
    lengths], lengths [B], labels [B], all int64."""
    indices = np.asarray(indices, dtype=np.int64)
    starts = split.offsets[indices]
    lengths = split.offsets[indices + 1] - starts
    tokens = split.tokens[places_of_rows(starts, lengths)].astype(np.int64)
    return tuple(torch.from_numpy(array) for array in (tokens, lengths, split.labels[indices]))


def places_of_rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return, for starts and lengths [B], [B] -> [sum of lengths], the places of rows' tokens in an
    array of all tokens."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    """Return of lengths [N] the offsets [N + 1] int64: where each begins and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
