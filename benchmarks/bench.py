"""How fast fine-tuning is, beside public practice, the Hugging Face Trainer and the machine.

    python -m benchmarks.bench [--size tiny|small|medium] [--json OUT] [--device cuda] [--only PART]

Steps on pairs with the lengths of Hindi XNLI, every contestant in a process of its own and in
turn, medians over rounds; then loading a checkpoint, and tokenising and caching a whole XNLI.
Useful TFLOP/s are 6 × non-embedding parameters × real tokens, whatever a contestant pads or
leaves out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks import peers, start_up
from model import (
    GPTBatched,
    GPTClassification,
    GPTConfig,
)
from xnli_gpt.data.encoded import EncodedSplit, offsets_of, pack
from xnli_gpt.data.options import DataOptions
from xnli_gpt.data.packing import packed_rows, rows_sharing_premises
from xnli_gpt.data.premises import premises_of
from xnli_gpt.evaluation.logits import Inference, split_logits
from xnli_gpt.fine_tuning.attention import fastest_attention
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.network.grouped_attention import GroupedAttention
from xnli_gpt.processors import set_up_libraries
from xnli_gpt.training.batches import StepBatches
from xnli_gpt.training.distributed import ALONE
from xnli_gpt.training.graphs import step_graphs_of
from xnli_gpt.training.memory import find_max_tokens
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.options import RecipeOptions, TrainingMachineOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.step import TableGradients, apply_gradient, loss_of
from xnli_gpt.training.trainer import Trainer

SIZES = {
    "tiny": ("small", 12, 256, 2, 8192),
    "small": ("small", 12, 768, 6, 50048),
    "medium": ("medium", 16, 1024, 8, 50048),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
MEAN_TOKENS = 63
# Of the tokens of a Hindi XNLI pair.
PREMISE_SHARE = 0.68
MOST_STEPS = 1 << 16
XNLI_PAIRS = 392_702
PARTS = ("steps", "load", "tokenise")
# Public practice costs the same for every pair, so two numbers of pairs tell the cost of all.
PUBLIC_PAIRS = {"tiny": (4, 16), "small": (4, 12), "medium": (2, 6)}
# Libraries generate code for every new shape; a run of thousands of steps has met nearly all.
WARM_UP_SECONDS = {"cpu": 30, "cuda": 10}
# Of memory; with less of it left the next contestant might be ended by the system.
FREE_BYTES = 6 << 30
SAMPLE_STEPS = {"cpu": 5, "cuda": 20}


@dataclass(frozen=True)
class Contest:
    """What is measured, in plain values that a process can be handed."""

    size: str
    pairs: int
    device: str
    dtype: str
    embedding_update: str = "exact"
    compiled: bool = True
    group_premises: bool = False

    @property
    def peer_size(self) -> peers.Size:
        _, num_layers, model_dim, num_heads, vocab_size = SIZES[self.size]
        return num_layers, model_dim, num_heads, vocab_size


class Contestant:
    """What all have in common."""

    def __init__(self, contest: Contest):
        self.contest, self.device = contest, torch.device(contest.device)

    def memory(self) -> dict:
        return {"peak_bytes": peak_memory(self.device)}


class Ours(Contestant):
    """The project's own training loop, as `finetune_hindi_xnli.py` runs it: its order, its
    preparation ahead, its pinned memory."""

    def __init__(self, contest: Contest):
        super().__init__(contest)
        dtype = DTYPES[contest.dtype]
        model = new_model(contest.size).to(self.device)
        self.model, trunk = model, model.pretrained_model
        self.pairs = Pairs(contest, seed=1)
        options = RecipeOptions(group_premises=contest.group_premises)
        trunk.row_attention = fastest_attention(
            trunk.config, options, self.device, dtype, int(self.pairs.split.lengths.max())
        )
        optimizer = configure_optimizers(
            self.device.type, model, embedding_update=contest.embedding_update
        )
        optimizer.allocate()
        recipe = Recipe(
            **vars(options),
            examples_per_step=contest.pairs,
            num_steps=MOST_STEPS,
            eval_interval=1 << 40,
            dtype=dtype,
        )
        if contest.compiled:
            compile_trunk(trunk)
        self.trainer = Trainer(
            model,
            optimizer,
            torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16),
            recipe,
            self.pairs.examples(),
            Unscored(),
        )
        self.trainer.graphs = step_graphs_of(
            TrainingMachineOptions(), model, optimizer, recipe, self.trainer.examples, ALONE
        )
        few = self.pairs.examples(np.arange(min(contest.pairs, 256)))
        self.trainer.state.max_tokens_per_batch = find_max_tokens(model, recipe, few)
        self.sample(3)
        warm_up(self.sample, self.device)

    def sample(self, num_steps: int) -> dict:
        """Return seconds, pairs and real tokens of `num_steps` steps, data preparation included."""
        trainer = self.trainer
        first = trainer.state.step
        trainer.recipe = replace(trainer.recipe, num_steps=first + num_steps)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train()
        synchronize(self.device)
        seconds = time.perf_counter() - started
        steps = [trainer.order.of_step(first + number) for number in range(num_steps)]
        return {
            "seconds": seconds,
            "pairs": sum(map(len, steps)),
            "tokens": sum(int(self.pairs.split.lengths[step].sum()) for step in steps),
        }

    def parts(self, num_steps: int) -> dict:
        """Median milliseconds of each part of a step."""
        times = [self._timed_step() for _ in range(num_steps)]
        return {part: 1e3 * statistics.median(t[part] for t in times) for part in times[0]}

    def evaluation(self) -> dict:
        """Return seconds of evaluating the pairs with premises computed once, and for every
        pair."""
        split, inference = self.pairs.split, Inference(self.trainer.recipe.dtype)
        apart = replace(split, premise_spans=np.zeros_like(split.premise_spans))
        seconds = {}
        for name, pairs in (("once", split), ("for every pair", apart)):
            started = time.perf_counter()
            split_logits(self.model, pairs, peers.NUM_CLASSES, inference)
            seconds[name] = time.perf_counter() - started
        self.model.train()
        return seconds

    def padding(self) -> dict:
        """Return shares of the arithmetic: of a step spent on padding, over 50 steps."""
        shares = [self._padding_of_step() for _ in range(50)]
        return {"padding_share": float(np.mean(shares)), "padding_share_max": max(shares)}

    def _next_step(self) -> StepBatches:
        trainer = self.trainer
        batches = trainer.cutter.batches(
            trainer.state.step,
            trainer.order.of_step(trainer.state.step),
            trainer.state.max_tokens_per_batch,
        )
        trainer.state.step += 1
        return batches

    def _timed_step(self) -> dict[str, float]:
        clock, trainer = Clock(self.device), self.trainer
        batches = self._next_step()
        clock.lap("data")
        trainer.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        tables = TableGradients(self.model, batches.table_rows.to(self.device))
        for number, batch in enumerate(batches.micro_batches):
            loss = loss_of(batch, batches.total_weight, self.model, trainer.recipe)
            clock.lap("forward")
            trainer.scaler.scale(loss).backward()
            tables.take(number)
            total += loss.detach()
            clock.lap("backward")
        tables.hand_over()
        apply_gradient(trainer.optimizer, trainer.scaler, trainer.recipe, total)
        clock.lap("clip and update")
        return clock.laps

    def _padding_of_step(self) -> float:
        """Count what padding costs. Products with weights cost 24·D² a token and block, scores
        4·T·D a row of T and token (and what the last block leaves out is left out of both)."""
        config = self.model.pretrained_model.config
        batches = self._next_step()
        D, blocks = config.model_dim, config.num_layers - 1
        spent = useful = 0.0
        for batch in batches.micro_batches:
            row = batch.inputs
            attention = sum(
                4 * D * group.real.numel() * group.width
                for group in GroupedAttention(config, row).groups
            )
            examples = np.array(row.seq_lens[: len(row.last_token_idx)], dtype=float)
            spent += blocks * (24 * D * D * sum(row.seq_lens) + attention)
            useful += blocks * (24 * D * D * examples.sum() + 4 * D * np.square(examples).sum())
        return 1 - useful / spent


class Clock:
    """Adds up the time between laps, by name."""

    def __init__(self, device: torch.device):
        self.device, self.laps, self.last = device, {}, time.perf_counter()

    def lap(self, name: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


class Unscored:
    """A validation that says nothing, as one that a signal breaks off."""

    def evaluate(self, model: torch.nn.Module) -> None:
        return None


class Pairs:
    """Synthetic pairs, three hypotheses a premise: those of 66 steps."""

    def __init__(self, contest: Contest, seed: int):
        vocab_size = SIZES[contest.size][-1]
        self.contest, self.step = contest, 0
        lengths = peers.synthetic_lengths(66 * contest.pairs, seed)
        self.split = split_of_premises(lengths, vocab_size, seed)

    def next_indices(self) -> np.ndarray:
        self.step += 1
        first = (self.step - 1) * self.contest.pairs % len(self.split)
        return np.arange(first, first + self.contest.pairs)

    def examples(self, indices: np.ndarray | slice = slice(None)) -> Examples:
        rows = np.arange(len(self.split))[indices]
        groups = self.contest.group_premises
        row_of = rows_sharing_premises if groups else packed_rows
        return Examples(
            self.split.lengths[rows],
            self.split.labels[rows],
            lambda chosen: row_of(self.split, rows[chosen]),
            premises=premises_of(self.split, rows) if groups else None,
        )


def split_of_premises(lengths: np.ndarray, vocab_size: int, seed: int) -> EncodedSplit:
    """Return pairs of `lengths` tokens, each three of which have their premise in common.

    It has `PREMISE_SHARE` of their tokens, and leaves every hypothesis three.
    """
    lengths = np.sort(lengths[: len(lengths) // 3 * 3])
    of_three = lengths.reshape(-1, 3)
    premises = np.minimum(PREMISE_SHARE * of_three.mean(axis=1), of_three.min(axis=1) - 3)
    premises = premises.astype(np.int64)
    ids, offsets = peers.synthetic_ids(lengths, vocab_size, seed), offsets_of(lengths)
    for number, premise in enumerate(premises):
        first, *others = offsets[3 * number : 3 * number + 3]
        for other in others:
            ids[other : other + premise] = ids[first : first + premise]
    spans = np.stack([np.zeros(len(lengths), dtype=np.int64), premises.repeat(3)], axis=1)
    labels = np.arange(len(lengths)) % peers.NUM_CLASSES
    return EncodedSplit(ids, offsets, spans.astype(np.int32), labels)


class Public(Contestant):
    """Public practice on a step of all pairs, from the time of steps of a few."""

    def __init__(self, contest: Contest):
        super().__init__(contest)
        self.peer = peers.PublicPractice(contest.peer_size, DTYPES[contest.dtype], contest.device)
        self.stream = Pairs(contest, seed=2)
        self._seconds(PUBLIC_PAIRS[contest.size][0])

    def sample(self, _: int) -> dict:
        few, more = PUBLIC_PAIRS[self.contest.size]
        seconds_few, seconds_more = self._seconds(few), self._seconds(more)
        a_pair = (seconds_more - seconds_few) / (more - few)
        seconds = seconds_few + (self.contest.pairs - few) * a_pair
        return {"seconds": seconds, "tokens": self.contest.pairs * MEAN_TOKENS}

    def _seconds(self, count: int) -> float:
        ids, lengths, labels = pack(self.stream.split, self.stream.next_indices()[:count])
        started = time.perf_counter()
        self.peer.step(lengths.numpy(), ids.numpy(), labels.numpy())
        synchronize(self.device)
        return time.perf_counter() - started


class HuggingFace(Contestant):
    """The Trainer's own loop."""

    def __init__(self, contest: Contest):
        super().__init__(contest)
        self.peer = peers.HuggingFacePeer(
            contest.peer_size, DTYPES[contest.dtype], contest.device, contest.pairs
        )
        warm_up(self.sample, self.device)

    def sample(self, num_steps: int) -> dict:
        run = self.peer.run(num_steps)
        return {"seconds": sum(run.seconds), "tokens": sum(run.tokens)}


