"""A fuzzer: odd, damaged and hostile inputs by the thousand, every one made from a seed alone.

    python -m tests.fuzz.fuzzing [--seconds 600] [--kind checkpoint ...] [--seed N] [--cases M]

A case either loads exactly right or gives one typed error. Anything else is a failure: another
exception, a wrong result, an executed payload, a hang, a huge allocation, words on stderr, a dead
process. `--kind K --seed N --cases 1` plays one case again.

The cases run in a worker process with limits of its own; the modules that `KINDS` names make them
and know what is right.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
ROOT = FUZZ.parents[1]
KINDS = {
    "checkpoint": ("fuzz_checkpoints", "Checkpoints"),
    "hostile": ("hostile_pickles", "HostilePickles"),
    "tokenizer": ("fuzz_tokenizers", "Tokenizers"),
    "dataset": ("fuzz_datasets", "Datasets"),
    "cache": ("fuzz_binaries", "Caches"),
    "shard": ("fuzz_binaries", "Shards"),
    "flags": ("fuzz_commands", "CommandLines"),
}
# A case takes milliseconds; the import of a library in the first one, on a busy machine, a minute.
HANG_SECONDS = float(os.environ.get("FUZZ_HANG_SECONDS", "300"))
# What a worker may map beyond what it has when the cases begin, and may really use.
ADDRESS_SPACE = 8 << 30
GROWTH = 400 << 20
LONGEST_MESSAGE = 2000
MOST_FAILURES = 20


class Wrong(Exception):
    """A case whose outcome is not one of the two that are allowed."""


class Kind:
    """One kind of input. `run` makes a case from the generator, tries it, and returns its outcome
    in a word or two; it raises where that outcome is wrong. `doing` says of what sort a case is,
    `may_say` what a library may put on stderr for it."""

    doing: str
    may_say: str | None = None

    def __init__(self, folder: Path):
        raise NotImplementedError

    def run(self, generator: random.Random) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Failure:
    """One failed case, and how to play it again."""

    kind: str
    seed: int
    what: str

    def __str__(self) -> str:
        command = f"python -m tests.fuzz.fuzzing --kind {self.kind} --seed {self.seed} --cases 1"
        return f"{command}\n{self.what}"


@dataclass
class Report:
    """What came of the cases of one kind."""

    kind: str
    outcomes: Counter = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return self.outcomes.total() + len(self.failures)

    def lines(self) -> Iterator[str]:
        """The report as a user reads it."""
        yield f"{self.kind}: {self.cases} cases in {self.seconds:.1f} s"
        yield from (f"  {count:>8} {name}" for name, count in self.outcomes.most_common())
        yield from (f"  FAILED {failure}" for failure in self.failures)


def fuzz(
    kind: str, first_seed: int, cases: int | None = None, seconds: float | None = None
) -> Report:
    """Run cases of consecutive seeds until there were `cases` of them or `seconds` are over."""
    report, started = Report(kind), time.monotonic()
    seed = first_seed
    while len(report.failures) < MOST_FAILURES:
        cases_left = math.inf if cases is None else first_seed + cases - seed
        seconds_left = math.inf if seconds is None else started + seconds - time.monotonic()
        if cases_left <= 0 or seconds_left <= 0:
            break
        seed = _run_worker(report, seed, cases_left, seconds_left)
    report.seconds = time.monotonic() - started
    return report


def _run_worker(report: Report, seed: int, cases: float, seconds: float) -> int:
    """Add what a worker reports until it ends; returns the seed that the next one begins with."""
    job = {"kind": report.kind, "seed": seed, "cases": cases, "seconds": seconds}
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            [sys.executable, str(FUZZ / "fuzzing.py"), "--worker", json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )
        in_progress: int | None = seed
        for line in worker.stdout:
            told = json.loads(line)
            in_progress = told.get("begun")
            if "outcome" in told:
                report.outcomes[told["outcome"]] += 1
                seed = told["seed"] + 1
            elif "failed" in told:
                report.failures.append(Failure(report.kind, told["seed"], told["failed"]))
                seed = told["seed"] + 1
                if len(report.failures) >= MOST_FAILURES:
                    worker.kill()
                    worker.wait()
                    return seed
        if worker.wait() == 0:
            return seed
        errors.seek(0)
        what = f"the process ended ({worker.returncode}):\n{errors.read()[-3000:]}"
    dead = seed if in_progress is None else in_progress
    report.failures.append(Failure(report.kind, dead, what))
    return dead + 1


# The worker


def work(kind: str, seed: int, cases: float, seconds: float) -> None:
    """Run cases and tell of each on the former stdout, a line of JSON when it begins and ends."""
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    last_words = os.fdopen(os.dup(2), "w")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as spoken:
        # What the code under test says, in Python or below, lands in a file.
        os.dup2(spoken.fileno(), 1)
        os.dup2(spoken.fileno(), 2)
        faulthandler.enable(last_words)
        cases_of_kind = kind_class(kind)(Path(folder))
        limits = Limits(spoken, last_words)
        end, stop_at = seed + cases, time.monotonic() + seconds
        while seed < end and time.monotonic() < stop_at:
            tell.write(json.dumps({"begun": seed}) + "\n")
            result = _run_case(cases_of_kind, kind, seed, limits)
            tell.write(json.dumps({"seed": seed, **result}) + "\n")
            seed += 1
        faulthandler.cancel_dump_traceback_later()


def kind_class(kind: str) -> type[Kind]:
    """The class of a kind in `KINDS`, or of one named as `NAME:MODULE.CLASS`."""
    for folder in (FUZZ, FUZZ.parent, ROOT):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    # One module of this name, so that there is one class `Wrong`.
    sys.modules.setdefault("fuzzing", sys.modules[__name__])
    module, name = KINDS[kind] if kind in KINDS else kind.split(":")[1].split(".")
    return getattr(importlib.import_module(module), name)


class Limits:
    """What a case may take: time, memory, and no words."""

    def __init__(self, spoken: object, last_words: object):
        self.spoken, self.last_words = spoken, last_words
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        self.most_memory = self._most_memory()

    def begin(self) -> None:
        # Its thread needs no interpreter lock: it ends a hang inside of C code as well.
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=self.last_words)
        self.most_memory = max(self.most_memory, self._most_memory())

    def problem(self, may_say: str | None) -> str | None:
        """What the case that has just run took too much of, if anything."""
        grown = self._most_memory() - self.most_memory
        if grown > GROWTH:
            return f"{grown >> 20} MiB of memory were used"
        size = os.fstat(self.spoken.fileno()).st_size
        if size:
            self.spoken.seek(0)
            words = self.spoken.read(2000).decode(errors="replace")
            self.spoken.seek(0)
            self.spoken.truncate()
            if may_say is None or may_say not in words:
                return f"said on stdout or stderr: {words}"
        return None

    @staticmethod
    def _most_memory() -> int:
        # What getrusage tells is at least what the parent had.
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def _run_case(cases_of_kind: Kind, kind: str, seed: int, limits: Limits) -> dict[str, str]:
    limits.begin()
    with warnings.catch_warnings(record=True) as warned:
        _show_what_a_user_sees()
        try:
            outcome = cases_of_kind.run(random.Random(f"{kind} {seed}"))
        # A panic of Rust code is no Exception.
        except BaseException as error:
            told = str(error) if type(error) is Wrong else traceback.format_exc()[-4000:]
            return {"failed": f"{cases_of_kind.doing}: {told}"}
    problem = f"warned: {warned[0].message}" if warned else limits.problem(cases_of_kind.may_say)
    if problem is not None:
        return {"failed": f"{cases_of_kind.doing}: {outcome}, but {problem}"}
    return {"outcome": f"{outcome}, {cases_of_kind.doing}"}


def _show_what_a_user_sees() -> None:
    warnings.resetwarnings()
    warnings.simplefilter("always")
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)


def require_good_message(error: Exception, *names: object) -> None:
    """A typed error's message is one printable line that names each of `names`."""
    message = str(error)
    if not message.isprintable() or len(message) > LONGEST_MESSAGE:
        raise Wrong(f"a message of {len(message)} characters: {ascii(message[:1000])}") from error
    missing = [str(name) for name in names if str(name) not in message]
    if missing:
        raise Wrong(f"the message does not name {missing}: {message}") from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
            raise Wrong(f"asked for more memory than {ADDRESS_SPACE >> 30} GiB") from error
        cause = cause.__cause__ or cause.__context__


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 where a case failed."""
    parser = argparse.ArgumentParser(description="Fuzz everything that reads a user's input.")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, help="for all kinds together")
    parser.add_argument("--cases", type=int, help="of every kind")
    parser.add_argument("--seed", type=int, help="of the first case; others follow")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker is not None:
        work(**args.worker)
        return 0
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    seconds = None if args.seconds is None else args.seconds / len(args.kind)
    failed = False
    for kind in args.kind:
        report = fuzz(kind, seed, args.cases, 10 if seconds is args.cases is None else seconds)
        print("\n".join(report.lines()), flush=True)
        failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
