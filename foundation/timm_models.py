"""One opener of timm models: it knows which of them are built for one size of picture."""

from contextlib import nullcontext
from typing import Any

from foundation.errors import CurationError, one_line
from foundation.hub import hub_within_reach


def create_timm_model(name: str, image_size: int | None = None, **options: Any) -> Any:
    """A timm model, for pictures of this size where its architecture is built for one (transformers, mostly).

    The constructor itself is asked, for names mislead: eva02_large is a transformer, mobilevit mostly is not.

    Args:
        name: as timm knows it, with its prefixes ``hf-hub:`` and ``local-dir:``.
        image_size: side in pixels; None takes the model's own. Convolutional models take any size.
        options: of `timm.create_model` and of the model.

    Raises:
        CurationError: timm does not know it, cannot get its weights, or refuses an option.
    """
    asks_hub = name.startswith("hf-hub:") or (options.get("pretrained") and not name.startswith("local-dir:"))
    with hub_within_reach() if asks_hub else nullcontext():
        model = _create(name, image_size, **options)
    patches = getattr(model, "patch_embed", None)
    side = getattr(patches, "patch_size", None)
    if image_size is not None and isinstance(side, tuple) and not getattr(patches, "dynamic_img_pad", False):
        stride = getattr(getattr(patches, "proj", None), "stride", None)
        if stride == side and image_size % side[0]:  # the rest would be cut off in silence
            raise CurationError(f"{name} takes pictures in patches of {side[0]} pixels; {image_size} is no multiple")
    return model


def _create(name: str, image_size: int | None, **options: Any) -> Any:
    import timm

    sized = {} if image_size is None else {"img_size": image_size}
    try:
        try:
            return timm.create_model(name, **{**sized, **options})
        except TypeError as error:
            if not sized or "img_size" in options or "'img_size'" not in str(error):
                raise
            return timm.create_model(name, **options)
    except Exception as error:  # timm: RuntimeError, ValueError, TypeError, AssertionError, network errors
        reason = one_line(error)
        raise CurationError(f"timm cannot make {name!r}: {reason}") from error
