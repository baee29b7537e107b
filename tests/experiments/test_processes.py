"""One experiment by several processes: a lost process or node costs a restart, never a result."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from warm import Process, Server

from benchmarks.gpu.pictures import write_concepts
from curation.group import Group
from curation.plan import PROFILES
from experiments import run_folder, slurm
from experiments.engine import processes
from experiments.engine.experiment import build
from experiments.engine.processes import follow, placed
from experiments.engine.settings import compose
from experiments.engine.stages import Stage, in_order
from experiments.launch import plan_table, run_experiment
from foundation.errors import CurationError
from foundation.files import load_json

ROOT = Path(__file__).parents[2]
STEPS = 60
OPTIONS = [
    "experiment=web_images",
    "science.pool={test_rows: 5, bank_rows: 5, least: 2, largest: 20, imbalance: 2, classes: 4, image_size: 32, "
    'dim: 96, embedder: "timm:test_resnet?pretrained=false", source: SOURCE}',
    "science.curation.size=32",
    "science.curation.levels=[12,5]",
    "science.train.recipe={steps: STEPS, batch_size: 8, collapse: 0.0, probe: {every: 0}, backbone: {name: "
    "vit_tiny_patch16_224, args: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}}, loss: {dino_head: "
    "{n_prototypes: 16, hidden: 16, bottleneck: 8}}, crops: {global_size: 16, local_size: 8, n_local: 2}, "
    "speed: {checkpoint_every: 4, log_every: 1, strategy: STRATEGY}}",
    "science.evaluate.steps=20",
    "science.evaluate.corruptions=[brightness]",
    "science.evaluate.corrupted_rows=10",
    "science.studies=null",
    "arms=[raw]",
    "seeds=[0]",
    "tracking.wandb=off",
    "speed.threads=1",
]


def options(source: Path, root: Path, *more: str, steps: int = STEPS, strategy: str = "auto") -> list[str]:
    given = {"SOURCE": str(source), "STEPS": str(steps), "STRATEGY": strategy}
    filled = [re.sub("|".join(given), lambda found: given[found[0]], item) for item in OPTIONS]
    return [*filled, f"output.runs={root}", *more]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def losses(root: Path) -> list[float]:
    path = next(root.glob("raw/seed0/train-*/run/metrics.jsonl"), None)
    lines = path.read_text().splitlines() if path else []
    return [json.loads(line)["loss"] for line in lines]


def wait(what: Callable[[], object], why: str, seconds: float = 300) -> None:
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline, f"waited {seconds:.0f} s for {why}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.parquet"
    write_concepts(path, 4, 34, 24, 0, 1)
    return path


def start(warm: Server, n: int, source: Path, root: Path, **changes: Any) -> list[Process]:
    """The command by n processes, as torchrun starts them."""
    place = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    place |= {"MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    command = [ROOT / "scripts/run_experiment.py", *options(source, root, **changes)]
    places = [{**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
    return [warm.start(*command, env=env) for env in places]


def finish(running: list[Process]) -> list[tuple[int, str, str]]:
    said = [process.communicate(timeout=300) for process in running]
    return [(process.returncode, *lines) for process, lines in zip(running, said, strict=True)]


def run_whole(warm: Server, n: int, source: Path, root: Path, steps: int = STEPS, strategy: str = "auto") -> None:
    """The experiment by n processes, uninterrupted."""
    found = finish(start(warm, n, source, root, steps=steps, strategy=strategy))
    assert [code for code, _, _ in found] == [0] * n, found
    assert "stages run" in found[0][1]
    assert [out for _, out, _ in found[1:]] == [""] * (n - 1), "the first process alone reports"
    assert len(losses(root)) == steps
    assert (root / "report.html").exists()


def test_two_processes_train_one_model_and_the_first_alone_writes(source: Path, tmp_path: Path, warm: Server):
    run_whole(warm, 2, source, tmp_path, 3)
    assert load_json(next(tmp_path.glob("raw/seed0/train-*/stage.json")))["attempts"] == 1
    saved = next(tmp_path.glob("raw/seed0/train-*/run/run.json"))
    assert "speed" not in load_json(saved)["settings"], "how many processes there were decides no result"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_a_lost_process_costs_a_restart_and_no_result(strategy: str, source: Path, tmp_path: Path, warm: Server):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_whole(warm, 2, source, whole, strategy=strategy)
    running = start(warm, 2, source, broken, strategy=strategy)
    wait(lambda: len(losses(broken)) > 10, "training")
    os.kill(running[1].pid, signal.SIGKILL)
    code, _, said = finish(running)[0]
    assert code != 0
    assert said, "those that are left say why they end"
    assert not list(broken.glob("raw/seed0/train-*/stage.json"))
    assert 10 < len(losses(broken)) < STEPS
    run_whole(warm, 2, source, broken, strategy=strategy)
    assert losses(broken) == losses(whole)
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_a_lost_node_of_two_is_waited_for_and_the_job_goes_on(
    strategy: str, slurm: dict[str, str], source: Path, tmp_path: Path, warm: Server
):
    whole, tmp_path = tmp_path / "whole", tmp_path / "run"
    run_whole(warm, 4, source, whole, strategy=strategy)
    on_slurm = [
        "launch=slurm",
        "launch.resources.cpus_per_task=1",
        "launch.resources.mem_gb=1",
        "launch.stages.train={nodes: 2, tasks_per_node: 2, cpus_per_task: 1, gpus_per_node: 0}",
    ]
    # the nodes of the test cluster have names that no one resolves
    environment = {**slurm, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> str:
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = call(
        sys.executable,
        str(ROOT / "scripts/run_experiment.py"),
        *options(source, tmp_path, *on_slurm, strategy=strategy),
    )
    jobs = {line.split(": ")[1]: line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")}

    def state(name: str) -> str:
        return call("scontrol", "-o", "show", "job", jobs[name]).split("JobState=")[1].split()[0]

    def logs() -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted((tmp_path / "slurm").glob("*.err")))

    wait(lambda: len(losses(tmp_path)) > 10 or state("train raw seed 0") == "FAILED", "training")
    assert state("train raw seed 0") == "RUNNING", logs()
    call("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait(lambda: state("train raw seed 0") == "PENDING", "the job to be queued again")
    assert len(losses(tmp_path)) < STEPS
    if "DOWN" in call("scontrol", "-o", "show", "node", "n2").split("State=")[1].split()[0]:  # else it is back already
        call("scontrol", "update", "nodename=n2", "state=resume")
    call("scontrol", "release", jobs["train raw seed 0"])
    # it begins two minutes later: at once, SLURM's late word to end the first try on n2, which is not lost in truth,
    # meets the second try, for both have the job's number
    wait(lambda: state("compare") in ("COMPLETED", "FAILED", "CANCELLED"), "the end", 500)
    assert state("compare") == "COMPLETED", logs()
    assert losses(tmp_path) == losses(whole)
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_the_dry_run_of_a_cluster_shows_nodes_gpus_and_hours(tmp_path: Path):
    config = compose(
        [
            "experiment=web_images",
            "scale=demo",
            "launch=slurm",
            "launch.stages.train={nodes: 4, tasks_per_node: 8, gpus_per_node: 8, minutes: 90}",
            "launch.partition=gpu",
            "seeds=[0]",
            "arms=[raw]",
            f"output.runs={tmp_path}",
        ]
    )
    shown = plan_table(build(config, PROFILES["h100"]))
    line = next(line for line in shown.splitlines() if "job(s) train" in line)
    assert "4 node(s) x 8 task(s) x 1 GPU(s)" in line
    assert "8 CPU(s) a task, 32 GB, 90 min at most, on cuda" in line
    assert "GPU hours" in line
    assert "job(s) curate: 1 node(s) x 1 task(s) x 0 GPU(s)" in shown
    assert "6 jobs, partition: gpu" in shown  # four stages, the page, the comparison


def test_no_gpu_where_one_is_asked_for_is_said_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "empty", _no_driver)
    config = compose(["experiment=simulated", "speed.device=cuda", "science.studies=null", f"output.runs={tmp_path}"])
    with pytest.raises(CurationError, match=r"speed\.device is 'cuda', which is not there on this machine"):
        run_experiment(config, "", lambda _line: None, progress=False)
    assert not list(tmp_path.rglob("failed.json"))


def _no_driver(*_: Any, **__: Any) -> None:
    raise RuntimeError("Found no NVIDIA driver on your system.")


def test_a_job_without_a_gpu_computes_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The jobs that need none get none: `speed.device=cuda`, which is meant for the training, must not fail them."""
    config = compose(
        ["experiment=simulated", "launch=slurm", "launch.stages.train.gpus_per_node=1", f"output.runs={tmp_path}"]
    )
    experiment = build(config)
    seen: list[str] = []

    def stand_in(stage: Stage, *_: Any, speed: dict[str, Any], **__: Any) -> Path:
        seen.append(f"{stage.name} {speed['device']}")
        return tmp_path

    monkeypatch.setattr(slurm, "run_stage", stand_in)
    monkeypatch.setattr(run_folder, "open_device", lambda _name: None)
    monkeypatch.setattr(run_folder, "provenance", lambda *_: {})
    for stage in in_order(experiment.stages)[:3]:
        slurm.StageJob()(config, stage.key)
    assert seen == ["prepare cpu", "curate cpu", "train cuda"]


class Two(Group):
    """The second of two processes, which hears what the first one says."""

    def __init__(self, words: list[str]):
        super().__init__(1, 2)
        self.words = words

    def share(self, content: Any) -> Any:
        return self.words.pop(0)


def test_other_processes_join_in_distributed_stages_alone(tmp_path: Path):
    done: list[str] = []
    before = Stage("prepare", lambda run: done.append("prepare"))  # type: ignore[arg-type, func-returns-value]
    stage = Stage("train", lambda run: done.append("train"), distributed=True)  # type: ignore[arg-type, func-returns-value]
    about = {"root": tmp_path, "speed": {}, "provenance": {}}
    assert follow([before, stage], Two([stage.key, ""]), **about) == 1
    assert done == ["train"]
    with pytest.raises(CurationError, match="process 1 does not know the stage"):
        follow([before], Two([stage.key, ""]), **about)


def test_a_trainer_takes_the_processes_that_were_started(monkeypatch: pytest.MonkeyPatch):
    assert placed() == {}
    monkeypatch.setattr(processes.Group, "current", classmethod(lambda cls: cls(0, 8)))
    started = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "here"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert placed() == {"devices": 4, "nodes": 2}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(CurationError, match="8 processes cannot be dealt to machines of 3"):
        placed()
