"""The SLURM scripts in a real cluster of two nodes: submitted, signalled, requeued, resumed.

`bash scripts/test.sh --with-slurm` makes the cluster, or `bash scripts/slurm_cluster.sh start`.
Jobs that are to be interrupted wait for that (tests/held_run.py), so none has to be long.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import kills
import pytest
import small_run
from limits import HANG_S
from shell import ROOT, make_venv

pytestmark = pytest.mark.long

STATE = Path(
    os.environ.get("SLURM_CLUSTER", Path(os.environ.get("TMPDIR", "/tmp"), "hindi_xnli_slurm"))
)
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
ONE_CPU = ("--gres=none", "--mem=100", "--cpus-per-task=1")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
STEPS = 9
HOLD_AT = 5
UNDER_WAY = kills.held_at(HOLD_AT)
RECIPE = (
    *("--device", "cpu", "--block_size", 160, "--batch_size", 6, "--compile", "never"),
    *("--gradient_accumulation_steps", 2, "--learning_rate", 1e-3, "--eval_interval", 4),
    "--no-report",
)


def problem_of_cluster() -> str | None:
    """Why the tests' own cluster can't be used; whatever other there is stays untouched."""
    configuration = STATE / "slurm.conf"
    if not configuration.exists():
        told = os.environ.get("SLURM_CLUSTER_PROBLEM")
        return told or "no SLURM cluster: scripts/test.sh --with-slurm makes one"
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        done = subprocess.run(["sinfo"], capture_output=True, text=True, timeout=HANG_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no SLURM cluster: sinfo: {error}"
    told = done.stderr.strip().splitlines() or ["sinfo failed"]
    return None if done.returncode == 0 else f"no SLURM cluster: {told[-1]}"


def slurm(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


def until(condition, what: str, told):
    """What `condition()` gives as soon as it is something; fails with `told()`."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {HANG_S} s: {what}\n{told()}")


class Job:
    """A submitted job."""

    def __init__(self, job_id: str, log: Path):
        self.id, self.log = job_id, log

    def field(self, name: str) -> str:
        shown = slurm("scontrol", "show", "job", "--oneliner", self.id)
        return re.search(rf" {name}=(\S*)", shown)[1]

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def told(self) -> str:
        """Everything that may say why a test failed."""
        daemons = [f"{path.name}:\n{path.read_text()[-3000:]}" for path in STATE.glob("*.log")]
        return "\n".join([slurm("scontrol", "show", "job", self.id), self.text(), *daemons])

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.text() or self.has_ended(), text, self.told)
        assert text in self.text(), self.told()

    def has_ended(self) -> bool:
        return self.field("JobState") in ENDED

    def wait(self, state: str = "COMPLETED") -> None:
        until(self.has_ended, "an end", self.told)
        assert self.field("JobState") == state, self.told()

    def signal(self, *words: str) -> None:
        slurm("scancel", *words, self.id)


class Cluster:
    """Submits the scripts as a user does, from the repository, with a small run's files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.assets = small_run.make_assets(folder / "assets")
        self.variables = {
            "CHECKPOINT": str(self.assets.checkpoint),
            "TOKENIZER": str(self.assets.tokenizer),
            "VENV": str(make_venv(folder / "venv")),
            "CACHE": str(folder / "cache"),
        }
        self.data = ("--dataset", self.assets.dataset)

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "HF_"))}
        return kept | self.variables | {"SLURM_CONF": str(STATE / "slurm.conf")}

    def call(self, *words: object, **variables: str) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=self.environment() | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(
        self, script: str, out_dir: Path, *options: str, flags: tuple = (), **variables: str
    ) -> Job:
        log = out_dir.with_suffix(".log")
        told = self.call(
            *("sbatch", "--parsable", f"--output={log}", *ONE_CPU, *options, f"scripts/{script}"),
            *(*self.data, *RECIPE, "--out_dir", out_dir, *flags),
            **variables,
        )
        return Job(told.strip(), log)

    def finetune(self, out_dir: Path, *options: str, flags: tuple = (), **variables: str) -> Job:
        flags = ("--max_steps", STEPS, *flags)
        return self.submit("finetune.slurm", out_dir, *options, flags=flags, **variables)

    def held(self, out_dir: Path, *options: str, flags: tuple = ()) -> Job:
        """A run that is under way, and stays so until it gets a signal."""
        job = self.finetune(out_dir, *options, flags=flags, HOLD_AT=str(HOLD_AT))
        job.wait_for(UNDER_WAY)
        return job

    def finetune_on_two_nodes(self, out_dir: Path, *flags: object, **variables: str) -> Job:
        flags = ("--max_steps", STEPS, "--batch_size", 3, *flags)
        script = "finetune_multinode.slurm"
        return self.submit(script, out_dir, *TWO_NODES, flags=flags, **variables)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What prepare.sh has prepared, so all jobs below show that it suffices."""
    problem = problem_of_cluster()
    if problem is not None:
        pytest.skip(problem)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.prepared = cluster.call("bash", "scripts/prepare.sh", *cluster.data, *RECIPE)
    return cluster


