"""What tells the weights of two models apart."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, uint8


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
