"""Where input files lie: in the project, or in the folder of public data that a variable names."""

import os
from pathlib import Path

from curation.embedding.embedders import Embedder
from experiments.engine.provenance import ROOT
from foundation.errors import CurationError

DATA = "CURATED_SSL_DATA"


def locate(source: str) -> Path:
    """Where a file of the settings lies: as given if absolute, else in the project, else in the folder of `DATA`."""
    path = Path(source)
    if path.is_absolute():
        return path
    if (ROOT / path).exists():
        return ROOT / path
    return Path(os.environ[DATA]) / path if DATA in os.environ else path


def require_dim(embedder: Embedder, dim: int) -> None:
    """Refuse an embedder that makes another pool than the settings say.

    Raises:
        CurationError: ``science.pool.dim`` is not its dimension.
    """
    if embedder.dim != dim:
        raise CurationError(f"{embedder.name} has {embedder.dim} dimensions; set science.pool.dim={embedder.dim}")
