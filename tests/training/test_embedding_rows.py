"""The optimizer of embedding tables: exact and lazy updates of the rows that a step meets."""

import copy
import math

import numpy as np
import pytest
import torch
from training_parts import ROWS, WIDTH, Data, Run, recipe_of, update

from xnli_gpt.files import save_atomically
from xnli_gpt.training.optimizer import RowAdamW, configure_optimizers


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    save_atomically(path, lambda partial: partial.write_text("old"))

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_atomically(path, fail)
    assert path.read_text() == "old"


# The rows that have a gradient in each step: some are met in every one, some once, some never.
TOUCHED = [[0, 1, 2, 3], [0, 1, 5], [0, 2, 7, 8], [0, 1], [0, 3, 5, 9], [0, 1, 2, 8]]


def random_parameters() -> list[torch.nn.Parameter]:
    """A table and a matrix."""
    generator = torch.Generator().manual_seed(99)
    shapes = (ROWS, WIDTH), (3, WIDTH)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def updated(touched, *, embedding_update=None, weight_decay=0.0, lr=1e-3, reload_at=None):
    """Parameters after the steps `touched`, and their optimizer; no `embedding_update` is torch's
    own AdamW with dense gradients. At `reload_at` the optimizer goes through its state dict."""

    def optimizer_of(parameters):
        options = dict(lr=lr, weight_decay=weight_decay)
        if embedding_update is None:
            return torch.optim.AdamW(parameters, fused=True, **options)
        return RowAdamW(parameters, embedding_update, **options)

    parameters = random_parameters()
    optimizer = optimizer_of(parameters)
    for step, rows in enumerate(touched):
        if step == reload_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(parameters)
            optimizer.load_state_dict(state)
        update(optimizer, parameters, step, rows, dense=embedding_update is None)
        kept = getattr(optimizer, "_dense_gradients", {})
        assert not any(memory.any() for memory in kept.values()), "zero between steps"
    return parameters, optimizer


def assert_bit_for_bit(found, expected, names=("exp_avg", "exp_avg_sq")) -> None:
    (found, of_found), (expected, of_expected) = found, expected
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        for name in names:
            assert torch.equal(of_found.state[one][name], of_expected.state[other][name]), name


@pytest.mark.parametrize("reload_at", [None, 1, 4])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_exact_sparse_updates_are_those_of_adamw_on_dense_gradients(weight_decay, reload_at):
    options = dict(weight_decay=weight_decay)
    found = updated(TOUCHED, embedding_update="exact", reload_at=reload_at, **options)
    assert_bit_for_bit(found, updated(TOUCHED, **options))
    assert not torch.equal(found[0][0][7], random_parameters()[0][7])


def test_exact_updates_move_rows_by_their_momentum_and_keep_zeroed_memory():
    one, optimizer = updated(TOUCHED[:1], embedding_update="exact")
    two, _ = updated([*TOUCHED[:1], [0]], embedding_update="exact")
    assert not torch.equal(one[0][3], two[0][3]), "row 3 was met in the first step alone"
    (memory,) = optimizer._dense_gradients.values()
    assert memory.shape == (ROWS, WIDTH) and not memory.any()
    assert one[0].grad is None


def test_lazy_moments_of_a_met_row_are_the_dense_ones_and_others_rest():
    lazy = updated(TOUCHED, embedding_update="lazy")
    dense = updated(TOUCHED)
    met = TOUCHED[-1]
    for name in ("exp_avg", "exp_avg_sq"):
        found, expected = (run[1].state[run[0][0]][name] for run in (lazy, dense))
        torch.testing.assert_close(found[met], expected[met], rtol=1e-5, atol=1e-8)
    unmet = [row for row in range(ROWS) if row not in sum(TOUCHED, [])]
    assert torch.equal(lazy[0][0][unmet], random_parameters()[0][unmet])
    # What was met once has not moved since.
    before, _ = updated(TOUCHED[:3], embedding_update="lazy")
    assert torch.equal(lazy[0][0][7], before[0][7])
    assert torch.equal(lazy[0][1], dense[0][1]), "parameters with dense gradients are as ever"


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lazy_updates_of_rows_met_in_every_step_are_the_exact_ones(weight_decay):
    touched = [list(range(ROWS))] * 5
    lazy, exact = (
        updated(touched, embedding_update=kind, weight_decay=weight_decay)[0]
        for kind in ("lazy", "exact")
    )
    torch.testing.assert_close(lazy[0], exact[0], rtol=0, atol=1e-7)


