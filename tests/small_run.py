"""A dataset, its tokenizer and a checkpoint of random weights: what a run of seconds needs."""

import json
import types
from pathlib import Path

import made_checkpoints
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

NAMES = "राम सीता मोहन गीता रवि मीना अमित नेहा विजय रीता सुमन अनिल".split()
THINGS = "आम किताब फूल रोटी".split()
HYPOTHESES = {
    "entailment": "{} के पास {} है",
    "neutral": "{} को {} बहुत पसंद है",
    "contradiction": "{} के पास कोई {} नहीं है",
}
LABELS = tuple(HYPOTHESES)


def rows_about(names: list[str], label_shift: int = 0) -> list[dict]:
    """Three hypotheses a premise; `label_shift` calls every one of them something else."""
    return [
        {
            "premise": f"{name} ने बाज़ार से {1 + i} {THINGS[i % len(THINGS)]} ख़रीदा",
            "hypothesis": HYPOTHESES[label].format(name, THINGS[i % len(THINGS)]),
            "label": LABELS[(LABELS.index(label) + label_shift) % 3],
        }
        for i, name in enumerate(names)
        for label in LABELS
    ]


def write_dataset(folder: Path, label_shift: int = 0) -> Path:
    folder.mkdir(parents=True)
    splits = {
        "train": rows_about(NAMES),
        "validation": rows_about(NAMES[:5], label_shift),
        "test": rows_about(NAMES[5:11], label_shift),
    }
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def train_tokenizer(path: Path, vocab_size: int, added_tokens: int = 0) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{row['premise']} {row['hypothesis']}" for row in rows_about(NAMES)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([f"<{i}>" for i in range(added_tokens)])
    tokenizer.save(str(path))
    return path


def make_assets(folder: Path) -> types.SimpleNamespace:
    """Everything in `folder`, made anew."""
    state = made_checkpoints.random_state("small", layers=6, heads=1, dim=128, vocab=300, seed=1)
    return types.SimpleNamespace(
        folder=folder,
        dataset=write_dataset(folder / "pairs"),
        contrary=write_dataset(folder / "contrary", label_shift=1),
        tokenizer=train_tokenizer(folder / "tokenizer.json", 300),
        large_tokenizer=train_tokenizer(folder / "large.json", 300, added_tokens=200),
        checkpoint=made_checkpoints.save_checkpoint(folder / "state_step000100.pt", state),
        cache=folder / "cache",
    )


def command(assets, out_dir: Path, *changes: object) -> list[str]:
    """A fast run's command line; what is in `changes` comes last and so overrides it."""
    words = ["--dataset", assets.dataset, "--pretrained_ckpt_path", assets.checkpoint]
    words += ["--tokenizer_name", assets.tokenizer, "--cache_dir", assets.cache]
    words += ["--out_dir", out_dir, "--device", "cpu", "--block_size", 160, "--batch_size", 6]
    words += ["--gradient_accumulation_steps", 2, "--learning_rate", 1e-3, "--no-report"]
    words += ["--compile", "never"]
    # What is compared bit by bit must not depend on what this machine is fast at.
    words += ["--dtype", "float32"]
    return [str(word) for word in [*words, *changes]]
