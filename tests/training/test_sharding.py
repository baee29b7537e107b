"""FSDP with the models that are trained: who shards must get the model that one process gets, killed or not."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from benchmarks.gpu.pictures import noise_pool
from pretrain.settings import load_settings
from pretrain.train import pretrain
from text_lm.settings import settings_from
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import tokenise_pool
from text_lm.train import train
from training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow
PICTURES = [
    "steps=8",
    "batch_size=8",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.args={patch_size: 8, embed_dim: 48, depth: 2, num_heads: 2, init_values: 1.0e-5}",
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.n_local=2",
    "loss.dino_head={n_prototypes: 32, hidden: 32, bottleneck: 16}",
    "loss.gram.weight=1",
    "loss.gram.start=3",
    "loss.koleo=0",  # sees the pictures of one process
    "optimiser.layer_decay=0.9",
    "collapse=0",
    "probe.every=0",
    "speed={accelerator: cpu, checkpoint_activations: true, log_every: 1, checkpoint_every: 3}",
]
TEXT = {
    "model": {"width": 32, "layers": 2, "heads": 2, "context": 32, "tied": True},
    "tokens": 8 * 4 * 32,
    "batch_size": 4,
    "micro_batch_size": 1,
}


def pictures(folder: Path, n: int, precision: str) -> Path:
    speed = [f"speed.devices={n}", f"speed.strategy={'fsdp' if n > 1 else 'auto'}", f"precision={precision}"]
    pretrain(load_settings(None, [*PICTURES, *speed]), noise_pool(24, 64), folder, progress=False)
    return folder / "state.safetensors"


def text(folder: Path, n: int, precision: str) -> Path:
    speed = {"accelerator": "cpu", "devices": n, "strategy": "fsdp" if n > 1 else "auto", "log_every": 1}
    speed |= {"checkpoint_every": 3, "checkpoint_activations": True}
    train(
        settings_from({**TEXT, "precision": precision, "speed": speed}),
        folder.parents[1] / "tokens",
        folder,
        progress=False,
    )
    return folder / "model/model.safetensors"


def _one_of(rank: int, n: int, port: int, make: Callable[..., Path], folder: Path, precision: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    torch.set_num_threads(1)
    make(folder, n, precision)


def in_a_group(n: int, make: Callable[..., Path], folder: Path, precision: str = "32-true") -> list[int]:
    """Exit codes of n processes that train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_one_of, args=(rank, n, port, make, folder, precision)) for rank in range(n)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        worker.kill()
    return [worker.exitcode or 0 for worker in workers]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("make", [pictures, text])
def test_processes_that_shard_train_the_model_of_one_and_go_on_with_the_same_bits(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = Dataset.from_dict({"text": [f"The number {i} is here; its square is {i * i}." for i in range(200)]})
    tokenise_pool(texts, open_tokenizer("bytes"), tmp_path / "tokens", progress=False)
    one, two, stopped = (tmp_path / name / "run" for name in ("one", "two", "stopped"))
    assert in_a_group(1, make, one) == [0]
    assert in_a_group(2, make, two) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    plain = Checkpoints.on_train_batch_end

    def stop(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 4:
            os._exit(9)
        plain(self, trainer, *rest)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", stop)
    assert in_a_group(2, make, stopped) == [9, 9]
    monkeypatch.undo()
    assert in_a_group(2, make, stopped) == [0, 0]
    assert losses(stopped) == losses(two)
    weights = {
        name: next(path.rglob("*.safetensors")) for name, path in (("one", one), ("two", two), ("stopped", stopped))
    }
    states = {name: load_file(path) for name, path in weights.items()}
    for name, value in states["two"].items():
        assert torch.equal(states["stopped"][name], value)
        torch.testing.assert_close(states["one"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [pictures, text])
def test_weights_that_travel_in_bfloat16_change_little(make: Callable[..., Path], tmp_path: Path):
    texts = Dataset.from_dict({"text": [f"The number {i} is here; its square is {i * i}." for i in range(200)]})
    tokenise_pool(texts, open_tokenizer("bytes"), tmp_path / "tokens", progress=False)
    assert in_a_group(1, make, tmp_path / "one/run", "bf16-mixed") == [0]
    assert in_a_group(2, make, tmp_path / "two/run", "bf16-mixed") == [0, 0]
    assert losses(tmp_path / "two/run") == pytest.approx(losses(tmp_path / "one/run"), rel=2e-2)
