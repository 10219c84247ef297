"""Options about the rows that a model is fine-tuned on, or scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.row_files import QUOTES
from xnli_gpt.options import option


@dataclass(frozen=True)
class RowOptions:
    """How rows are read, whatever the dataset; an evaluation of a run's own data reads as it."""

    where: tuple[str, ...] | None = option(
        None,
        "take the rows with this value alone; repeatable",
        metavar="COLUMN=VALUE",
        repeatable=True,
    )
    label_names: tuple[str, ...] | None = option(
        None, "what labels that are numbers mean, from 0 upwards", metavar="NAME"
    )
    bad_rows: str | None = option(
        None,
        "rows without a label or a text: error (default), or skip and count",
        choices=("error", "skip"),
    )
    quotes: str | None = option(
        None, "in tsv, a quotation mark is a letter (text), or quotes a field (csv)", choices=QUOTES
    )
    validation_split: str | None = option(
        None, "the split that is validation, where it is not called so"
    )
    carry_column: tuple[str, ...] | None = option(
        None, "other columns, taken along into slices and predictions", metavar="COLUMN"
    )


@dataclass(frozen=True)
class DataOptions:
    """Which rows, of which columns, and what a pair of texts becomes."""

    dataset: tuple[str, ...] = option(
        ("hindi_xnli",),
        "one or several: hindi_xnli, xnli_LANG, xnli_all, demo, a folder (./NAME where it has "
        "one of these names; train|validation|test as jsonl, csv, tsv or parquet; "
        "save_to_disk; a copy of a Hub repository), or a name on the Hub",
        is_path=True,
        metavar="NAME",
    )
    dataset_config: str | None = option(None, "configuration of a Hub dataset")
    data_dir: str | None = option(
        None, "folder that holds the dataset, or a copy of its repository", is_path=True
    )
    text_column: tuple[str, str] = option(
        ("premise", "hypothesis"), "columns of premise, hypothesis"
    )
    label_column: str = option("label", "column of the label")
    num_classes: int | None = option(None, "classes, checked against the data", low=2)
    template: str = option("documents", "what a pair becomes", choices=tuple(TEMPLATES))
    block_size: int = option(1024, "tokens of a row at most; premises are cut", low=8, high=1 << 16)
    max_train_examples: int | None = option(None, "a seeded draw of so many", low=1)
    cache_dir: Path = option(Path("cache"), "folder of the tokenised data")
