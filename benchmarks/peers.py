"""What `benchmarks.bench` measures the project against: public practice, the Hugging Face Trainer,
and the fastest matrix product of the machine. Also the synthetic pairs that all of them train on.

A size is (num_layers, model_dim, num_heads, vocab_size). Nothing here needs the network or files.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Trainer

Size = tuple[int, int, int, int]

NUM_CLASSES = 3
BLOCK_SIZE = 1024
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
GRAD_CLIP = 1.0

# Quantiles of the token lengths of Hindi XNLI pairs; straight lines between them have mean 62.97.
LENGTH_QUANTILES = ((0.0, 12), (0.5, 58), (0.95, 113), (0.99, 134), (1.0, 277))
ZIPF_EXPONENT = 1.15

# Trainer sorts by length within 50 batches; with 200 it has four such groups to draw from.
PEER_BATCHES = 200

MATMUL_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192)}
MATMUL_SECONDS = 1.0  # for all sizes together, unless the minimum of runs takes longer
MATMUL_MIN_RUNS = 5
MATMUL_RUN_SECONDS = 0.005  # a run repeats small products until launching them costs nothing


def synthetic_lengths(count: int, seed: int) -> np.ndarray:
    """Token lengths [count], int64, distributed as those of Hindi XNLI pairs.

    The inverse CDF is linear between `LENGTH_QUANTILES`. It is read at the midpoints of `count`
    equal slices of (0, 1), in an order drawn by `seed`: of 20,000 independent draws the 99th
    percentile would have a standard deviation of 4 %. Mean 62.97, median 58, 95th percentile 113,
    99th 134, min 12, max 277.
    """
    order = np.random.default_rng(seed).permutation(count)
    probabilities, lengths = zip(*LENGTH_QUANTILES, strict=True)
    return np.rint(np.interp((order + 0.5) / count, probabilities, lengths)).astype(np.int64)


def synthetic_ids(lengths: np.ndarray, vocab_size: int, seed: int) -> np.ndarray:
    """Return ids [sum of lengths], int64, of all pairs one after the other.

    Zipf over the whole vocabulary, the most frequent id being 0 (a BPE's ids run by frequency
    too). At 50,048 ids a step of 64 pairs touches 1,197 distinct ones (mean of 200 steps).
    """
    weights = np.arange(1, vocab_size + 1) ** -ZIPF_EXPONENT
    cumulative = np.cumsum(weights)
    draws = np.random.default_rng(seed).random(int(lengths.sum())) * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, draws, side="right"), vocab_size - 1)


class _PaddedBlock(nn.Module):
    """A GPT-2 block whose attention scores are materialised."""

    def __init__(self, model_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(model_dim)
        self.qkv = nn.Linear(model_dim, 3 * model_dim)
        self.out = nn.Linear(model_dim, model_dim)
        self.norm_2 = nn.LayerNorm(model_dim)
        self.up = nn.Linear(model_dim, 4 * model_dim)
        self.down = nn.Linear(4 * model_dim, model_dim)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return [B, T, D] for x [B, T, D]; hidden [B, 1, T, T] is true where a query sees no
        key."""
        x = x + self._attention(self.norm_1(x), hidden)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))

    def _attention(self, x: Tensor, hidden: Tensor) -> Tensor:
        B, T, D = x.shape
        heads = self.qkv(x).view(B, T, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, d] each
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, T]
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        return self.out((weights.to(v.dtype) @ v).transpose(1, 2).reshape(B, T, D))


