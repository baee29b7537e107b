"""Train a language model on documents of a tokenised pool; the same call after a kill goes on and ends the same."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from foundation.errors import CurationError
from foundation.files import save_json, whole_folder
from text_lm.callbacks import RunLog
from text_lm.data import step_loader
from text_lm.model import build_model
from text_lm.module import LanguageModel
from text_lm.packing import TokenStream
from text_lm.settings import TrainSettings
from text_lm.tokenizer import Tokenizer, open_tokenizer
from text_lm.tokens import TokenStore
from training.batches import BatchPlan
from training.checkpoints import CHECKPOINT, Checkpoints, resume_step, signals_restored
from training.devices import fast_precision, make_trainer
from training.run_folder import RESULT, claim

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
    if settings.precision == "auto":
        settings = replace(settings, precision=fast_precision(settings.speed.accelerator))
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
    done = claim(folder, identity)
    if done is not None:
        return TrainResult(**{**done, "folder": folder / MODEL})

    data = _StepData(stream, settings, resume_step(folder))
    module = LanguageModel(settings, tokenizer)
    checkpoints = Checkpoints(folder, settings.speed.checkpoint_every)
    log = RunLog(folder, settings.speed.log_every, progress)
    # the log first: its sums must be up to date when the checkpoint takes them
    trainer = make_trainer(
        settings.speed, folder, settings.steps, settings.batch_size, settings.precision, [log, checkpoints], _blocks()
    )
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
            save_json(folder / RESULT, {**vars(result), "folder": MODEL})
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
        return BatchPlan(settings.batch_size, micro, rank, world_size)

    def check(self, world_size: int) -> None:
        step_loader(self.stream, self.plan(0, world_size), self.settings.model.context, 0, 0)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        assert self.trainer is not None
        speed = self.settings.speed
        plan = self.plan(self.trainer.global_rank, self.trainer.world_size)
        cuda = self.trainer.strategy.root_device.type == "cuda"
        length = self.settings.model.context
        return step_loader(self.stream, plan, length, self.start_step, self.settings.steps, speed.n_workers, cuda)


def _blocks() -> set[type]:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    return {LlamaDecoderLayer}


def _export(trainer: lightning.Trainer, module: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder, whole or not at all."""
    from transformers.utils import logging as transformers_logging

    state = trainer.strategy.lightning_module_state_dict()  # gathers the pieces where the model is sharded
    if trainer.is_global_zero:
        plain = build_model(module.settings.model, tokenizer, module.settings.seed)  # free of wrappers and compilation
        plain.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        transformers_logging.disable_progress_bar()
        with whole_folder(folder / MODEL) as fresh:
            plain.save_pretrained(fresh)
            tokenizer.export(fresh, module.settings.model.context)
        transformers_logging.enable_progress_bar()
    trainer.strategy.barrier("export")