class Ceiling(Contestant):
    """The machine's fastest square matrix product."""

    def sample(self, _: int) -> dict:
        return peers.matmul_ceiling(DTYPES[self.contest.dtype], self.contest.device)


CONTESTANTS: dict[str, Callable[[Contest], object]] = {
    "ours": Ours,
    "public": Public,
    "hugging face": HuggingFace,
    "matmul": Ceiling,
}


def warm_up(sample: Callable[[int], dict], device: torch.device) -> None:
    started = time.perf_counter()
    while time.perf_counter() - started < WARM_UP_SECONDS[device.type]:
        sample(8)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def new_model(size: str) -> GPTClassification:
    """Return a random network of a size; the projections back are not zero, as after
    pretraining."""
    config = config_of_size(size)
    torch.manual_seed(0)
    model = GPTClassification(GPTBatched(config), peers.NUM_CLASSES)
    for name, parameter in model.named_parameters():
        if "c_proj" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def config_of_size(size: str) -> GPTConfig:
    family, num_layers, model_dim, num_heads, vocab_size = SIZES[size]
    return GPTConfig.of_family(
        family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        model_dim=model_dim,
        max_seq_len=DataOptions().block_size,
    )


def non_embedding_parameters(size: str) -> int:
    with torch.device("meta"):
        trunk = GPTBatched(config_of_size(size))
    return sum(p.numel() for name, p in trunk.named_parameters() if name.startswith("blocks."))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process held: of the GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])


