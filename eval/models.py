"""A frozen model as this room sees it: a feature function, its preprocessing, and an identity.

A feature function takes images (b, 3, h, w) and returns a dict:

- ``cls``: (b, d) class token (or pooled feature) of the last block, or a list of them, first of the taken blocks first;
- ``patches``: patch tokens (b, p, d) of the last block in row order, or a list like ``cls``; may be left out;
- ``grid``: (rows, columns) of the patches; left out, the grid is square.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, isfunction, signature
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eval.images import Transform
from foundation.command import explain
from foundation.devices import open_device
from foundation.errors import CurationError, one_line
from foundation.files import RESULT, check_export, load_json
from foundation.paths import regular_file
from foundation.timm_models import create_timm_model
from foundation.weights import weights_digest

FeatureFunction = Callable[[Float[Tensor, "b 3 h w"]], Mapping[str, Any]]
N_BLOCKS = 4


@dataclass
class FrozenModel:
    """What an evaluation needs to know of a model.

    Attributes:
        features: see above; runs where its model lives, moves the images there itself.
        transform: PIL image to (3, h, w) tensor, the model's own preprocessing.
        identity: names the model in results; features cached under one identity are never used for another.
        mean, std: of the normalisation inside ``transform``; corruptions and dense evaluations need them.
        image_size: of ``transform``'s output, pixels.
        pool: where the images lie that it was pretrained on; "": not known.
    """

    features: FeatureFunction
    transform: Transform
    identity: str
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    image_size: int = 224
    pool: str = ""


@dataclass
class _Result:
    """What ``result.json`` of a pretraining holds for us."""

    source: str = ""


@dataclass
class _Config:
    """What ``config.json`` of a folder holds at least."""

    architecture: str
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class BlockFeatures:
    """The output of a feature function in one form.

    Attributes:
        cls: (b, d) of each block, the last block last.
        patches: (b, p, d) of the last block, or None.
        grid: rows and columns of the patches.
    """

    cls: list[Float[Tensor, "b d"]]
    patches: Float[Tensor, "b p d"] | None = None
    grid: tuple[int, int] = (0, 0)

    @property
    def map(self) -> Float[Tensor, "b h w d"]:
        """The patches as a map."""
        if self.patches is None:
            raise CurationError("this model gives no patch tokens; segmentation and depth need them")
        return self.patches.unflatten(1, self.grid)


def block_features(output: Any, n_images: int) -> BlockFeatures:
    """Check and bring the output of a feature function into one form.

    Raises:
        CurationError: no ``cls``, wrong shapes, or a number of patches that is no grid.
    """
    if isinstance(output, Tensor):
        output = {"cls": output}
    if not isinstance(output, Mapping) or "cls" not in output:
        raise CurationError(f"the feature function returned {type(output).__name__}; it must return a dict with 'cls'")
    cls = list(output["cls"]) if isinstance(output["cls"], (list, tuple)) else [output["cls"]]
    for tokens in cls:
        if tokens.ndim != 2 or len(tokens) != n_images:
            raise CurationError(
                f"'cls' has shape {tuple(tokens.shape)}; for {n_images} images it must be ({n_images}, d)"
            )
    patches = output.get("patches")
    if isinstance(patches, (list, tuple)):
        patches = patches[-1] if patches else None
    if patches is None:
        return BlockFeatures(cls)
    if patches.ndim != 3 or len(patches) != n_images:
        raise CurationError(f"'patches' has shape {tuple(patches.shape)}; it must be ({n_images}, patches, d)")
    n = patches.shape[1]
    grid = tuple(output.get("grid") or (round(n**0.5), round(n**0.5)))
    if grid[0] * grid[1] != n:
        raise CurationError(f"{n} patches are no grid of {grid[0]} x {grid[1]}; let the feature function give 'grid'")
    return BlockFeatures(cls, patches, (int(grid[0]), int(grid[1])))


def open_model(
    name: str,
    weights: str | Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> FrozenModel:
    """A model by name.

    Args:
        name: ``timm:NAME`` (pretrained where no weights are given), ``random:NAME`` (timm, untrained: the baseline), a
            folder that timm can load (``config.json`` and ``model.safetensors``), or ``package.module:function``, which
            is called without arguments and returns a `FrozenModel`.
        weights: safetensors for ``timm:NAME``; they must fit the architecture exactly.
        image_size: overrides the model's own.
        device: "auto" takes a GPU where there is one.
        precision: "float32" or "bfloat16" (autocast).
    """
    target = open_device(device)
    if precision not in ("float32", "bfloat16"):
        raise CurationError(f"precision {precision!r} is unknown; use float32 or bfloat16")
    kind, _, rest = name.partition(":")
    if Path(name).is_dir():
        return _open_folder(Path(name), image_size, target, precision)
    if kind in ("timm", "random"):
        pretrained = kind == "timm" and weights is None
        model: nn.Module = create_timm_model(rest, image_size, pretrained=pretrained, num_classes=0)
        digest = _digest(model) if weights is None else _load_weights(model, Path(weights))
        return from_timm(model, f"{name}@{digest}", image_size, target, precision)
    if rest:
        made = _maker(name, kind, rest)()
        if not isinstance(made, FrozenModel):
            raise CurationError(f"{name} returned {type(made).__name__}; it must return an eval.models.FrozenModel")
        return made
    raise CurationError(
        f"model {name!r} is neither a folder nor timm:NAME nor package.module:function; "
        "`timm.list_models()` lists the names of timm"
    )


def _maker(name: str, module: str, function: str) -> Callable[[], Any]:
    """The function of ``package.module:function``; nothing else is called, and no module of Python's own imported.

    Raises:
        CurationError: it is not there, or does not say that it returns a `FrozenModel`.
    """
    needs = "write one as `def model() -> FrozenModel:`, with the type of eval.models and without arguments"
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise CurationError(f"model {name!r} is no function that returns a FrozenModel; {needs}")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # whatever a module raises while it is imported
        raise CurationError(f"model {name!r} cannot be imported: {' '.join(str(error).split())[:200]}") from error
    try:
        returns = get_type_hints(found).get("return") if isfunction(found) else None
    except Exception:  # an annotation that names what is not there
        returns = None
    bound = isfunction(found) and all(
        part.default is not Parameter.empty or part.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        for part in signature(found).parameters.values()
    )
    if not bound or not (isinstance(returns, type) and issubclass(returns, FrozenModel)):
        raise CurationError(f"model {name!r} is no function that returns a FrozenModel; {needs}")
    return found  # type: ignore[no-any-return]


def from_timm(
    model: nn.Module,
    identity: str,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> FrozenModel:
    """A timm model, transformer or convolutional, as a `FrozenModel`."""
    from timm.data import create_transform, resolve_model_data_config

    model = model.eval().requires_grad_(False).to(device)
    given = {} if image_size is None else {"input_size": (3, image_size, image_size)}
    config = resolve_model_data_config(model, args=given)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    tokens = hasattr(model, "patch_embed") and hasattr(model, "blocks")

    @torch.inference_mode()
    def features(images: Float[Tensor, "b 3 h w"]) -> dict[str, Any]:
        images = images.to(device, non_blocking=True)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return _token_features(model, images) if tokens else _map_features(model, images)

    size = max(config["input_size"][1:])
    try:
        features(torch.zeros(1, 3, size, size))
        transform = create_transform(**config, is_training=False)
    except Exception as error:  # timm asserts, torch raises RuntimeError, norms ValueError
        if explain(error):
            raise
        reason = one_line(error)
        raise CurationError(
            f"{identity} cannot take pictures of {size} pixels ({reason}); set image_size, or mend its config"
        ) from error
    return FrozenModel(features, transform, f"{identity} {size}px", tuple(config["mean"]), tuple(config["std"]), size)


def _token_features(model: Any, images: Float[Tensor, "b 3 h w"]) -> dict[str, Any]:
    """Class tokens of the last blocks and patch tokens, each through the final norm as DINOv2 does."""
    blocks = model.forward_intermediates(
        images,
        indices=min(N_BLOCKS, len(model.blocks)),
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    maps = [block[0] if isinstance(block, (tuple, list)) else block for block in blocks]
    if isinstance(blocks[-1], (tuple, list)) and blocks[-1][1].shape[1] and model.cls_token is not None:
        cls = [block[1][:, 0].float() for block in blocks]  # registers come after the class token, if there is one
    else:
        cls = [patches.float().mean((2, 3)) for patches in maps]
    last = maps[-1].float()
    return {"cls": cls, "patches": last.flatten(2).transpose(1, 2), "grid": tuple(last.shape[2:])}


def _map_features(model: Any, images: Float[Tensor, "b 3 h w"]) -> dict[str, Any]:
    """The pooled feature, and the last map where it is (b, d, h, w)."""
    last = model.forward_features(images)
    pooled = model.forward_head(last, pre_logits=True).float()
    out: dict[str, Any] = {"cls": pooled.flatten(1)}
    if last.ndim == 4 and last.shape[1] == getattr(model, "num_features", -1):
        out |= {"patches": last.float().flatten(2).transpose(1, 2), "grid": tuple(last.shape[2:])}
    return out


def _load_weights(model: nn.Module, path: Path) -> str:
    """Load safetensors, every name and shape matching; return the digest."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(regular_file(path, "give a .safetensors file"))
    except CurationError:
        raise
    except (OSError, SafetensorError) as error:
        raise CurationError(f"weights {path} cannot be read as safetensors: {error}") from error
    state = {name: x for name, x in state.items() if not name.startswith(("head.", "fc.", "classifier."))}
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or extra or other:
        raise CurationError(
            f"weights {path} are of another architecture: {len(missing)} names are missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(other)} of another shape {sorted(other)[:3]}"
        )
    model.load_state_dict(state)
    return _digest(model)


def _digest(model: nn.Module) -> str:
    """Of all weights, in any order of their names."""
    return weights_digest(dict(sorted(model.state_dict().items())), 8)


def _open_folder(folder: Path, image_size: int | None, device: torch.device, precision: str) -> FrozenModel:
    """A folder with the architecture beside its weights: an evaluation cannot take another one by mistake."""
    load_json(folder / "config.json", _Config, "give a folder that timm can load")
    regular_file(folder / "model.safetensors", "give a folder that timm can load")
    check_export(folder.resolve().parent, folder.resolve().name)
    # timm reads architecture, weights and preprocessing of the folder, and resamples positions to the image size
    model = create_timm_model(f"local-dir:{folder.resolve()}", image_size, pretrained=True, num_classes=0)
    found = from_timm(model, f"{folder.resolve().name}@{_digest(model)}", image_size, device, precision)
    if (result := folder.resolve().parent / RESULT).exists():
        found.pool = load_json(result, _Result, "train again").get("source", "")
    return found
