"""How many tokens memory holds, a step where it does not suffice, and compiling ahead of steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.distributed import Ranks
from xnli_gpt.training.order import Examples, cut_by_tokens
from xnli_gpt.training.progress_line import ProgressLine
from xnli_gpt.training.recipe import Progress, Recipe, StepResult
from xnli_gpt.training.step import MicroBatch, StepBatches, autocast, loss_of, train_step

# Tokens of a forward pass: beyond this nothing gets faster.
MAX_TOKENS = 65536
TRIAL_TOKENS = 4096
GPU_MEMORY_SHARE = 0.8
CPU_ACTIVATION_BYTES = 4 << 30
# Values kept for the backward pass, a token, a block and a unit of width.
ACTIVATIONS_PER_UNIT = 32


def find_max_tokens(model: nn.Module, recipe: Recipe, examples: Examples) -> int:
    """Tokens that a forward and backward pass may take: on a CPU those of some gigabytes of
    activations, on a GPU what a trial pass on the longest examples says that its memory holds."""
    device = next(model.parameters()).device
    config = model.pretrained_model.config
    itemsize = recipe.dtype.itemsize
    if device.type != "cuda":
        per_token = config.num_layers * config.model_dim * itemsize * ACTIVATIONS_PER_UNIT
        return min(MAX_TOKENS, CPU_ACTIVATION_BYTES // per_token)
    # The longest examples: what they need a token is the most that is needed.
    trial = cut_by_tokens(examples.lengths, TRIAL_TOKENS)[0]
    trial_tokens = int(examples.lengths[trial].sum())
    inputs, _ = examples.get_batch(trial)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(device.type, recipe.dtype):
        logits = model(inputs.to(device))
    logits.sum().backward()
    per_token = (torch.cuda.max_memory_allocated(device) - held) / trial_tokens
    model.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    torch.cuda.empty_cache()
    # Gradients and two moments, float32, are not there yet.
    free = torch.cuda.mem_get_info(device)[0] - 3 * 4 * trained
    within_memory = GPU_MEMORY_SHARE * free / per_token
    return int(min(MAX_TOKENS, max(examples.lengths.max(), within_memory)))


def compile_ahead(model: nn.Module, recipe: Recipe, examples: Examples) -> None:
    """Run what training runs through the compiler, before it starts.

    A step is not left half way when a signal comes, so compiling within the first would hold up the
    end for a minute. Two rows of unlike sizes tell the compiler that sizes vary.
    """
    longest = cut_by_tokens(examples.lengths, TRIAL_TOKENS)[0]
    shortest = np.argsort(examples.lengths, kind="stable")[: len(longest) // 2 + 1]
    model.train()
    for row in (longest, shortest):
        loss_of(MicroBatch(*examples.get_batch(row), None), len(row), model, recipe).backward()
    model.zero_grad(set_to_none=True)


def step_within_memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
    prepare: Callable[[int], StepBatches],
    progress: Progress,
    line: ProgressLine,
    ranks: Ranks,
) -> StepResult:
    """A step, in smaller micro-batches where memory does not suffice: the result is the same."""
    while True:
        if batches.max_tokens > progress.max_tokens_per_batch:
            batches = prepare(progress.step)
        try:
            return train_step(model, optimizer, scaler, recipe, batches, ranks)
        except torch.OutOfMemoryError:
            if all(len(batch.labels) == 1 for batch in batches.micro_batches):
                raise TrainingError(
                    "out of GPU memory with one example a micro-batch: use "
                    "--gradient_checkpointing, a smaller --block_size or a larger GPU"
                ) from None
            progress.max_tokens_per_batch = min(batches.max_tokens, batches.most_tokens) // 2
        # Outside of the handler, whose exception holds on to the tensors of the failed pass.
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        line.say(
            f"note: out of GPU memory; step {progress.step + 1} again with at most "
            f"{progress.max_tokens_per_batch} tokens a micro-batch (--max_tokens_per_batch)"
        )
