"""Visual domains that pools are put together from, and what a picture is without any network.

All but the clip art, which the repository has, lie in the folder that CURATED_SSL_DATA names.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from curation.embedding.embedders import Embedder
from curation.pools.pool import open_pool
from curation.pools.tiles import TileCut, open_rasters
from experiments.engine.inputs import DATA, locate
from foundation.errors import CurationError

PICTURES = {
    "photos": "domains/photos.parquet",
    "cifar": "cifar10/train.parquet",
    "characters": "domains/characters.parquet",
    "speech": "domains/speech.parquet",
    "clipart": "data/openclipart.parquet",
    "land": "autzen/rgb.tif",
}
CIFAR_TEST = "cifar10/test.parquet"
CIFAR_ROWS, CIFAR_BANK = 12_000, 3_000
TILES = TileCut(tile=64, stride=40, bands=(1, 2, 3), min_valid=0.9)
THUMBNAIL = 16


def file_of(domain: str, role: str = "pool") -> str:
    """File of a domain; "clipart/animals" is one folder of the clip art.

    Raises:
        CurationError: there is no such domain.
    """
    name = domain.partition("/")[0]
    if name not in PICTURES or ("/" in domain and name != "clipart"):
        raise CurationError(
            f"science.pool.domains: {domain!r} is unknown; use {', '.join(PICTURES)}, or clipart/FOLDER"
        )
    return CIFAR_TEST if name == "cifar" and role == "test" else PICTURES[name]


def picture_pool(domain: str, role: str = "pool") -> Any:
    """The pictures of a domain as a `datasets.Dataset`.

    Where it has given roles, those of one: "pool", "bank" (to fit probes on) or "test".

    Raises:
        CurationError: its file is not there, or it has no such pictures.
    """
    path = locate(file_of(domain, role))
    if not path.exists():
        raise CurationError(f"{path}, the pictures of {domain!r}, is not there; set {DATA} to the folder that has them")
    if domain == "land":
        return open_rasters([path], path.parent, TILES)
    pool = open_pool(path)
    if domain == "cifar":
        order = np.random.default_rng(0).permutation(len(pool))
        parts = {"pool": order[:CIFAR_ROWS], "bank": order[CIFAR_ROWS : CIFAR_ROWS + CIFAR_BANK], "test": order}
        return pool.select(np.sort(parts[role]))
    if "role" in pool.column_names:  # bank is for probes
        return pool.select(np.flatnonzero(np.array(pool["role"]) == role))
    if "/" in domain:
        folder = domain.partition("/")[2]
        names = pool.features["group"].names
        if folder not in names:
            raise CurationError(f"the clip art has no folder {folder!r}; it has {', '.join(names)}")
        return pool.select(np.flatnonzero(np.array(pool["group"]) == names.index(folder)))
    return pool


def has_roles(domain: str) -> bool:
    """Whether pictures of the domain are held out by its publisher or by `role`; else a seed holds some out."""
    return domain != "land" and domain.partition("/")[0] != "clipart"


def encoded(picture: Image.Image) -> dict[str, Any]:
    """A picture as pools store it."""
    stream = io.BytesIO()
    picture.save(stream, "png", compress_level=1)
    return {"bytes": stream.getvalue(), "path": None}


def thumbnails() -> Embedder:
    """Colours of 16 x 16 pixels: what a picture is without any network."""
    from torchvision.transforms import Compose, InterpolationMode, Resize, ToTensor

    look = Compose([Resize((THUMBNAIL, THUMBNAIL), InterpolationMode.BICUBIC), ToTensor()])
    identity = {"embedder": "thumbnails", "image_size": THUMBNAIL}
    return Embedder("thumbnails", 3 * THUMBNAIL**2, THUMBNAIL, look, lambda images: images.flatten(1), identity)
