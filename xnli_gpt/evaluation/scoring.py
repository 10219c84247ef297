"""Every dataset's rows with the logits of all models or predictions of one recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import EncodedDataset, EncodedSplit
from xnli_gpt.errors import DataError, EvaluationError
from xnli_gpt.evaluation.baseline import hypothesis_only
from xnli_gpt.evaluation.logits import Inference, split_logits
from xnli_gpt.evaluation.rows import Rows
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.slices import language_of
from xnli_gpt.evaluation.sources import (
    LogitSource,
    SourceReader,
    has_probabilities,
    predicted_logits,
)


@dataclass(frozen=True)
class Scorer:
    """Computes logits of the same rows by one source after the other.

    `encoded` has the rows as token ids, once for all checkpoints that make the same ids of them.
    """

    reader: SourceReader
    rows: Mapping[str, Rows]
    classes: tuple[str, ...]
    encoded: Mapping[tuple, EncodedDataset]
    inference: Inference
    device: torch.device

    def score(self, sources: Sequence[LogitSource]) -> dict[str, ScoredSplit]:
        """Return every dataset's rows with the logits of all sources."""
        logits: dict[str, list[np.ndarray]] = {name: [] for name in self.rows}
        total = len(sources) * len(self.rows)
        with tqdm(total=total, desc="scoring", unit="split", disable=None) as progress:
            for source in sources:
                model = None
                if source.encoding is not None:
                    model = self.reader.model(source).to(self.device)
                for name in self.rows:
                    logits[name].append(self._logits(source, model, name))
                    progress.update()
        return {
            name: ScoredSplit(
                rows.ids,
                rows.premises,
                rows.hypotheses,
                rows.labels,
                np.stack(logits[name]),
                self.classes,
                language_of(name, rows.hypotheses),
                rows.carried,
                has_probabilities=all(has_probabilities(source, name) for source in sources),
                has_texts=rows.has_texts,
            )
            for name, rows in self.rows.items()
        }

    def data_of(self, source: LogitSource, name: str) -> EncodedDataset:
        """Return a dataset's rows as a checkpoint encodes them."""
        return self.encoded[encoding_key(source, name)]

    def _logits(self, source: LogitSource, model: nn.Module | None, name: str) -> np.ndarray:
        """Return logits [N, classes]."""
        if model is None:
            return predicted_logits(source, name, self.rows[name], self.classes)
        split = self.data_of(source, name).splits[self.reader.split]
        return self._computed_logits(source, model, split)

    def _computed_logits(
        self, source: LogitSource, model: nn.Module, split: EncodedSplit
    ) -> np.ndarray:
        """Return logits [N, classes] with the classes in the order of the first source."""
        logits, _ = split_logits(model, split, len(source.classes), self.inference)
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError(f"{source.path}: logits are not finite; use `dtype` float32")
        return logits.numpy()[:, [source.classes.index(name) for name in self.classes]]


def encoding_key(source: LogitSource, name: str) -> tuple:
    """Return what decides the token ids that a checkpoint makes of a dataset."""
    encoding = source.encoding
    return name, encoding.tokenizer_hash, encoding.template, encoding.block_size


def encode_rows(
    sources: Sequence[LogitSource], rows: Mapping[str, Rows], cache_dir: Path
) -> dict[tuple, EncodedDataset]:
    """Return the rows as token ids, once for all checkpoints that make the same ids of them; of
    predictions check only that they are of these rows."""
    encoded = {}
    for source in sources:
        for name, of_set in rows.items():
            if source.predicted is not None:
                predicted_logits(source, name, of_set, sources[0].classes)
            elif (key := encoding_key(source, name)) not in encoded:
                request = replace(of_set.request, classes=source.classes)
                encoded[key] = load_encoded(request, source.encoding, cache_dir)
    return encoded


def hypothesis_only_baselines(rows: Mapping[str, Rows], cache_dir: Path) -> dict[str, dict]:
    """Return per dataset what a classifier of the hypothesis alone reaches."""
    figures = {}
    for name, of_set in rows.items():
        request = replace(of_set.request, splits=("train",))
        train = load_texts(request, cache_dir)[0]["train"]
        if len(np.unique(train.labels)) < 2:
            raise DataError(f"`hypothesis_only`: train of {name} has only one class")
        language = language_of(name, of_set.hypotheses)
        figures[name] = hypothesis_only(
            train.hypotheses, train.labels, of_set.hypotheses, of_set.labels, language
        )
    return figures
