"""The Hugging Face Hub without a network: what is in the cache is taken, the rest fails at once, not after retries."""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from foundation.errors import CurationError

SWITCH = "HF_HUB_OFFLINE"
PATIENCE = 5.0  # seconds until an answer
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def hub_within_reach() -> Iterator[bool]:
    """Where the Hub cannot be reached, its libraries are in offline mode within the block; yields whether it can."""
    from huggingface_hub import constants

    if _reachable(constants.ENDPOINT):
        yield True
        return
    # datasets, where it is in use, has taken a copy of the same switch
    places = [place for place in (constants, sys.modules.get("datasets.config")) if place is not None]
    before = [getattr(place, SWITCH, False) for place in places]
    for place in places:
        setattr(place, SWITCH, True)
    try:
        yield False
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, SWITCH, value)


@cache
def _reachable(endpoint: str) -> bool:
    """Whether a server answers there; behind a proxy it is taken to."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    place = urlsplit(endpoint)
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), timeout=PATIENCE):
            return True
    except (OSError, ValueError):
        return False


def require_model_name(name: str, setting: str) -> None:
    """Refuse what neither is a folder or file nor could be a name on the Hub, before anything waits for it.

    Raises:
        CurationError: such a name.
    """
    path = Path(name)
    if path.exists() or re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", name, re.ASCII):
        return
    raise CurationError(f"{setting} is {name!r}: there is no such folder, and no name on the Hub reads so")