def test_lazy_weights_differ_from_exact_ones_by_the_moves_left_out_and_no_more():
    lr, steps = 1e-3, 20
    generator = np.random.default_rng(1)
    touched = [generator.choice(ROWS, 3, replace=False).tolist() for _ in range(steps)]
    lazy = updated(touched, embedding_update="lazy", lr=lr)[0][0]
    after = [random_parameters()[0]]
    after += [
        updated(touched[: n + 1], embedding_update="exact", lr=lr)[0][0] for n in range(steps)
    ]
    left_out, bound = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, 1)
    # |m| / sqrt(v) of any gradients, by Cauchy and Schwarz, right after one; it falls from there.
    largest = 0.1 / math.sqrt(0.001) / math.sqrt(1 - 0.81 / 0.999)
    last_met = {}
    for n, rows in enumerate(touched, start=1):
        last_met |= dict.fromkeys(rows, n)
        for row in set(last_met) - set(rows):
            left_out[row] += (after[n][row] - after[n - 1][row]).detach()
            correction = math.sqrt(1 - 0.999**n) / (1 - 0.9**n)
            bound[row] += (
                lr * correction * largest * (0.9 / math.sqrt(0.999)) ** (n - last_met[row])
            )
    difference = (after[-1] - lazy).detach()
    torch.testing.assert_close(difference, left_out, rtol=0, atol=1e-6)
    assert (difference.abs() <= bound + 1e-6).all()
    assert 0.1 * lr < difference.abs().max() < 20 * lr


@pytest.mark.parametrize("reload_at", [1, 4])
def test_a_lazy_optimizer_resumes_bit_for_bit(reload_at):
    resumed = updated(TOUCHED, embedding_update="lazy", reload_at=reload_at)
    assert_bit_for_bit(resumed, updated(TOUCHED, embedding_update="lazy"))


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_an_overflow_of_float16_leaves_embedding_rows_alone(embedding_update):
    embedding = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = RowAdamW(embedding.parameters(), embedding_update, lr=0.1, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(2):
        scaler.scale(100 * embedding(torch.tensor([1, 4, 4])).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        if float(scaler.get_scale()) == 2.0**127:
            assert torch.equal(embedding.weight, before)
        scaler.update(new_scale=2.0)
        optimizer.zero_grad(set_to_none=True)
    moved = (embedding.weight - before).abs().amax(1)
    # The skipped step counts as none: this is Adam's first move, as long as the rate.
    assert moved[[1, 4]].tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert moved[[0, 2, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_configured_embeddings_have_sparse_gradients_and_their_own_rate(model, embedding_update):
    optimizer = configure_optimizers(
        "cpu", model, 2e-3, backbone_lr_scale=0.1, embedding_update=embedding_update
    )
    assert optimizer.embedding_update == embedding_update
    row, _ = Data(num_rows=3).get_batch(np.arange(3))
    model(row).square().sum().backward()
    sparse = {name for name, p in model.named_parameters() if p.grad.is_sparse}
    tables = {"embed", *(f"value_embeds.{t}" for t in range(3))}
    assert sparse == {f"pretrained_model.{table}.weight" for table in tables}
    embedding = model.pretrained_model.embed.weight
    before = embedding.detach().clone()
    optimizer.step()
    moved = (embedding - before).abs().amax(1)
    # Adam's first move is as long as the rate, wherever there is a gradient.
    used = row.input_ids[: sum(row.seq_lens[:3])].unique()
    assert moved[used].tolist() == pytest.approx([2e-4] * len(used), rel=0.05)
    assert int((moved > 0).sum()) == len(used), "the filler must move nothing"


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_memory_taken_ahead_changes_no_bit_and_nothing_is_taken_later(model, embedding_update):
    expected = copy.deepcopy(model)
    options = dict(learning_rate=1e-2, embedding_update=embedding_update)
    optimizer = configure_optimizers("cpu", model, **options)
    optimizer.allocate()
    taken = {
        (number, name): value.data_ptr()
        for number, state in enumerate(optimizer.state.values())
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    dense = {table: gradient.data_ptr() for table, gradient in optimizer._dense_gradients.items()}
    assert len(dense) == (0 if embedding_update == "lazy" else 4)
    Run(model, recipe_of(num_steps=3, learning_rate=1e-2), optimizer=optimizer)
    other = configure_optimizers("cpu", expected, **options)
    Run(expected, recipe_of(num_steps=3, learning_rate=1e-2), optimizer=other)
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    for number, state in enumerate(optimizer.state.values()):
        assert all(
            taken[number, name] == value.data_ptr()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        )
    assert dense == {t: gradient.data_ptr() for t, gradient in optimizer._dense_gradients.items()}
