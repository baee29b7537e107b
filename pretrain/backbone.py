"""Any timm model as a backbone: class token and patch tokens, with patches that can be masked."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foundation.errors import CurationError, one_line
from pretrain.settings import BackboneSettings


class Backbone(nn.Module):
    """A timm model without its classifier.

    Attributes:
        model: the timm model; its names are those of the exported weights.
        dim: of the features.
        has_patches: it is a transformer whose patch tokens can be masked; of others there is the pooled feature only.
        n_prefix: tokens before the patches: class token and registers.
        has_class_token: the first of them is a class token; without one the feature is the mean of the patches.
        mask_token: (1, d) takes the place of a masked patch (iBOT, section 3.1).
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        self.has_patches = hasattr(model, "num_prefix_tokens") and isinstance(patch, (tuple, list))
        # some convolutional models widen the feature after pooling
        self.dim = int(
            model.num_features if self.has_patches else getattr(model, "head_hidden_size", model.num_features)
        )
        self.n_prefix = int(model.num_prefix_tokens) if self.has_patches else 0
        self.has_class_token = self.n_prefix > 0 and getattr(model, "cls_token", None) is not None
        self._masks: Tensor | None = None
        if self.has_patches:
            self.mask_token = nn.Parameter(torch.zeros(1, self.dim))
            # a hook, so that every timm transformer keeps its own forward: positions, registers, rotations
            model.patch_embed.register_forward_hook(self._mask_patches)
        for module in model.modules():
            if getattr(module, "fused_attn", False):
                setattr(module, "forward", _AttentionForward(module.forward))  # noqa: B010

    def _mask_patches(self, _module: nn.Module, _inputs: Any, patches: Tensor) -> Tensor:
        if self._masks is None:
            return patches
        masks = self._masks.view(*patches.shape[:-1], 1)
        return torch.where(masks, self.mask_token.to(patches.dtype), patches)

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of this side; (0, 0) where there are none."""
        if not self.has_patches:
            return (0, 0)
        height, width = self.model.patch_embed.patch_size
        return (size // height, size // width)

    def forward(
        self, images: Float[Tensor, "b 3 h w"], masks: Bool[Tensor, "b p"] | None = None
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b p d"]]:
        """Class token (or pooled feature) and patch tokens after the last norm; no patches are (b, 0, d)."""
        if not self.has_patches:
            pooled = self.model.forward_head(self.model.forward_features(images), pre_logits=True).flatten(1)
            return pooled, pooled.new_empty(len(pooled), 0, self.dim)
        self._masks = masks
        tokens = self.model.forward_features(images)
        self._masks = None
        patches = tokens[:, self.n_prefix :]
        return (tokens[:, 0] if self.has_class_token else patches.mean(1)), patches


class _AttentionForward:
    """The forward of an attention module, in float32 where a CPU computes in bfloat16.

    torch's bfloat16 kernel for CPUs is 7 times slower backwards: ``scripts/bench_pretrain.py precision=bf16-mixed
    profile=10`` shows it, with torch 2.14 on a CPU without AMX.
    """

    def __init__(self, forward: Callable[..., Tensor]):
        self.forward = forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        slow = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
        with _Float32Attention() if slow else nullcontext():
            return self.forward(x, *args, **kwargs)


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value, *rest = args
        with torch.autocast("cpu", enabled=False):
            found = func(query.float(), key.float(), value.float(), *rest, **kwargs)
        return found.to(query.dtype)


def build_backbone(settings: BackboneSettings, size: int, drop_path: float = 0.0) -> Backbone:
    """A backbone with new weights.

    Args:
        settings: name and arguments of the timm model.
        size: side of the global crops, pixels.
        drop_path: stochastic depth, the same in every block (DINOv2); 0 for the teacher.

    Raises:
        CurationError: timm has no such model, or cannot make it with these arguments.
    """
    import timm

    if not timm.is_model(settings.name):
        near = timm.list_models(f"*{settings.name.split('.')[0].split('_')[0]}*")[:5]
        raise CurationError(f"backbone.name {settings.name!r} is no model of timm; for instance {', '.join(near)}")
    transformer = _is_transformer(settings.name)
    given: dict[str, Any] = {"img_size": size, "dynamic_img_size": True} if transformer else {}
    if drop_path and not transformer:
        given["drop_path_rate"] = drop_path
    try:
        model = timm.create_model(settings.name, num_classes=0, **{**given, **settings.args})
    except Exception as error:  # timm: TypeError, AssertionError, RuntimeError, ...
        reason = one_line(error)
        raise CurationError(f"timm cannot make {settings.name} with {settings.args}: {reason}") from error
    backbone = Backbone(model)
    if settings.init == "dinov2":
        reset_linear_layers(model)
    if settings.positions == "dinov2":
        _take_published_positions(model, settings.name)
    if drop_path and transformer:
        set_stochastic_depth(model, drop_path, settings.skip_dropped)
    return backbone


def _is_transformer(name: str) -> bool:
    """timm makes it with an image size: a plain transformer with one grid of patches."""
    return name.startswith(("vit_", "deit", "eva", "test_vit")) and not name.startswith(("vit_relpos", "vit_srelpos"))


def reset_linear_layers(model: nn.Module) -> None:
    """Draw every linear layer from a truncated normal of deviation 0.02 with zero bias, as DINOv2 and DINOv3 do.

    timm starts the gates of SwiGLU layers near zero with bias one, and shrinks EVA's projections with depth.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resized_positions(
    positions: Float[Tensor, "one p d"], old: tuple[int, int], new: tuple[int, int], n_prefix: int
) -> Float[Tensor, "one q d"]:
    """Learned positions on another grid as DINOv2 resizes them for local crops.

    Bicubic with a = -0.75 and without antialiasing; the grid is scaled by (new + 0.1) / old, so that the samples lie
    a little to the upper left of those that timm takes. Positions of the same grid stay as they are.

    Args:
        old, new: rows and columns of the grids.
        n_prefix: positions before the patches, which stay.
    """
    if old == new:
        return positions
    prefix, patches = positions[:, :n_prefix], positions[:, n_prefix:]
    grid = patches.float().unflatten(1, old).permute(0, 3, 1, 2)
    scale = [(n + 0.1) / o for n, o in zip(new, old, strict=True)]
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([prefix, grid.flatten(2).mT.to(positions.dtype)], dim=1)


