"""Training speed: images or tokens per second, MFU, the wait for data and memory, by batch size, compiled or not."""

import gc
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks.gpu.machine import describe
from benchmarks.gpu.parts import Context, Row, Skipped
from benchmarks.gpu.pictures import noise_pool
from foundation.settings import CONFIGS
from pretrain.settings import load_settings as pretrain_settings
from pretrain.train import pretrain
from text_lm.settings import load_settings as lm_settings
from text_lm.tokenizer import train_bpe
from text_lm.tokens import tokenise_pool
from text_lm.train import train
from training.run_folder import LOG

STEPS, STRETCH = 40, 10  # steps of a run, and of a line of its log; the first line compiles and warms up
TINY_CROPS = ["crops.global_size=32", "crops.local_size=16", "crops.n_local=2"]
TINY_VIT = [
    "backbone.name=vit_tiny_patch16_224",
    "backbone.args={patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}",
]
TINY_HEADS = ["loss.dino_head={n_prototypes: 16, hidden: 16, bottleneck: 8}", "loss.ibot_head=null"]
RECIPES = {"ViT-L/16": "vitl16_short.yaml", "ViT-S/16": "vits16_one_gpu.yaml"}
BATCHES = {"ViT-L/16": (32, 64, 96, 128), "ViT-S/16": (64, 128, 256)}


def pretraining(context: Context, model: str, compiled: bool) -> list[Row]:
    """A model at several batch sizes on one device; what does not fit into memory is noted."""
    _refuse_compiling(context, compiled)
    pool = noise_pool(context.size(4000, 24), context.size(500, 64))
    rows: list[Row] = []
    for batch in (4,) if context.tiny else BATCHES[model]:
        settings = pretrain_settings(
            CONFIGS / "pretrain" / RECIPES[model], pretrain_overrides(context, batch, compiled)
        )

        def work(folder: Path, settings: Any = settings) -> None:
            pretrain(settings, pool, folder, progress=False)

        row = _measured(context, work, batch, "images_per_second")
        if row is None:
            break  # larger ones do not fit either
        rows.append({"what": "", **row})
        context.save(rows)
    return rows


def pretrain_overrides(context: Context, batch: int, compiled: bool) -> list[str]:
    """Settings of a measurement on top of the recipe: one device, no looks, no checkpoints."""
    cores = int(describe(context.device)["cores"])
    steps, stretch = context.size(STEPS, 4), context.size(STRETCH, 2)
    overrides = [
        f"steps={steps}",
        f"batch_size={batch}",
        "precision=bf16-mixed",
        "collapse=0",
        "probe.every=0",
        "optimiser.rate={start: 0.0, peak: 1.0, end: 0.0, warmup: 0.1}",
        "optimiser.teacher_temperature={start: 0.04, peak: 0.04, end: 0.04, warmup: 0}",
        "optimiser.freeze_last_layer=0",
        "speed.devices=1",
        "speed.strategy=auto",
        "speed.micro_batch_size=0",
        f"speed.compile={str(compiled).lower()}",
        f"speed.n_workers={0 if context.tiny else max(cores - 2, 1)}",
        f"speed.log_every={stretch}",
        "speed.checkpoint_every=1000000",
        f"speed.accelerator={'cpu' if context.device == 'cpu' else 'gpu'}",
    ]
    return overrides + (TINY_VIT + TINY_CROPS + TINY_HEADS if context.tiny else [])


def language_model(context: Context, compiled: bool) -> list[Row]:
    """The shape of 124 M with a vocabulary of GPT-2's size, documents apart and crossing, by batch size."""
    _refuse_compiling(context, compiled)
    vocabulary = context.size(50_257, 300)
    texts = _texts(context.size(40_000, 200), context.size(60_000, 200))
    tokens = context.work / f"tokens-{vocabulary}"
    tokenizer = train_bpe(texts, vocabulary)  # the same every time, so a second call finds the tokens
    tokenise_pool(Dataset.from_dict({"text": texts}), tokenizer, tokens, progress=False)
    steps, stretch = context.size(STEPS, 4), context.size(STRETCH, 2)
    shape = ["model={width: 24, layers: 2, heads: 2, context: 32}"]
    given = shape if context.tiny else [f"model={CONFIGS / 'text_lm/model/124m.yaml'}"]
    rows: list[Row] = []
    for cross in (False, True):
        for batch in (2,) if context.tiny else (16, 32, 64):
            length = context.size(1024, 32)
            settings = lm_settings(
                None,
                [
                    *given,
                    f"tokens={steps * batch * length}",
                    f"batch_size={batch}",
                    f"cross_documents={str(cross).lower()}",
                    "precision=bf16-mixed",
                    "learning_rate=1e-4",
                    f"speed.compile={str(compiled).lower()}",
                    f"speed.n_workers={context.size(2, 0)}",
                    f"speed.log_every={stretch}",
                    "speed.checkpoint_every=1000000",
                    f"speed.accelerator={'cpu' if context.device == 'cpu' else 'gpu'}",
                ],
            )

            def work(folder: Path, settings: Any = settings) -> None:
                train(settings, tokens, folder, progress=False)

            row = _measured(context, work, batch, "tokens_per_second")
            if row is None:
                break
            rows.append({"what": "across documents" if cross else "documents apart", **row})
            context.save(rows)
    return rows


def _refuse_compiling(context: Context, compiled: bool) -> None:
    if compiled and context.device == "cpu":
        raise Skipped("compiled training is measured on a GPU alone")


def _measured(context: Context, work: Any, batch: int, rate: str) -> Row | None:
    """Medians over the stretches of a run after the first; None where it did not fit into memory."""
    folder = context.work / "training"
    shutil.rmtree(folder, ignore_errors=True)
    if context.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        work(folder)
    except Exception as error:
        if "out of GPU memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        context.notes.append(f"batch {batch}: out of GPU memory; lower batch_size or speed.micro_batch_size")
        return None
    finally:
        gc.collect()
        if context.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()][1:]
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, Any] = {"batch": batch, rate: statistics.median(line[rate] for line in lines)}
    for name in ("mfu", "data_wait"):
        values = [line[name] for line in lines if line.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    if not found["mfu"]:
        found["mfu"] = None  # the peak of this device is not known
    if context.device == "cuda":
        found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _texts(documents: int, lexicon: int) -> list[str]:
    """Documents of some hundred made-up words, the frequent ones more often: enough of them to fill a vocabulary."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(letters[rng.integers(26, size=rng.integers(3, 11))]) for _ in range(lexicon)]
    shares = 1 / np.arange(1, lexicon + 1) ** 0.7
    drawn = rng.choice(lexicon, (documents, 150), p=shares / shares.sum())
    return [" ".join(words[i] for i in row) for row in drawn]