def free_memory() -> int:
    """Return the bytes that this machine can still give to processes."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def serve(name: str, contest: Contest, connection: Connection) -> None:
    """Live as a process: build the contestant, then call what is asked for."""
    contestant = CONTESTANTS[name](contest)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        method, *arguments = request
        connection.send(getattr(contestant, method)(*arguments))


@contextlib.contextmanager
def set_up_as(name: str) -> Iterator[None]:
    """Set up the environment that a contestant's process starts with: ours sets up its libraries
    before it imports torch, the others take them as they are."""
    before = dict(os.environ)
    if name == "ours":
        set_up_libraries()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Runner:
    """A contestant in a process of its own, idle while others run."""

    def __init__(self, name: str, contest: Contest):
        self.name, self.contest = name, contest
        self.process = None

    def start(self) -> None:
        """Return when the contestant is warm: building it beside a measurement would disturb."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = (self.name, self.contest, other)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with set_up_as(self.name):
            self.process.start()
        other.close()
        self._answered(self.connection.recv)

    @property
    def label(self) -> str:
        extras = [self.contest.dtype]
        extras += ["lazy embeddings"] if self.contest.embedding_update == "lazy" else []
        extras += [] if self.contest.compiled else ["not compiled"]
        extras += ["premises grouped"] if self.contest.group_premises else []
        return f"{self.name}, {', '.join(extras)}"

    def ask(self, method: str, *arguments: object) -> dict:
        if self.process is None:
            say(f"starting {self.label}")
            self.start()
        self._answered(lambda: self.connection.send((method, *arguments)))
        return self._answered(self.connection.recv)

    def _answered(self, exchange: Callable[[], object]) -> object:
        """Do `exchange` with the process; raise RuntimeError where it is no longer there."""
        try:
            return exchange()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(
                f"{self.label} ended with exit code {self.process.exitcode}; -9 is what the "
                "system does where memory does not suffice"
            ) from None

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()
        self.process = None


