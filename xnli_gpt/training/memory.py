"""How many tokens memory holds, and compiling ahead of the first step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from xnli_gpt.training.batches import MicroBatch
from xnli_gpt.training.order import Examples, cut_by_tokens
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.step import autocast, loss_of

# Tokens of a forward pass: beyond this nothing gets faster.
MAX_TOKENS = 65536
TRIAL_TOKENS = 4096
GPU_MEMORY_SHARE = 0.8
CPU_ACTIVATION_BYTES = 4 << 30
# Values kept for the backward pass, a token, a block and a unit of width.
ACTIVATIONS_PER_UNIT = 32


def find_max_tokens(model: nn.Module, recipe: Recipe, examples: Examples) -> int:
    """Return the tokens that a forward and backward pass may take: on a CPU those of some gigabytes
    of activations, on a GPU what a trial pass on the longest examples says that memory holds, once
    the optimizer has taken its own."""
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
    # Gradients, float32, are not there yet; the optimizer's moments are.
    free = torch.cuda.mem_get_info(device)[0] - 4 * trained
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
