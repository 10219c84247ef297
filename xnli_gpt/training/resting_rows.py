"""AdamW's exact moves of table rows that a step does not meet, made up for when they are met again.

A row without a gradient goes on moving by its momentum. `j` steps after it was last met its moments
are β1^j·m and β2^j·v (Kingma and Ba, Adam, 2015), so that step s moves it by c_j·m / (a_j·√v + ε),

    c_j = β1^j · lr_s / (1 - β1^s),    a_j = β2^(j/2) / √(1 - β2^s).

A step touches few rows, and their c and a are the same in all values of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Updates in which all rows move as they come: 1 - β2^s still grows so fast that a_j would differ
# too much among the terms of one sum.
FIRST_STEPS = 100
# The terms of a sum: 0.9 to the power of 192 is below a float32's rounding of the first.
TERMS = 192
# How many rows are brought up to date at once where all of them are: a bound on memory.
ROWS_AT_ONCE = 8192


class RestingRows:
    """Updates the rows of tables that a step meets, and makes up for what they have missed.

    All tables have the same rows in every step and the same rate, and no weight decay. `states` are
    AdamW's, which `settle` brings to what AdamW would have left. Neither `catch_up` nor `update`
    looks at a number, so that a CUDA graph can hold them.
    """

    def __init__(
        self,
        tables: Sequence[nn.Parameter],
        states: Sequence[dict[str, Tensor]],
        group: dict,
        most_steps: int,
    ):
        assert tables and group["weight_decay"] == 0
        self.tables, self.states, self.group = tables, states, group
        device = tables[0].device
        self.first_steps = max(0, FIRST_STEPS - int(states[0]["step"]))
        self.step = states[0]["step"]  # [], the updates so far
        self.last_step = self.step.expand(len(tables[0])).clone()  # [V], up to when rows are right
        count = torch.arange(most_steps + TERMS + 1, dtype=torch.float64, device=device)
        beta1, beta2 = group["betas"]
        # Of every step lr_s / (1 - β1^s), once it is done, and 1 / √(1 - β2^s).
        self.rates = torch.zeros_like(count)
        self.scales = (1 - beta2**count).rsqrt()
        terms = torch.arange(1, TERMS + 1, dtype=torch.float64, device=device)
        self.terms, self.decays, self.root_decays = terms, beta1**terms, beta2 ** (terms / 2)

    def begin_step(self) -> None:
        """Bring all rows to the updates so far where these are the first."""
        if self.first_steps > 0:
            self.first_steps -= 1
            self.settle()

    @torch.no_grad()
    def catch_up(self, rows: Tensor) -> None:
        """Bring `rows` [U] of all tables to the updates so far."""
        last = self.last_step[rows].double()  # [U]
        gap = self.step - last
        terms = list(zip(*self._quadrature(last, gap), strict=True))
        beta1, beta2 = self.group["betas"]
        decays = (beta1**gap).float()[:, None], (beta2**gap).float()[:, None]  # [U, 1]
        moved = []
        for table, state in zip(self.tables, self.states, strict=True):
            average, square = state["exp_avg"][rows], state["exp_avg_sq"][rows]  # [U, D]
            root = square.sqrt()
            share = sum(weight / (node * root + self.group["eps"]) for weight, node in terms)
            new = table[rows] - average * share
            moved.append((new, average * decays[0], square * decays[1]))
        self._write(rows, moved)

    @torch.no_grad()
    def update(self, rows: Tensor, gradients: Sequence[Tensor]) -> None:
        """Do AdamW's update of `rows` [U], which have been caught up with, by the gradients [U, D]
        of all tables; of all other rows it is due."""
        beta1, beta2 = self.group["betas"]
        step = self.step.double() + 1
        rate, scale = self.group["lr"] / (1 - beta1**step), (1 - beta2**step).rsqrt()
        moved = []
        for table, state, gradient in zip(self.tables, self.states, gradients, strict=True):
            average = state["exp_avg"][rows].lerp(gradient, 1 - beta1)  # [U, D]
            square = beta2 * state["exp_avg_sq"][rows] + (1 - beta2) * gradient.square()
            move = rate.float() * average / (square.sqrt() * scale.float() + self.group["eps"])
            moved.append((table[rows] - move, average, square))
        for state in self.states:
            state["step"] += 1
        self.rates.index_copy_(0, step.long()[None], rate[None])
        self._write(rows, moved)

    def _write(self, rows: Tensor, moved: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Put weights and moments [U, D] of all tables in their places: all of them, since memory
        for them has been found."""
        for table, state, (values, average, square) in zip(
            self.tables, self.states, moved, strict=True
        ):
            table.index_copy_(0, rows, values)
            state["exp_avg"].index_copy_(0, rows, average)
            state["exp_avg_sq"].index_copy_(0, rows, square)
        self.last_step.index_copy_(0, rows, self.step.expand(len(rows)))

    def settle(self) -> None:
        """Bring all rows to the updates so far."""
        for rows in torch.arange(len(self.last_step), device=self.step.device).split(ROWS_AT_ONCE):
            self.catch_up(rows)

    def _quadrature(
        self, last: Tensor, gap: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return two weights and two nodes, each [U, 1], of rows that have missed `gap` [U] steps:
        Σ c_j / (a_j·x + ε) is the sum of weight / (node·x + ε).

        That is Gauss's quadrature of the c at the a: right up to the third moment of the a, which
        vary by some percent where the c count.
        """
        steps = (last[:, None] + self.terms).long()  # [U, TERMS]
        c = torch.where(self.terms <= gap[:, None], self.rates[steps] * self.decays, 0.0)
        a = self.scales[steps] * self.root_decays
        # Of a row that has missed nothing all c are zero.
        total = c.sum(1, keepdim=True)  # [U, 1]
        share = c / total.clamp(min=1e-300)
        mean = (share * a).sum(1, keepdim=True)
        spread = a - mean
        second = (share * spread**2).sum(1, keepdim=True)
        third = (share * spread**3).sum(1, keepdim=True)
        # The nodes are the roots of z² - (third / second)·z - second, from the mean.
        skew = third / second.clamp(min=1e-300)
        distance = (skew**2 + 4 * second).sqrt().clamp(min=1e-12)
        high, low = (skew + distance) / 2, (skew - distance) / 2
        weights = -low / distance * total, high / distance * total
        nodes = mean + high, mean + low
        return tuple(w.float() for w in weights), tuple(n.float() for n in nodes)
