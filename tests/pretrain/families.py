"""Small models of twelve families of timm; run by itself it is one of two processes that train them all.

``python families.py FOLDER RANK`` takes two steps of each under DDP, which stops at the second where a parameter got no
gradient at the first, and writes what it found to FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pretrain.multicrop import CropSettings
from pretrain.network import build_networks
from pretrain.settings import BackboneSettings, HeadSettings, LossSettings, PretrainSettings

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


def main(folder: str, rank: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for family, given in FAMILIES.items():
        backbone, size = build_networks(settings(*given))[0].backbone, given[2]
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
