"""Make the demo's input: a tokenizer and a small-format checkpoint pretrained on demo_grammar.

    python -m scripts.make_demo FOLDER

leaves `tokenizer.json`, a checkpoint named and saved as the pretraining script does, and the
validation shard on which its recorded loss was measured. Those of `demo_checkpoint/` were made so;
a test makes them anew. 290 s of CPU with AVX2 alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from xnli_gpt.processors import set_up_libraries

if __name__ == "__main__":
    set_up_libraries()

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from load_checkpoint_helper import (
    lm_check,
)
from model import (
    GPTBatched,
    GPTConfig,
    next_multiple,
)
from xnli_gpt.checkpoints.lm_check import SHARD_HEADER_INTS, SHARD_MAGIC
from xnli_gpt.data import demo_grammar
from xnli_gpt.network.mixing import join_scalars
from xnli_gpt.training.progress_line import LineTimes
from xnli_gpt.training.recipe import learning_rate_factor

END_OF_TEXT = "<ENDOFTEXT>"
# Letters keep their vowel signs: the default byte-level pattern would cut words at them.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
VOCAB_SIZE = 1024
WORLD_SIZE = 8
SEED = 0
NUM_PASSAGES = 20_000
NUM_VALIDATION_PASSAGES = 100
ROW_LENGTH = 40
ROWS_PER_STEP = 16
NUM_STEPS = 2000
VALIDATION_ROWS = 64
# Adam for all parameters, in float32. The script has Muon for the blocks; that of torch computes in
# bfloat16, which takes minutes instead of seconds on a CPU that only emulates it.
LEARNING_RATES = {"blocks": 0.002, "embed": 0.02, "lm_head": 0.004, "skip": 0.005, "lambdas": 0.005}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE whose token 0 stands in front of every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, passages: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all passages as one row of tokens, and where each begins in it.

    A sentence is a line, and a line a document: each has the end-of-text token in front.
    """
    lines = [re.findall(r"[^।]+।", passage) for passage in passages]
    encoded = iter(tokenizer.encode_batch_fast([line.strip() for some in lines for line in some]))
    rows = [np.concatenate([[0, *next(encoded).ids] for _ in some]) for some in lines]
    starts = np.cumsum([0] + [len(row) for row in rows[:-1]])
    return np.concatenate(rows).astype(np.uint16), starts


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write a version 1 token shard (see `read_token_shard`)."""
    header = np.zeros(SHARD_HEADER_INTS, dtype="<i4")
    header[:3] = SHARD_MAGIC, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def new_trunk() -> GPTBatched:
    """Return six layers of width 128 with a trainable language-model head, as the script starts."""
    rows = next_multiple(VOCAB_SIZE, 128)
    config = GPTConfig.of_family(
        "small",
        vocab_size=rows,
        num_layers=6,
        num_heads=1,
        model_dim=128,
        max_seq_len=ROW_LENGTH,
    )
    torch.manual_seed(SEED)
    trunk = GPTBatched(config)
    trunk.lm_head_weight = nn.Parameter(torch.zeros(rows, config.model_dim))
    return trunk


def pretrain(trunk: GPTBatched, tokens: np.ndarray, starts: np.ndarray, num_steps: int) -> None:
    """Train on random rows that open with a passage, with warm-up and linear decay."""
    optimizer = torch.optim.Adam(_parameter_groups(trunk), betas=(0.8, 0.95), fused=True)
    generator = np.random.default_rng(SEED)
    starts = starts[starts < len(tokens) - ROW_LENGTH]
    times, started = LineTimes(), time.perf_counter()
    for step in range(num_steps):
        inputs, targets = _random_rows(tokens, starts, generator)
        loss = trunk.lm_loss(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor("linear", step, num_steps, 0.02)
        optimizer.step()
        if times.is_due_after_step():
            left = (time.perf_counter() - started) * (num_steps / (step + 1) - 1)
            print(f"step {step + 1}/{num_steps}: loss {loss:.3f}, {left:.0f} s left", flush=True)
            times.note_line()


def _parameter_groups(trunk: GPTBatched) -> list[dict]:
    groups = {kind: [] for kind in LEARNING_RATES}
    for name, parameter in trunk.named_parameters():
        groups[next(kind for kind in groups if kind in name)].append(parameter)
    return [
        {"params": parameters, "peak": LEARNING_RATES[kind]} for kind, parameters in groups.items()
    ]


def _random_rows(
    tokens: np.ndarray, starts: np.ndarray, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    drawn = generator.choice(starts, size=ROWS_PER_STEP)
    rows = np.stack([tokens[i : i + ROW_LENGTH + 1] for i in drawn]).astype(np.int64)
    rows = torch.from_numpy(rows)  # [B, T + 1]
    return rows[:, :-1], rows[:, 1:]


def state_as_saved(trunk: GPTBatched) -> dict[str, Tensor]:
    """Return the state dict as `torch.compile` and the script leave it: prefix, dtypes, padding."""
    state = {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}
    state["lm_head.weight"] = state.pop("lm_head_weight")
    weights = {name: state.pop(name) for name in trunk.config.mixing_weights}
    scalars = join_scalars(weights, trunk.config)
    state["scalars"] = torch.cat([scalars, torch.ones(-len(scalars) % WORLD_SIZE)])
    return {
        f"_orig_mod.{name}": tensor.bfloat16() if "embed" in name else tensor
        for name, tensor in state.items()
    }


@torch.no_grad()
def round_matrices(trunk: GPTBatched) -> None:
    """Round all matrices to values of bfloat16: embeddings are saved in it, and the others, saved
    in float32, are packed by git to half of their size."""
    for parameter in trunk.parameters():
        if parameter.dim() > 1:
            parameter.copy_(parameter.bfloat16())


def make_demo(folder: Path, num_steps: int = NUM_STEPS) -> Path:
    """Fill `folder` and return the checkpoint's path; a folder that is complete is kept."""
    done = sorted(folder.glob("best_state_*.pt"))
    if done:
        return done[0]
    folder.mkdir(parents=True, exist_ok=True)
    passages = list(demo_grammar.language_model_passages(NUM_PASSAGES, seed=SEED))
    held_out = list(demo_grammar.language_model_passages(NUM_VALIDATION_PASSAGES, seed=SEED + 1))
    tokenizer = train_tokenizer(passages)
    tokenizer.save(str(folder / "tokenizer.json"))
    validation, _ = encode(tokenizer, held_out)
    write_shard(folder / "validation.bin", validation)

    trunk = new_trunk()
    pretrain(trunk, *encode(tokenizer, passages), num_steps)
    round_matrices(trunk)
    check = lm_check(trunk, validation, row_length=ROW_LENGTH, max_rows=VALIDATION_ROWS)
    path = folder / f"best_state_step{num_steps:06d}_val{check['lm_loss']:.4f}.pt"
    config = trunk.config
    content = {
        "step": num_steps,
        "code": f"model = GPT(vocab_size={VOCAB_SIZE}, num_layers={config.num_layers}, "
        f"num_heads={config.num_heads}, model_dim={config.model_dim}, max_seq_len={ROW_LENGTH})\n",
        "model": state_as_saved(trunk),
        "optimizers": [],
        "val_loss": check["lm_loss"],
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.rename(path)
    return path


def main() -> int:
    """Make the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Make the demo's tokenizer and checkpoint.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(make_demo(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
