"""A real SLURM of two nodes on this machine: a killed job must cost one submission, never a result."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curation import CurationError
from curation.plan import PROFILES, Hardware
from experiments.engine.experiment import build
from experiments.engine.settings import compose
from experiments.launch import plan_table, run_experiment
from experiments.slurm import submit

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "experiment=simulated",
    "science.studies=null",
    "arms=[raw,hierarchical_resampled]",
    "seeds=[0]",
    "science.curation.levels=[60,20,10]",
    "science.curation.size=300",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=5",
    "science.train.recipe.steps=6000",
    "science.train.recipe.log_every=50",
    "tracking.wandb=off",
    "speed.threads=1",
]
ON_SLURM = [
    "launch=slurm",
    "launch.resources.cpus_per_task=1",
    "launch.resources.mem_gb=1",
    "launch.stages.train.gpus_per_node=0",
]


def launch(environment: dict[str, str], root: Path, *more: str) -> dict[str, str]:
    """Submit; gives stage -> job id."""
    command = [sys.executable, str(ROOT / "scripts/run_experiment.py"), *OPTIONS, f"output.runs={root}", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = [line.removeprefix("job ").split(": ") for line in done.stdout.splitlines() if line.startswith("job ")]
    return {name: job for job, name in jobs}


def states(environment: dict[str, str], jobs: dict[str, str]) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True, env=environment).stdout
    found = {}
    for line in shown.splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        found[fields["JobId"]] = fields["JobState"]
    return {name: found.get(job, "GONE") for name, job in jobs.items()}


def wait(what: Callable[[], object], why: str, seconds: float = 240) -> None:
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline, f"waited {seconds:.0f} s for {why}"
        time.sleep(0.3)


def logs(root: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in sorted((root / "slurm").glob("*.err")))


@pytest.mark.slow
def test_a_killed_job_is_submitted_again_and_ends_with_the_same_result(slurm: dict[str, str], tmp_path: Path):
    root = tmp_path / "killed"
    jobs = launch(slurm, root, *ON_SLURM)
    assert list(jobs) == [
        "prepare seed 0",
        "curate raw seed 0",
        "train raw seed 0",
        "evaluate raw seed 0",
        "curate hierarchical_resampled seed 0",
        "train hierarchical_resampled seed 0",
        "evaluate hierarchical_resampled seed 0",
        "compare",
    ]
    curve = "hierarchical_resampled/seed0/train-*/curve.jsonl"
    half_way = lambda: any(len(path.read_text().splitlines()) >= 5 for path in root.glob(curve))  # noqa: E731
    wait(half_way, "training to be half-way")
    victim = jobs["train hierarchical_resampled seed 0"]
    processes = subprocess.run(["pgrep", "-f", "submitit.core._submit"], capture_output=True, text=True).stdout.split()
    killed = 0
    for pid in processes:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_JOB_ID={victim}".encode() in environment and b"SLURM_PROCID=0" in environment:
            os.kill(int(pid), signal.SIGKILL)
            killed += 1
    assert killed, "no process of the job was found"
    ended = ("COMPLETED", "FAILED", "CANCELLED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY")
    wait(lambda: all(state in ended for state in states(slurm, jobs).values()), "the first submission to end")
    first = states(slurm, jobs)
    assert first["train hierarchical_resampled seed 0"] == "FAILED"
    assert first["evaluate raw seed 0"] == "COMPLETED"
    assert first["compare"] == "CANCELLED"  # it waits for every evaluation
    assert not (root / "report.html").exists()

    again = launch(slurm, root, *ON_SLURM)
    assert list(again) == ["train hierarchical_resampled seed 0", "evaluate hierarchical_resampled seed 0", "compare"]
    wait(lambda: all(state in ended for state in states(slurm, again).values()), "the second submission to end")
    assert set(states(slurm, again).values()) == {"COMPLETED"}, logs(root)
    assert (root / "report.html").exists()

    launch(slurm, tmp_path / "whole")  # here, without SLURM and without a kill
    for name in ("metrics.csv",):
        assert (root / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    curves = [next((tmp_path / name).glob(curve)).read_text() for name in ("killed", "whole")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_by_itself(slurm: dict[str, str], tmp_path: Path):
    jobs = launch(slurm, tmp_path / "run", *ON_SLURM, "arms=[raw]", "science.train.recipe.steps=12000")
    curve = "raw/seed0/train-*/curve.jsonl"
    wait(lambda: any(len(path.read_text().splitlines()) >= 5 for path in tmp_path.glob(f"run/{curve}")), "training")
    victim = jobs["train raw seed 0"]
    subprocess.run(["scancel", "--signal=USR2", victim], env=slurm, check=True)  # what SLURM sends before a time-out
    wait(lambda: states(slurm, jobs)["train raw seed 0"] == "PENDING", "the job to be queued again")
    now = ["scontrol", "update", f"jobid={victim}", "starttime=now"]  # else two minutes later
    subprocess.run(now, env=slurm, check=True)
    wait(lambda: states(slurm, jobs)["compare"] in ("COMPLETED", "FAILED", "CANCELLED"), "the end", 500)
    assert set(states(slurm, jobs).values()) == {"COMPLETED"}, logs(tmp_path / "run")
    launch(slurm, tmp_path / "whole", "arms=[raw]", "science.train.recipe.steps=12000")
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins, first in PATH: an sbatch that keeps each job's script in this folder, and an srun that is there."""
    folder = tmp_path / "scripts"
    (folder / "bin").mkdir(parents=True)
    sbatch = folder / "bin/sbatch"
    lines = [f"cd {folder}", "n=$(ls | wc -l)", 'cp "$1" job$n', 'echo "Submitted batch job $n"']
    sbatch.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    sbatch.chmod(0o755)
    (folder / "bin/srun").symlink_to("/bin/true")  # submitit looks for it, and starts it in a job alone
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    return folder