def contests(arguments: argparse.Namespace, pairs: int) -> list[tuple[str, Contest]]:
    """Return who takes part at a size, and in which precision."""
    base = {"size": arguments.size, "pairs": pairs, "device": arguments.device}
    on_gpu = arguments.device == "cuda"
    # A CPU computes float16 no faster than float32.
    dtypes = ("bfloat16", "float16", "float32") if on_gpu else ("bfloat16", "float32")
    # At full size all of them need an hour on a CPU, and on a GPU each compiles for minutes.
    everyone = (arguments.size == "tiny" and not on_gpu) or arguments.everyone
    dtypes = dtypes if everyone else ("bfloat16",)
    chosen = [("ours", Contest(**base, dtype=dtype)) for dtype in dtypes]
    chosen.append(("ours", Contest(**base, dtype="bfloat16", group_premises=True)))
    public = [dtype for dtype in dtypes if dtype != "float16"]
    if everyone:
        chosen.append(("ours", Contest(**base, dtype="float32", group_premises=True)))
        chosen.append(("ours", Contest(**base, dtype="bfloat16", embedding_update="lazy")))
        # As runs under 300 steps are.
        chosen += [("ours", Contest(**base, dtype=dtype, compiled=False)) for dtype in public]
    chosen += [("public", Contest(**base, dtype=dtype)) for dtype in public]
    chosen += [("hugging face", Contest(**base, dtype=dtype)) for dtype in public]
    return chosen + [("matmul", Contest(**base, dtype=dtype)) for dtype in dtypes]


