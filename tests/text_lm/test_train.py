"""Training: a run that resumes differently, or a loss that depends on the hardware, ruins a comparison of data."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foundation.errors import CurationError
from text_lm.settings import TrainSettings, settings_from
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import TokenStore
from text_lm.train import TrainResult, train
from training.checkpoints import Checkpoints

SHAPE = {"width": 32, "layers": 2, "heads": 2, "context": 32}
STEPS = 12


def settings(speed: dict[str, Any] | None = None, **changes: Any) -> TrainSettings:
    fast = {"accelerator": "cpu", "log_every": 5, "checkpoint_every": 4, **(speed or {})}
    given = {"model": SHAPE, "tokens": STEPS * 4 * 32, "batch_size": 4, "micro_batch_size": 2, "speed": fast}
    return settings_from(given | changes)


def run(folder: Path, data: Path, **options: Any) -> TrainResult:
    return train(settings(**options), data, folder, progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def science(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "tokens", "loss", "learning_rate", "gradient_norm")} for line in lines]


@pytest.fixture(scope="module")
def finished(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(folder, tokens).finished
    return folder


@pytest.fixture
def sigterm_at(monkeypatch: pytest.MonkeyPatch):
    """Send ourselves SIGTERM as a step ends."""
    plain = Checkpoints.on_train_batch_end

    def set_step(wanted: int) -> None:
        def batch_end(self: Checkpoints, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == wanted:
                os.kill(os.getpid(), signal.SIGTERM)
            plain(self, trainer, *rest)

        monkeypatch.setattr(Checkpoints, "on_train_batch_end", batch_end)

    return set_step


def test_loss_falls_and_the_run_folder_is_complete(finished: Path, tokens: Path):
    log = science(finished)
    assert [line["step"] for line in log] == [5, 10, 12]
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert (finished / "run.json").exists()
    assert not (finished / "last.ckpt").exists()
    again = run(finished, tokens)
    assert again.finished
    assert again.tokens == STEPS * 4 * 32
    assert again.coverage["unique_documents"] == 200


def test_sigterm_stops_at_a_step_and_the_rest_is_the_same(finished: Path, tokens: Path, tmp_path: Path, sigterm_at):
    sigterm_at(7)
    handler = signal.getsignal(signal.SIGTERM)
    stopped = run(tmp_path / "run", tokens)
    assert (stopped.finished, stopped.step) == (False, 7)
    assert signal.getsignal(signal.SIGTERM) == handler
    sigterm_at(-1)
    assert run(tmp_path / "run", tokens).finished
    for name, value in weights(finished).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name
    assert science(tmp_path / "run") == science(finished)


def test_a_kill_after_the_last_step_still_gives_the_model(
    finished: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import text_lm.train as module

    def killed(*parts: Any) -> None:
        raise RuntimeError

    export = module.save_model
    monkeypatch.setattr(module, "save_model", killed)
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", tokens)
    monkeypatch.setattr(module, "save_model", export)
    result = run(tmp_path / "run", tokens)
    assert (result.finished, result.step) == (True, STEPS)
    assert all(torch.equal(weights(tmp_path / "run")[name], value) for name, value in weights(finished).items())
    assert result.loss == science(finished)[-1]["loss"]


def test_micro_batches_do_not_change_the_gradient(finished: Path, tokens: Path, tmp_path: Path):
    for micro in (1, 4):
        run(tmp_path / f"{micro}", tokens, micro_batch_size=micro)
        found, wanted = weights(tmp_path / f"{micro}"), weights(finished)
        assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-4


def test_checkpoint_is_an_ordinary_hugging_face_folder(finished: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model", add_bos_token=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    ids = tokenizer("The number", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.decode(ids[0, 1:]) == "The number"
    out = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert out.shape == (1, ids.shape[1] + 5)


def test_bfloat16_learns_and_keeps_float32_weights(finished: Path, tokens: Path, tmp_path: Path):
    result = run(tmp_path / "run", tokens, precision="bf16-mixed", z_loss=1e-4)
    assert result.loss == pytest.approx(science(finished)[-1]["loss"], abs=0.05)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())


@pytest.mark.slow
def test_compiled_training_is_the_same_but_for_rounding(finished: Path, tokens: Path, tmp_path: Path):
    run(tmp_path / "run", tokens, speed={"compile": True, "checkpoint_activations": True})
    found, wanted = weights(tmp_path / "run"), weights(finished)
    assert set(found) == set(wanted)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-3


def test_first_steps_match_a_plain_float64_loop(tokens: Path, tmp_path: Path):
    """AdamW, clipping, warm-up, z-loss and the mean over targets, written out in float64."""
    from text_lm.model import build_model
    from text_lm.packing import IGNORE, TokenStream

    options = settings(z_loss=1e-2, clip=0.5, tokens=3 * 4 * 32, schedule="constant", warmup=2, weight_decay=0.3)
    train(options, tokens, tmp_path / "run", progress=False)

    tokenizer = open_tokenizer(tokens / "tokenizer")
    store = TokenStore.open(tokens, tokenizer)
    stream = TokenStream(store, np.arange(len(store)), options.seed)
    model = build_model(options.model, tokenizer, options.seed).double()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    for step in range(3):
        windows = stream.windows(np.arange(4 * step, 4 * step + 4), 32)
        losses = []
        for tokens_, targets, documents in zip(windows.inputs, windows.targets, windows.documents, strict=True):
            for document in np.unique(documents):  # each piece of a document on its own: no packing at all
                inside = documents == document
                logits = model(input_ids=torch.from_numpy(tokens_[inside])[None], use_cache=False).logits[0]
                log_z = torch.logsumexp(logits, -1)
                for i, target in enumerate(targets[inside]):
                    if target != IGNORE:
                        losses.append(log_z[i] - logits[i, target] + 1e-2 * log_z[i] ** 2)
        model.zero_grad()
        torch.stack(losses).mean().backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        scale = min(1.0, 0.5 / float(norm))
        rate = 3e-3 * min((step + 1) / 2, 1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                m, v = moments[name]
                m.mul_(0.9).add_(0.1 * scale * p.grad)
                v.mul_(0.95).add_(0.05 * (scale * p.grad) ** 2)
                p.mul_(1 - rate * (0.3 if p.ndim > 1 else 0))
                p.sub_(rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
    found = weights(tmp_path / "run")
    for name, p in model.named_parameters():
        if name in found:
            # Adam's first steps are rate x sign: where a gradient is nearly 0, float32 may take another size
            assert float((found[name].double() - p.detach()).abs().mean()) < 2e-6, name


def test_another_run_or_other_files_in_the_folder_are_refused(finished: Path, tokens: Path, tmp_path: Path):
    with pytest.raises(CurationError, match="seed=0, not 1"):
        run(finished, tokens, seed=1)
    with pytest.raises(CurationError, match="other documents"):
        train(settings(), tokens, finished, rows=np.arange(100), progress=False)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(CurationError, match="not empty and holds no run"):
        run(tmp_path, tokens)


def test_a_loss_that_is_not_finite_stops_the_run(tokens: Path, tmp_path: Path):
    with pytest.raises(CurationError, match=r"is (nan|inf) at step \d+; lower learning_rate"):
        run(tmp_path / "run", tokens, learning_rate=1e30, clip=0.0, warmup=0, weight_decay=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 100}, "budget of 100 tokens is less than one step"),
        ({"batch_size": 600, "tokens": 600 * 32}, "fewer than one batch of 600 x 32"),  # the pool has 13,000 tokens
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of"),
        ({"schedule": "linear"}, "schedule is 'linear'; it must be one of"),
        ({"schedule": "wsd", "warmup": 0.9, "decay": 0.5}, "do not fit into 12 steps"),
        ({"wdith": 3}, "wdith is no setting"),
        ({"batch_size": 4, "micro_batch_size": 3}, "multiple of micro_batch_size"),
        ({"speed": {"accelerator": "abacus"}}, "speed.accelerator 'abacus'"),
    ],
)
def test_bad_settings(tokens: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(CurationError, match=message):
        run(tmp_path / "run", tokens, **changes)
