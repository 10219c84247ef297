"""A validation whose accuracies are given, for tests of the trainer."""

from xnli_gpt.evaluation.metrics import METRICS, figures_in_words


class ScriptedValidation:
    """Gives accuracies in their order, whatever the model."""

    def __init__(self, accuracies):
        self.accuracies = iter(accuracies)

    def evaluate(self, model) -> dict:
        accuracy = next(self.accuracies, 0.0)
        return {"accuracy": accuracy, "macro_f1": accuracy, "loss": 1.0}

    def is_better(self, metrics, best) -> bool:
        return METRICS["accuracy"].is_better(metrics["accuracy"], best and best["accuracy"])

    def in_words(self, metrics) -> str:
        return figures_in_words(metrics)