def say(what: str) -> None:
    """Print progress, beside the figures."""
    print(what, file=sys.stderr, flush=True)


def measure_steps(arguments: argparse.Namespace, pairs: int) -> dict:
    """Time all contestants in turn, `rounds` times; return medians, and what they come to."""
    runners = [Runner(name, contest) for name, contest in contests(arguments, pairs)]
    # At full size a CPU's memory does not hold all of them at once.
    together = arguments.device == "cuda" or arguments.size == "tiny"
    samples: dict[str, list[dict]] = {runner.label: [] for runner in runners}
    memory: dict[str, dict] = {}
    for number in range(arguments.rounds):
        for runner in runners:
            say(f"round {number + 1} of {arguments.rounds}: {runner.label}")
            samples[runner.label].append(runner.ask("sample", SAMPLE_STEPS[arguments.device]))
            memory[runner.label] = runner.ask("memory")
            if not together or free_memory() < FREE_BYTES:
                runner.stop()
    first = runners[0]
    result = {
        "pairs": pairs,
        "contestants": {},
        "parts_ms": first.ask("parts", 8),
        **first.ask("padding"),
        "evaluation_seconds": [first.ask("evaluation") for _ in range(arguments.rounds)],
    }
    for runner in runners:
        result["contestants"][runner.label] = memory[runner.label] | _summary(
            runner, samples[runner.label], non_embedding_parameters(arguments.size)
        )
        if runner.process is not None:
            runner.stop()
    _add_ratios(result["contestants"], arguments.device)
    return result


def _summary(runner: Runner, samples: list[dict], parameters: int) -> dict:
    if runner.name == "matmul":
        return {key: statistics.median(s[key] for s in samples) for key in samples[0]}
    seconds = statistics.median(sample["seconds"] / sample["tokens"] for sample in samples)
    return {
        "microseconds_per_token": 1e6 * seconds,
        "examples_per_second": 1 / (MEAN_TOKENS * seconds),
        "useful_tflops": 6 * parameters / seconds / 1e12,
        "rounds_microseconds_per_token": [1e6 * s["seconds"] / s["tokens"] for s in samples],
    }


