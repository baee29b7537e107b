"""Train a language model on documents of a tokenised pool; the same call after a kill goes on and ends the same."""

import hashlib
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from curation.errors import CurationError
from curation.files import digest_json, load_json, save_json
from text_lm.callbacks import CHECKPOINT, Checkpoints, RunLog, signals_restored
from text_lm.data import BatchPlan, step_loader
from text_lm.model import build_model
from text_lm.module import LanguageModel
from text_lm.packing import TokenStream
from text_lm.settings import TrainSettings
from text_lm.tokenizer import Tokenizer, open_tokenizer
from text_lm.tokens import TokenStore

MODEL = "model"


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    Attributes:
        finished: False after SIGTERM: the same call resumes.
        folder: the Hugging Face folder, where finished.
        step, tokens: optimiser steps and tokens so far.
        loss: mean nats per target since the last line of the log but one.
        coverage: epochs, unique documents and repetitions seen (see `TokenStream.coverage`).
        tokens_per_second: of this call, checkpoints left in; None where it did no step.
    """

    finished: bool
    folder: Path
    step: int
    tokens: int
    loss: float
    coverage: dict[str, float]
    tokens_per_second: float | None


def train(
    settings: TrainSettings,
    tokens: str | Path | TokenStore,
    folder: str | Path,
    rows: Int[np.ndarray, "n"] | None = None,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train on rows of a tokenised pool.

    ``folder`` gets ``run.json`` (settings and data), ``metrics.jsonl``, ``last.ckpt`` while it runs, and at the end
    ``model/``, an ordinary Hugging Face folder with its tokeniser, and ``result.json``.

    Args:
        settings: the run.
        tokens: a folder of `text_lm.tokens.tokenise_pool`.
        folder: of the run; a finished run is returned, an unfinished one resumed.
        rows: pool rows to train on, repeated as often as they are taken (`curation.Subset.rows`); None takes all.
        tokenizer: None opens the one in the folder of tokens.

    Raises:
        CurationError: bad settings or data, the folder holds another run, or the loss is not finite.
    """
    folder = Path(folder)
    if isinstance(tokens, (str, Path)):
        tokenizer = tokenizer or open_tokenizer(Path(tokens) / "tokenizer")
        store = TokenStore.open(tokens, tokenizer)
    else:
        store = tokens
        if tokenizer is None or tokenizer.fingerprint != store.info["tokenizer_fingerprint"]:
            raise CurationError("an open TokenStore needs its tokenizer beside it; give tokenizer= or a folder")
    documents = np.arange(len(store)) if rows is None else store.documents_of(np.asarray(rows))
    stream = TokenStream(store, documents, settings.seed)
    identity = {
        "settings": settings.science(),
        "tokens": store.info["checksum"],
        "documents": hashlib.blake2b(documents.astype("<i8").tobytes(), digest_size=16).hexdigest(),
    }
    done = _claim(folder, identity)
    if done is not None:
        return TrainResult(**{**done, "folder": folder / MODEL})

    data = _StepData(stream, settings, _resume_step(folder / CHECKPOINT))
    module = LanguageModel(settings, tokenizer)
    checkpoints = Checkpoints(folder, settings.speed.checkpoint_every)
    log = RunLog(folder, settings.speed.log_every, progress)
    # the log first: its sums must be up to date when the checkpoint takes them
    trainer = _trainer(settings, folder, [log, checkpoints])
    data.check(trainer.world_size)
    with warnings.catch_warnings(), signals_restored():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers, none of it true here
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=folder / CHECKPOINT if data.start_step else None,
            weights_only=True,
        )
    step = trainer.global_step
    finished = step >= settings.steps
    seen = step * settings.tokens_per_step
    timed = log.timed_steps * settings.tokens_per_step
    result = TrainResult(
        finished=finished,
        folder=folder / MODEL,
        step=step,
        tokens=seen,
        loss=log.last_loss,
        coverage=stream.coverage(seen),
        tokens_per_second=timed / log.seconds if log.seconds else None,
    )
    if finished:
        _export(trainer, module, tokenizer, folder)
        if trainer.is_global_zero:
            save_json(folder / "result.json", {**vars(result), "folder": MODEL})
            (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


class _StepData(lightning.LightningDataModule):
    """The loader is made when the processes are there: only then is it known which share is whose."""

    def __init__(self, stream: TokenStream, settings: TrainSettings, start_step: int):
        super().__init__()
        self.stream, self.settings, self.start_step = stream, settings, start_step

    def plan(self, rank: int, world_size: int) -> BatchPlan:
        settings = self.settings
        micro = settings.speed.micro_batch_size or max(settings.batch_size // world_size, 1)
        return BatchPlan(settings.batch_size, micro, settings.model.context, rank, world_size)

    def check(self, world_size: int) -> None:
        step_loader(self.stream, self.plan(0, world_size), 0, 0)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        assert self.trainer is not None
        speed = self.settings.speed
        plan = self.plan(self.trainer.global_rank, self.trainer.world_size)
        cuda = self.trainer.strategy.root_device.type == "cuda"
        return step_loader(self.stream, plan, self.start_step, self.settings.steps, speed.n_workers, cuda)


def _claim(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Take the folder for this run; the result if it is already finished."""
    path = folder / "run.json"
    if path.exists():
        found = load_json(path)
        # through JSON, as the file went: tuples are lists there
        for key, value in identity.items():
            if digest_json(found.get(key)) != digest_json(value):
                what = _difference(found.get(key), value) if key == "settings" else f"other {key}"
                raise CurationError(f"{folder} holds a run with {what}; use another folder or delete it")
        if (folder / "result.json").exists():
            return load_json(folder / "result.json")
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise CurationError(f"{folder} is not empty and holds no run; use another folder")
    save_json(path, identity)
    return None


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    for key, value in wanted.items():
        old = found.get(key) if isinstance(found, dict) else None
        if digest_json(old) != digest_json(value):
            return f"{key}={old}, not {value}"
    return "other settings"


def _resume_step(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise CurationError(f"{path} cannot be read ({type(error).__name__}); delete it to start again") from error


def _trainer(settings: TrainSettings, folder: Path, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    speed = settings.speed
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    strategy: Any = speed.strategy
    if strategy == "fsdp":
        from lightning.pytorch.strategies import FSDPStrategy
        from torch.distributed.fsdp import MixedPrecision
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        half = settings.precision == "bf16-mixed"
        # Lightning's own choice also rounds sums of gradients and the rotary frequencies to bfloat16
        mixed = MixedPrecision(torch.bfloat16, torch.float32, torch.float32) if half else None
        strategy = FSDPStrategy(auto_wrap_policy={LlamaDecoderLayer}, state_dict_type="full", mixed_precision=mixed)
    micro = speed.micro_batch_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hint to use srun wherever SLURM is installed
            trainer = lightning.Trainer(
                accelerator=speed.accelerator,
                devices=speed.devices or "auto",
                num_nodes=speed.nodes,
                strategy=strategy,
                precision=settings.precision,  # type: ignore[arg-type]
                max_steps=settings.steps,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=callbacks,
                default_root_dir=folder,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CurationError(f"speed.accelerator {speed.accelerator!r}, {speed.devices} devices: {reason}") from error
    share = trainer.world_size * (micro or max(settings.batch_size // trainer.world_size, 1))
    trainer.accumulate_grad_batches = max(settings.batch_size // share, 1)
    return trainer


def _export(trainer: lightning.Trainer, module: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder, whole or not at all."""
    from transformers.utils import logging as transformers_logging

    state = trainer.strategy.lightning_module_state_dict()  # gathers the pieces where the model is sharded
    if trainer.is_global_zero:
        temporary = folder / f".{MODEL}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        plain = build_model(module.settings.model, tokenizer, module.settings.seed)  # free of wrappers and compilation
        plain.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        transformers_logging.disable_progress_bar()
        plain.save_pretrained(temporary)
        transformers_logging.enable_progress_bar()
        tokenizer.save(temporary)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        temporary.rename(folder / MODEL)
    trainer.strategy.barrier("export")
