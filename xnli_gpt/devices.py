"""What this machine computes natively: the fastest precision, and GPUs that torch has code for.

The fastest precision of a CPU is timed and not read off its flags: one with bfloat16 units computes
bfloat16 many times as fast as float32 (AMX), twice as fast (Zen 4), or more slowly (AVX512-BF16 of
Sapphire Rapids without AMX), and virtual machines hide some of the units.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from xnli_gpt.choices import AUTO
from xnli_gpt.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AMPERE = (8, 0)
# NVIDIA GPUs before Ampere whose float16 is faster than their float32: the P100, Volta and Turing.
FAST_FLOAT16 = ((6, 0), (7, 0), (7, 2), (7, 5))
# The last CUDA whose builds of torch have code for GPUs before Turing.
LEGACY_CUDA, TURING = "12.6", (7, 5)
# Tokens, width and repetitions of the timing: a tenth of a second on two cores.
TIMED_TOKENS, TIMED_WIDTH, REPETITIONS = 128, 512, 5
# The exact precision is kept where half of it is hardly faster.
WORTHWHILE = 0.95


@dataclass(frozen=True)
class Precision:
    """A precision to compute in, and why it is the one."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return NAMES[self.dtype]


def fastest_precision(device: torch.device) -> Precision:
    """Return the fastest precision that `device` computes natively.

    float16 is taken on GPUs before Ampere alone; it needs the loss scaled.
    """
    return _fastest_on_cpu() if device.type == "cpu" else _fastest_on_gpu(device)


def device_of(name: str | None, among_ranks: bool = False) -> torch.device:
    """Return the device that is named, by itself a GPU where there is one.

    Raises UsageError: a GPU that was asked for is never replaced by a CPU.
    """
    device = _named_device(name)
    if device.type == "cpu" or not among_ranks:
        return device
    if device.index is not None:
        raise UsageError([f"`device` {name}: every rank has its own GPU; say cuda"])
    return torch.device("cuda", torch.cuda.current_device())


