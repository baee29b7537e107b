"""Training on a GPU: a loss that is another one there would make every published recipe another recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.gpu.pictures import noise_pool
from pretrain.centring import SoftmaxCentre, assignment_information, sinkhorn
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss
from pretrain.multicrop import CropSettings, multi_crop, step_draws
from pretrain.settings import load_settings
from pretrain.train import pretrain
from text_lm.loss import language_model_loss
from text_lm.settings import settings_from
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import tokenise_pool
from text_lm.train import train
from training.checkpoints import Checkpoints

pytestmark = pytest.mark.gpu
TINY = [
    "steps=6",
    "batch_size=8",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.args={patch_size: 8, embed_dim: 48, depth: 2, num_heads: 2, init_values: 1.0e-5}",
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.n_local=2",
    "loss.dino_head={n_prototypes: 32, hidden: 32, bottleneck: 16}",
    "collapse=0",
    "speed.log_every=2",
    "speed.checkpoint_every=2",
    "probe.every=3",
    "probe.rows=16",
]


def accelerator(device: str) -> str:
    return f"speed.accelerator={'gpu' if device == 'cuda' else 'cpu'}"


def curve(folder: Path, device: str, *overrides: str) -> list[float]:
    """Losses of a tiny run."""
    settings = load_settings(None, [*TINY, accelerator(device), *overrides])
    assert pretrain(settings, noise_pool(24, 64), folder, progress=False).finished
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(device: str) -> dict[str, Tensor]:
    """Every loss and its gradient on the same numbers."""
    source = torch.Generator().manual_seed(0)
    found = {}

    def keep(name: str, loss: Tensor, x: Tensor) -> None:
        found[name] = loss.detach().double().cpu()
        found[f"gradient of {name}"] = torch.autograd.grad(loss, x)[0].double().cpu()

    x = torch.randn(2, 6, 40, generator=source).to(device).requires_grad_()
    local = torch.randn(3, 6, 40, generator=source).to(device)
    targets = torch.softmax(torch.randn(2, 6, 40, generator=source), -1).to(device)
    keep("dino", dino_loss(x, local, targets), x)
    flat = torch.randn(12, 40, generator=source).to(device).requires_grad_()
    weights = torch.rand(12, generator=source).to(device)
    keep("ibot", ibot_loss(flat, targets.flatten(0, 1), weights, 4), flat)
    keep("koleo", koleo_loss(flat), flat)
    patches = torch.randn(2, 9, 16, generator=source).to(device).requires_grad_()
    keep("gram", gram_loss(patches, torch.randn(2, 9, 16, generator=source).to(device)), patches)
    tokens = torch.randn(2, 7, 31, generator=source).to(device).requires_grad_()
    keep("language", language_model_loss(tokens, torch.arange(14).reshape(2, 7).to(device), 1e-3)[0], tokens)
    logits = torch.randn(20, 40, generator=source).to(device)
    found["sinkhorn"] = sinkhorn(logits, 0.05).double().cpu()
    centre = SoftmaxCentre(40).to(device)
    centre(logits, 0.05)
    found["centre"] = centre(logits, 0.05).double().cpu()
    found["information"] = assignment_information(torch.softmax(logits, -1)).double().cpu()
    return found


def test_losses_and_their_gradients_are_those_of_the_cpu(device: str):
    here, there = losses("cpu"), losses(device)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_crops_are_those_of_the_cpu(device: str):
    rng = np.random.default_rng(0)
    settings = CropSettings(global_size=32, local_size=16, n_local=2)
    side = settings.canvas_size
    canvases = torch.from_numpy(rng.integers(0, 256, (4, 3, side, side), np.uint8))
    sizes, draws = np.full((4, 2), side), step_draws(settings, 4, 0, 0)
    here = multi_crop(canvases, sizes, draws, settings)
    there = multi_crop(canvases.to(device), sizes, draws, settings)
    for mine, theirs in zip(here, there, strict=True):
        difference = (mine - theirs.cpu()).abs()
        assert float((difference > 0.05).double().mean()) < 1e-3  # solarisation has an edge


def test_a_run_is_the_one_of_the_cpu(device: str, tmp_path: Path):
    here, there = curve(tmp_path / "here", "cpu"), curve(tmp_path / "there", device)
    assert there == pytest.approx(here, rel=5e-3)


def test_bfloat16_is_near_float32(device: str, tmp_path: Path):
    low = curve(tmp_path / "low", device, "precision=bf16-mixed")
    assert low == pytest.approx(curve(tmp_path / "full", device), rel=0.05)


def test_recomputed_activations_change_nothing(device: str, tmp_path: Path):
    again = curve(tmp_path / "again", device, "speed.checkpoint_activations=true")
    assert again == pytest.approx(curve(tmp_path / "kept", device), rel=2e-3)


def test_compiled_is_near_eager(cuda: str, tmp_path: Path):
    compiled = curve(tmp_path / "compiled", cuda, "speed.compile=true", "backbone.drop_path=0.3")
    assert compiled == pytest.approx(curve(tmp_path / "eager", cuda, "backbone.drop_path=0.3"), rel=5e-3)


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a run stop as on SIGTERM after a step."""
    plain = Checkpoints.on_train_batch_end

    def set_step(wanted: int) -> None:
        def batch_end(self: Checkpoints, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == wanted:
                self._asked.set()
            plain(self, trainer, *rest)

        monkeypatch.setattr(Checkpoints, "on_train_batch_end", batch_end)

    return set_step


def test_a_stopped_run_goes_on_as_if_nothing_had_been(device: str, tmp_path: Path, stopped_at: Any):
    whole = curve(tmp_path / "whole", device)
    settings = load_settings(None, [*TINY, accelerator(device)])
    stopped_at(3)
    assert not pretrain(settings, noise_pool(24, 64), tmp_path / "run", progress=False).finished
    stopped_at(-1)
    assert curve(tmp_path / "run", device) == pytest.approx(whole, rel=2e-3)


def lm_curve(folder: Path, tokens: Path, device: str, **changes: Any) -> list[float]:
    speed = {"accelerator": "gpu" if device == "cuda" else "cpu", "log_every": 2, "checkpoint_every": 2}
    speed |= changes.pop("speed", {})
    shape = {"width": 64, "layers": 2, "heads": 2, "context": 32}
    content = {"model": shape, "tokens": 8 * 4 * 32, "batch_size": 4, "speed": speed, **changes}
    train(settings_from(content), tokens, folder, progress=False)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    texts = [f"text {i}: " + "some words to read " * (1 + i % 5) for i in range(60)]
    tokenise_pool(Dataset.from_dict({"text": texts}), open_tokenizer("bytes"), folder, progress=False)
    return folder


@pytest.mark.parametrize("cross", [False, True])
def test_a_language_model_learns_as_on_the_cpu(cross: bool, device: str, tokens: Path, tmp_path: Path):
    here = lm_curve(tmp_path / "here", tokens, "cpu", cross_documents=cross)
    there = lm_curve(tmp_path / "there", tokens, device, cross_documents=cross)
    assert there == pytest.approx(here, rel=5e-3)
    low = lm_curve(tmp_path / "low", tokens, device, cross_documents=cross, precision="bf16-mixed")
    assert low == pytest.approx(here, rel=0.03)


def test_a_compiled_language_model_is_near_the_eager_one(cuda: str, tokens: Path, tmp_path: Path):
    compiled = lm_curve(tmp_path / "compiled", tokens, cuda, speed={"compile": True})
    assert compiled == pytest.approx(lm_curve(tmp_path / "eager", tokens, cuda), rel=5e-3)


def test_a_stopped_language_model_goes_on_as_if_nothing_had_been(
    device: str, tokens: Path, tmp_path: Path, stopped_at: Any
):
    whole = lm_curve(tmp_path / "whole", tokens, device)
    stopped_at(5)
    lm_curve(tmp_path / "run", tokens, device)
    assert (tmp_path / "run/last.ckpt").exists()
    stopped_at(-1)
    assert lm_curve(tmp_path / "run", tokens, device) == pytest.approx(whole, rel=2e-3)
