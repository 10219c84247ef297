"""The datasets of a run as token ids, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.encoded import EncodedDataset, EncodedSplit, JoinedDatasets, joined
from xnli_gpt.data.names import dataset_names, notes_of_datasets, short_name
from xnli_gpt.data.options import DataOptions, RowOptions
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import PairEncoding, cuts_vowel_signs
from xnli_gpt.messages import with_flags


@dataclass(frozen=True)
class Wanted:
    """What a run wants of its datasets; `classes` are those of a trained model, if any."""

    options: DataOptions
    rows: RowOptions
    splits: tuple[str, ...]
    classes: tuple[str, ...] | None = None

    def request(self, dataset: str) -> DataRequest:
        """Return what is asked for of one dataset. Test is scored where it is there."""
        request = DataRequest(
            dataset=dataset,
            dataset_config=self.options.dataset_config,
            data_dir=self.options.data_dir,
            text_columns=self.options.text_column,
            label_column=self.options.label_column,
            num_classes=self.options.num_classes,
            splits=self.splits,
            classes=self.classes,
            optional=("test",) if len(self.splits) > 1 else (),
        )
        return with_rows(request, self.rows)


def with_rows(request: DataRequest, rows: RowOptions) -> DataRequest:
    """Return the request with how its rows are read."""
    return replace(
        request,
        where=rows.where or (),
        label_names=rows.label_names,
        bad_rows=rows.bad_rows or "error",
        quotes=rows.quotes,
        validation_split=rows.validation_split,
        carry_columns=rows.carry_column or (),
    )


def load_datasets(
    wanted: Wanted,
    encoding: PairEncoding,
    in_turn: Callable[[Callable[[], EncodedDataset]], EncodedDataset],
) -> JoinedDatasets:
    """Return the encoded splits of every dataset, with what was counted printed.

    `in_turn` does the work of one dataset where several processes share a cache.
    """

    options = wanted.options

    def load(name: str) -> EncodedDataset:
        return load_encoded(wanted.request(name), encoding, options.cache_dir)

    names = dataset_names(options.dataset)
    for note in notes_of_datasets(names, options.data_dir):
        print(note)
    print(f"reading {', '.join(names)}; tokenised once, kept in {options.cache_dir}")
    data = joined({short_name(name): in_turn(lambda name=name: load(name)) for name in names})
    _print_data(data, encoding)
    return data


def _print_data(data: JoinedDatasets, encoding: PairEncoding) -> None:
    for note in encoding.notes:
        print(with_flags(note))
    print(f"classes: {', '.join(f'{i} {name}' for i, name in enumerate(data.classes))}")
    for name, dataset in data.sets.items():
        for note in dataset.notes:
            print(with_flags(note))
        absent = [split for split in ("test",) if split not in dataset.splits]
        unlabelled = [split for split, one in dataset.splits.items() if not one.has_labels]
        if absent:
            print(f"note: {name}: has no test split, so test is not scored")
        for split in unlabelled:
            print(f"note: {name}: {split} has no labels: it is predicted, and not scored")
        of_set = f"{name}, " if len(data.sets) > 1 else ""
        for split, counted in dataset.statistics.items():
            print(
                f"{of_set}{split}: {counted['rows']} pairs, {counted['tokens_per_pair']:.1f} "
                f"tokens a pair (longest {counted['longest_pair']}), "
                f"{counted['tokens_per_word']:.2f} tokens a word, {counted['cut_premises']} "
                f"premises cut at {encoding.block_size} tokens"
            )
    if cuts_vowel_signs(encoding.tokenizer):
        print(
            "note: this tokenizer cuts Devanagari words at their vowel signs (the default "
            "byte-level pattern), which about doubles the tokens and the cost"
        )


def pick_training_examples(count: int | None, seed: int, train: EncodedSplit) -> np.ndarray:
    """Return the positions of the examples to train on: all, or a seeded draw of `count`."""
    if count is None or count >= len(train):
        return np.arange(len(train))
    drawn = np.random.default_rng([seed, len(train)]).permutation(len(train))
    return np.sort(drawn[:count])
