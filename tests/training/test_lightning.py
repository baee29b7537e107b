"""Lightning's private state, which we read and edit: a version that keeps it otherwise fails here, not in a month."""

import os
import platform
import resource
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from training.checkpoints import count_batches_anew, optimiser_steps
from training.data import StepData
from training.devices import few_threads, keep_freed_memory
from training.settings import RunSettings, SpeedSettings

ROOT = Path(__file__).parents[2]
VERSIONS = ("2.6.0", "2.6.1", "2.6.4", "2.6.5", "2.6.6")  # all releases that pyproject.toml allows


class Model(lightning.LightningModule):
    """The least that trains."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()


class SaveAt(lightning.Callback):
    """Saves after a micro-batch, where `training.checkpoints.Checkpoints` does."""

    def __init__(self, path: Path, batch_idx: int):
        self.path, self.batch_idx = path, batch_idx

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if batch_idx == self.batch_idx:
            trainer.save_checkpoint(self.path)


def progress_after(tmp_path: Path) -> dict:
    """A checkpoint of step 3, two micro-batches each, of the Lightning that is installed."""

    class Settings(RunSettings):
        steps = 4

    settings = Settings(batch_size=2, micro_batch_size=1, speed=SpeedSettings(accelerator="cpu"))
    trainer = lightning.Trainer(
        max_steps=4,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SaveAt(tmp_path / "a.ckpt", 5)],
    )
    trainer.fit(Model(), datamodule=StepData(lambda slot: torch.ones(1), settings, 0))
    return torch.load(tmp_path / "a.ckpt", weights_only=True)


def test_the_state_that_we_edit_is_what_this_version_writes(tmp_path: Path):
    found = progress_after(tmp_path)
    assert found["global_step"] == optimiser_steps(found) == 3
    # the micro-batch in whose end it was saved counts as not yet completed
    batches = {"ready": 6, "completed": 5, "started": 6, "processed": 6}
    progress = found["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress == {"total": batches, "current": batches, "is_last_batch": False}
    count_batches_anew(found, 4)
    assert progress["current"] == progress["total"] == dict.fromkeys(batches, 12)


def test_this_version_is_one_that_was_tried():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "lightning>=2.6,<2.7" in extras["train"]
    assert version("lightning") in VERSIONS, "try it with the slow test below, then add it"


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [name for name in VERSIONS if name != version("lightning")])
def test_the_path_with_every_version_that_we_allow(wanted: str, tmp_path: Path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "other")]
    if subprocess.run([*install, f"lightning=={wanted}"], capture_output=True, check=False).returncode:
        pytest.skip("no network to install it from")
    here = ["tests/training/test_path.py", "tests/training/test_lightning.py"]
    run = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *here, "--deselect", f"{here[1]}::{NAME}"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'other'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


NAME = test_this_version_is_one_that_was_tried.__name__


@pytest.mark.parametrize(("flops", "said", "wanted"), [(1e9, None, 1), (1e12, None, 2), (0.0, None, 2), (1e9, "2", 2)])
def test_a_small_step_on_a_cpu_takes_one_thread(
    monkeypatch: pytest.MonkeyPatch, flops: float, said: str | None, wanted: int
):
    """Beside busy processes two threads of a small step are 4 to 8 times slower; on a quiet machine no faster."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_threads(flops, trainer):
            assert torch.get_num_threads() == wanted
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch):
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            np.empty(6_000_000).fill(1)  # 48 MB, of 11,700 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    child = os.fork()  # what is set stays set
    if not child:
        keep_freed_memory()
        faults()
        os._exit(faults() > 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
