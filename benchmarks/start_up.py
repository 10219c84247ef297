"""What the start of a run costs, for `benchmarks.bench`: loading a checkpoint, tokenising XNLI.

Every figure comes from a fresh process, after its imports. Run by hand with what it is to measure,
it prints JSON: `python -m benchmarks.start_up load|read FILE` or `encode FOLDER TOKENIZER CACHE`.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

import load_checkpoint_helper as loader
from model import GPTConfig, GPTFlexAttention
from scripts.make_demo import train_tokenizer
from xnli_gpt.checkpoints.reading import read_checkpoint_file
from xnli_gpt.data import demo_grammar
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding

ROOT = Path(__file__).resolve().parents[1]
READ_BYTES = 16 << 20
# Tokens of the demo's tokenizer and language are shorter than those of a real vocabulary, so that
# a pair of this many words has the 63 tokens of Hindi XNLI.
PREMISE_WORDS, HYPOTHESIS_WORDS = 29, 15


def measure_load(config: GPTConfig, rounds: int) -> dict:
    """Load a small-format file whose optimizer states are two thirds of it, from a cold page
    cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state_step000100.pt"
        _write_checkpoint(path, config)
        reads, loads = [], []
        for _ in range(rounds):
            reads.append(_fresh("read", path))
            loads.append(_fresh("load", path))
        file_bytes = path.stat().st_size
    seconds_read = statistics.median(r["seconds"] for r in reads)
    seconds_load = statistics.median(r["seconds"] for r in loads)
    return {
        "file_bytes": file_bytes,
        "model_bytes": loads[0]["model_bytes"],
        "seconds_cold_read_of_model": seconds_read,
        "seconds_load": seconds_load,
        "load_over_read": seconds_load / seconds_read,
        "anonymous_memory_over_float32_weights": max(r["anonymous_ratio"] for r in loads),
    }


def _write_checkpoint(path: Path, config: GPTConfig) -> None:
    state = GPTFlexAttention.from_config(config).state_dict()
    for name in state:
        if "embed" in name:
            state[name] = state[name].bfloat16()
    # Two moments for about every weight: what makes the optimizers two thirds of the file.
    model_bytes = sum(t.numel() * t.element_size() for t in state.values())
    moments = [torch.rand(model_bytes // 8) for _ in range(4)]
    call = (
        f"model = GPT(vocab_size={config.vocab_size}, num_layers={config.num_layers}, "
        f"num_heads={config.num_heads}, model_dim={config.model_dim}, max_seq_len=1024)\n"
    )
    optimizers = [
        {"state": {0: {"exp_avg": a, "exp_avg_sq": b}}, "param_groups": []}
        for a, b in (moments[:2], moments[2:])
    ]
    torch.save(
        {
            "step": 100,
            "code": call,
            "model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
            "optimizers": optimizers,
        },
        path,
    )


def measure_tokenising(num_pairs: int, rounds: int) -> dict:
    """Tokenise and cache as many pairs as XNLI has, then start again `rounds` times."""
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data", Path(folder) / "cache"
        tokenizer = _write_pairs(data, num_pairs)
        first = _fresh("encode", data, tokenizer, cache)
        again = [_fresh("encode", data, tokenizer, cache) for _ in range(rounds)]
    return {
        "pairs": num_pairs,
        "tokens_per_pair": first["tokens_per_pair"],
        "cores": len(os.sched_getaffinity(0)),
        "seconds_tokenise_and_cache": first["seconds"],
        "seconds_start_again": statistics.median(a["seconds"] for a in again),
    }


def _write_pairs(folder: Path, num_pairs: int) -> Path:
    """Write jsonl files of pairs of the demo's words, each premise three times; returns the
    tokenizer."""
    folder.mkdir()
    rows = [row for split in demo_grammar.nli_splits().values() for row in split]
    texts = [row[column] for row in rows for column in ("premise", "hypothesis")]
    words = " ".join(texts).split()
    generator = random.Random(0)
    for split, count in (("train", num_pairs), ("validation", 2490), ("test", 5010)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                if number % 3 == 0:
                    length = int(generator.triangular(4, 2 * PREMISE_WORDS, PREMISE_WORDS))
                    premise = " ".join(generator.choices(words, k=length))
                hypothesis = " ".join(generator.choices(words, k=HYPOTHESIS_WORDS))
                row = {
                    "premise": premise,
                    "hypothesis": hypothesis,
                    "label": NLI_CLASSES[number % 3],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    path = folder.parent / "tokenizer.json"
    train_tokenizer(texts).save(str(path))
    return path


def _fresh(*arguments: object) -> dict:
    """Run this module in a process of its own; return the JSON that it prints."""
    words = [sys.executable, "-m", "benchmarks.start_up", *map(str, arguments)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    return json.loads(done.stdout)


def cold_read(path: Path) -> dict:
    """Plain reading of the weights' bytes, in the order of the file."""
    file = read_checkpoint_file(path)
    storages = [file.storage_of(name) for name in file.weights]
    entries = {storage.start: storage.num_bytes for storage in storages}
    _drop_from_page_cache(path)
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        for offset, left in sorted(entries.items()):
            file.seek(offset)
            while left:
                left -= len(file.read(min(left, READ_BYTES)))
    return {"seconds": time.perf_counter() - started}


def cold_load(path: Path) -> dict:
    """Time `load_pretrained_checkpoint`, with the most anonymous memory that it held on the way."""
    samples, done, before = [], threading.Event(), _anonymous_memory()

    def watch() -> None:
        while not done.wait(0.003):
            samples.append(_anonymous_memory())

    _drop_from_page_cache(path)
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    trunk, info, _ = loader.load_pretrained_checkpoint(path)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    held = max([*samples, _anonymous_memory()]) - before
    weights = sum(map(Tensor.numel, [*trunk.parameters(), trunk.lm_head_weight]))
    return {
        "seconds": seconds,
        "model_bytes": info["model_bytes"],
        "anonymous_ratio": held / (4 * weights),
    }


def encode(folder: Path, tokenizer: Path, cache: Path) -> dict:
    """Time `load_encoded` on a folder of pairs."""
    started = time.perf_counter()
    encoding = load_pair_encoding(str(tokenizer))
    data = load_encoded(DataRequest(str(folder)), encoding, cache)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens_per_pair": data.statistics["train"]["tokens_per_pair"]}


def _drop_from_page_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _anonymous_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


MEASUREMENTS = {"read": cold_read, "load": cold_load, "encode": encode}

if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](*map(Path, sys.argv[2:]))))
