"""What the demo found: test accuracy of both trunks, and some pairs with the model's answers.

python -m scripts.demo_report PRETRAINED_OUT RANDOM_OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import demo_grammar
from model import GPTClassification
from xnli_data import encode_pairs, pair_encoding

NUM_PAIRS = 6


def predict(saved: dict, pairs: list[tuple[str, str]]) -> list[tuple[str, float]]:
    """The class and its probability for every pair of texts."""
    encoding = pair_encoding(saved["tokenizer"], saved["template"], saved["block_size"])
    model = GPTClassification.from_saved(saved["config"], saved["model"])
    answers = []
    for row in encode_pairs(pairs, encoding):
        ids = torch.from_numpy(row.astype("int64"))[None]  # [1, T]
        with torch.inference_mode():
            probabilities = model(ids, torch.tensor([ids.size(1)]))[0].softmax(dim=-1)
        best = int(probabilities.argmax())
        answers.append((saved["classes"][best], float(probabilities[best])))
    return answers


def main() -> int:
    """Print the report of the two runs named on the command line."""
    parser = argparse.ArgumentParser(description="Report on the demo's two runs.")
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("random", type=Path)
    arguments = parser.parse_args()
    rows = demo_grammar.nli_splits()["test"][:NUM_PAIRS]
    saved = torch.load(arguments.pretrained / "demo-ckpt.pt", weights_only=True)
    answers = predict(saved, [(row["premise"], row["hypothesis"]) for row in rows])
    for row, (answer, probability) in zip(rows, answers, strict=True):
        print(f"{row['premise']}  →  {row['hypothesis']}")
        print(f"    {answer} ({probability:.2f}); right: {row['label']}")
    for name, folder in (("pretrained", arguments.pretrained), ("random", arguments.random)):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        print(f"test accuracy, {name} trunk: {results['test']['accuracy']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