def _take_published_positions(model: Any, name: str) -> None:
    if not isinstance(model, VisionTransformer) or model.pos_embed is None or not model.dynamic_img_size:
        raise CurationError(
            f"backbone.positions=dinov2 resizes learned positions, which {name} has not; set backbone.positions=timm"
        )
    setattr(model, "_pos_embed", _PublishedPositions(model))  # noqa: B010


class _PublishedPositions:
    """The method `_pos_embed` of a timm `VisionTransformer`, with `resized_positions`."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b t d"]:
        model = self.model
        n_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        old = tuple(model.patch_embed.grid_size)
        positions = resized_positions(model.pos_embed, old, (x.shape[1], x.shape[2]), n_prefix)
        patches = x.flatten(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
        if model.no_embed_class:
            return model.pos_drop(torch.cat([*prefix, patches + positions], dim=1))
        return model.pos_drop(torch.cat([*prefix, patches], dim=1) + positions)


def set_stochastic_depth(model: Any, probability: float, skip: bool) -> None:
    """Drop each residual branch of a sample with this probability, alike in every block (Huang et al. 2016).

    Args:
        skip: compute the branch only for the samples that keep it (DINOv2, section 5): a plain `Block` or `EvaBlock`
            then costs 1 - probability of its operations. Exactly that share of the batch is kept, at random.
    """
    for block in model.blocks:
        for name in ("drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, DropPath(probability))
        if skip and type(block) in (Block, EvaBlock):
            forward = _SkippingForward if type(block) is Block else _SkippingEvaForward
            setattr(block, "forward", forward(block, probability))  # noqa: B010


class _Skipping:
    """The forward of a block whose branches see a random part of the batch while it trains."""

    def __init__(self, block: Any, probability: float):
        self.block, self.probability = block, probability

    def _residual(self, x: Tensor, branch: Any) -> Tensor:
        kept = max(int(len(x) * (1 - self.probability)), 1)
        rows = torch.randperm(len(x), device=x.device)[:kept]
        added = branch(x[rows])
        return torch.index_add(x, 0, rows, added.to(x.dtype), alpha=len(x) / kept)


class _SkippingForward(_Skipping):
    """Of a `Block`."""

    def __call__(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        block = self.block
        if not block.training:
            return Block.forward(block, x, attn_mask, is_causal)
        x = self._residual(x, lambda rows: block.ls1(block.attn(block.norm1(rows))))
        return self._residual(x, lambda rows: block.ls2(block.mlp(block.norm2(rows))))


class _SkippingEvaForward(_Skipping):
    """Of an `EvaBlock`; rotations are those of the grid, alike for every sample."""

    def __call__(self, x: Tensor, rope: Any = None, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        block = self.block
        if not block.training:
            return EvaBlock.forward(block, x, rope, attn_mask, is_causal)
        scales = [1.0 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2)]
        x = self._residual(x, lambda rows: scales[0] * block.attn(block.norm1(rows), rope=rope))
        return self._residual(x, lambda rows: scales[1] * block.mlp(block.norm2(rows)))


def load_weights(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state whose names and shapes match; positions of another grid are resampled.

    Raises:
        CurationError: it is of another architecture.
    """
    own = module.state_dict()
    state = dict(state)
    for name, value in own.items():
        if name.endswith("pos_embed") and name in state and state[name].shape != value.shape:
            model: Any = module.get_submodule(name.rpartition(".")[0])
            prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
            grid = list(model.patch_embed.grid_size)
            state[name] = resample_abs_pos_embed(state[name], new_size=grid, num_prefix_tokens=prefix)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unknown or other:
        raise CurationError(
            f"{what} is of another architecture: {len(missing)} names are missing {missing[:3]}, {len(unknown)} are "
            f"unknown {unknown[:3]}, {len(other)} have another shape {other[:3]}"
        )
    module.load_state_dict(state)
