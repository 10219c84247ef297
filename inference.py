"""From a fine-tuned checkpoint, or one that is being fine-tuned, to logits and predictions.

from inference import (
    XNLIClassifier,
)

classifier = XNLIClassifier.load("out/hindi_xnli-ckpt.pt")
classifier.predict([(premise, hypothesis), ...])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import GPTClassification
from xnli_gpt.checkpoints.fine_tuned import content_error, fine_tuned_file, read_fine_tuned
from xnli_gpt.choices import AUTO, EVALUATION_TOKENS
from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.data.pairs import encode_pairs, premise_spans
from xnli_gpt.data.tokenizer import PairEncoding, encoding_of_saved
from xnli_gpt.devices import DTYPES, device_of, precision_of
from xnli_gpt.errors import DataError, EvaluationError, UsageError
from xnli_gpt.evaluation.logits import Inference, batches_of_rank, logits_of_batches
from xnli_gpt.messages import shown


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one pair; classes in the order of its labels."""

    label: str
    probabilities: dict[str, float]
    logits: tuple[float, ...]


class XNLIClassifier:
    """A fine-tuned model with its own tokenizer, template, block size and classes."""

    def __init__(
        self,
        model: GPTClassification,
        encoding: PairEncoding,
        classes: Sequence[str],
        dtype: torch.dtype = torch.float32,
        max_tokens: int = EVALUATION_TOKENS,
    ):
        self.model = model.eval()
        self.encoding = encoding
        self.classes = tuple(classes)
        self.inference = Inference(dtype, max_tokens)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        max_tokens: int = EVALUATION_TOKENS,
        mapped: bool = False,
    ) -> XNLIClassifier:
        """Return the model of a NAME-ckpt.pt, or of the folder of a run: all that it needs.

        `device` and `dtype` are named as by --device and --dtype, with the same defaults;
        `max_tokens` are those of one forward pass; `mapped` as of `read_whole`. Raises RunError for
        a file that is damaged or no checkpoint of ours, and UsageError for a device or dtype that
        is not there.
        """
        target = device_of(device)
        path = fine_tuned_file(Path(path))
        if dtype not in (None, AUTO, *DTYPES):
            raise UsageError([f"dtype {dtype}: expected {' or '.join((AUTO, *DTYPES))}"])
        saved = read_fine_tuned(path, mapped)
        return cls(
            model_of_saved(saved, path).to(target),
            encoding_of_saved(saved, path),
            saved["classes"],
            precision_of(dtype, target).dtype,
            max_tokens,
        )

    def predict(self, pairs: Iterable[tuple[str, str]]) -> list[Prediction]:
        """Return one prediction for every (premise, hypothesis), in their order.

        A prediction does not depend on the other pairs (up to rounding). Raises DataError for a
        pair that can't be used.
        """
        return self.predict_encoded(self.encode(list(pairs)))

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """Return the token ids of every pair; premises are cut as in training.

        Raises DataError for the first pair that `problem_of` finds something wrong with.
        """
        self._require(pairs, _problem_of_texts)
        if not pairs:
            return []
        try:
            return encode_pairs(pairs, self.encoding)
        except DataError:
            # Its message speaks of a training run's flags, which predicting doesn't have.
            self._require(pairs, self.problem_of)
            raise

    def _require(self, pairs: Sequence[object], problem_of: Callable[..., str | None]) -> None:
        for number, problem in enumerate(map(problem_of, pairs), start=1):
            if problem is not None:
                raise DataError(f"pair {number}: {problem}")

    def problem_of(self, pair: object) -> str | None:
        """Return why a pair can't be used, or None."""
        return _problem_of_texts(pair) or _problem_of_tokens(pair, self.encoding)

    def predict_encoded(self, rows: Sequence[np.ndarray]) -> list[Prediction]:
        """Return the predictions for rows of token ids, as `encode` makes them.

        Raises EvaluationError for logits that are not finite.
        """
        if not rows:
            return []
        logits = self._logits(rows)
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError("logits are not finite: use `dtype` float32")
        probabilities = logits.double().softmax(dim=-1).tolist()
        return [
            Prediction(
                self.classes[int(np.argmax(values))],
                dict(zip(self.classes, of_row, strict=True)),
                tuple(values),
            )
            for values, of_row in zip(logits.tolist(), probabilities, strict=True)
        ]

    def _logits(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return [N, classes], float32 on the CPU: batches of like length, longest first."""
        lengths = np.array([len(row) for row in rows])
        no_labels = np.zeros(len(rows), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        spans = premise_spans(rows, self.encoding)
        split = EncodedSplit(np.concatenate(rows), offsets, spans, no_labels)
        batches = batches_of_rank(self.model, split, self.inference)
        logits = torch.empty(len(rows), len(self.classes))
        logits[torch.from_numpy(np.concatenate(batches))] = logits_of_batches(
            self.model, split, batches, len(self.classes), self.inference
        )
        return logits


def model_of_saved(saved: dict, path: Path) -> GPTClassification:
    """Return the model in the content of a fine-tuned checkpoint; `path` is for the message of the
    RunError where the content does not fit together."""
    try:
        model = GPTClassification.from_saved(saved["config"], saved["model"])
        num_outputs = model.num_classes
        if num_outputs != len(saved["classes"]):
            raise ValueError(f"{num_outputs} outputs for {len(saved['classes'])} classes")
        return model
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise content_error(error, path) from error


def _problem_of_texts(pair: object) -> str | None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return f"expected a premise and a hypothesis, found {shown(repr(pair), 60)}"
    for name, text in zip(("premise", "hypothesis"), pair, strict=True):
        if not isinstance(text, str):
            return f"the {name} must be text, found {shown(repr(text), 60)}"
        if not text.strip():
            return f"the {name} is empty"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"the {name} is not Unicode text"
    return None


def _problem_of_tokens(pair: tuple[str, str], encoding: PairEncoding) -> str | None:
    texts = [text.strip("\r\n") for text in pair]
    encoded = encoding.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for name, row in zip(("premise", "hypothesis"), encoded, strict=True):
        if not row.ids:
            return f"the tokenizer gives no token for the {name}"
    space = encoding.block_size - encoding.num_special_tokens
    if len(encoded[1].ids) < space:
        return None
    return (
        f"a hypothesis of {len(encoded[1].ids)} tokens leaves no room for the premise in the "
        f"{encoding.block_size} tokens that the model was fine-tuned with; shorten it"
    )