def _add_ratios(contestants: dict[str, dict], device: str) -> None:
    for label, figures in contestants.items():
        if label.startswith("matmul"):
            continue
        dtype = next(dtype for dtype in DTYPES if dtype in label)
        figures["share_of_ceiling"] = (
            figures["useful_tflops"] / contestants[f"matmul, {dtype}"]["best"]
        )
        if label.startswith("ours"):
            speed = figures["examples_per_second"]
            figures["ratios"] = {
                other: speed / contestants[other]["examples_per_second"]
                for other in contestants
                if other.startswith(("public", "hugging"))
            }
        if device == "cuda":
            epoch = XNLI_PAIRS / figures["examples_per_second"]
            figures["epoch_seconds_extrapolated"] = epoch


def print_steps(result: dict) -> None:
    print(f"\n{result['pairs']} pairs a step; padding {100 * result['padding_share']:.1f} % of the")
    print(f"arithmetic (at most {100 * result['padding_share_max']:.1f} %)")
    print(f"{'':34}{'pairs/s':>9}{'TFLOP/s':>9}{'ceiling':>9}{'peak GB':>9}  times faster than")
    for label, figures in result["contestants"].items():
        if label.startswith("matmul"):
            print(f"{label:34}{'':9}{figures['best']:9.2f}")
            continue
        ratios = ", ".join(f"{x:.1f} {name}" for name, x in figures.get("ratios", {}).items())
        print(
            f"{label:34}{figures['examples_per_second']:9.1f}{figures['useful_tflops']:9.3f}"
            f"{figures['share_of_ceiling']:9.2f}{figures['peak_bytes'] / 1e9:9.2f}  {ratios}"
        )
    parts = ", ".join(f"{part} {ms:.0f}" for part, ms in result["parts_ms"].items())
    print(f"a step of ours in bfloat16, ms: {parts}")
    ratios = [each["for every pair"] / each["once"] for each in result["evaluation_seconds"]]
    print(f"evaluation with premises once, times faster: {statistics.median(ratios):.2f}")


def run_epoch(arguments: argparse.Namespace) -> dict:
    """Run one whole epoch of 392,702 pairs on a GPU, 256 a step."""
    contest = Contest(arguments.size, 256, "cuda", "bfloat16")
    ours = Ours(contest)
    steps = -(-XNLI_PAIRS // contest.pairs)
    return {"epoch_seconds": ours.sample(steps)["seconds"], "steps": steps}


def machine(device: str) -> dict:
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((x for x in info.read_text().splitlines() if "model name" in x), model)
    return {
        "cpu": model.split(":")[-1].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 (%(default)s)")
    parser.add_argument("--only", choices=PARTS, help="one part; all of them without it")
    parser.add_argument("--pairs", type=int, nargs="+", help="a step; 64, and 256 on a GPU")
    parser.add_argument("--everyone", action="store_true", help="all contestants at full size, too")
    parser.add_argument("--epoch", action="store_true", help="on a GPU, run a whole epoch too")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write all figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds {arguments.rounds}: a median needs at least 3")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device here")
    arguments.pairs = arguments.pairs or ([64, 256] if arguments.device == "cuda" else [64])
    return arguments


def main() -> int:
    arguments = parse_arguments()
    report: dict = {"machine": machine(arguments.device), "size": arguments.size}
    print(json.dumps(report["machine"]))
    wanted = [arguments.only] if arguments.only else PARTS
    if "steps" in wanted:
        report["steps"] = []
        for pairs in arguments.pairs:
            report["steps"].append(measure_steps(arguments, pairs))
            print_steps(report["steps"][-1])
        if arguments.epoch and arguments.device == "cuda":
            report["epoch"] = run_epoch(arguments)
            print(json.dumps(report["epoch"]))
    if "load" in wanted:
        report["load"] = start_up.measure_load(config_of_size("small"), arguments.rounds)
        print(json.dumps({"load": report["load"]}, indent=1))
    if "tokenise" in wanted:
        report["tokenise"] = start_up.measure_tokenising(XNLI_PAIRS, arguments.rounds)
        print(json.dumps({"tokenise": report["tokenise"]}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
