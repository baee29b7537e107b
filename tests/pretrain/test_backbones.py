"""Backbones of timm: what is trained must be what is exported and judged, or a run is spent on something else."""

import importlib.util
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from warm import Server

from eval.models import from_timm
from foundation.errors import CurationError
from pretrain.backbone import build_backbone, resized_positions
from pretrain.backbone_check import check_features, unused_parameters
from pretrain.export import export_teacher, load_teacher
from pretrain.multicrop import CropSettings
from pretrain.network import build_networks
from pretrain.settings import BackboneSettings, load_settings

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs/pretrain"
spec = importlib.util.spec_from_file_location("families", Path(__file__).parent / "families.py")
assert spec is not None
assert spec.loader is not None
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)
FAMILIES, HEAD, ROTATED, SWIN, TINY, settings = (
    families.FAMILIES,
    families.HEAD,
    families.ROTATED,
    families.SWIN,
    families.TINY,
    families.settings,
)


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


def test_two_processes_train_every_family(tmp_path: Path, warm: Server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = Path(__file__).parent / "families.py"
    started = [warm.start(script, tmp_path, rank, cwd=ROOT, env=place) for rank in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
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


def meta_model(recipe: str) -> Any:
    given = load_settings(RECIPES / f"{recipe}.yaml")
    with torch.device("meta"):
        return build_backbone(given.backbone, given.crops.global_size).model


def test_the_long_recipe_has_the_published_layers():
    model = meta_model("vitl14_long")
    block = model.blocks[0]
    assert len(model.blocks) == 24
    assert model.pos_embed.shape == (1, 257, 1024)
    assert block.attn.qkv.bias.shape == (3 * 1024,)  # of the keys too
    assert block.mlp.fc1.weight.shape == (2 * 2736, 1024)
    assert block.mlp.fc2.weight.shape == (1024, 2736)
    assert model.norm.eps == block.norm1.eps == 1e-6
    attention, mlp = 4 * (1024 * 1024 + 1024), 1024 * 2 * 2736 + 2 * 2736 + 2736 * 1024 + 1024
    outside = 257 * 1024 + 1024 + (3 * 14 * 14 + 1) * 1024 + 2 * 1024
    assert sum(weight.numel() for weight in model.parameters()) == outside + 24 * (attention + mlp + 6 * 1024)


def test_the_dinov3_recipe_has_rotations_and_neither_registers_nor_learned_positions():
    model = meta_model("dinov3_vitl16_im1k")
    block = model.blocks[0]
    assert model.pos_embed is None
    assert model.reg_token is None
    assert (model.num_prefix_tokens, len(model.blocks), model.num_features) == (1, 24, 1024)
    assert block.attn.qkv.bias.shape == (3 * 1024,)
    assert model.norm.eps == block.norm1.eps == 1e-6
    assert block.mlp.fc1.weight.shape == (4096, 1024)
    assert model.rope.temperature == 100
    assert model.rope.normalize_coords == "separate"
    assert (model.rope.shift_coords, model.rope.jitter_coords, model.rope.rescale_coords) == (None, None, None)


def test_published_weights_at_the_start_open_the_gates():
    args = {**TINY, "embed_dim": 64, "mlp_ratio": 4}
    for name, extra in (("vit_giant_patch14_dinov2", {}), ("vit_large_patch16_rope_224", ROTATED)):
        torch.manual_seed(0)
        made = build_backbone(BackboneSettings(name, {**args, **extra}, init="dinov2"), 16).model
        for module in made.modules():
            if isinstance(module, torch.nn.Linear):
                for part in module.weight.chunk(2):
                    assert float(part.detach().std()) == pytest.approx(0.02, rel=0.1)
                assert not module.bias.any()
    timms = build_backbone(BackboneSettings("vit_giant_patch14_dinov2", args), 16).model
    assert float(timms.blocks[0].mlp.fc1.weight.detach().chunk(2)[1].std()) < 1e-5  # why there is such a setting


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_large_patch16_rope_224"])
def test_skipped_branches_cost_nothing_and_kept_ones_count_more(name: str):
    args = {**TINY, "init_values": 1.0}
    model = build_backbone(BackboneSettings(name, args), 16, drop_path=0.5).train().model
    block, seen = model.blocks[0], []
    block.attn.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    block.mlp.register_forward_hook(lambda module, inputs, output: output * 0)
    tokens = torch.randn(8, 5, 24)
    rope = {} if name == "vit_tiny_patch16_224" else {"rope": model.rope.get_embed(shape=(2, 2))}
    moved = block(tokens, **rope) - tokens
    branch = block.attn(block.norm1(tokens), **rope)
    kept = moved.abs().amax((1, 2)) > 0
    assert seen[0] == int(kept.sum()) == 4
    torch.testing.assert_close(moved[kept], 2 * branch[kept], rtol=1e-4, atol=1e-5)
    block.eval()
    torch.testing.assert_close(block(tokens, **rope), tokens + branch, rtol=1e-4, atol=1e-5)


def test_positions_of_the_same_grid_stay_and_others_need_learned_ones():
    positions = torch.randn(1, 17, 3)
    assert resized_positions(positions, (4, 4), (4, 4), 1) is positions
    assert torch.equal(resized_positions(positions, (4, 4), (2, 2), 1)[:, 0], positions[:, 0])
    with pytest.raises(CurationError, match=r"set backbone\.positions=timm"):
        build_backbone(BackboneSettings("vit_large_patch16_rope_224", {**TINY, **ROTATED}, positions="dinov2"), 16)
    with pytest.raises(CurationError, match=r"backbone\.init is 'zero'; it must be one of timm, dinov2"):
        BackboneSettings(init="zero")


def test_an_unused_parameter_is_found_in_the_graph():
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "idle": torch.nn.Linear(2, 2)})
    assert unused_parameters(model, [model["used"](torch.ones(1, 2))]) == ["idle.weight", "idle.bias"]