@pytest.fixture(scope="module")
def whole(cluster):
    """The out_dir of a run that nothing interrupted."""
    out_dir = cluster.folder / "whole"
    job = cluster.finetune(out_dir)
    job.wait()
    assert job.field("Restarts") == "0"
    return out_dir


@pytest.fixture(scope="module")
def whole_on_two_nodes(cluster):
    out_dir = cluster.folder / "whole_on_two_nodes"
    job = cluster.finetune_on_two_nodes(out_dir)
    job.wait()
    assert job.field("NumNodes") == "2"
    return out_dir


def assert_same(one: Path, two: Path) -> None:
    assert kills.differences(kills.outcome(one), kills.outcome(two)) == []


def steps_of(out_dir: Path) -> int:
    return json.loads((out_dir / "results.json").read_text())["steps"]


def test_prepare_fills_the_cache_and_says_what_nodes_need(cluster):
    cache = cluster.variables["CACHE"]
    assert (Path(cache) / "tokenised").is_dir()
    assert "once more, without network" in cluster.prepared
    assert f"CACHE={cache}" in cluster.prepared


# One GPU's script, on a CPU


def test_a_signalled_run_is_requeued_and_ends_like_one_left_alone(cluster, whole, tmp_path):
    job = cluster.held(tmp_path / "run")
    job.signal("--signal=USR1")
    job.wait()
    assert job.field("Restarts") == "1"
    assert "stopped and saved; requeued (restart 1)" in job.text()
    assert re.search(r"resuming \S+ after step 5\b", job.text()), job.told()
    assert_same(whole, tmp_path / "run")


def test_the_time_limit_requeues_too(cluster, tmp_path):
    """SLURM looks every half minute whose time is near: here after 30 to 60 seconds."""
    options = ("--time=2", "--signal=USR1@60")
    job = cluster.finetune(tmp_path / "run", *options, HOLD_AT=str(HOLD_AT))
    # Where a machine is so slow that the run has not begun, without "and saved".
    job.wait_for("; requeued (restart 1)")
    job.signal()
    assert re.search(r"stopped (and saved|without a new save); requeued", job.text()), job.told()


def test_a_preempted_run_is_requeued_by_slurm(cluster, whole, tmp_path):
    job = cluster.held(tmp_path / "run", "--exclusive", "--nodelist=xnli-node1")
    preempt(cluster, tmp_path)
    job.wait()
    assert job.field("Restarts") == "1"
    assert_same(whole, tmp_path / "run")


def test_a_run_that_is_given_notice_of_preemption_requeues_itself(cluster, whole, tmp_path):
    options = ("--exclusive", "--nodelist=xnli-node1", "--partition=graceful")
    job = cluster.held(tmp_path / "run", *options)
    preempt(cluster, tmp_path)
    job.wait()
    assert "stopped and saved; requeued (restart 1)" in job.text()
    assert_same(whole, tmp_path / "run")


def preempt(cluster, folder: Path) -> None:
    """A job of higher priority that wants all of the first node."""
    words = ("sbatch", "--partition=urgent", "--exclusive", "--nodelist=xnli-node1")
    cluster.call(*words, f"--output={folder / 'urgent.log'}", "--wrap=sleep 1")


def test_a_run_whose_node_dies_is_requeued_by_slurm(cluster, whole, tmp_path):
    job = cluster.held(tmp_path / "run", flags=("--save_interval", 2))
    node = job.field("BatchHost")
    kill_node(job, node)
    # SLURM would notice it after SlurmdTimeout.
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    start_node(node)
    job.wait()
    assert job.field("Restarts") == "1" and "stopped" not in job.text()
    assert re.search(r"resuming \S+ after step 4\b", job.text()), job.told()
    assert_same(whole, tmp_path / "run")


def kill_node(job: Job, node: str) -> None:
    """SIGKILL to a node's daemon, and to everything that it runs for a job."""
    os.kill(int((STATE / f"{node}.pid").read_text()), signal.SIGKILL)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            of_job = f"SLURM_JOB_ID={job.id}" in environment_of(process)
            steps = (process / "cmdline").read_text().startswith(f"slurmstepd: [{job.id}.")
            if of_job or steps:
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


def start_node(node: str) -> None:
    paths = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    slurm("env", f"PATH={paths}", "slurmd", "-N", node)


def environment_of(process: Path) -> list[str]:
    """NAME=VALUE of a process in /proc, as it was started."""
    return (process / "environ").read_bytes().decode(errors="replace").split("\0")


def test_a_cancelled_run_stays_cancelled_and_goes_on_by_hand(cluster, whole, tmp_path):
    job = cluster.held(tmp_path / "run")
    job.signal()
    job.wait("CANCELLED")
    assert "not requeued: submit the same command again" in job.text()
    cluster.finetune(tmp_path / "run").wait()
    assert_same(whole, tmp_path / "run")


def test_where_requeueing_is_off_the_log_says_what_to_do(cluster, tmp_path):
    job = cluster.held(tmp_path / "run", "--no-requeue")
    job.signal("--signal=USR1")
    job.wait("FAILED")
    assert job.field("ExitCode") == "75:0"
    assert "scontrol requeue failed: submit the same command again" in job.text()


