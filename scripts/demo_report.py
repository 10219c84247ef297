"""Print what the demo found: some pairs with the model's answers, test accuracy of both trunks, and
where the reports are.

python -m scripts.demo_report PRETRAINED_OUT RANDOM_OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from inference import XNLIClassifier
from xnli_gpt.data import demo_grammar

NUM_PAIRS = 6


def print_answers(checkpoint: Path, rows: list[dict[str, str]]) -> None:
    """Print `rows` of the demo's test split with the answers of a fine-tuned checkpoint."""
    classifier = XNLIClassifier.load(checkpoint, device="cpu")
    answers = classifier.predict([(row["premise"], row["hypothesis"]) for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        print(f"{row['premise']}  →  {row['hypothesis']}")
        print(
            f"    {answer.label} ({answer.probabilities[answer.label]:.2f}); right: {row['label']}"
        )


def main() -> int:
    """Report on the two runs named on the command line."""
    parser = argparse.ArgumentParser(description="Report on the demo's two runs.")
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("random", type=Path)
    arguments = parser.parse_args()
    test = demo_grammar.nli_splits(sizes={"test": demo_grammar.DEFAULT_SIZES["test"]})["test"]
    print_answers(arguments.pretrained / "demo-ckpt.pt", test[:NUM_PAIRS])
    runs = {"pretrained": arguments.pretrained, "random": arguments.random}
    for name, folder in runs.items():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        print(f"test accuracy, {name} trunk: {results['test']['accuracy']:.4f}")
    for name, folder in runs.items():
        print(f"report, {name} trunk: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