class _PaddedClassifier(nn.Module):
    """Token and position embeddings, blocks, and a linear head on the last real token."""

    def __init__(self, size: Size):
        super().__init__()
        num_layers, model_dim, num_heads, vocab_size = size
        self.tokens = nn.Embedding(vocab_size, model_dim)
        self.positions = nn.Embedding(BLOCK_SIZE, model_dim)
        self.blocks = nn.ModuleList(_PaddedBlock(model_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(model_dim)
        self.head = nn.Linear(model_dim, NUM_CLASSES)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return logits [B, classes] for input_ids [B, T], lengths [B]."""
        B, T = input_ids.shape
        positions = torch.arange(T, device=input_ids.device)
        future = positions[None, :] > positions[:, None]  # [T, T]
        padding = positions[None, :] >= lengths[:, None]  # [B, T]
        hidden = future | padding[:, None, None, :]  # [B, 1, T, T]
        x = self.tokens(input_ids) + self.positions(positions)
        for block in self.blocks:
            x = block(x, hidden)
        last = x[torch.arange(B, device=x.device), lengths - 1]  # [B, D]
        return self.head(self.norm(last))


class PublicPractice:
    """What public fine-tuning scripts do: every pair padded to 1,024 tokens, plain attention.

    The network has the layers, width and heads of the size, not the project's mathematics. The
    forward and backward passes cost the same for every pair; clipping and AdamW cost the same
    for every step, however many pairs it has.
    """

    def __init__(self, size: Size, dtype: torch.dtype, device: str, rows: int = 4):
        """Take `rows` pairs in a micro-batch."""
        self.dtype, self.device, self.rows = dtype, torch.device(device), rows
        self.model = _PaddedClassifier(size).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)

    def step(self, lengths: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
        """Do one optimizer step on N pairs: lengths [N], ids [sum of lengths], labels [N]."""
        pieces = np.split(ids, np.cumsum(lengths)[:-1])
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(lengths), self.rows):
            chosen = slice(start, start + self.rows)
            loss = self._summed_loss(pieces[chosen], labels[chosen]) / len(lengths)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _summed_loss(self, pairs: Sequence[np.ndarray], labels: np.ndarray) -> Tensor:
        padded = _padded([torch.from_numpy(pair) for pair in pairs], BLOCK_SIZE, 0)
        lengths = torch.tensor([len(pair) for pair in pairs], device=self.device)
        enabled = self.dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled):
            logits = self.model(padded.to(self.device), lengths)
        targets = torch.from_numpy(labels).to(self.device)
        return F.cross_entropy(logits.float(), targets, reduction="sum")


def _padded(rows: Sequence[Tensor], width: int, padding: int) -> Tensor:
    """Return rows of any length as [rows, width], filled with `padding` on the right."""
    filled = torch.full((len(rows), width), padding, dtype=torch.long)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


class PeerRun(NamedTuple):
    """The timed steps of a run."""

    seconds: list[float]  # a step, reading and padding its data included
    tokens: list[int]  # a step, real ones: padding not counted
    pairs: int  # a step


class HuggingFacePeer:
    """`transformers.Trainer` on `GPT2ForSequenceClassification`, with what a careful user sets.

    SDPA, batches of similar lengths padded to their longest, autocast, fused AdamW. In the
    peer's favour there is no dropout, GELU is the fused kernel of the same function as GPT-2's
    own, and pairs lie tokenised in memory.
    """

    def __init__(self, size: Size, dtype: torch.dtype, device: str, pairs: int = 64, seed: int = 0):
        """Take `pairs` in a step. Raises ImportError where transformers or accelerate is
        missing."""
        missing = [n for n in ("transformers", "accelerate") if importlib.util.find_spec(n) is None]
        if missing:
            raise ImportError(
                f"{' and '.join(missing)} missing, which only the benchmark's Hugging Face peer "
                "needs: pip install transformers accelerate"
            )
        # GPT-2's classifier takes the last id that is not padding for the end of a pair: no pair
        # holds this one.
        self._collator = _Collator(padding=size[3] - 1)
        self._stamps: list[float] = []
        self._folder = tempfile.TemporaryDirectory()
        self._trainer = _trainer(
            size, dtype, device, pairs, seed, self._folder.name, self._collator, self._stamps
        )

    def run(self, num_steps: int) -> PeerRun:
        """Train `num_steps` steps (at most 200) after an untimed one; the weights are kept.

        The batches are Trainer's own, `num_steps` of its epoch of 200, evenly from long to short:
        it visits them in that order, so a few in a row would not have the mean length. That
        mostly leaves out the widest, in the peer's favour: at 64 pairs and 5 to 20 steps it pads
        by about 2 %, over the whole epoch by 5 %.
        """
        assert num_steps <= PEER_BATCHES, num_steps
        self._stamps.clear()
        self._collator.tokens.clear()
        self._trainer.args.max_steps = 1 + num_steps
        self._trainer.train()
        seconds = np.diff(self._stamps).tolist()
        pairs = self._trainer.args.per_device_train_batch_size
        return PeerRun(seconds, self._collator.tokens[1:], pairs)


class _Collator:
    """Pads pairs to the longest of a batch and notes the real tokens of every batch."""

    def __init__(self, padding: int):
        self.padding = padding
        self.tokens: list[int] = []

    def __call__(self, pairs: list[dict]) -> dict[str, Tensor]:
        rows = [pair["input_ids"] for pair in pairs]
        lengths = torch.tensor([len(row) for row in rows])
        self.tokens.append(int(lengths.sum()))
        width = int(lengths.max())
        return {
            "input_ids": _padded(rows, width, self.padding),  # [B, T]
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),  # [B, T]
            "labels": torch.tensor([pair["labels"] for pair in pairs]),  # [B]
        }


def _trainer(
    size: Size,
    dtype: torch.dtype,
    device: str,
    pairs: int,
    seed: int,
    folder: str,
    collator: _Collator,
    stamps: list[float],
) -> Trainer:
    """Return a Trainer that appends the time at the end of every step to `stamps`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    on_cpu = torch.device(device).type == "cpu"

    class SpreadTrainer(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Sequence[dict] | None = None) -> list[int]:
            order = np.array(list(super()._get_train_sampler(train_dataset)))
            lengths = np.array([len(pair["input_ids"]) for pair in self.train_dataset])
            return _spread_batches(order.reshape(-1, pairs), lengths, self.args.max_steps - 1)

    class StepClock(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if not on_cpu:
                torch.cuda.synchronize()
            stamps.append(time.perf_counter())

    trainer = SpreadTrainer(
        model=_gpt2(size, dtype),
        args=transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=pairs,
            train_sampling_strategy="group_by_length",
            bf16=dtype is torch.bfloat16,
            fp16=dtype is torch.float16,
            use_cpu=on_cpu,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=GRAD_CLIP,
            lr_scheduler_type="constant",
            seed=seed,
            dataloader_num_workers=0,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=collator,
        train_dataset=_synthetic_pairs(pairs * PEER_BATCHES, size[3] - 1, seed),
        callbacks=[StepClock()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _gpt2(size: Size, dtype: torch.dtype) -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    num_layers, model_dim, num_heads, vocab_size = size
    model = GPT2ForSequenceClassification(
        GPT2Config(
            n_layer=num_layers,
            n_embd=model_dim,
            n_head=num_heads,
            vocab_size=vocab_size,
            n_positions=BLOCK_SIZE,
            num_labels=NUM_CLASSES,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=vocab_size - 1,
            attn_implementation="sdpa",
        )
    )

    # Autocast that silently does nothing would flatter the project.
    def require_dtype(module: nn.Module, inputs: object, output: Tensor) -> None:
        handle.remove()
        if output.dtype is not dtype:
            raise RuntimeError(f"Trainer computes in {output.dtype}, not in {dtype}")

    handle = model.transformer.h[0].mlp.c_fc.register_forward_hook(require_dtype)
    return model


def _synthetic_pairs(count: int, vocab_size: int, seed: int) -> list[dict]:
    lengths = synthetic_lengths(count, seed)
    ids = torch.from_numpy(synthetic_ids(lengths, vocab_size, seed))
    labels = np.random.default_rng(seed).integers(NUM_CLASSES, size=count).tolist()
    rows = ids.split(lengths.tolist())
    return [{"input_ids": r, "labels": y} for r, y in zip(rows, labels, strict=True)]


def _spread_batches(batches: np.ndarray, lengths: np.ndarray, count: int) -> list[int]:
    """Return the longest of `batches` [n, pairs], then `count` of them evenly spread by their
    longest.

    `lengths` are those of all pairs. The longest comes first to be the untimed one: whatever
    memory the run needs is allocated there, as with Trainer's own order.
    """
    by_length = batches[np.argsort(-lengths[batches].max(axis=1), kind="stable")]
    middles = (np.arange(count) + 0.5) * len(batches) / count
    return np.concatenate([by_length[:1], by_length[middles.astype(int)]]).ravel().tolist()


def matmul_ceiling(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Median TFLOP/s of square products by size ("1024", "2048", ...), and "best", their highest.

    float32 is exact float32; on CUDA the same keys with the prefix "tf32_" allow TF32.
    """
    with _float32_precision("highest"):
        speeds = _matmul_speeds(dtype, torch.device(device))
    if torch.device(device).type == "cuda" and dtype is torch.float32:
        with _float32_precision("high"):
            tf32 = _matmul_speeds(dtype, torch.device(device))
        speeds |= {f"tf32_{key}": speed for key, speed in tf32.items()}
    return speeds


@contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul_speeds(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    sizes = MATMUL_SIZES[device.type]
    speeds = {str(n): _matmul_speed(n, dtype, device, MATMUL_SECONDS / len(sizes)) for n in sizes}
    return speeds | {"best": max(speeds.values())}


def _matmul_speed(n: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Return TFLOP/s of an [n, n] product of random numbers: the median of runs of `seconds` in
    all."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run(products: int) -> float:
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run(1)
    products = 1
    while run(products) < MATMUL_RUN_SECONDS:
        products *= 2
    times: list[float] = []
    while len(times) < MATMUL_MIN_RUNS or sum(times) < seconds:
        times.append(run(products))
    return 2 * n**3 * products / statistics.median(times) / 1e12