def asked(scripts: Path) -> dict[str, dict[str, str]]:
    """Name of a job -> what its script asks SLURM for."""
    found = {}
    for path in scripts.glob("job*"):
        lines = [line.removeprefix("#SBATCH --").split("=", 1) for line in path.read_text().splitlines() if "=" in line]
        options = {line[0]: line[1] for line in lines}
        found[options["job-name"]] = options | {"srun": path.read_text().partition("\nsrun ")[2]}
    return found


def test_every_job_asks_for_its_own_resources_alone(scripts: Path, tmp_path: Path):
    """What one job has must not stay for the next: every later job would hold a GPU, and wait for a job of others."""
    own = ["launch.stages.train={nodes: 2, tasks_per_node: 3, cpus_per_task: 5, gpus_per_node: 3, mem_gb: 9}"]
    own += ["launch.stages.train.minutes=7", "launch.partition=gpu", "launch.minutes=60"]
    config = compose([*OPTIONS, "launch=slurm", *own, "seeds=[0,1]", f"output.runs={tmp_path}"])
    jobs = submit(build(config), config, "")
    shown = asked(scripts)
    assert sorted(shown) == sorted(name.replace(" ", "-") for name in jobs)
    names = ("nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition")
    for job, options in shown.items():
        wanted = "2 3 5 3 9GB 7 gpu" if job.startswith("train") else "1 1 8 None 32GB 60 gpu"
        assert " ".join(str(options.get(name)) for name in names) == wanted, job
        assert f"--cpus-per-task={options['cpus-per-task']} " in options["srun"]
        if job.startswith("prepare"):
            assert "dependency" not in options
    before = [jobs[f"evaluate {arm} seed {seed}"] for seed in (0, 1) for arm in ("raw", "hierarchical_resampled")]
    assert shown["compare"]["dependency"] == "afterok:" + ":".join(before)


def test_gpus_that_the_device_would_leave_idle_are_refused(scripts: Path, tmp_path: Path):
    places = [f"output.runs={tmp_path / 'run'}", "speed.hardware=h100"]
    wrong = compose([*OPTIONS, "launch=slurm", *places, "launch.stages.curate.gpus_per_node=1", "speed.device=cpu"])
    with pytest.raises(CurationError, match=r"stage curate ask for 1 GPU\(s\), which speed\.device=cpu would leave"):
        submit(build(wrong), wrong, "")
    assert not asked(scripts)
    lines: list[str] = []
    assert run_experiment({**wrong, "dry_run": True}, "", lines.append, False) == 0
    assert "cannot run here yet: jobs of the stage curate ask for 1 GPU(s)" in lines[0]


