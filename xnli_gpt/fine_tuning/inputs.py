"""What a run starts from, and what of it can be found wrong without reading the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from xnli_gpt.checkpoints.fine_tuned import read_fine_tuned
from xnli_gpt.choices import EVALUATION_TOKENS
from xnli_gpt.data.encoded import JoinedDatasets
from xnli_gpt.data.names import short_name
from xnli_gpt.data.tokenizer import PairEncoding, load_pair_encoding, pair_encoding
from xnli_gpt.devices import Precision
from xnli_gpt.errors import UsageError
from xnli_gpt.evaluation.logits import Inference
from xnli_gpt.files import problem_of_folder
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.training.distributed import Ranks
from xnli_gpt.training.options import RecipeOptions
from xnli_gpt.training.run_folder import RunFolder
from xnli_gpt.training.signals import StopSignals


@dataclass
class Inputs:
    """What a run starts from, read and checked before any long work."""

    encoding: PairEncoding
    device: torch.device
    precision: Precision
    info: dict | None  # of the pretrained checkpoint; None where the run has no use for it
    saved: dict | None  # the fine-tuned checkpoint, where it is only scored
    trunk: nn.Module | None  # the weights that `info` was read from, where the run needs them
    ranks: Ranks
    stop: StopSignals

    def take_trunk(self) -> nn.Module | None:
        """Return the trunk, handed over: what trains it must be the only one to hold it."""
        trunk, self.trunk = self.trunk, None
        return trunk


@dataclass(frozen=True)
class Run:
    """A run with checked inputs and its data as token ids."""

    config: FineTuning
    inputs: Inputs
    folder: RunFolder
    data: JoinedDatasets

    @property
    def inference(self) -> Inference:
        """Return how logits are computed outside of training."""
        max_tokens = self.config.machine.max_tokens_per_batch or EVALUATION_TOKENS
        return Inference(self.inputs.precision.dtype, max_tokens, self.inputs.ranks)


def folder_of(config: FineTuning) -> RunFolder:
    """Return the folder of a run; its files are called by the names of the datasets."""
    return RunFolder(config.run.out_dir, "+".join(map(short_name, config.data.dataset)))


def encoding_of(config: FineTuning, saved: dict | None) -> PairEncoding:
    """Return how pairs become token ids: as the fine-tuned checkpoint says, or the options."""
    if saved is not None:
        return pair_encoding(
            saved["tokenizer"], saved["template"], saved["block_size"], saved.get("end_of_text")
        )
    pretrained, data = config.pretrained, config.data
    if pretrained.tokenizer_name is None:
        raise UsageError(["`tokenizer_name` is needed: the tokenizer.json of the pretraining"])
    return load_pair_encoding(
        pretrained.tokenizer_name,
        tokenizer_dir=pretrained.tokenizer_dir,
        template=data.template,
        block_size=data.block_size,
        end_of_text=pretrained.end_of_text,
        normalize=pretrained.normalize,
    )


def read_best(folder: RunFolder) -> dict:
    """Return the content of a run's best model; raises UsageError where there is none."""
    path = folder.best()
    if not path.exists():
        raise UsageError([f"`eval_only`: no {path}; fine-tune first, or correct `out_dir`"])
    return read_fine_tuned(path)


def require_rows_for_tokens(encoding: PairEncoding, info: dict, name: str) -> None:
    """Raise UsageError for a tokenizer with more tokens than the trunk has embedding rows."""
    if encoding.num_tokens > info["vocab_size"]:
        raise UsageError(
            [
                f"`tokenizer_name` {name}: {encoding.num_tokens} tokens, but {info['file']} has "
                f"{info['vocab_size']} embedding rows: not the tokenizer it was pretrained with"
            ]
        )


def require_one_order(recipe: RecipeOptions) -> None:
    """Raise UsageError where the options ask for two orders of the examples at once."""
    if recipe.group_premises and recipe.sampling == "even":
        raise UsageError(
            [
                "`group_premises` with `sampling` even: whole premises come once an epoch, and "
                "even sampling draws pairs of small sets several times; leave one of the two out"
            ]
        )


def require_folders(config: FineTuning) -> None:
    """Raise UsageError for folders that can't be made or written.

    Nothing is made yet: a command line with a problem leaves no folders behind.
    """
    folders = {"cache_dir": config.data.cache_dir, "out_dir": config.run.out_dir}
    if config.run.prepare_only:
        del folders["out_dir"]
    problems = [_problem_of_folder(name, folder) for name, folder in folders.items()]
    if any(problems):
        raise UsageError(list(filter(None, problems)))


def _problem_of_folder(name: str, folder: Path) -> str | None:
    # A cache filled by somebody else needs only reading.
    problem = problem_of_folder(folder, must_write=name == "out_dir" or not folder.exists())
    return None if problem is None else f"`{name}` {folder}: {problem}"


def say_checkpoint(info: dict) -> None:
    """Print what the pretrained checkpoint is."""
    print(
        f"checkpoint: {info['file']}: format {info['checkpoint_format']}, "
        f"{info['num_layers']} layers, {info['num_heads']} heads, width {info['model_dim']}, "
        f"{info['vocab_size']} embedding rows"
    )
