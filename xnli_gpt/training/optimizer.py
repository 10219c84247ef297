"""AdamW that takes the sparse gradients of embedding tables, and its groups of parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from xnli_gpt.choices import EMBEDDING_UPDATES
from xnli_gpt.network.layers import TokenEmbedding
from xnli_gpt.training.resting_rows import RestingRows


class RowAdamW(torch.optim.AdamW):
    """AdamW that also takes the sparse gradients of embedding tables.

    `embedding_update` "exact" does with them what AdamW does with dense ones: a row without a
    gradient goes on moving by its momentum. With "lazy" such a row rests, and only the rows of
    the step's tokens are read and written: when a row is met again its moments have decayed as
    they would have, but the moves of the steps in between are left out.
    """

    def __init__(
        self,
        params: object,
        embedding_update: str = "exact",
        tables: Sequence[nn.Parameter] = (),
        **options: object,
    ):
        assert embedding_update in EMBEDDING_UPDATES, embedding_update
        super().__init__(params, fused=True, **options)
        self.embedding_update = embedding_update
        self.tables = set(tables)  # those whose gradients will be sparse, as far as known
        self._dense_gradients: dict[nn.Parameter, Tensor] = {}
        self._resting: RestingRows | None = None

    def defer_resting_rows(self, most_steps: int) -> RestingRows | None:
        """Make up for the moves of rows when they are met, in a run of so many steps at most; None
        where no table is trained.

        From then on weights and moments of the tables are right after `settle` alone, and the rows
        of a step after `catch_up`.
        """
        assert self.embedding_update == "exact"
        for group in self.param_groups:
            tables = [p for p in group["params"] if p in self.tables]
            if tables:
                assert len(tables) == len(self.tables), "all are in one group"
                for table in tables:
                    self._allocate_moments(table)
                states = [self.state[table] for table in tables]
                self._resting = RestingRows(tables, states, group, most_steps)
                self._dense_gradients.clear()
        return self._resting

    @torch.no_grad()
    def allocate(self) -> None:
        """Take all memory of the updates now, so that what is left is known before the first."""
        for group in self.param_groups:
            for parameter in group["params"]:
                rests = parameter in self.tables and self.embedding_update == "lazy"
                self._allocate_moments(parameter, rests)
                if parameter in self.tables and not rests:
                    self._dense_gradient_of(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one update; the sparse gradients are used up."""
        touched, resting = [], []
        defers = self._resting is not None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse and not defers:
                    gradient = parameter.grad.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()  # [U], [U, D]
                    parameter.grad = None
                    if self.embedding_update == "lazy":
                        resting.append((group, parameter, rows, values))
                    else:
                        dense = self._dense_gradient_of(parameter)
                        parameter.grad = dense.index_copy_(0, rows, values)
                        touched.append((parameter, rows))
        # Before the first weight changes: an update that runs out of memory has changed none.
        self._allocate()
        if defers:
            self._update_met_rows(self._resting)
        if resting and not self._overflowed():
            moved = [self._moved_rows(*table) for table in resting]
            for (_, parameter, rows, _), new in zip(resting, moved, strict=True):
                self._write_rows(parameter, rows, *new)
        result = super().step(closure)
        for parameter, rows in touched:
            parameter.grad.index_fill_(0, rows, 0)
            parameter.grad = None
        return result

    def _update_met_rows(self, resting: RestingRows) -> None:
        gradients = [table.grad.coalesce() for table in resting.tables]
        for table in resting.tables:
            table.grad = None
        # All tables have the same rows.
        resting.update(gradients[0].indices()[0], [gradient.values() for gradient in gradients])

    def _overflowed(self) -> bool:
        """Return what the scaler of float16 found; the fused update looks at it by itself."""
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found)

    def _allocate(self) -> None:
        """Make the moments of all dense gradients, as the first update would."""
        for parameter in with_gradients(self):
            self._allocate_moments(parameter)

    def _allocate_moments(self, parameter: nn.Parameter, rests: bool = False) -> None:
        """Make the moments of a parameter as its first update would; of a table whose rows rest,
        with the step that each row moved at."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0 if rests else torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if rests:
                state["last_step"] = torch.zeros(
                    len(parameter), dtype=torch.int32, device=parameter.device
                )

    def _dense_gradient_of(self, table: nn.Parameter) -> Tensor:
        """Return a gradient of the table's shape. Its memory is kept and is zero between steps,
        since filling it anew would cost half as much as the update."""
        if table not in self._dense_gradients:
            self._dense_gradients[table] = torch.zeros_like(table)
        return self._dense_gradients[table]

    def _moved_rows(
        self, group: dict, table: nn.Parameter, rows: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new values and moments of `rows` [U], each [U, D]."""
        self._allocate_moments(table, rests=True)
        state = self.state[table]
        # Loading a state makes a tensor of the number.
        step = int(state["step"]) + 1
        beta1, beta2 = group["betas"]
        gap = (step - state["last_step"][rows]).float()[:, None]  # [U, 1]
        average = state["exp_avg"][rows] * beta1**gap + (1 - beta1) * grad
        square = state["exp_avg_sq"][rows] * beta2**gap + (1 - beta2) * grad.square()
        rate = group["lr"] / (1 - beta1**step)
        scale = math.sqrt(1 - beta2**step)
        decayed = table[rows] * (1 - group["lr"] * group["weight_decay"])
        return decayed - rate * average / (square.sqrt() / scale + group["eps"]), average, square

    def _write_rows(
        self, table: nn.Parameter, rows: Tensor, values: Tensor, average: Tensor, square: Tensor
    ) -> None:
        state = self.state[table]
        state["step"] = int(state["step"]) + 1
        # A number that is assigned would be copied to the device, for which the host waits.
        state["last_step"].index_fill_(0, rows, state["step"])
        for tensor, new in (
            (table, values),
            (state["exp_avg"], average),
            (state["exp_avg_sq"], square),
        ):
            tensor.index_copy_(0, rows, new)


def configure_optimizers(
    device_type: str,
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    backbone_lr_scale: float = 1.0,
    embedding_update: str = "exact",
) -> RowAdamW:
    """Make AdamW (0.9, 0.999) with decay on matrices only: none on embeddings, mixing weights
    and biases.

    Every group keeps its `lr_scale` (the trunk's is `backbone_lr_scale`), which
    `set_learning_rate` applies at every step. Frozen parameters are left out. The tables of
    `model` by token are made to give sparse gradients: a step touches few of their rows.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = backbone_lr_scale if name.startswith("pretrained_model.") else 1.0
            is_matrix = parameter.dim() >= 2 and not re.search("embed|lambdas", name)
            groups.setdefault((scale, weight_decay if is_matrix else 0.0), []).append(parameter)
    tables = [module for module in model.modules() if isinstance(module, TokenEmbedding)]
    for table in tables:
        table.sparse = True
    optimizer = RowAdamW(
        [
            {"params": params, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), params in groups.items()
        ],
        embedding_update=embedding_update,
        tables=[table.weight for table in tables],
        lr=learning_rate,
        betas=(0.9, 0.999),
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that have a gradient."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [parameter for parameter in parameters if parameter.grad is not None]
