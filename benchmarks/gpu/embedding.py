"""Embedding pictures with a large transformer: the whole way from JPEG, and the network alone."""

import shutil
import statistics
import time

import torch

from benchmarks.gpu.machine import describe
from benchmarks.gpu.parts import Context, Row
from benchmarks.gpu.pictures import noise_pool
from benchmarks.gpu.timing import seconds_of
from curation.embedding.embed import embed_pool, worker_count
from curation.embedding.embedders import open_embedder

NETWORK, TINY = "timm:vit_large_patch14_dinov2?pretrained=false", "timm:vit_tiny_patch16_224?pretrained=false"


def embed(context: Context) -> list[Row]:
    """Images per second of the network alone by batch size, then of `embed_pool` by workers; random weights."""
    embedder = open_embedder(TINY if context.tiny else NETWORK, context.size(224, 64), context.device)
    cores = int(describe(context.device)["cores"])
    rows: list[Row] = []
    for batch in (2,) if context.tiny else (64, 128, 256):
        images = torch.randn(batch, 3, embedder.image_size, embedder.image_size)
        try:
            seconds = statistics.median(seconds_of(lambda x=images: embedder.forward(x), context.device, 5))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            context.notes.append(f"batch {batch}: out of GPU memory; lower batch_size")
            continue
        rows.append(
            {"what": "network alone, from memory of the host", "batch": batch, "images_per_second": batch / seconds}
        )
        context.save(rows)
    best = max(rows, key=lambda row: row["images_per_second"])["batch"] if rows else 64
    pool = noise_pool(context.size(12_000, 12), context.size(500, 64))
    for workers in sorted({worker_count(None), max(cores - 2, 1)} if not context.tiny else {0}):
        folder = context.work / "embeddings"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        embed_pool(pool, embedder, folder, best, n_workers=workers, progress=False)
        rate = len(pool) / (time.perf_counter() - started)
        what = f"from JPEG of 500 x 375 to disk, {workers} workers"
        rows.append({"what": what, "batch": best, "images_per_second": rate})
        context.save(rows)
        shutil.rmtree(folder, ignore_errors=True)
    return rows