def _named_device(name: str | None) -> torch.device:
    if name is None:
        return _with_code(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError([f"`device` {name}: expected cpu, cuda or cuda:N"]) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError([f"`device` {name}: expected cpu, cuda or cuda:N"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            [
                f"`device` {name}: no CUDA device here; ask the scheduler for a GPU, "
                "or say `device` cpu"
            ]
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError([f"`device` {name}: only {torch.cuda.device_count()} here"])
    return _with_code(device)


def _with_code(device: torch.device) -> torch.device:
    if device.type == "cuda" and (reason := why_without_code(device)) is not None:
        raise UsageError([f"`device` {device}: {reason}, or say `device` cpu"])
    return device


def precision_of(name: str | None, device: torch.device) -> Precision:
    """Return the precision that is named; auto, or None, is the fastest that `device` computes
    natively."""
    if name in (None, AUTO):
        return fastest_precision(device)
    return Precision(DTYPES[name], "as asked for")


def words_about_precision(
    name: str | None, precision: Precision, device: torch.device
) -> str | None:
    """Return what was chosen by itself and why, or a warning of one that is only emulated here."""
    if name in (None, AUTO):
        return f"precision: {precision.name} ({precision.reason})"
    return emulation_warning(name, device)


def emulation_warning(name: str | None, device: torch.device) -> str | None:
    """Return a warning where a precision is named that `device` only emulates, or None."""
    reason = None if name in (None, AUTO) else why_emulated(DTYPES[name], device)
    if reason is None:
        return None
    fastest = fastest_precision(device).name
    return f"warning: {name}: {reason} and only emulates it; {fastest} is faster here"


def why_emulated(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why `device` only emulates `dtype`, or None where it computes it natively."""
    if dtype is torch.float32:
        return None
    if device.type == "cuda":
        before_ampere = torch.cuda.get_device_capability(device) < AMPERE
        emulated = dtype is torch.bfloat16 and before_ampere
    else:
        emulated = not _has_cpu_kernels(dtype)
    if not emulated:
        return None
    return f"{_device_name(device)} has no {NAMES[dtype]} units"


def why_without_code(device: torch.device) -> str | None:
    """Return why the installed torch can't compute on a GPU, with the build that can; else None.

    Code for compute capability X.Y runs on X.Z with Z >= Y; intermediate code (compute_XY) on all
    that came later (CUDA C++ programming guide, "Application compatibility").
    """
    built_for = torch.cuda.get_arch_list()
    with warnings.catch_warnings():
        # torch says the same in a dozen lines, and goes on.
        warnings.simplefilter("ignore")
        capability = torch.cuda.get_device_capability(device)
    # ROCm's architectures have names of another kind, and are found by its own runtime.
    if torch.version.cuda is None or any(_runs_on(arch, capability) for arch in built_for):
        return None
    has = ", ".join(built_for) or "none"
    advice = (
        f"install the build of torch for CUDA {LEGACY_CUDA} (cu{LEGACY_CUDA.replace('.', '')})"
        if capability < TURING
        else "install a newer torch"
    )
    return (
        f"torch {torch.__version__} has no code for {torch.cuda.get_device_name(device)} "
        f"(compute capability {capability[0]}.{capability[1]}; it has {has}): {advice}"
    )


def keep_compiled_code_apart() -> None:
    """Give torch.compile a cache folder for CPUs like this one, within the one it has.

    Nothing in the cache says how wide the vectors are that its code was written for: on a
    shared file system, code of a node with AVX2 is taken by one with AVX512, where it writes beyond
    its arrays, and code of one with AMX by one without.
    """
    default = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
    base = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(default)
    own = f"cpu-{_kind_of_cpu()}"
    if Path(base).name != own:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(base) / own)


@lru_cache(maxsize=1)
def _kind_of_cpu() -> str:
    """Return a name that CPUs with other instructions, or other limits of them, do not share."""
    flags = platform.processor()
    with suppress(OSError):
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        flags = "\n".join(re.findall(r"^(?:flags|Features)\s*:.*$", described, re.MULTILINE)[:1])
    facts = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    kind, _, digits = arch.partition("_")
    # Code for sm_90a or sm_100f runs on that very GPU.
    number = int("".join(filter(str.isdigit, digits)) or 0)
    built = divmod(number, 10)
    if kind == "compute":
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def _fastest_on_gpu(device: torch.device) -> Precision:
    name, capability = _device_name(device), torch.cuda.get_device_capability(device)
    if capability >= AMPERE:
        return Precision(torch.bfloat16, f"{name} computes it natively")
    if capability in FAST_FLOAT16:
        return Precision(torch.float16, f"{name} has no bfloat16 units; the loss is scaled")
    return Precision(torch.float32, f"{name} computes nothing shorter fast")


# Timed once a process: a second timing could come out otherwise.
@lru_cache(maxsize=1)
def _fastest_on_cpu() -> Precision:
    if not _has_cpu_kernels(torch.bfloat16):
        return Precision(torch.float32, "this CPU has no bfloat16 units")
    exact, half = _seconds_of_steps([torch.float32, torch.bfloat16])
    if half < WORTHWHILE * exact:
        return Precision(torch.bfloat16, f"timed {exact / half:.1f} times as fast as float32 here")
    return Precision(torch.float32, f"timed {half / exact:.1f} times as fast as bfloat16 here")


def _has_cpu_kernels(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has kernels of its own for `dtype` on this CPU, within the limits that
    it is given (ONEDNN_MAX_CPU_ISA). Without, torch computes products value by value."""
    asked = "bf16" if dtype is torch.bfloat16 else "fp16"
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{asked}_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()


def _block_step(dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that goes forward and backward through a block's MLP once."""
    generator = torch.Generator().manual_seed(0)
    D = TIMED_WIDTH

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = random(TIMED_TOKENS, D)  # [T, D]
    up, down = random(4 * D, D).requires_grad_(), random(D, 4 * D).requires_grad_()

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            hidden = F.linear(F.rms_norm(x, (D,)), up).relu().square()  # [T, 4D]
            y = F.linear(hidden, down)  # [T, D]
        y.sum().backward()

    return step


@torch.inference_mode(False)
@torch.enable_grad()
def _seconds_of_steps(dtypes: Sequence[torch.dtype]) -> list[float]:
    """Return the least time that one thread computes for a step in each, taken in turn.

    Not the time that passes: a run would get another precision because of its neighbours.
    """
    steps = [_block_step(dtype) for dtype in dtypes]
    times: list[list[float]] = [[] for _ in steps]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(REPETITIONS + 1):
        for step, own in zip(steps, times, strict=True):
            started = time.thread_time()
            step()
            own.append(time.thread_time() - started)
    torch.set_num_threads(threads)
    # The first generates code.
    return [min(own[1:]) for own in times]


def _device_name(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
