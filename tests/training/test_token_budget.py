"""Micro-batches by tokens: any budget gives one result, memory that does not suffice included."""

import copy

import numpy as np
import pytest
import torch
from training_parts import LOSSES, NUM_CLASSES, VOCAB, Run, recipe_of

from model import GPTBatched, GPTClassification, GPTConfig, PackedRow
from xnli_gpt.errors import TrainingError
from xnli_gpt.training.memory import MAX_TOKENS, find_max_tokens
from xnli_gpt.training.optimizer import RowAdamW, configure_optimizers
from xnli_gpt.training.order import Examples


@pytest.mark.parametrize("learning_rate", [1e-2])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_weights_do_not_depend_on_max_tokens_per_batch(model, loss, learning_rate):
    """Plain gradient descent: Adam divides a gradient of 1e-9 by itself, rounding and all."""
    after = []
    for max_tokens in (1000, 25):
        trained = copy.deepcopy(model)
        groups = [{"params": list(trained.parameters()), "lr_scale": 1.0}]
        run = Run(
            trained,
            recipe_of(num_steps=3, learning_rate=learning_rate, grad_clip=1.0, **loss),
            optimizer=torch.optim.SGD(groups),
            max_tokens_per_batch=max_tokens,
        )
        assert run.state.max_tokens_per_batch == max_tokens
        assert (len(run.data.asked) > 3) == (max_tokens == 25), "a budget that cuts, and one not"
        after.append(trained.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, rtol=0, atol=1e-6)
    assert not torch.equal(after[0]["head.output.weight"], model.head.output.weight)


def real_tokens(row: PackedRow) -> int:
    return sum(row.seq_lens[: len(row.last_token_idx)])


def fail_beyond(model, tokens: int) -> None:
    """The model, on a device whose memory holds so many tokens."""

    def refuse(_, inputs) -> None:
        if real_tokens(inputs[0]) > tokens:
            raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(refuse)


def fail_once_at(model, call: int) -> None:
    """One forward pass fails, whatever it takes: the ones before it have left their gradients."""
    calls = iter(range(1 << 20))

    def refuse(*_) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
@pytest.mark.parametrize(
    "fail",
    [lambda model: fail_beyond(model, 30), lambda model: fail_once_at(model, 1)],
    ids=["in the first micro-batch", "in the second one"],
)
def test_out_of_memory_changes_the_cut_and_not_the_result(model, capsys, fail, embedding_update):
    recipe = recipe_of(num_steps=3, learning_rate=1e-2, dropout=0.3, grad_clip=1.0)
    trained = {}
    for budget in (60, 30):
        trained[budget] = copy.deepcopy(model)
        if budget == 60:
            fail(trained[budget])
        optimizer = configure_optimizers(
            "cpu", trained[budget], 1e-2, embedding_update=embedding_update
        )
        run = Run(trained[budget], recipe, optimizer=optimizer, max_tokens_per_batch=budget)
        assert run.state.max_tokens_per_batch == 30
        assert run.state.step == run.state.updates == 3
        notes = [line for line in capsys.readouterr().out.splitlines() if "out of GPU" in line]
        assert len(notes) == (budget == 60)
        assert all(
            "at most 30 tokens" in note and "(max_tokens_per_batch)" in note for note in notes
        )
    for one, other in zip(*(trained[budget].parameters() for budget in (60, 30)), strict=True):
        assert torch.equal(one, other)


def test_the_budget_is_halved_until_it_fits_and_kept_from_there(model, capsys):
    fail_beyond(model, 25)
    run = Run(model, recipe_of(num_steps=4), max_tokens_per_batch=1 << 16)
    notes = [line for line in capsys.readouterr().out.splitlines() if "out of GPU" in line]
    budgets = [int(note.split("at most ")[1].split()[0]) for note in notes]
    # The step is far smaller than the budget: half of what failed is tried, not half of that.
    assert len(budgets) <= 3 and budgets[0] < 100
    assert all(after <= before / 2 for before, after in zip(budgets, budgets[1:], strict=False))
    assert run.state.max_tokens_per_batch == budgets[-1] <= 25
    assert all("step 1 again" in note for note in notes)


@pytest.mark.parametrize("max_tokens", [40, 2])
def test_an_example_that_does_not_fit_is_an_error_that_names_what_to_try(model, capsys, max_tokens):
    fail_beyond(model, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match="`gradient_checkpointing`.*`block_size`"):
        Run(model, recipe_of(num_steps=2), max_tokens_per_batch=max_tokens)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    tried_again = "out of GPU" in capsys.readouterr().out
    assert tried_again == (max_tokens == 40), "one example a micro-batch can't be cut further"


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "with the scaler of float16"])
@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_out_of_memory_in_the_update_leaves_the_weights_and_the_step_is_done_again(
    model, monkeypatch, embedding_update, scaled
):
    """The first update makes the moments: it may be what memory does not suffice for."""
    scaler, other_scaler = (
        torch.amp.GradScaler("cpu", enabled=scaled, init_scale=8.0, growth_interval=2)
        for _ in range(2)
    )
    recipe = recipe_of(num_steps=2, learning_rate=1e-2)
    expected = copy.deepcopy(model)
    options = dict(learning_rate=1e-2, embedding_update=embedding_update)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    allocate, failures = RowAdamW._allocate, []

    def allocate_at_the_second_attempt(optimizer) -> None:
        if not failures:
            failures.append([p.detach().clone() for p in model.parameters()])
            raise torch.OutOfMemoryError("no memory")
        allocate(optimizer)

    monkeypatch.setattr(RowAdamW, "_allocate", allocate_at_the_second_attempt)
    optimizer = configure_optimizers("cpu", model, **options)
    run = Run(model, recipe, optimizer=optimizer, scaler=scaler, max_tokens_per_batch=40)
    assert all(map(torch.equal, failures[0], before)), "the failed update must not move anything"
    budget = run.state.max_tokens_per_batch
    assert budget <= 20
    optimizer = configure_optimizers("cpu", expected, **options)
    Run(expected, recipe, optimizer=optimizer, scaler=other_scaler, max_tokens_per_batch=budget)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert scaler.state_dict() == other_scaler.state_dict()


def on_meta(layers: int, width: int) -> GPTClassification:
    with torch.device("meta"):
        config = GPTConfig.of_family(
            "small",
            vocab_size=VOCAB,
            num_layers=layers,
            num_heads=2,
            model_dim=width,
            max_seq_len=32,
        )
        return GPTClassification(GPTBatched(config), NUM_CLASSES)


def test_a_cpus_micro_batches_shrink_with_width_layers_and_bytes():
    def found(layers, width, dtype=torch.float32):
        examples = Examples(np.array([8]), np.array([0]), None)
        return find_max_tokens(on_meta(layers, width), recipe_of(dtype=dtype), examples)

    base = found(12, 768)
    assert found(12, 1536) == pytest.approx(base / 2, abs=1)
    assert found(24, 768) == pytest.approx(base / 2, abs=1)
    assert found(12, 768, torch.bfloat16) == pytest.approx(base * 2, abs=1)
    assert 1000 < base < MAX_TOKENS
    assert found(6, 32) == MAX_TOKENS
