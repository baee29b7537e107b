"""What a finished run leaves: the teacher as timm loads it, and the whole state for a run that goes on from it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundation.errors import CurationError
from foundation.files import check_export, load_json, save_json, whole_file, whole_folder
from foundation.paths import regular_file
from foundation.timm_models import create_timm_model
from pretrain.backbone import build_backbone, load_weights
from pretrain.card import CARD, model_card
from pretrain.settings import PretrainSettings

TEACHER = "teacher"
STATE = "state.safetensors"
WEIGHTS = "model.safetensors"


def export_teacher(state: dict[str, Tensor], settings: PretrainSettings, folder: Path, run: dict[str, Any]) -> None:
    """Write ``teacher/``: ``config.json`` (architecture, arguments, preprocessing, the run), ``model.safetensors``, and
    ``README.md``, its model card.

    `timm.create_model("local-dir:teacher", pretrained=True)` loads it; nothing of this project is needed.

    Args:
        state: of the teacher's backbone.
        run: what else is to be known of the run, as JSON.
    """
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    backbone = build_backbone(settings.backbone, settings.crops.global_size)
    load_weights(backbone, state, "the teacher")
    crops = settings.crops
    data = {
        "input_size": (3, crops.global_size, crops.global_size),
        "mean": crops.mean,
        "std": crops.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    with whole_folder(folder / TEACHER) as fresh:
        save_config_for_hf(backbone.model, str(fresh / "config.json"), data_config=data)
        config = load_json(fresh / "config.json")
        for word in ("tag", "license"):  # of the weights that timm offers under this name
            config["pretrained_cfg"].pop(word, None)
        config["pretraining"] = run
        n_weights = sum(parameter.numel() for parameter in backbone.model.parameters())
        (fresh / CARD).write_text(model_card(settings, config, run, n_weights))
        save_json(fresh / "config.json", config)
        save_file({name: value.contiguous() for name, value in backbone.model.state_dict().items()}, fresh / WEIGHTS)


def save_state(module_state: dict[str, Tensor], path: Path) -> None:
    """Student and teacher with their heads, and the centres: what `load_state` starts another run from."""
    from safetensors.torch import save_file

    # a shared head lies in the state under two names
    state = {name: value.detach().cpu().clone().contiguous() for name, value in module_state.items()}
    with whole_file(path) as temporary:
        save_file(state, temporary)


def require_state(folder: str) -> None:
    """Refuse an ``init_from`` that holds no finished run; "" starts untrained.

    Raises:
        CurationError: its state is not there.
    """
    if folder:
        regular_file(Path(folder) / STATE, "init_from needs the folder of a finished run")


def load_state(module: nn.Module, folder: str | Path) -> None:
    """Start a module from the state of a finished run.

    Raises:
        CurationError: there is none, or it is of another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / STATE
    check_export(Path(folder), STATE)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CurationError(f"init_from: {path} cannot be read ({error}); give the folder of a finished run") from error
    own = module.state_dict()
    # an anchor of Gram is taken from the teacher when its time comes
    for name in own:
        if name.startswith("anchor.") and name not in state:
            state[name] = state[name.replace("anchor.", "teacher.backbone.", 1)]
    wanted = {name: value for name, value in state.items() if name in own or not name.startswith("anchor.")}
    load_weights(module, wanted, str(path))


@torch.no_grad()
def load_teacher(folder: str | Path, image_size: int | None = None) -> Any:
    """The exported teacher as a timm model in evaluation mode, positions resampled to ``image_size``."""
    folder = Path(folder)
    if not (folder / "config.json").exists() or not (folder / WEIGHTS).exists():
        raise CurationError(f"{folder} has no config.json and {WEIGHTS}; give the folder teacher/ of a finished run")
    check_export(folder.parent, folder.name)
    try:
        return create_timm_model(f"local-dir:{folder.resolve()}", image_size, pretrained=True, num_classes=0).eval()
    except CurationError as error:
        raise CurationError(f"{folder} does not fit its config.json: {error}") from error
