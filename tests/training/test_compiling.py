"""What is compiled before training."""

import numpy as np
import torch
from resume_parts import needs_compiler

from load_checkpoint_helper import load_pretrained_checkpoint
from model import GPTClassification, PackedRow
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.training.batches import StepCutter
from xnli_gpt.training.memory import compile_ahead
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.step import train_step


@needs_compiler
def test_steps_compile_nothing_that_was_not_compiled_ahead(assets):
    """Rows of every number of examples, in a model that has seen two."""
    trunk, info, _ = load_pretrained_checkpoint(assets.checkpoint, max_seq_len=160)
    model = GPTClassification(trunk, num_classes=3)
    lengths = np.random.default_rng(0).integers(5, 60, 40)

    def get_batch(positions):
        own = lengths[positions]
        row = PackedRow.of(torch.zeros(int(own.sum()), dtype=torch.int64), own.tolist())
        return row, torch.zeros(len(own), dtype=torch.int64)

    examples = Examples(lengths, np.zeros(40, dtype=int), get_batch)
    recipe = Recipe(examples_per_step=8, num_steps=3, eval_interval=3)
    optimizer = configure_optimizers("cpu", model)
    compile_trunk(trunk)
    compile_ahead(model, recipe, examples)
    assert all(p.grad is None for p in model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step, count in enumerate((8, 3, 21)):
            cutter = StepCutter(recipe, examples, model.dropout_width)
            batches = cutter.batches(step, np.arange(count), 400)
            train_step(model, optimizer, scaler, recipe, batches)