def test_the_dry_run_shows_each_job_as_it_is_submitted(scripts: Path, tmp_path: Path):
    """Else a user finds out what he asked the cluster for from the bill."""
    own = ["launch.stages.train={nodes: 2, tasks_per_node: 3, gpus_per_node: 3, mem_gb: 9, minutes: 7}"]
    own += ["launch.partition=gpu", "launch.account=lab", "launch.constraint='a b'", "launch.setup=[module load cuda]"]
    config = compose([*OPTIONS, "launch=slurm", *own, "seeds=[0,1]", f"output.runs={tmp_path / 'run'}"])
    lines: list[str] = []
    run_experiment({**config, "dry_run": True, "speed": {**config["speed"], "hardware": "h100"}}, "", lines.append)
    assert not (tmp_path / "run").exists()
    table = "\n".join(lines).splitlines()
    assert "before each: module load cuda" in table
    shown = {line.split(": stage ")[0]: line for line in table if ": stage " in line}
    assert "stage train, arm raw, seed 1: sbatch " in shown["train-raw-seed-1"]
    jobs = submit(build(config), config, "")
    # grouped by arm: what arms share, arm after arm, and what reads all of them
    arms = [line.split(", arm ")[1].split(",")[0] for line in shown.values()]
    assert arms == ["-"] * 2 + ["raw"] * 6 + ["hierarchical_resampled"] * 6 + ["-"]
    submitits = ("job-name", "error", "output", "open-mode", "signal", "wckey")  # files and signals, alike for all
    numbers = {f"{job}": name.replace(" ", "-") for name, job in jobs.items()}
    for path in scripts.glob("job*"):
        sent = [line.removeprefix("#SBATCH ") for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
        name = next(option for option in sent if option.startswith("--job-name=")).partition("=")[2]
        options = [option for option in sent if option.split("=")[0].removeprefix("--") not in submitits]
        for i, option in enumerate(options):
            if option.startswith("--dependency="):
                options[i] = ":".join(numbers.get(part, part) for part in option.split(":"))
        assert sorted(shlex.split(shown[name].split(": sbatch ")[1])) == sorted(
            part for option in options for part in shlex.split(option)
        )


def test_a_job_with_a_gpu_is_not_planned_with_the_time_of_a_processor(tmp_path: Path):
    config = compose([*OPTIONS, "launch=slurm", "launch.stages.train.gpus_per_node=1", f"output.runs={tmp_path}"])
    here = Hardware("cpu", 0.05, 0.05, 10.0)
    shown = plan_table(build(config, here)).splitlines()
    trained = next(line for line in shown if line.startswith("train raw seed 0"))
    assert trained[67:78].strip() == "?"
    assert next(line for line in shown if "job(s) train" in line).endswith("on cuda, time not measured on a GPU")
    assert next(line for line in shown if "job(s) curate" in line).endswith("node hours, estimated for cpu")
    assert any("2 stages whose time is not measured on a GPU" in line for line in shown)
    config["speed"]["hardware"] = "h100"
    shown = plan_table(build(config, PROFILES["h100"])).splitlines()
    assert next(line for line in shown if "job(s) train" in line).endswith("GPU hours, estimated for h100")
    assert next(line for line in shown if "job(s) curate" in line).endswith("on cpu, time not measured on a processor")


@pytest.mark.parametrize(("experiment", "gpus"), [("simulated", 0), ("visual_domains", 0), ("text", 1)])
def test_the_training_gets_a_gpu_and_uses_it_where_it_can(experiment: str, gpus: int):
    config = compose([f"experiment={experiment}", "launch=slurm"])
    wanted = {stage: given["gpus_per_node"] or 0 for stage, given in config["launch"]["stages"].items()}
    assert wanted == {**dict.fromkeys(wanted, 0), "train": gpus}
    assert config["speed"]["device"] == "cuda"


def test_without_sbatch_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = compose([*OPTIONS, *ON_SLURM, f"output.runs={tmp_path / 'run'}"])
    with pytest.raises(CurationError, match="there is no sbatch here"):
        submit(build(config), config, "")
    config["launch"]["resources"]["gpu"] = 1
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/true")
    with pytest.raises(CurationError, match=r"launch\.resources has no 'gpu'"):
        submit(build(config), config, "")


def test_a_job_computes_on_the_cores_that_it_reserves():
    given = [["launch.resources.cpus_per_task=16"], ["speed.threads=3"], []]
    found = [compose(["experiment=simulated", "launch=slurm", *more])["speed"]["threads"] for more in given]
    assert found == [16, 3, 8]
