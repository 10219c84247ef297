"""A tiny model's steps, data and loop, for the tests of training."""

import dataclasses

import numpy as np
import torch
from scripted import ScriptedValidation

from model import PackedRow
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.records import Records
from xnli_gpt.training.state import TrainState
from xnli_gpt.training.trainer import Trainer

VOCAB, NUM_CLASSES = 40, 3
LOSSES = {
    "plain": {},
    "class weights": dict(weight_of_class=(0.5, 1.0, 3.0)),
    "label smoothing": dict(label_smoothing=0.2),
    "all, with dropout": dict(weight_of_class=(0.5, 1.0, 3.0), label_smoothing=0.2, dropout=0.4),
}


class Data:
    """Random rows of different lengths."""

    def __init__(self, num_rows: int, seed: int = 0):
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(2, 20, num_rows)
        self.rows = [torch.from_numpy(generator.integers(0, VOCAB, n)) for n in self.lengths]
        self.labels = torch.from_numpy(generator.permutation(np.arange(num_rows) % NUM_CLASSES))
        self.asked: list[list[int]] = []

    def get_batch(self, positions):
        self.asked.append(list(positions))
        rows = [self.rows[i] for i in positions]
        row = PackedRow.of(torch.cat(rows), [len(row) for row in rows], multiple=16)
        return row, self.labels[positions]

    @property
    def examples(self) -> Examples:
        return Examples(self.lengths, self.labels.numpy(), self.get_batch)


def recipe_of(**changes) -> Recipe:
    plain = Recipe(examples_per_step=8, num_steps=4, eval_interval=100, dropout=0.0, grad_clip=0.0)
    return dataclasses.replace(plain, **changes)


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


class Calls(Records):
    """Keeps what a trainer gives its records, in their order."""

    def __init__(self):
        self.calls: list[tuple] = []

    def add_evaluation(self, state, line):
        self.calls.append(("line", line))

    def keep_best(self, state, metrics):
        self.calls.append(("best", state.step))


class Run:
    """Trains with a scripted validation, and keeps what its records were given."""

    def __init__(
        self,
        model,
        recipe,
        *,
        data=None,
        accuracies=(),
        scaler=None,
        optimizer=None,
        max_tokens_per_batch=40,
    ):
        self.data = data or Data(num_rows=10)
        self.optimizer = optimizer or configure_optimizers("cpu", model, recipe.learning_rate)
        self.rates: list[list[float]] = []
        self.overflowed: list[bool] = []
        records = Calls()
        self.calls = records.calls
        update = self.optimizer.step

        def noted_update(*arguments):
            """At every step, once the rates are set and the scaler has looked at the gradients."""
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.overflowed.append(bool(getattr(self.optimizer, "found_inf", 0)))
            return update(*arguments)

        self.optimizer.step = noted_update
        trainer = Trainer(
            model,
            self.optimizer,
            scaler or no_scaler(),
            recipe,
            self.data.examples,
            ScriptedValidation(accuracies),
            records,
            TrainState(max_tokens_per_batch=max_tokens_per_batch),
        )
        self.trainer, self.state = trainer, trainer.train()

    @property
    def lines(self) -> list[dict]:
        return [value for kind, value in self.calls if kind == "line"]


ROWS, WIDTH = 12, 4


def gradient_of_rows(step: int, rows: list[int]) -> torch.Tensor:
    """Sparse, with a row that comes twice, as a token does in a batch."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.tensor([*rows, rows[0]])
    values = torch.randn(len(rows), WIDTH, generator=generator)
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), check_invariants=True)


def update(optimizer, parameters, step: int, rows: list[int], dense: bool) -> None:
    table, matrix = parameters
    gradient = gradient_of_rows(step, rows)
    table.grad = gradient.coalesce().to_dense() if dense else gradient
    matrix.grad = torch.full_like(matrix, 0.1 * (step + 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
