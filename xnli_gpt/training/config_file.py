"""config.yaml: the flags that run a run again, from any folder, and what the run found."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from xnli_gpt.checkpoints.options import PretrainedOptions
from xnli_gpt.choices import AUTO
from xnli_gpt.data.encoded import JoinedDatasets
from xnli_gpt.data.names import KNOWN_NAMES
from xnli_gpt.data.options import DataOptions, RowOptions
from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.data.tokenizer_files import find_tokenizer
from xnli_gpt.files import save_atomically
from xnli_gpt.flags import FOUND
from xnli_gpt.options import plain_values
from xnli_gpt.provenance import code_commit
from xnli_gpt.training.resumption import Resumption

PACKAGES = ("torch", "tokenizers", "datasets", "numpy", "scikit-learn")
FOLDERS = ("data_dir", "cache_dir", "tokenizer_dir", "out_dir")


@dataclass(frozen=True)
class RunFacts:
    """What a run found: checkpoint, tokenizer, data and machine, and what decides its result."""

    info: Mapping[str, object]  # of the pretrained checkpoint
    encoding: PairEncoding
    data: JoinedDatasets
    device: torch.device
    resumption: Resumption

    def as_dict(self) -> dict[str, object]:
        """Return what config.yaml says beside the flags."""
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        on_gpu = self.device.type == "cuda"
        return {
            "command": sys.argv,
            "commit": code_commit(),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "dtype": self.resumption.precision.name,
            "processes": self.resumption.ranks.world_size,
            "versions": versions | {"python": platform.python_version()},
            "data": {
                "content_sha256": {n: one.content_hash for n, one in self.data.sets.items()},
                "classes": list(self.data.classes),
                "notes": [note for one in self.data.sets.values() for note in one.notes],
            },
            "tokenizer": {
                "sha256": self.encoding.tokenizer_hash,
                "file_sha256": self.encoding.file_hash,
                "end_of_text": self.encoding.end_of_text_token,
            },
            "checkpoint": self.info,
            "decisive": self.resumption.decisive,
        }


def repeatable_flags(
    flags: Mapping[str, object], pretrained: PretrainedOptions, data: DataOptions, checkpoint: str
) -> dict[str, object]:
    """Return the flags that run this again, from any folder: paths are absolute, and of several
    pretrained checkpoints the one that was taken is named.

    A run that began with the save of another goes on in its own folder.
    """
    tokenizer = find_tokenizer(pretrained.tokenizer_name, pretrained.tokenizer_dir)
    repeatable = {
        **flags,
        **{name: os.path.abspath(flags[name]) for name in FOLDERS if flags[name]},
        "dataset": lasting_names(data),
        "pretrained_ckpt_path": [os.path.abspath(checkpoint)],
        "tokenizer_name": os.path.abspath(tokenizer),
        "resume": AUTO,
    }
    return {name: value for name, value in repeatable.items() if value is not None}


def lasting_names(data: DataOptions) -> list[str]:
    """Return the names of datasets as they mean the same from another folder."""
    return [_lasting_name(name, data.data_dir) for name in data.dataset]


def _lasting_name(name: str, data_dir: str | None) -> str:
    is_name = data_dir is not None or name in KNOWN_NAMES
    return os.path.abspath(name) if not is_name and Path(name).is_dir() else name


def data_flags(data: DataOptions, rows: RowOptions) -> dict[str, object]:
    """Return the flags that say which rows a run is about, for its fine-tuned checkpoints."""
    return {
        "dataset": lasting_names(data),
        "dataset_config": data.dataset_config,
        "data_dir": data.data_dir and os.path.abspath(data.data_dir),
        "text_column": list(data.text_column),
        "label_column": data.label_column,
        **plain_values(rows),
    }


class _PlainDumper(yaml.SafeDumper):
    """YAML that a person reads: a list that stands twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_config(path: Path, flags: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Write config.yaml: the flags as a recipe for --config, and what was found under one key."""
    content = {**flags, FOUND: found}
    text = yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    save_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
