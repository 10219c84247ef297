"""Rows that rest are made up for as AdamW would have moved them, over thousands of steps."""

import pytest
import torch

from xnli_gpt.training.optimizer import RowAdamW
from xnli_gpt.training.recipe import learning_rate_factor

ROWS, WIDTH, PEAK = 64, 16, 1e-3
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device on this machine"
            ),
        ],
    ),
]


class Race:
    """A table by torch's AdamW in float64 and in float32, and by what makes up for resting rows.

    Some rows are met in every step, some once in thousands; the gradients are so large or small
    that ε counts for nothing, or for nearly all.
    """

    def __init__(self, device: str, magnitudes: tuple[float, float], most_steps: int):
        generator = torch.Generator().manual_seed(0)
        low, high = magnitudes
        powers = low + (high - low) * torch.rand(ROWS, WIDTH, generator=generator)
        self.scale, self.chance = 10**powers, torch.logspace(0, -3.3, ROWS)
        self.generator, self.device, self.most_steps = generator, device, most_steps
        self.start = torch.randn(ROWS, WIDTH, generator=generator) * 0.02
        self.exact, self.rounded, self.table = (
            torch.nn.Parameter(self.start.to(device, dtype, copy=True))
            for dtype in (torch.float64, torch.float32, torch.float32)
        )
        plain = dict(lr=PEAK, weight_decay=0.0, fused=True)
        self.adamws = [torch.optim.AdamW([one], **plain) for one in (self.exact, self.rounded)]
        self.optimizer = self.new_optimizer()

    def new_optimizer(self) -> RowAdamW:
        optimizer = RowAdamW([self.table], "exact", [self.table], lr=PEAK, weight_decay=0.0)
        self.resting = optimizer.defer_resting_rows(self.most_steps)
        return optimizer

    def step(self, number: int) -> None:
        rate = PEAK * learning_rate_factor("linear", number, self.most_steps, 0.1)
        for optimizer in (*self.adamws, self.optimizer):
            optimizer.param_groups[0]["lr"] = rate
        met = torch.rand(ROWS, generator=self.generator) < self.chance
        rows = met.nonzero()[:, 0].to(self.device)
        values = torch.randn(len(rows), WIDTH, generator=self.generator) * self.scale[met]
        values = values.to(self.device)
        dense = torch.zeros(ROWS, WIDTH, device=self.device).index_copy_(0, rows, values)
        self.exact.grad, self.rounded.grad = dense.double(), dense
        self.resting.begin_step()
        self.resting.catch_up(rows)
        with torch.sparse.check_sparse_tensor_invariants(False):
            self.table.grad = torch.sparse_coo_tensor(
                rows[None], values, self.table.shape, is_coalesced=True
            )
        for optimizer in (*self.adamws, self.optimizer):
            optimizer.step()

    def resume(self) -> None:
        """Go on from a save, which holds what AdamW's own would."""
        self.resting.settle()
        saved = self.optimizer.state_dict()
        self.optimizer = RowAdamW([self.table], "exact", [self.table], lr=PEAK, weight_decay=0.0)
        self.optimizer.load_state_dict(saved)
        self.resting = self.optimizer.defer_resting_rows(self.most_steps)

    def error(self, table: torch.Tensor) -> float:
        return float((table.detach().double() - self.exact.detach()).abs().max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("magnitudes", [(-3.0, -1.0), (-10.0, -6.0), (-12.0, 0.0)])
def test_the_error_is_that_of_float32(device, magnitudes):
    race = Race(device, magnitudes, most_steps=1500)
    for number in range(race.most_steps):
        race.step(number)
        if number == 700:
            race.resume()
    lagging = race.error(race.table)
    race.resting.settle()
    assert float((race.exact.detach() - race.start.to(device).double()).abs().mean()) > 1e-3
    assert lagging > 1e-5, "rows that were met long ago must have been behind"
    assert race.error(race.table) < 2 * race.error(race.rounded) < 1e-6
    found, expected = race.optimizer.state[race.table], race.adamws[0].state[race.exact]
    assert float(found["step"]) == race.most_steps
    for name in ("exp_avg", "exp_avg_sq"):
        assert (found[name] - expected[name]).norm() < 1e-4 * expected[name].norm()


def test_settling_and_meeting_again_change_nothing_more():
    race = Race("cpu", (-3.0, -1.0), most_steps=150)
    for number in range(race.most_steps):
        race.step(number)
    race.resting.settle()
    before = race.table.detach().clone()
    race.resting.settle()
    race.resting.catch_up(torch.arange(ROWS))
    assert torch.equal(race.table, before)


def test_an_optimizer_without_tables_has_nothing_to_make_up_for():
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    assert RowAdamW([matrix], "exact", []).defer_resting_rows(9) is None
