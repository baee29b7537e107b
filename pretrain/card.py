"""The model card of a teacher: README.md beside its weights, as the Hugging Face Hub reads it."""

from typing import Any

import yaml

from foundation.tables import markdown_table
from pretrain.settings import PretrainSettings

CARD = "README.md"
NUMBERS = {
    "knn": "k-NN accuracy on images of the pool while it trained",
    "effective_rank": "effective rank of the features",
    "loss": "last training loss",
}


def model_card(settings: PretrainSettings, config: dict[str, Any], run: dict[str, Any], n_weights: int) -> str:
    """Architecture, data, recipe and numbers in Markdown.

    The licence is left open: it depends on the images, which we do not know.

    Args:
        config: ``config.json`` of the exported model.
        run: of `pretrain.export.export_teacher`.
        n_weights: parameters of the exported model.
    """
    front = {
        "license": "unknown",
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "image-feature-extraction", "self-supervised-learning", "curated-ssl"],
    }
    size, loss = settings.crops.global_size, settings.loss
    parts = [f"{name} {weight:g}" for name, weight in _weights(settings).items() if weight]
    architecture = {
        "model in timm": f"`{config['architecture']}`",
        "arguments": f"`{settings.backbone.args}`",
        "weights": f"{n_weights / 1e6:,.1f} million",
        "feature": f"{config['num_features']} numbers, the output of the model",
        "image": f"{size} x {size} pixels, RGB, mean {settings.crops.mean}, deviation {settings.crops.std}",
    }
    coverage = run.get("coverage", {})
    data = {
        "rows trained on": f"{run['n_rows']:,}" if "n_rows" in run else None,
        "pool fingerprint": run.get("pool"),
        "checksum of the rows": run.get("rows"),
        **{f"subset: {key.replace('_', ' ')}": value for key, value in (run.get("data") or {}).items()},
        "images seen": f"{coverage['samples']:,.0f}" if coverage else None,
        "distinct images seen": f"{coverage['unique_samples']:,.0f}" if coverage else None,
    }
    recipe = {
        "losses": ", ".join(parts),
        "centring": loss.centring,
        "steps": f"{settings.steps:,} of {settings.batch_size:,} images",
        "crops": f"2 of {size} pixels, {settings.crops.n_local} of {settings.crops.local_size}",
        "learning rate": f"{settings.peak_rate:.3g} at its peak, AdamW",
        "precision": settings.precision,
        "seed": settings.seed,
    }
    numbers = {
        NUMBERS.get(name, name): f"{value:.4g}" for name, value in run.get("metrics", {}).items() if name in NUMBERS
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", "# A pretrained vision model", ""]
    lines += ["The teacher of a run of Curated SSL: self-distillation without labels (DINOv2 and relatives).", ""]
    lines += ["```python", "import timm", "", 'model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()']
    lines += ["transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))", "```", ""]
    for title, table in (("Architecture", architecture), ("Data", data), ("Recipe", recipe), ("Numbers", numbers)):
        rows = [(name, str(value)) for name, value in table.items() if value is not None]
        if rows:
            lines += [f"## {title}", "", markdown_table(("", ""), rows)]
    lines += [
        "Every setting is in `config.json`, under `pretraining`. The loss does not tell how good the features are;"
    ]
    lines += ["`python -m eval knn model=FOLDER train=... test=...` and its relatives do.", ""]
    lines += [
        "**Licence.** Not set: it depends on the images. Name it in the first lines before you share the weights."
    ]
    return "\n".join(lines) + "\n"


def _weights(settings: PretrainSettings) -> dict[str, float]:
    loss = settings.loss
    return {"DINO": loss.dino, "iBOT": loss.ibot, "KoLeo": loss.koleo, "Gram": loss.gram.weight}
