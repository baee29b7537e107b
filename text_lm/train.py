"""Train a language model on documents of a tokenised pool; the same call after a kill goes on and ends the same.

`train` is the run from the tokens to the exported model, `LanguageModel` the step from tokens to loss.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from foundation.errors import CurationError
from foundation.files import load_json, save_json, whole_folder
from foundation.paths import regular_file
from text_lm.loss import language_model_loss
from text_lm.model import TOKENIZERS, build_model, flops_per_token, next_token_logits
from text_lm.packing import TokenBatches, TokenStream
from text_lm.settings import TrainSettings
from text_lm.tokenizer import Tokenizer, open_tokenizer
from text_lm.tokens import TokenStore
from training.checkpoints import find_checkpoint
from training.devices import in_fast_precision
from training.fit import fit
from training.log import RunLog, Work
from training.module import StepModule
from training.run_folder import claimed, restored
from training.schedules import rate_factor

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

    ``folder`` gets ``run.json`` (settings and data), ``metrics.jsonl``, ``last.ckpt`` and ``earlier.ckpt`` while it
    runs, and at the end ``model/``, an ordinary Hugging Face folder with its tokeniser, and ``result.json``.

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
    settings = in_fast_precision(settings)
    if isinstance(tokens, (str, Path)):
        if tokenizer is None:  # a folder that is not there would be asked of the Hub
            regular_file(Path(tokens) / "tokens.json", "give a folder that `python -m text_lm tokenise` wrote")
            if not (Path(tokens) / "tokenizer").is_dir():
                raise CurationError(f"{tokens}/tokenizer is missing; tokenise the pool again")
            tokenizer = open_tokenizer(Path(tokens) / "tokenizer")
        store = TokenStore.open(tokens, tokenizer)
    else:
        store = tokens
        if tokenizer is None or tokenizer.fingerprint != store.info["tokenizer_fingerprint"]:
            raise CurationError("an open TokenStore needs its tokenizer beside it; give tokenizer= or a folder")
    documents = np.arange(len(store)) if rows is None else store.documents_of(np.asarray(rows))
    stream = TokenStream(store, documents, settings.seed)
    batches = TokenBatches(stream, settings.batch_size, settings.model.context)
    identity = {
        "settings": settings.science(),
        "tokens": store.info["checksum"],
        "documents": hashlib.blake2b(documents.astype("<i8").tobytes(), digest_size=16).hexdigest(),
    }
    module = LanguageModel(settings, tokenizer)
    with claimed(folder, identity) as done:
        if done is not None:
            return restored(TrainResult, done, folder / MODEL)
        flops = flops_per_token(settings.model, tokenizer.vocab_size, settings.model.context)
        log = RunLog(folder, Work("tokens", "tokens", settings.tokens_per_step, flops), "train", progress)
        fitted = fit(module, batches, folder, find_checkpoint(folder), log)
        seen = fitted.step * settings.tokens_per_step
        result = TrainResult(
            finished=fitted.finished,
            folder=folder / MODEL,
            step=fitted.step,
            tokens=seen,
            loss=log.last.get("loss", float("nan")),
            coverage=stream.coverage(seen),
            tokens_per_second=log.rate,
        )
        if result.finished:
            write = lambda state: save_model(state, settings, tokenizer, folder / MODEL)  # noqa: E731
            fitted.export(write, {**vars(result), "folder": MODEL}, [MODEL])
        return result


class LanguageModel(StepModule):
    """Next-token prediction with a Hugging Face causal language model.

    Attributes:
        model: the Hugging Face model.
        losses: cross-entropy in nats per target of this process's share of the step, summed over its micro-batches.
    """

    settings: TrainSettings

    def __init__(self, settings: TrainSettings, tokenizer: Tokenizer):
        super().__init__(settings)
        self.tokenizer = tokenizer
        self.model: Any = None
        self.factor = rate_factor(
            settings.schedule, settings.steps, settings.warmup_steps, settings.final_lr, settings.decay_steps
        )
        self.loss: Callable[..., tuple[Tensor, Tensor]] = language_model_loss

    def configure_model(self) -> None:
        if self.model is not None:  # Lightning calls this again for every stage
            return
        speed = self.settings.speed
        self.model = build_model(self.settings.model, self.tokenizer, self.settings.seed, speed.attention)
        self.model.train()
        if speed.checkpoint_activations:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if speed.compile:
            self.model.compile()  # in place: the names in the checkpoint stay those of the plain model
            self.loss = torch.compile(language_model_loss)  # spares the float32 copy of the logits

    def shards(self) -> list[nn.Module]:
        return [*self.model.model.layers, self.model]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.AdamW(
            parameter_groups(self.model.parameters(), settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=self.device.type == "cuda",
        )

    def rates(self, step: int) -> dict[str, float]:
        return {"learning_rate": self.settings.learning_rate * self.factor(step)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rates(self.global_step)["learning_rate"]
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.losses = {"loss": torch.zeros((), device=self.device)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        cross = self.settings.cross_documents
        logits = next_token_logits(
            self.model,
            batch["inputs"],
            None if cross else batch["documents"],
            None if cross else batch["positions"],
        )
        total, cross_entropy = self.loss(logits, batch["targets"], self.settings.z_loss)
        self.losses["loss"] += cross_entropy / batch["n_targets"]
        # processes are averaged and Lightning divides by the micro-batches: undo both, for the mean over all targets
        share = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return total * (share / batch["n_targets"])

    def logged(self, step_is_done: bool) -> dict[str, Tensor]:
        # each process has its share of the sum, and the log takes the mean over processes
        return {"loss": self.losses["loss"] * self.trainer.world_size} if step_is_done else {}

    @property
    def largest_norm(self) -> float:
        return self.settings.clip

    def advice(self) -> str:
        return f"lower learning_rate (now {self.settings.learning_rate}), or set z_loss=1e-4 and clip=1"


def parameter_groups(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors (norms), which do not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim < 2].append(parameter)
    return [{"params": groups[False], "weight_decay": decay}, {"params": groups[True], "weight_decay": 0.0}]


def save_model(state: dict[str, Tensor], settings: TrainSettings, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder, whole or not at all.

    Args:
        state: of a `LanguageModel`.
    """
    from transformers.utils import logging as transformers_logging

    plain = build_model(settings.model, tokenizer, settings.seed)  # free of wrappers and compilation
    plain.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    transformers_logging.disable_progress_bar()
    with whole_folder(folder) as fresh:
        plain.save_pretrained(fresh)
        tokenizer.export(fresh, settings.model.context)
        known = [tokenizer.fingerprint, open_tokenizer(fresh).fingerprint]  # as it is, and as it is exported
        save_json(fresh / "config.json", {**load_json(fresh / "config.json"), TOKENIZERS: known})
    transformers_logging.enable_progress_bar()
