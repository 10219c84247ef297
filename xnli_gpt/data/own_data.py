"""The data that a fine-tuned checkpoint comes from, as it or its run's config.yaml tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from xnli_gpt.checkpoints.fine_tuned import datasets_in_name, run_name
from xnli_gpt.data.options import RowOptions


@dataclass(frozen=True)
class OwnData:
    """The flags of a run that say which rows it is about."""

    dataset: list[str]
    dataset_config: str | None = None
    data_dir: str | None = None
    text_column: list[str] | None = None
    label_column: str | None = None
    rows: RowOptions = RowOptions()
    is_recorded: bool = True  # else only the last part of a folder's path, or of a name, is known


def own_data_of(path: Path, saved: Mapping[str, object]) -> OwnData:
    """Return what the fine-tuned checkpoint `saved`, read from `path`, was fine-tuned on.

    Checkpoints of older versions name their datasets alone; then config.yaml beside them is asked.
    """
    recorded = saved.get("data") or _flags_beside(path)
    if recorded is not None:
        names = ("dataset", "dataset_config", "data_dir", "text_column", "label_column")
        return OwnData(**{name: recorded.get(name) for name in names}, rows=_row_options(recorded))
    datasets = saved.get("datasets") or datasets_in_name(path)
    return OwnData(list(datasets), is_recorded=False)


def _row_options(recorded: Mapping[str, object]) -> RowOptions:
    """Return how a run read its rows; what an older version does not say has its default."""
    names = [one.name for one in fields(RowOptions) if recorded.get(one.name) is not None]
    values = {name: recorded[name] for name in names}
    return RowOptions(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def _flags_beside(path: Path) -> dict | None:
    """Return the flags of an older run's config.yaml, where it is that of the checkpoint."""
    try:
        content = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        flags = content["flags"]
        name = "+".join(Path(dataset).name for dataset in flags["dataset"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return flags if run_name(path.stem) == name else None
