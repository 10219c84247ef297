"""Options of a fine-tuning run: its recipe, the machine, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.choices import AUTO, EMBEDDING_UPDATES, HEADS, LOSSES, ROW_ATTENTION, SCHEDULES
from xnli_gpt.machine import DeviceOptions
from xnli_gpt.options import option


@dataclass(frozen=True)
class RecipeOptions:
    """What decides the weights that training ends with, besides model and data."""

    batch_size: int = option(16, "times --gradient_accumulation_steps: a step's pairs", low=1)
    gradient_accumulation_steps: int = option(4, "see --batch_size", low=1)
    num_epochs: float = option(3.0, "passes over the training data", above=0, high=1e6)
    max_steps: int | None = option(None, "steps at most, instead of --num_epochs", low=1)
    learning_rate: float = option(1e-4, "peak rate", above=0)
    backbone_lr_scale: float = option(1.0, "the trunk's share of the rate", low=0)
    weight_decay: float = option(0.01, "on matrices, not on embeddings", low=0)
    warmup_ratio: float = option(0.1, "share of the steps", low=0, high=1)
    lr_schedule: str = option("linear", "decay to a tenth of the rate", choices=SCHEDULES)
    grad_clip: float = option(1.0, "largest gradient norm; 0 clips nothing", low=0)
    dropout: float = option(0.1, "in the head", low=0, high=0.99)
    head: str = option("mlp", "of the classifier, on the last token", choices=HEADS)
    loss: str = option("cross_entropy", "that is minimised", choices=LOSSES)
    class_weights: str = option("none", "of the loss", choices=("none", "balanced"))
    label_smoothing: float = option(0.0, "of the loss", low=0, high=0.99)
    sampling: str = option(
        "proportional",
        "of several datasets; even: as many examples of each an epoch",
        choices=("proportional", "even"),
    )
    group_premises: bool = option(
        False,
        "draw premises with all their pairs, not pairs: each is computed once (faster; another "
        "order, so another result)",
    )
    freeze_backbone: bool = option(False, "train the head alone (a probe)")
    seed: int = option(0, "of head, order and dropout", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class TrainingMachineOptions(DeviceOptions):
    """How the machine is used; nothing here but `embedding_update` changes what is computed."""

    max_tokens_per_batch: int | None = option(
        None, "of one forward pass, changes no result; default what memory holds", low=1
    )
    compile: str = option(
        AUTO,
        "torch.compile; auto: where a compiler is found and the run is long enough",
        choices=(AUTO, "always", "never"),
    )
    attention: str = option(
        AUTO,
        "groups (CPU), flex or varlen (cuda); auto: the fastest",
        choices=(AUTO, *ROW_ATTENTION),
    )
    cuda_graphs: str = option(
        AUTO,
        "launch a step as one where that is possible, see docs/measurements.md",
        choices=(AUTO, "never"),
    )
    gradient_checkpointing: bool = option(False, "less memory for a third more time")
    embedding_update: str = option(
        "exact",
        "lazy: rows that a step does not meet rest (another result, see docs/flags.md)",
        choices=EMBEDDING_UPDATES,
    )


@dataclass(frozen=True)
class RunOptions:
    """Where a run's files are, how it is kept, and how far it goes."""

    out_dir: Path = option(Path("out"), "folder of everything a run leaves")
    resume: str = option(
        AUTO,
        "auto: from the save in --out_dir, if any; never; or the path of a save",
        is_path=True,
        metavar="auto|never|PATH",
    )
    save_interval: int | None = option(None, "steps; default every ten minutes", low=1)
    prepare_only: bool = option(False, "fetch and tokenise, where there is network; then stop")
    eval_only: bool = option(False, "score the best checkpoint of --out_dir; no training")
    report: bool = option(True, "write report.html, report.md, figures and predictions of test")
    tensorboard: bool = option(False, "log to OUT_DIR/tensorboard")
    wandb_log: bool = option(False, "log to Weights & Biases")
