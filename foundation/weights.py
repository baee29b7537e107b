"""What tells the weights of two models apart, and whether they are those of a model."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, uint8

from foundation.errors import CurationError


def weights_digest(tensors: Mapping[str, Tensor], digest_size: int = 16) -> str:
    """BLAKE2b of the names and bytes of tensors in their order, in hexadecimal: the same for any number of threads.

    Args:
        tensors: of any shape, dtype and device, such as the ``state_dict()`` of a module.
        digest_size: in bytes.
    """
    digest = hashlib.blake2b(digest_size=digest_size)
    for name, values in tensors.items():
        digest.update(name.encode())
        stored: Any = values.detach().cpu().contiguous().reshape(-1).view(uint8).numpy()
        digest.update(stored)
    return digest.hexdigest()


def load_whole(load: Callable[..., Any], model: str, **options: Any) -> Any:
    """A Hugging Face model none of whose weights was filled at random, or left out.

    Args:
        load: ``from_pretrained``.
        model: its folder or name.

    Raises:
        CurationError: the weights are not those that its config.json says.
    """
    report = logging.getLogger("transformers.modeling_utils")  # a table of what is said below in one line
    before = report.level
    report.setLevel(logging.ERROR)
    try:
        found, loaded = load(model, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    finally:
        report.setLevel(before)
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if wrong := sorted(map(str, loaded[problem])):
            raise CurationError(
                f"the weights of model {model} are not those of its config.json ({problem.replace('_', ' ')}: "
                f"{', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}); copy it again"
            )
    return found
