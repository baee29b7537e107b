"""The command: what a newcomer types first must work, and mistakes must say what to do."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner
from warm import Server

from curation.pools.pool import open_pool, pool_fingerprint
from curation.trees.subset import Subset
from foundation.errors import CurationError
from foundation.files import load_json
from pretrain.cli import app, main
from pretrain.plan import plan
from pretrain.settings import load_settings

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/pretrain/tiny_cpu.yaml")
QUICK = ["steps=4", "batch_size=8", "probe.every=2", "collapse=0", "speed.accelerator=cpu", "speed.checkpoint_every=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(folder / kind / f"{i}.png")
    return folder


def test_a_folder_of_images_and_a_subset_make_a_teacher(images: Path, tmp_path: Path):
    fingerprint = pool_fingerprint(open_pool(images))
    subset = Subset.from_rows(np.arange(12), pool_fingerprint=fingerprint, tree_checksum="c0ffee", method="balanced")
    subset.save(tmp_path / "subset")
    command = ["train", str(images), "-o", str(tmp_path / "run"), "-r", RECIPE, "--subset", str(tmp_path / "subset")]
    result = CliRunner().invoke(app, [*command, *QUICK])
    assert result.exit_code == 0, result.output
    assert "12 different ones" in result.output
    assert (tmp_path / "run/teacher/model.safetensors").exists()
    again = CliRunner().invoke(app, [*command, *QUICK])
    assert again.exit_code == 0
    assert again.output.splitlines()[-1] == f"already there, nothing to do: {tmp_path / 'run/teacher'}"
    assert "images seen" not in again.output
    assert (tmp_path / "run/probe.jsonl").read_text().count("knn") == 2
    card = ModelCard.load(tmp_path / "run/teacher/README.md")  # what a stranger knows of the weights
    assert (card.data.library_name, card.data.license) == ("timm", "unknown")
    for line in (
        "| model in timm | `vit_tiny_patch16_224` |",
        f"| pool fingerprint | {fingerprint} |",
        "| subset: tree checksum | c0ffee |",
        "| rows trained on | 12 |",
        "| steps | 4 of 8 images |",
        "| k-NN accuracy on images of the pool while it trained |",
    ):
        assert line in card.text, line
    # an evaluation on these very images says so
    options = [f"model={tmp_path / 'run/teacher'}", f"train={images}", "device=cpu", "resamples=50", "ks=[1]"]
    result = CliRunner().invoke(eval_command(), ["knn", *options, "-o", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    assert f"20 of the 20 test images lie in {images}, the pool that this model was pretrained on" in result.output
    assert "the test images are the training images" in result.output
    assert len(load_json(tmp_path / "results/metrics.json")["warnings"]) == 2


def eval_command() -> Any:
    """The command ``python -m eval``, with its evaluations."""
    import eval.cli
    from eval.tasks import TASKS

    eval.cli._register("knn", TASKS["knn"])
    return eval.cli.app


def test_crops_that_enlarge_small_pictures_are_told_of(images: Path, tmp_path: Path):
    sizes = ["crops.global_size=224", "crops.local_size=96", "crops.n_local=0", "steps=1", "batch_size=2"]
    result = CliRunner().invoke(app, ["train", str(images), "-o", str(tmp_path / "run"), "-r", RECIPE, *QUICK, *sizes])
    assert result.exit_code == 0, result.output
    assert "small pictures (median side 30 pixels) are enlarged to 224: see -r configs" in result.output


def test_sigterm_leaves_a_checkpoint_from_which_the_same_command_goes_on(images: Path, tmp_path: Path, warm: Server):
    import time

    command = ["-m", "pretrain", "train", images, "-o", tmp_path / "run", "-r", RECIPE, *QUICK, "steps=400"]
    process = warm.start(*command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "run/last.ckpt"
    deadline = time.monotonic() + 240
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143, errors
    assert "run the same again to go on" in errors
    step = load_step(tmp_path / "run")
    assert 0 < step < 400


def load_step(folder: Path) -> int:
    from training.checkpoints import find_checkpoint

    return find_checkpoint(folder).step


def test_a_dry_run_prints_the_cost_and_writes_nothing(images: Path, tmp_path: Path):
    command = ["train", str(images), "-o", str(tmp_path / "run"), "--dry-run", "-r", RECIPE, "steps=4", "batch_size=8"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "FLOP per image" in result.output
    assert "20 rows, each seen 1.60 times" in result.output
    shown = re.findall(r"^(?:state|checkpoint) +([\d.]+) ", result.output, re.MULTILINE)
    assert len(shown) == 2
    assert re.search(r"^H100 hours +under 0.01 ", result.output, re.MULTILINE)
    assert all(float(number) > 0 for number in shown)
    assert not (tmp_path / "run").exists()


def test_the_plan_of_the_published_recipe_agrees_with_the_published_hours():
    # DINOv2's README: ViT-L/14 takes 3.3 days on 96 A100, which is 46 % of their peak
    found = plan(load_settings(ROOT / "configs/pretrain/vitl14_long.yaml"), "A100", 0.46)
    assert found.device_hours == pytest.approx(3.3 * 24 * 96, rel=0.05)
    with pytest.raises(CurationError, match="is not known"):
        plan(load_settings(RECIPE), "abacus")


def test_mistakes_are_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, words in [
        (["train", str(tmp_path / "none"), "-o", str(tmp_path / "r")], "does not exist"),
        (["train", str(images), "-o", str(tmp_path / "r"), "step=4"], "step is no setting; did you mean 'steps'?"),
        (["train", str(images), "-o", str(tmp_path / "r"), "-r", str(tmp_path / "no.yaml")], "does not exist"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert said.startswith("pretrain: error: ")
        assert words in said
        assert said.count("\n") == 1


def test_help_shows_an_example():
    result = CliRunner().invoke(app, ["train", "--help"])
    assert "python -m pretrain train" in result.output


def test_two_processes_train_the_model_that_one_trains(images: Path, tmp_path: Path, warm: Server):
    """Sinkhorn sees all processes, losses are means: with the same images only rounding may differ."""
    from pretrain.export import load_teacher

    same = [*QUICK, "loss.koleo=0", "optimiser.teacher_momentum={start: 0.5, peak: 0.5, end: 0.5}", "probe.every=0"]
    for devices in (1, 2):
        command = ["-m", "pretrain", "train", str(images), "-o", str(tmp_path / f"run{devices}")]
        command += [
            "-r",
            RECIPE,
            *same,
            f"speed.devices={devices}",
            f"speed.strategy={'ddp' if devices > 1 else 'auto'}",
        ]
        if devices == 1:
            assert CliRunner().invoke(app, command[2:]).exit_code == 0
            continue
        # Lightning starts the second process by itself
        done = warm.run(*command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    one, two = (load_teacher(tmp_path / f"run{devices}/teacher").state_dict() for devices in (1, 2))
    import torch

    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
