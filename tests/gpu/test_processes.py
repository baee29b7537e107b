"""Processes on a GPU: DDP and FSDP of one process, checkpoints of either in the other, and two processes on one GPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu.pictures import noise_pool
from curation import ClusterTree, HierarchicalKMeans
from pretrain.settings import load_settings
from pretrain.train import pretrain
from training.checkpoints import Checkpoints

pytestmark = pytest.mark.gpu
TINY = [
    "steps=6",
    "batch_size=8",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.args={patch_size: 8, embed_dim: 48, depth: 2, num_heads: 2, init_values: 1.0e-5}",
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.n_local=2",
    "loss.dino_head={n_prototypes: 32, hidden: 32, bottleneck: 16}",
    "collapse=0",
    "speed.log_every=2",
    "speed.checkpoint_every=2",
    "probe.every=0",
]


def run(folder: Path, device: str, strategy: str) -> list[float]:
    given = [f"speed.accelerator={'gpu' if device == 'cuda' else 'cpu'}", f"speed.strategy={strategy}"]
    pretrain(load_settings(None, [*TINY, *given]), noise_pool(24, 64), folder, progress=False)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ddp_of_one_process_is_the_run_without_it(device: str, tmp_path: Path):
    assert run(tmp_path / "ddp", device, "ddp") == pytest.approx(run(tmp_path / "plain", device, "auto"), rel=2e-3)


@pytest.mark.parametrize(("first", "then"), [("fsdp", "auto"), ("auto", "fsdp"), ("fsdp", "fsdp")])
def test_a_checkpoint_of_fsdp_goes_on_without_it_and_the_other_way(
    first: str, then: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(tmp_path / "whole", device, "auto")
    plain = Checkpoints.on_train_batch_end

    def stop(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            self._asked.set()
        plain(self, trainer, *rest)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", stop)
    run(tmp_path / "run", device, first)
    assert (tmp_path / "run/last.ckpt").exists()
    monkeypatch.undo()
    assert run(tmp_path / "run", device, then) == pytest.approx(whole, rel=5e-3)


FIT = """
import sys
from curation.group import joined
from curation.trees.hierarchy import HierarchicalKMeans
from curation.kmeans import assignment
assignment.rows_per_read.__defaults__ = (1 << 13,)
source, out, device = sys.argv[1:]
with joined(device) as (group, mine):
    options = {"device": mine, "work_dir": out + "/work", "progress": False}
    fit = HierarchicalKMeans([60, 12], n_resamples=1, max_iterations=5, **options)
    fit.fit(source, out + "/tree", group)
"""
BALANCE = """
import sys, torch
from curation.group import joined
from pretrain.centring import SoftmaxCentre, sinkhorn
with joined(sys.argv[1]) as (group, mine):
    logits = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    part = logits[:7] if group.first else logits[7:]
    targets, centre = sinkhorn(part.to(mine), 0.05).cpu(), SoftmaxCentre(40).to(mine)
    centre(part.to(mine), 0.05)
    expected = torch.load(sys.argv[2], weights_only=True)
    rows = expected["targets"][:7] if group.first else expected["targets"][7:]
    torch.testing.assert_close(targets, rows, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(centre.centre.cpu(), expected["centre"], rtol=1e-3, atol=1e-5)
"""


def two_processes(code: str, *arguments: str) -> None:
    """Run a script in two processes of this machine, as torchrun would; both take the one GPU where there is one."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]


def test_two_processes_on_one_gpu_fit_the_tree_of_one(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from curation.kmeans import assignment

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 24))[rng.integers(40, size=3000)] + 0.3 * rng.normal(size=(3000, 24))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    two_processes(FIT, str(tmp_path / "x.npy"), str(tmp_path), device)
    monkeypatch.setattr(assignment.rows_per_read, "__defaults__", (1 << 13,))
    alone = HierarchicalKMeans([60, 12], n_resamples=1, max_iterations=5, device=device, progress=False)
    assert ClusterTree.load(tmp_path / "tree").checksum == alone.fit(tmp_path / "x.npy").checksum


def test_two_processes_on_one_gpu_balance_their_targets_together(device: str, tmp_path: Path):
    from pretrain.centring import SoftmaxCentre, sinkhorn

    logits = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    centre = SoftmaxCentre(40)
    centre(logits, 0.05)
    expected = {"targets": sinkhorn(logits, 0.05), "centre": centre.centre}
    torch.save(expected, tmp_path / "expected.pt")
    two_processes(BALANCE, device, str(tmp_path / "expected.pt"))
