"""A file that another program changes while it is read, or after it was inspected."""

import os
from pathlib import Path

import pytest
from loader_parts import TINY, assert_holds, tiny_file, tiny_state
from made_checkpoints import gpt_call, random_state, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import finetune_hindi_xnli as finetune
import load_checkpoint_helper as loader
from load_checkpoint_helper import (
    load_pretrained_checkpoint,
)
from xnli_gpt.errors import CheckpointError


def other_weights(path: Path) -> None:
    """Puts another run's file of the same sizes at `path`, as an atomic save does."""
    state = random_state(**TINY["medium"] | {"seed": 2})
    os.replace(save_checkpoint(path.with_name("new.pt"), state, code=gpt_call(12, 2, 16)), path)


def other_step(path: Path) -> None:
    """The same weights with other scalars around them."""
    state = tiny_state("medium")
    os.replace(save_checkpoint(path.with_name("new.pt"), state, step=7, code=""), path)


CHANGES = {
    "other weights": other_weights,
    "other step": other_step,
    "touched": lambda path: os.utime(path, ns=(0, 0)),
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("before_weights", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, change, before_weights):
    path, read_weights = tiny_file(tmp_path, "medium"), loader.read_weights

    def read(*args):
        if before_weights:
            change(path)
        weights = read_weights(*args)
        if not before_weights:
            change(path)
        return weights

    monkeypatch.setattr(loader, "read_weights", read)
    match = "changed while|damaged|can't|truncated|number of heads"
    with pytest.raises(CheckpointError, match=match):
        load_pretrained_checkpoint(path)


def byte_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_takes_the_weights_that_it_inspected(tmp_path, change):
    """And so reads the file once, and can't be given other weights than those it checked."""
    path = tiny_file(tmp_path, "medium")
    words = f"--pretrained_ckpt_path {path} --cache_dir {tmp_path} --out_dir {tmp_path}".split()
    words += ["--tokenizer_name", str(byte_tokenizer(tmp_path / "t.json")), "--dataset", "demo"]
    config, problems = finetune.COMMAND.parse([*words, "--device", "cpu"])
    inputs = finetune.check_inputs(config, problems)
    change(path)
    model = finetune.build_model(inputs.info, 3, seed=0)
    dtype = inputs.precision.dtype
    finetune.put_trunk(model, inputs.take_trunk(), config, inputs.device, dtype)
    assert_holds(model.pretrained_model, "medium", tiny_state("medium"))
    assert inputs.trunk is None, "else it would outlive the model"
