"""Which precision a machine gets by itself, and what is said of one that it only emulates."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import small_run
import torch
from shell import ROOT

import finetune_hindi_xnli as finetune
from xnli_gpt import devices
from xnli_gpt.errors import EXIT_INTERRUPTED, UsageError
from xnli_gpt.training.distributed import ALONE
from xnli_gpt.training.resumption import Identity, Resumption

# Not the one that the tests' settings put in its place.
REALLY_TIME = devices._seconds_of_steps
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
# What the builds for CUDA 13.0 and 12.6 say of themselves.
TODAYS_BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
LEGACY_BUILD = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def gpu(monkeypatch, capability, built_for=TODAYS_BUILD, name="A GPU"):
    """torch tells of one GPU of this capability."""
    told = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: name,
        "get_arch_list": lambda: list(built_for),
    }
    for function, value in told.items():
        monkeypatch.setattr(torch.cuda, function, value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 0), torch.float16),
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_gpus_get_what_they_compute_natively(monkeypatch, capability, dtype):
    gpu(monkeypatch, capability)
    assert devices.fastest_precision(GPU).dtype is dtype


def test_a_precision_that_a_gpu_emulates_is_told_with_the_faster_one(monkeypatch):
    gpu(monkeypatch, (7, 0), name="Tesla V100")
    warning = devices.emulation_warning("bfloat16", GPU)
    assert warning.startswith("warning:") and "Tesla V100" in warning and "float16" in warning
    assert devices.emulation_warning("float16", GPU) is None
    assert devices.emulation_warning("auto", GPU) is None


def timed(monkeypatch, exact, half, has_units=True):
    """A CPU on which a step takes so many seconds in float32 and in bfloat16."""
    monkeypatch.setattr(devices, "_has_cpu_kernels", lambda dtype: has_units)
    monkeypatch.setattr(devices, "_seconds_of_steps", lambda dtypes: [exact, half])
    devices._fastest_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("exact", "half", "dtype", "told"),
    [
        (4.0, 1.0, torch.bfloat16, "4.0 times"),
        (1.0, 1.5, torch.float32, "1.5 times"),
        (1.0, 0.98, torch.float32, "1.0 times"),
    ],
)
def test_a_cpu_with_bfloat16_units_gets_what_is_faster(monkeypatch, exact, half, dtype, told):
    timed(monkeypatch, exact, half)
    precision = devices.fastest_precision(CPU)
    assert precision.dtype is dtype and told in precision.reason


def test_a_cpu_without_bfloat16_units_gets_float32_untimed(monkeypatch):
    timed(monkeypatch, 4.0, 1.0, has_units=False)
    precision = devices.fastest_precision(CPU)
    assert precision.dtype is torch.float32 and "no bfloat16 units" in precision.reason
    for name in ("bfloat16", "float16"):
        assert "float32 is faster" in devices.emulation_warning(name, CPU)
    assert devices.emulation_warning("float32", CPU) is None


def test_the_timing_is_real_and_takes_no_gradient_mode_for_granted():
    with torch.inference_mode():
        exact, half = REALLY_TIME([torch.float32, torch.float32])
    assert exact > 0 and half > 0


def test_the_limits_that_libraries_are_given_count():
    """The AVX2 machine, on any other: the units are there, but out of reach."""
    words = "import torch; from xnli_gpt.devices import fastest_precision as f; "
    words += "p = f(torch.device('cpu')); print(p.name, '-', p.reason)"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=ROOT,
        env=os.environ | limits,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "float32 - this CPU has no bfloat16 units"


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 1), (13, 0)])
def test_gpus_that_torch_has_code_for_are_taken(monkeypatch, capability):
    gpu(monkeypatch, capability)
    assert devices.why_without_code(GPU) is None
    assert devices.device_of(None) == torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "built_for", "advice"),
    [
        ((7, 0), TODAYS_BUILD, "build of torch for CUDA 12.6 (cu126)"),
        ((6, 1), TODAYS_BUILD, "build of torch for CUDA 12.6 (cu126)"),
        ((10, 0), LEGACY_BUILD, "install a newer torch"),
        ((12, 0), LEGACY_BUILD, "install a newer torch"),
    ],
)
@pytest.mark.parametrize("name", [None, "cuda", "cuda:0"])
def test_a_gpu_without_code_is_one_line_with_the_build(
    monkeypatch, capability, built_for, advice, name
):
    gpu(monkeypatch, capability, built_for, name="Tesla V100-SXM2-16GB")
    with pytest.raises(UsageError) as refused:
        devices.device_of(name)
    (problem,) = refused.value.problems
    assert "Tesla V100-SXM2-16GB" in problem and advice in problem
    assert "`device` cpu" in problem and "\n" not in problem


def test_the_legacy_build_takes_old_gpus(monkeypatch):
    for capability in ((6, 1), (7, 0), (7, 2)):
        gpu(monkeypatch, capability, LEGACY_BUILD)
        assert devices.why_without_code(GPU) is None


COMPILED = """
import torch
from xnli_gpt.devices import keep_compiled_code_apart
keep_compiled_code_apart()
x = torch.arange(1001.0)
compiled = torch.compile(lambda x: (x * 2 + 1).relu(), dynamic=True)
assert torch.equal(compiled(x), x * 2 + 1)
import os
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")
def test_two_kinds_of_cpu_share_a_folder_of_compiled_code_but_no_code(tmp_path):
    """As nodes with AVX2 and with AVX512 do; each other's code would write beyond its arrays."""
    shared = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    folders = [
        subprocess.run(
            [sys.executable, "-c", COMPILED],
            cwd=ROOT,
            env=shared | limits,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for limits in ({"ATEN_CPU_CAPABILITY": "default"}, {}, {})
    ]
    first, second, again = map(pathlib.Path, folders)
    assert first != second == again and first.parent == second.parent == tmp_path
    assert list(first.rglob("*.so")) and list(second.rglob("*.so"))


def run(assets, out_dir, *changes):
    words = small_run.command(assets, out_dir, "--max_steps", 4, "--eval_interval", 2, *changes)
    return finetune.main(words)


def test_a_run_says_which_precision_it_took_and_a_resumed_one_keeps_it(
    assets, tmp_path, monkeypatch, capsys
):
    """The job comes back on a node with other units."""
    timed(monkeypatch, 1.0, 2.0)
    auto = ("--dtype", "auto", "--save_interval", 2)
    monkeypatch.setattr(finetune, "score_best", stop)
    assert run(assets, tmp_path / "out", *auto) == EXIT_INTERRUPTED
    assert "precision: float32 (timed 2.0 times" in capsys.readouterr().out
    monkeypatch.undo()
    timed(monkeypatch, 2.0, 1.0)
    assert run(assets, tmp_path / "out", *auto) == 0
    said = capsys.readouterr().out
    assert "precision: float32 (that of the run which goes on)" in said
    assert finetune.main(small_run.command(assets, tmp_path / "new", "--prepare_only")) == 0
    assert "precision:" not in capsys.readouterr().out


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_precision_of_the_save_decides_the_scaler(monkeypatch):
    """float16 of a V100 goes on with its scaler where bfloat16 would be taken."""
    timed(monkeypatch, 2.0, 1.0)
    identity = Identity({"dtype": "bfloat16"}, {}, "", 1)
    precision = devices.fastest_precision(CPU)
    resumption = Resumption(None, "auto", identity, precision, keeps_precision=True, ranks=ALONE)
    resumption._keep_precision({"dtype": "float16"})
    assert resumption.precision.dtype is torch.float16
    assert resumption.decisive == {"dtype": "float16"}
    resumption.keeps_precision = False
    resumption._keep_precision({"dtype": "float32"})
    assert resumption.precision.dtype is torch.float16, "what was asked for is compared"


@pytest.mark.parametrize("name", ["small", "medium", "demo"])
def test_shipped_recipes_leave_the_precision_to_the_machine(name):
    config, problems = finetune.COMMAND.parse(["--config", str(ROOT / f"configs/{name}.yaml")])
    assert not problems and config.machine.dtype == "auto"
