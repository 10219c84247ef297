"""What the tests of training share."""

import os
import signal

import kills
import pytest
import torch
from resume_parts import RECIPES, run
from training_parts import NUM_CLASSES, VOCAB

from model import GPTBatched, GPTClassification, GPTConfig
from xnli_gpt.training.trainer import Trainer


@pytest.fixture
def model() -> GPTClassification:
    """A tiny classifier with no weight at zero, so that every parameter has a gradient."""
    config = GPTConfig.of_family(
        "small", vocab_size=VOCAB, num_layers=6, num_heads=2, model_dim=32, max_seq_len=32
    )
    classifier = GPTClassification(GPTBatched(config), NUM_CLASSES)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if not name.endswith(("skip_weights", "lambdas")):
                scale = 1.0 if "embed" in name else 0.6 * parameter.size(-1) ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return classifier


@pytest.fixture(scope="module")
def whole(assets):
    """The outcome of an uninterrupted run, by recipe; made when it is first asked for."""
    made: dict[str, dict] = {}

    def outcome(recipe: str) -> dict:
        if recipe not in made:
            out_dir = assets.folder / f"whole-{recipe}"
            assert run(assets, out_dir, *RECIPES[recipe]) == 0
            made[recipe] = kills.outcome(out_dir)
        return made[recipe]

    return outcome


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal when a step is done."""
    counted = Trainer._count

    def arrange(step: int, *numbers: signal.Signals) -> None:
        def count(trainer, *others):
            counted(trainer, *others)
            if trainer.state.step == step:
                for number in numbers or (signal.SIGTERM,):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainer, "_count", count)

    yield arrange
