"""Backbones of timm: what is trained must be what is exported and judged, or a run is spent on something else."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import multiprocessing

from eval.models import from_timm
from foundation.errors import CurationError
from pretrain.backbone import Backbone, build_backbone, resized_positions
from pretrain.backbone_check import check_features, unused_parameters
from pretrain.export import export_teacher, load_teacher
from pretrain.multicrop import CropSettings
from pretrain.network import build_networks
from pretrain.settings import BackboneSettings, HeadSettings, LossSettings, PretrainSettings, load_settings

RECIPES = Path(__file__).parents[2] / "configs/pretrain"
TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TOKEN, MEAN = {"global_pool": "token"}, {"global_pool": "avg", "fc_norm": False}
ROTATED = {"rope_type": "dinov3", "rope_rotate_half": True, "rope_grid_indexing": "ij"}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
# family -> name in timm, arguments, sides of global and local crops
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "vit": ("vit_tiny_patch16_224", TINY, 16, 8),
    "vit without class token": ("vit_medium_patch16_reg1_gap_256", {**TINY, "fc_norm": False}, 16, 8),
    "vit with swiglu": ("vit_giant_patch14_dinov2", TINY, 16, 8),
    "siglip": ("vit_base_patch16_siglip_224", {**TINY, **MEAN}, 16, 8),
    "eva": ("eva02_tiny_patch14_224", {**TINY, **TOKEN}, 16, 8),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, **TOKEN}, 16, 8),
    "rotary vit": ("vit_large_patch16_rope_224", {**TINY, **ROTATED}, 16, 8),
    "beit": ("beit_base_patch16_224", {**TINY, **TOKEN, "img_size": 16}, 16, 16),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32, 32),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 32, 32),
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}, 32, 16),
    "mobilenet": ("mobilenetv3_small_050", {}, 32, 32),
}
HEAD = HeadSettings(n_prototypes=8, hidden=16, bottleneck=8)


def settings(name: str, args: dict[str, Any], size: int, local: int, **given: Any) -> PretrainSettings:
    crops = CropSettings(global_size=size, local_size=local, n_local=2)
    masked = hasattr(timm.create_model(name, num_classes=0, **args), "num_prefix_tokens")
    loss = LossSettings(ibot=float(masked), dino_head=HEAD)
    return PretrainSettings(backbone=BackboneSettings(name, args, **given), crops=crops, loss=loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_that_are_trained_exported_and_evaluated_are_one_tensor(family: str, tmp_path: Path):
    name, args, size, local = FAMILIES[family]
    given = settings(name, args, size, local)
    student, _ = build_networks(given)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for module in student.modules():  # running means of zero would hide a missing norm
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    backbone = student.backbone.eval()
    with torch.no_grad():
        cls, patches = backbone(images)
    export_teacher(backbone.state_dict(), given, tmp_path, {})
    exported = load_teacher(tmp_path / "teacher")
    judged = from_timm(exported, "x").features(images)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), cls, rtol=1e-5, atol=1e-6)
    last = judged["cls"][-1] if isinstance(judged["cls"], list) else judged["cls"]
    torch.testing.assert_close(last, cls, rtol=1e-5, atol=1e-6)
    if backbone.has_patches:
        torch.testing.assert_close(judged["patches"], patches, rtol=1e-5, atol=1e-6)
        assert float(patches.std(2).mean()) == pytest.approx(1, abs=0.1)  # behind the last norm


@pytest.mark.parametrize(
    ("name", "args", "advice"),
    [
        ("eva02_tiny_patch14_224", TINY, r"2 parameters without a gradient .*fc_norm.*global_pool=token"),
        ("vit_small_patch16_dinov3", TINY, r"export the one of global_pool=avg; set backbone\.args\.global_pool=token"),
        ("vit_base_patch16_siglip_224", TINY, r"set backbone\.args\.global_pool=avg backbone\.args\.fc_norm=false"),
        ("beit_base_patch16_224", {**TINY, "img_size": 16}, r"set backbone\.args\.global_pool=token"),
        ("vit_relpos_small_patch16_224", {**TINY, "img_size": 16}, r"set .*fc_norm=false"),
        ("deit_tiny_distilled_patch16_224", TINY, r"the exported features are others .* choose another backbone\.name"),
        ("swin_tiny_patch4_window7_224", SWIN, r"takes no crops of 16 pixels"),
    ],
)
def test_a_backbone_that_pools_otherwise_is_refused_with_the_setting_that_mends_it(
    name: str, args: dict[str, Any], advice: str
):
    with pytest.raises(CurationError, match=advice):
        build_networks(settings(name, args, 16, 16))


def test_the_advice_is_given_before_a_folder_is_claimed(tmp_path: Path):
    from datasets import Dataset

    from pretrain.train import pretrain

    given = replace(settings("eva02_tiny_patch14_224", TINY, 16, 8), steps=1, batch_size=2)
    with pytest.raises(CurationError, match="global_pool=token"):
        pretrain(given, Dataset.from_dict({"image": [None]}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_feature_that_is_exported_otherwise_is_found_by_its_value():
    backbone = build_backbone(BackboneSettings("vit_tiny_patch16_224", TINY), 16)
    crops = CropSettings(global_size=16, local_size=8, n_local=2)
    check_features(backbone, BackboneSettings(), crops)
    backbone.model.global_pool = "avg"
    with pytest.raises(CurationError, match="exported features"):
        check_features(backbone, BackboneSettings(), crops)


def _two_processes(rank: int, port: int, families: list[str], folder: str) -> None:
    """Two steps under DDP, which stops at the second where a parameter got no gradient at the first."""
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for family in families:
        name, args, size, _ = FAMILIES[family]
        backbone = build_networks(settings(*FAMILIES[family]))[0].backbone
        model = DistributedDataParallel(backbone)
        for step in range(2):
            images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(10 * rank + step))
            rows, columns = backbone.grid(size)
            masks = torch.arange(4 * rows * columns).view(4, -1) % 2 == 0 if backbone.has_patches else None
            cls, patches = model(images, masks)
            (cls.square().sum() + patches.abs().sum()).backward()
        found[family] = [name for name, weight in backbone.named_parameters() if weight.grad is None]
        found[family + " sum"] = float(sum(weight.grad.double().sum() for weight in backbone.parameters()))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_train_every_family(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_two_processes, (port, list(FAMILIES), str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for family in FAMILIES:
        assert first[family] == []
        assert first[family + " sum"] == second[family + " sum"]  # the mean over both is what each of them has


def test_parts_that_no_loss_reaches_are_no_parameters():
    given = settings("vit_tiny_patch16_224", TINY, 16, 8)
    off = replace(given, loss=replace(given.loss, ibot=0.0))
    student, _ = build_networks(off)
    assert not student.backbone.mask_token.requires_grad
    only = replace(given, loss=replace(given.loss, dino=0.0, ibot_head=HEAD))
    student, _ = build_networks(only)
    assert not any(parameter.requires_grad for parameter in student.dino_head.parameters())
    assert all(parameter.requires_grad for parameter in student.ibot_head.parameters())


def test_an_unused_parameter_is_found_in_the_graph():
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "idle": torch.nn.Linear(2, 2)})
    assert unused_parameters(model, [model["used"](torch.ones(1, 2))]) == ["idle.weight", "idle.bias"]
