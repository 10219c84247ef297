"""From a fine-tuned checkpoint, or one that is being fine-tuned, to logits and predictions.

from inference import (
    XNLIClassifier,
)

classifier = XNLIClassifier.load("out/hindi_xnli-ckpt.pt")
classifier.predict([(premise, hypothesis), ...])
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import (
    GPTClassification,
    PackedRow,
)
from xnli_gpt.checkpoints.archive import FINE_TUNED_KIND
from xnli_gpt.choices import AUTO, EVALUATION_TOKENS
from xnli_gpt.data.encoded import EncodedSplit, pack
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import PairEncoding, pair_encoding
from xnli_gpt.devices import (
    DTYPES,
    Precision,
    fastest_precision,
    why_emulated,
    why_without_code,
)
from xnli_gpt.errors import DataError, EvaluationError, RunError
from xnli_gpt.evaluation.scores import classification_metrics, predict_logits
from xnli_gpt.files import read_whole
from xnli_gpt.flags import UsageError
from xnli_gpt.network.packed_row import row_multiple
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.order import cut_by_tokens
from xnli_gpt.training.resume import SAVE_KIND
from xnli_gpt.training.signals import StopSignals
from xnli_gpt.training.step import autocast

# Of the file that holds a run's best model.
FINE_TUNED_ENDING = "-ckpt.pt"


def device_of(name: str | None, ranks: Ranks = ALONE) -> torch.device:
    """The device that --device names, by itself a GPU where there is one.

    Raises UsageError: a GPU that was asked for is never replaced by a CPU.
    """
    device = _named_device(name)
    if device.type == "cpu" or ranks.world_size == 1:
        return device
    if device.index is not None:
        raise UsageError([f"--device {name}: every rank has its own GPU; say cuda"])
    return torch.device("cuda", torch.cuda.current_device())


def _named_device(name: str | None) -> torch.device:
    if name is None:
        return _with_code(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError([f"--device {name}: expected cpu, cuda or cuda:N"]) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError([f"--device {name}: expected cpu, cuda or cuda:N"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            [
                f"--device {name}: no CUDA device here; ask the scheduler for a GPU, "
                "or say --device cpu"
            ]
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError([f"--device {name}: only {torch.cuda.device_count()} here"])
    return _with_code(device)


def _with_code(device: torch.device) -> torch.device:
    if device.type == "cuda" and (reason := why_without_code(device)) is not None:
        raise UsageError([f"--device {device}: {reason}, or say --device cpu"])
    return device


def precision_of(name: str | None, device: torch.device) -> Precision:
    """What --dtype names; auto, or None, is the fastest that `device` computes natively."""
    if name in (None, AUTO):
        return fastest_precision(device)
    return Precision(DTYPES[name], "as --dtype says")


def words_about_precision(
    name: str | None, precision: Precision, device: torch.device
) -> str | None:
    """What was chosen by itself and why, or a warning of one that is only emulated here."""
    if name in (None, AUTO):
        return f"precision: {precision.name} ({precision.reason})"
    return emulation_warning(name, device)


def emulation_warning(name: str | None, device: torch.device) -> str | None:
    """A warning where --dtype names a precision that `device` only emulates, or None."""
    reason = None if name in (None, AUTO) else why_emulated(DTYPES[name], device)
    if reason is None:
        return None
    fastest = fastest_precision(device).name
    return f"warning: --dtype {name}: {reason} and only emulates it; {fastest} is faster here"


def fine_tuned_file(path: Path) -> Path:
    """Return the NAME-ckpt.pt that a path means: itself, the one in a run's folder, or the one
    beside a save to resume from.

    Raises RunError where a folder has none or several, and for a save without its model.
    """
    if path.is_dir():
        return _fine_tuned_file_of_run(path)
    match = re.fullmatch(r"(.+)-(last|prev)\.pt", path.name)
    if match is None:
        return path
    best = path.with_name(f"{match[1]}{FINE_TUNED_ENDING}")
    if not best.is_file():
        raise RunError(
            f"{path}: a save to resume from, and the model would be {best}, which is not there: "
            "the run has not been evaluated yet"
        )
    print(f"note: {path} is a save to resume from; {best} is its best model", file=sys.stderr)
    return best


def _fine_tuned_file_of_run(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{FINE_TUNED_ENDING}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise RunError(f"{folder}: a folder with several models ({names}): name one of them")
    begun = any(folder.glob("*-last.pt")) or (folder / "config.yaml").exists()
    why = "its run has not been evaluated yet" if begun else "expected the folder of a run"
    raise RunError(f"{folder}: a folder without a model (NAME{FINE_TUNED_ENDING}): {why}")


def read_fine_tuned(path: Path, mapped: bool = False) -> dict:
    """The content of a NAME-ckpt.pt; `mapped` as of `read_whole`. Raises RunError where it is
    damaged, or another file."""
    saved = read_whole(path, mapped)
    if isinstance(saved, dict) and saved.get("kind") == SAVE_KIND:
        raise RunError(
            f"{path}: a save to resume from, not a model; give the NAME{FINE_TUNED_ENDING} that "
            "its run left"
        )
    if not isinstance(saved, dict) or saved.get("kind") != FINE_TUNED_KIND:
        raise RunError(f"{path}: not a fine-tuned checkpoint of this project")
    return saved


def packed_rows(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """The examples `indices` of a split as one row, and their labels [B]."""
    tokens, lengths, labels = pack(split, indices)
    return PackedRow.of(tokens, lengths.tolist(), row_multiple(len(tokens))), labels


def evaluate_split(
    model: GPTClassification,
    split: EncodedSplit,
    classes: Sequence[str],
    dtype: torch.dtype,
    max_tokens: int,
    max_batches: int | None = None,
    ranks: Ranks = ALONE,
    stop: StopSignals | None = None,
) -> dict | None:
    """Metrics on a whole split, or on every rank's first batches of the longest rows.

    None where a noted signal broke it off on some rank.
    """
    computed = split_logits(model, split, len(classes), dtype, max_tokens, max_batches, ranks, stop)
    if computed is None:
        return None
    logits, rows = computed
    return classification_metrics(logits, np.asarray(split.labels)[rows], classes)


def split_logits(
    model: GPTClassification,
    split: EncodedSplit,
    num_classes: int,
    dtype: torch.dtype,
    max_tokens: int,
    max_batches: int | None = None,
    ranks: Ranks = ALONE,
    stop: StopSignals | None = None,
) -> tuple[Tensor, np.ndarray] | None:
    """Logits [R, classes], float32 on the CPU, and the rows [R] of the split that they are of, in
    order: all of them, or those of every rank's first batches of the longest rows.

    Every row is computed by one rank. Where a GPU's memory does not hold `max_tokens` at once,
    half of them are tried. None where a noted signal broke it off on some rank.
    """
    share = ranks.share_of(split.lengths)
    cuts = cut_by_tokens(split.lengths[share], max_tokens)[:max_batches]
    own = [share[cut] for cut in cuts if len(cut)]
    model.eval()
    own_logits = _logits_within_memory(model, split, own, num_classes, dtype, stop)
    broken_off = stop is not None and stop.received is not None
    if ranks.any(broken_off)[0]:
        return None
    # What other ranks compute is zero here: the sum is exact.
    logits, computed = torch.zeros(len(split), num_classes), torch.zeros(len(split))
    if own:
        own_rows = torch.from_numpy(np.concatenate(own))
        logits[own_rows], computed[own_rows] = own_logits, 1.0
    rows = ranks.sum_over_all(computed).nonzero()[:, 0]
    return ranks.sum_over_all(logits)[rows], rows.numpy()


def _logits_within_memory(
    model: GPTClassification,
    split: EncodedSplit,
    groups: list[np.ndarray],
    num_classes: int,
    dtype: torch.dtype,
    stop: StopSignals | None,
) -> Tensor:
    """Logits [rows of all groups, classes], in the order of the groups."""
    try:
        return _logits_of(model, split, groups, num_classes, dtype, stop)
    except torch.OutOfMemoryError:
        if max(map(len, groups)) == 1:
            raise
    # Outside of the handler, whose exception holds on to the tensors of the failed pass.
    torch.cuda.empty_cache()
    halves = [half for group in groups for half in np.array_split(group, 2) if len(half)]
    return _logits_within_memory(model, split, halves, num_classes, dtype, stop)


def _logits_of(
    model: GPTClassification,
    split: EncodedSplit,
    groups: Sequence[np.ndarray],
    num_classes: int,
    dtype: torch.dtype,
    stop: StopSignals | None,
) -> Tensor:
    device = next(model.parameters()).device

    def batches() -> Iterator[tuple[np.ndarray, PackedRow]]:
        first = 0
        for group in groups:
            if stop is not None and stop.received is not None:
                return
            yield np.arange(first, first + len(group)), packed_rows(split, group)[0]
            first += len(group)

    def predict(row: PackedRow) -> Tensor:
        with autocast(device.type, dtype):
            return model(row.to(device))

    return predict_logits(predict, batches(), sum(map(len, groups)), num_classes)


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
        self.dtype = dtype
        self.max_tokens = max_tokens

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        max_tokens: int = EVALUATION_TOKENS,
        mapped: bool = False,
    ) -> XNLIClassifier:
        """The model of a NAME-ckpt.pt, or of the folder of a run: all that it needs.

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
        """One prediction for every (premise, hypothesis), in their order.

        A prediction does not depend on the other pairs (up to rounding). Raises DataError for a
        pair that can't be used.
        """
        return self.predict_encoded(self.encode(list(pairs)))

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """The token ids of every pair; premises are cut as in training.

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
        """Why a pair can't be used, or None."""
        return _problem_of_texts(pair) or _problem_of_tokens(pair, self.encoding)

    def predict_encoded(self, rows: Sequence[np.ndarray]) -> list[Prediction]:
        """The predictions for rows of token ids, as `encode` makes them.

        Raises EvaluationError for logits that are not finite.
        """
        if not rows:
            return []
        logits = self._logits(rows)
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError("logits are not finite: use --dtype float32")
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
        """[N, classes], float32 on the CPU: batches of like length, longest first."""
        lengths = np.array([len(row) for row in rows])
        no_labels = np.zeros(len(rows), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        spans = np.zeros((len(rows), 2), dtype=np.int32)
        split = EncodedSplit(np.concatenate(rows), offsets, spans, no_labels)
        groups = cut_by_tokens(lengths, self.max_tokens)
        logits = torch.empty(len(rows), len(self.classes))
        logits[torch.from_numpy(np.concatenate(groups))] = _logits_within_memory(
            self.model, split, groups, len(self.classes), self.dtype, None
        )
        return logits


def datasets_in_name(checkpoint: Path) -> list[str]:
    """The sets that a file was fine-tuned on by its name: NAME-ckpt.pt, or NAME+NAME-ckpt.pt."""
    return checkpoint.stem.removesuffix("-ckpt").split("+")


def model_of_saved(saved: dict, path: Path) -> GPTClassification:
    """The model in the content of a fine-tuned checkpoint; `path` is for the message of the
    RunError where the content does not fit together."""
    try:
        model = GPTClassification.from_saved(saved["config"], saved["model"])
        num_outputs = model.head["output"].out_features
        if num_outputs != len(saved["classes"]):
            raise ValueError(f"{num_outputs} outputs for {len(saved['classes'])} classes")
        return model
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _content_error(error, path) from error


def encoding_of_saved(saved: dict, path: Path) -> PairEncoding:
    """How a fine-tuned checkpoint turns pairs into tokens; errors as of `model_of_saved`."""
    try:
        return pair_encoding(saved["tokenizer"], saved["template"], saved["block_size"])
    except (KeyError, DataError) as error:
        raise _content_error(error, path) from error


def _content_error(error: Exception, path: Path) -> RunError:
    lines = str(error).splitlines()
    reason = f"no {error}" if isinstance(error, KeyError) else lines[0]
    return RunError(f"{path}: its parts do not fit together ({reason}); fine-tune anew")


def _problem_of_texts(pair: object) -> str | None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return f"expected a premise and a hypothesis, found {_shortened(pair)}"
    for name, text in zip(("premise", "hypothesis"), pair, strict=True):
        if not isinstance(text, str):
            return f"the {name} must be text, found {_shortened(text)}"
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


def _shortened(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}…"
