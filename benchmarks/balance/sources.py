"""Rows that pools are drawn from, embedded once: pictures of six domains, their near-duplicates, junk, and passages.

All but the clip art, which the repository has, lie in the folder that CURATED_SSL_DATA names.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from curation.embedding.embed import embed_pool, read_image
from curation.embedding.embedders import Embedder, open_embedder
from curation.pools.pool import open_pool
from curation.store.embeddings import open_embeddings
from experiments.engine import inputs
from experiments.satellite.cover import cover_classes, cover_signs
from experiments.visual_domains.sources import PICTURES, TILES, encoded, picture_pool, thumbnails
from experiments.web_images.faults import junk, near_duplicate
from foundation.errors import CurationError
from foundation.files import checksum, load_array, save_array

FILES = {**PICTURES, "heights": "autzen/canopy_height.tif", "passages": "text/passages.parquet"}
VISUAL = tuple(PICTURES)
NETWORK, IMAGE_SIZE = "efficientnet_lite0", 96
BURSTS, COPIES, JUNK_ROWS = 40, 40, 300  # pictures of a domain that have copies; copies of each; pictures of nothing
TEXT_FORMS = ("bytes", "characters", "words", "sentences")
WORD_PIECES = 64  # of a passage that the sentence model reads
LEFT_OUT = ("declaration_of_human_rights", "web/singles", "web/firefox")  # one text in many languages, and tiny ones


def locate(source: str) -> Path:
    """Where the file of a source lies."""
    return inputs.locate(FILES[source])


@cache
def _embedder(name: str) -> Embedder:
    return thumbnails() if name == "thumbnails" else open_embedder(name, IMAGE_SIZE, "cpu")


def land_cover(pool: Any) -> Int[np.ndarray, "n"]:
    """Class of each tile from heights and colour, of `experiments.satellite.cover.COVERS`."""
    import rasterio

    with rasterio.open(locate("land")) as colours, rasterio.open(locate("heights")) as heights:
        rgb, height = colours.read((1, 2, 3)).astype(np.float32), heights.read(1)
    places = [
        (slice(r, r + TILES.tile), slice(c, c + TILES.tile)) for r, c in zip(pool["row"], pool["col"], strict=True)
    ]
    return cover_classes(cover_signs(rgb[:, rows, cols], height[rows, cols]) for rows, cols in places)


def burst_pool(domain: str) -> Any:
    """`COPIES` near-duplicates of each of `BURSTS` pictures of a domain; column ``of`` is the row of the original."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    stored = picture_pool(domain)
    originals = np.repeat(np.sort(rng.choice(len(stored), BURSTS, replace=False)), COPIES)
    stored = stored.with_format("arrow")
    pictures = {int(row): read_image(stored[int(row)]["image"][0].as_py()) for row in np.unique(originals)}
    images = [encoded(near_duplicate(pictures[int(row)], rng)) for row in originals]
    features = Features({"image": ImageFeature(), "of": Value("int64")})
    return Dataset.from_dict({"image": images, "of": originals}, features=features)


def junk_pool() -> Any:
    """Pictures of nothing."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    images = [encoded(junk(64, rng)) for _ in range(JUNK_ROWS)]
    return Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))


class Sources:
    """Embeddings and concepts of all rows, made on first use and kept in a folder.

    Args:
        folder: of the embeddings; made anew where it is not there, and gone on with after a kill.
        progress: show bars.
    """

    def __init__(self, folder: Path, progress: bool = True):
        self.folder, self.progress = folder, progress
        self._pictures = cache(self._load_pictures)
        self._passages = cache(self._load_passages)

    def pictures(self, domain: str, embedder: str = NETWORK) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
        """Embeddings of a domain's pictures, and their classes within it."""
        return self._pictures(domain, embedder)

    def bursts(self, domain: str) -> tuple[Float[np.ndarray, "m d"], Int[np.ndarray, "m"]]:
        """Embeddings of near-duplicates of a domain's pictures, and the row of the picture that each repeats."""
        pool = burst_pool(domain)
        return self._embedded(pool, f"{domain}-bursts", NETWORK), np.array(pool["of"])

    def junk(self) -> Float[np.ndarray, "m d"]:
        """Embeddings of pictures of nothing."""
        return self._embedded(junk_pool(), "junk", NETWORK)

    def passages(self, form: str) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
        """Embeddings of passages in one of `TEXT_FORMS`, and their domains."""
        return self._passages(form)

    def _load_pictures(self, domain: str, embedder: str) -> tuple[np.ndarray, np.ndarray]:
        pool = picture_pool(domain)
        concept = land_cover(pool) if domain == "land" else np.array(pool["label"])
        return self._embedded(pool, domain, embedder), np.unique(concept, return_inverse=True)[1]

    def _embedded(self, pool: Any, name: str, embedder: str) -> np.ndarray:
        folder = self.folder / f"{name}-{embedder}"
        options: dict[str, Any] = {"n_workers": 0, "rows_per_shard": 2048, "progress": self.progress}
        found = embed_pool(pool, _embedder(embedder), folder, overwrite=True, **options)  # of an earlier pool: anew
        if found.skipped:
            row, reason = next(iter(found.skipped.items()))
            raise CurationError(f"row {row} of {name} cannot be read ({reason}); get the file again")
        x = open_embeddings(folder)
        return x.block(0, x.n_rows).float().numpy()

    def _load_passages(self, form: str) -> tuple[np.ndarray, np.ndarray]:
        path = locate("passages")
        pool = open_pool(path)
        domain = np.array(pool["domain"])
        keep = ~np.isin(domain, LEFT_OUT)
        # the parts of one corpus are one domain: they differ in topic alone
        domain = np.array(["brown" if name.startswith("brown/") else name for name in domain])
        if form == "sentences":
            x = self._sentences(pool, self.folder / "passages-sentences")
        else:
            cached = self.folder / f"passages-{form}-{checksum(path)[:10]}.npy"
            if not cached.exists():
                save_array(cached, _text_features(pool["text"], form))
            x = load_array(cached, mmap=False)
        return x[keep], np.unique(domain[keep], return_inverse=True)[1]

    def _sentences(self, pool: Any, folder: Path) -> np.ndarray:
        from curation.embedding.sentences import embed_passages, open_sentence_model

        model = open_sentence_model(device="cpu")
        model.max_seq_length = WORD_PIECES
        embed_passages(pool, folder, model, rows_per_shard=2048, progress=self.progress, overwrite=True)
        x = open_embeddings(folder)
        return x.block(0, x.n_rows).float().numpy()


def _text_features(texts: list[str], form: str) -> Float[np.ndarray, "n d"]:
    """Square roots of the shares of 256 bytes, or TF-IDF of character n-grams or words in 128 dimensions."""
    if form == "bytes":
        counts = np.stack(
            [np.bincount(np.frombuffer(text.encode()[:4000], np.uint8), minlength=256) for text in texts]
        ).astype(np.float32)
        return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    kind = {"analyzer": "char", "ngram_range": (2, 4)} if form == "characters" else {}
    counted = TfidfVectorizer(max_features=50_000, sublinear_tf=True, min_df=3, **kind).fit_transform(texts)
    return TruncatedSVD(128, random_state=0).fit_transform(counted).astype(np.float32)
