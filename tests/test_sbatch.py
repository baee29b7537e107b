"""The batch script: on a cluster a user should copy one line of the guide, and it should work."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/job.sbatch"
SMALL = (
    "steps=6 batch_size=8 crops.n_local=0 probe.every=0 loss.dino_head.n_prototypes=32 loss.dino_head.hidden=32 "
    "loss.dino_head.bottleneck=16 speed.accelerator=cpu"
)
MODEL = "tokens=4096 batch_size=4 model.width=32 model.layers=1 model.heads=2 model.context=64 speed.accelerator=cpu"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pictures = Dataset.from_parquet(str(ROOT / "data/openclipart.parquet")).select(range(0, 6900, 46))
    pictures.to_parquet(folder / "pictures.parquet")
    lines = [json.dumps({"text": f"line {i} of the {i % 7}th kind, {'word ' * (i % 5)}"}) for i in range(200)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def submit(slurm: dict[str, str], where: Path, *words: str, path: Path = ROOT, options: Sequence[str] = ()) -> str:
    """The number of a job that runs ``python -m words`` through the script, with options of sbatch."""
    environment = {**slurm, "PYTHON": sys.executable, "PYTHONPATH": str(path)}
    command = ["sbatch", "--parsable", *options, str(SCRIPT), *words]
    submitted = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    return submitted.stdout.strip()


def finish(slurm: dict[str, str], where: Path, number: str, wanted: str = "COMPLETED") -> str:
    """Wait for a job, which must end in the wanted state; its log."""
    state = ""
    for _ in range(480):
        shown = subprocess.run(["scontrol", "show", "job", number], env=slurm, capture_output=True, text=True).stdout
        state = shown.partition("JobState=")[2].split()[0] if "JobState=" in shown else "GONE"
        if state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            break
        time.sleep(0.5)
    log = (where / f"curated-ssl-{number}.log").read_text()
    assert state == wanted, f"{state}: {log[-2000:]}"
    return log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("curation run {data}/pictures.parquet -o out --size 40 --embedder efficientnet_lite0 --image-size 64",
         "out/subset/subset.parquet"),
        ("curation run {data}/texts.jsonl -o out --size 40 --embedder byte_histogram", "out/report.html"),
        ("pretrain train {data}/pictures.parquet -o out -r configs/pretrain/tiny_cpu.yaml " + SMALL,
         "out/teacher/model.safetensors"),
        ("text_lm train {tokens} -o out " + MODEL, "out/model/config.json"),
    ],
)  # fmt: skip
def test_each_command_of_the_guide_runs_as_a_job(
    words: str, made: str, data: Path, slurm: dict[str, str], tmp_path: Path
):
    if "{tokens}" in words:
        tokenise = [
            sys.executable,
            "-m",
            "text_lm",
            "tokenise",
            str(data / "texts.jsonl"),
            "-o",
            str(tmp_path / "tokens"),
        ]
        subprocess.run(tokenise, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    number = submit(slurm, tmp_path, *words.format(data=data, tokens=tmp_path / "tokens").split())
    finish(slurm, tmp_path, number)
    assert (tmp_path / made).exists()


@pytest.mark.slow
def test_a_job_whose_time_is_up_queues_itself_again_and_goes_on(slurm: dict[str, str], tmp_path: Path):
    (tmp_path / "patient.py").write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "def stop(*_): print('stopped in peace', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "if Path('begun').exists(): print('goes on', flush=True); sys.exit()\n"
        "Path('begun').touch()\n"
        "time.sleep(100)\n"
    )
    number = submit(slurm, tmp_path, "patient", path=tmp_path)
    for _ in range(120):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.5)
    # what SLURM sends two minutes before the end
    subprocess.run(["scancel", "--signal=USR1", "--batch", number], env=slurm, check=True)
    log = finish(slurm, tmp_path, number)
    assert log.index("stopped in peace") < log.index("goes on")


@pytest.mark.slow
def test_a_task_that_fails_ends_those_that_would_wait_for_it(slurm: dict[str, str], tmp_path: Path):
    """They would hold a cluster for hours: of three processes, two do not hear that the third is gone."""
    (tmp_path / "lonely.py").write_text(
        "import os, sys, time\n"
        "if os.environ['SLURM_PROCID'] == '2': sys.exit(3)\n"
        "time.sleep(1000)\n"
        "print('waited in vain')\n"
    )
    tasks = ["--nodes=2", "--ntasks=3", "--ntasks-per-node=2", "--cpus-per-task=1"]
    number = submit(slurm, tmp_path, "lonely", path=tmp_path, options=tasks)
    assert "waited in vain" not in finish(slurm, tmp_path, number, "FAILED")


def test_the_script_is_a_shell_script_that_asks_for_a_command(tmp_path: Path):
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True).returncode == 0
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "name a command" in done.stderr