def test_a_wrong_flag_ends_the_job_with_the_program_s_code(cluster, tmp_path):
    job = cluster.finetune(tmp_path / "run", flags=("--n_layer", 99))
    job.wait("FAILED")
    assert job.field("ExitCode") == "2:0" and job.field("Restarts") == "0"
    assert "error: --n_layer" in job.text()


def test_a_job_without_its_gpu_fails_at_once(cluster, tmp_path):
    job = cluster.finetune(tmp_path / "run", flags=("--device", "cuda"))
    job.wait("FAILED")
    assert "no CUDA device here" in job.text()


def test_evaluating_gives_the_scores_of_the_run(cluster, whole, tmp_path):
    before = json.loads((whole / "results.json").read_text())
    job = cluster.submit("evaluate.slurm", whole, f"--output={tmp_path / 'evaluate.log'}")
    job.wait()
    after = json.loads((whole / "results.json").read_text())
    assert before.keys() <= after.keys()
    for split in ("validation", "test"):
        for metric in ("accuracy", "macro_f1", "loss"):
            assert after[split][metric] == pytest.approx(before[split][metric], abs=1e-6)
    assert f"test: accuracy {before['test']['accuracy']:.4f}" in (
        (tmp_path / "evaluate.log").read_text()
    )


# Several nodes


def test_two_nodes_finish_a_run(whole_on_two_nodes):
    assert steps_of(whole_on_two_nodes) == STEPS


def test_a_signal_stops_both_nodes_and_both_go_on(cluster, whole_on_two_nodes, tmp_path):
    job = cluster.finetune_on_two_nodes(tmp_path / "run", HOLD_AT=str(HOLD_AT))
    job.wait_for(UNDER_WAY)
    job.signal("--signal=USR1")
    job.wait()
    assert job.field("Restarts") == "1"
    assert "stopped and saved; requeued (restart 1)" in job.text()
    assert_same(whole_on_two_nodes, tmp_path / "run")


def test_a_run_goes_on_with_another_number_of_processes(cluster, tmp_path):
    job = cluster.held(tmp_path / "run")
    job.signal()
    job.wait("CANCELLED")
    both = ("finetune_multinode.slurm", tmp_path / "run", *TWO_NODES)
    job = cluster.submit(*both, flags=("--max_steps", STEPS))
    job.wait()
    assert "a step keeps the 12 examples of the save, 6 a rank" in job.text()
    assert steps_of(tmp_path / "run") == STEPS


def test_a_rank_that_dies_ends_the_job(cluster, tmp_path):
    job = cluster.finetune_on_two_nodes(tmp_path / "run", "--max_steps", 100000)
    job.wait_for("step 4: validation")
    os.kill(process_of_rank(job, 1), signal.SIGKILL)
    job.wait("FAILED")
    assert job.field("Restarts") == "0"
    assert "requeued" not in job.text()


def process_of_rank(job: Job, rank: int) -> int:
    """The process id of the program that is rank `rank` of a job."""
    wanted = {f"SLURM_JOB_ID={job.id}", f"RANK={rank}"}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_program = b"python" in (process / "cmdline").read_bytes().split(b"\0")[0]
            if is_program and wanted <= set(environment_of(process)):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"rank {rank} of job {job.id} is not running")


# Sweeps


def sweep(cluster, folder: Path) -> Job:
    """Submit a sweep, wait for its end, and return its gathering job."""
    (folder / "recipes.txt").write_text("fast --learning_rate 1e-3\nslow --learning_rate '1e-5'\n")
    told = cluster.call(
        *("bash", "scripts/sweep.sh", *ONE_CPU, "--", *cluster.data, *RECIPE, "--max_steps", 4),
        SWEEP=str(folder / "sweep"),
        RECIPES=str(folder / "recipes.txt"),
        SEEDS="1 2",
    )
    gather_id = re.search(r"gathered by job (\d+)", told)[1]
    job = Job(gather_id, folder / f"sweep/slurm-gather-{gather_id}.log")
    job.wait()
    return job


def test_a_sweep_runs_its_array_and_gathers_it(cluster, tmp_path):
    job = sweep(cluster, tmp_path)
    summary = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert summary["unfinished"] == {}
    assert {recipe["recipe"]: recipe["finished"] for recipe in summary["recipes"]} == {
        "fast": 2,
        "slow": 2,
    }
    assert summary["recipes"][0]["recipe"] == summary["selected"]["recipe"]
    accuracies = [recipe["validation"]["accuracy"]["mean"] for recipe in summary["recipes"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (tmp_path / "sweep/sweep.md").read_text() in job.text()

    results = sorted((tmp_path / "sweep").glob("*/seed*/results.json"))
    written = [path.stat().st_mtime_ns for path in results]
    sweep(cluster, tmp_path)
    assert [path.stat().st_mtime_ns for path in results] == written
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("slurm-*_*.log")]
    assert len(written) == 4 and sum("finished already" in log for log in logs) == 4
