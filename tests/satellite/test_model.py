"""Heads, losses and training: a head that cannot learn, or a run that resumes otherwise, costs days."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rasterio")
pytest.importorskip("lightning")

from foundation.errors import CurationError
from satellite.backbone import open_backbone, spread
from satellite.export import Seen, load_model
from satellite.head import bin_heights, make_head
from satellite.losses import gradient_loss, height_loss, huber_loss, l1_loss, sig_loss
from satellite.settings import BackboneSettings, HeadSettings, LossSettings, TrainSettings, load_settings
from satellite.tiles import TileSettings, cut_tiles
from satellite.train import train
from training.checkpoints import Checkpoints

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TINY = BackboneSettings("vit_tiny_patch16_224", args=VIT)
SMALL = TrainSettings(steps=30, batch_size=4, backbone=TINY, head=HeadSettings(width=16, n_bins=32, highest=40.0))
TILES = TileSettings(size=32, bands=(1, 2, 3))


@pytest.fixture(scope="module")
def table(scene):
    return cut_tiles([scene[0]], [scene[1]], TILES, progress=False)


@pytest.mark.parametrize("output", ["linear_bins", "mixed_log", "regression"])
@pytest.mark.parametrize("kind", ["linear", "dpt"])
@pytest.mark.parametrize("backbone", ["vit", "convolutional"])
def test_a_head_can_fit_heights(output: str, kind: str, backbone: str):
    torch.manual_seed(0)
    settings = TINY if backbone == "vit" else BackboneSettings("resnet10t")
    features = open_backbone(settings, 3, 64, 4 if kind == "dpt" else 1)
    head = make_head(features.channels, HeadSettings(kind, output, 32, highest=40.0, width=16), features.has_token)
    images = torch.randn(2, 3, 64, 64)
    truth = torch.nn.functional.interpolate(torch.rand(2, 1, 2, 2) * 20, size=64, mode="bilinear")[:, 0]
    with torch.no_grad():
        maps = features(images)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        loss = (head(maps, (64, 64)) - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
        if losses[-1] < 0.5 * losses[0]:
            break
    assert losses[-1] < 0.5 * losses[0]
    heights = head.eval()(maps, (64, 64))
    assert heights.shape == (2, 64, 64)
    assert 0 <= float(heights.min()) <= float(heights.max()) <= 40


def test_bins_rise_between_their_ends_and_mixed_log_is_finer_near_the_ground():
    linear = bin_heights(HeadSettings(output="linear_bins"))
    mixed = bin_heights(HeadSettings(output="mixed_log"))
    for bins in (linear, mixed):
        assert len(bins) == 256
        assert (bins.diff() > 0).all()
        torch.testing.assert_close(bins[[0, -1]], torch.tensor([0.01, 100.0]))
    assert (mixed < 5).sum() > 1.5 * (linear < 5).sum()


def test_blocks_are_spread_as_published():
    assert spread(24, 4) == [5, 11, 17, 23]
    assert spread(12, 1) == [11]
    with pytest.raises(CurationError, match=r"blocks 0..3"):
        open_backbone(replace(TINY, blocks=[4]), 3, 32)
    with pytest.raises(CurationError, match="timm cannot make"):
        open_backbone(BackboneSettings("vit_none"), 3, 32)


def test_losses_agree_with_their_formulas_and_never_see_what_is_not_valid():
    rng = np.random.default_rng(0)
    p, t = rng.uniform(0, 30, (2, 2, 16, 16))
    valid = rng.random(p.shape) < 0.7
    g = np.log(p + 1) - np.log(t + 1)
    expected = np.sqrt(g[valid].var() + 0.15 * g[valid].mean() ** 2)
    holes = torch.from_numpy(np.where(valid, t, np.nan))
    predicted, mask = torch.from_numpy(p).requires_grad_(), torch.from_numpy(valid)
    assert float(sig_loss(predicted, holes, mask, 1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(l1_loss(predicted, holes, mask)) == pytest.approx(np.abs(p - t)[valid].mean())
    e = np.abs(p - t)[valid]
    expected = np.where(e < 2, e**2 / 2, 2 * (e - 1)).mean()
    assert float(huber_loss(predicted, holes, mask, 2.0)) == pytest.approx(expected)
    scales = []
    for step in (1, 2, 4, 8):
        part, known, parts = g[:, ::step, ::step], valid[:, ::step, ::step], []
        for axis in (1, 2):
            both = np.minimum(*(np.roll(known, s, axis) for s in (0, 1))).take(range(1, known.shape[axis]), axis)
            parts.append(np.abs(np.diff(part, axis=axis))[both].mean())
        scales.append(sum(parts))
    assert float(gradient_loss(predicted, holes, mask, 1.0)) == pytest.approx(np.mean(scales), rel=1e-6)
    everything = LossSettings(1, 1, 1, 1)
    height_loss(predicted, holes, mask, everything, 1000).backward()
    assert torch.isfinite(predicted.grad).all()
    assert (predicted.grad[~mask] == 0).all()
    nothing = height_loss(predicted, holes, mask & False, everything, 1000)
    assert float(nothing) < 1e-3


def test_training_learns_and_its_model_stands_alone(table, tmp_path: Path):
    settings = replace(SMALL, steps=60, backbone=replace(TINY, trainable=True), backbone_rate=1.0)
    result = train(settings, table, TILES, tmp_path / "run", progress=False)
    assert result.finished
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    (tmp_path / "run/model").rename(tmp_path / "elsewhere")
    model = load_model(tmp_path / "elsewhere")
    assert model.seen == Seen((1, 2, 3), tile=32, resolution=0.5, dtype="uint8")
    assert model.model(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 32)
    (tmp_path / "elsewhere/model.safetensors").write_bytes(b"short")
    with pytest.raises(CurationError, match="not the file that was written"):
        load_model(tmp_path / "elsewhere")


def test_a_frozen_backbone_stays_as_it_is(table, tmp_path: Path):
    train(replace(SMALL, steps=3), table, TILES, tmp_path / "a", progress=False)
    train(replace(SMALL, steps=9), table, TILES, tmp_path / "b", progress=False)
    a, b = (load_model(tmp_path / name / "model").model.state_dict() for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a if name.startswith("backbone."))
    assert any(not torch.equal(a[name], b[name]) for name in a if name.startswith("head."))


def test_a_killed_run_ends_as_one_that_was_not(table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = replace(SMALL, speed=replace(SMALL.speed, checkpoint_every=10, log_every=10))
    train(settings, table, TILES, tmp_path / "whole", progress=False)
    plain = Checkpoints.on_train_batch_end

    def killing(self: Checkpoints, trainer, *rest) -> None:
        if trainer.global_step == 17:
            signal.raise_signal(signal.SIGTERM)
        plain(self, trainer, *rest)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", killing)
    first = train(settings, table, TILES, tmp_path / "run", progress=False)
    assert (first.finished, first.step) == (False, 17)
    monkeypatch.undo()
    assert train(settings, table, TILES, tmp_path / "run", progress=False).finished
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert train(settings, table, TILES, tmp_path / "run", progress=False).finished  # nothing to do
    with pytest.raises(CurationError, match="holds a run with learning_rate"):
        train(replace(settings, learning_rate=0.5), table, TILES, tmp_path / "run", progress=False)


def test_bad_settings_and_data_are_named(table, scene, tmp_path: Path):
    with pytest.raises(CurationError, match=r"head.kind is 'deep'; it must be one of linear, dpt"):
        load_settings(None, ["head.kind=deep"])
    with pytest.raises(CurationError, match="stepz is no setting; did you mean 'steps'"):
        load_settings(None, ["stepz=3"])
    unlabelled = cut_tiles([scene[0]], None, TILES, progress=False)
    with pytest.raises(CurationError, match=r"none of .* tiles has heights"):
        train(SMALL, unlabelled, TILES, tmp_path / "run", progress=False)
    with pytest.raises(CurationError, match="statistics=backbone"):
        train(replace(SMALL, statistics="backbone"), table, TILES, tmp_path / "run", progress=False)
