"""The smallest pretraining that can tell subsets apart: a denoising autoencoder on vectors of known concepts.

An encoder that has seen a concept often rebuilds it well. So the error on new rows of every concept, averaged over
concepts, says what a subset was worth, as bits per byte over domains does for text.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from curation import Subset
from experiments.engine.curves import append_point, cut_curve
from experiments.engine.stages import StageRun
from experiments.simulated.data import NOISE, clutter, manifold
from foundation.errors import CurationError
from foundation.files import load_json, save_array, save_json, write_atomically
from foundation.settings import Choices, Count, NonNegative, Positive, check, fill

POOLS = {"manifold": manifold, "clutter": clutter}
SHAPES = {"manifold": (12_000, 256), "clutter": (10_000, 64)}


@dataclass(frozen=True)
class PoolSettings:
    """Section ``science.pool``: which toy, and rows of each concept that are held out."""

    toy: Annotated[str, Choices(*POOLS)]
    test_rows: Count = 20
    trusted_rows: Count = 2

    def __post_init__(self) -> None:
        check(self, "science.pool")


@dataclass(frozen=True)
class Recipe:
    """Section ``science.train.recipe``; every arm sees steps x batch_size samples."""

    steps: Count
    batch_size: Count
    learning_rate: Positive = 1e-3
    width: Count = 128
    bottleneck: Count = 16
    noise: NonNegative = 0.5
    log_every: Count = 50

    def __post_init__(self) -> None:
        check(self, "science.train.recipe")


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``."""

    recipe: Recipe

    def science(self) -> dict[str, Any]:
        """All that decides the result."""
        return asdict(self.recipe)


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``: neighbours of the k-NN classifier, and noise on its queries.

    The noise has this standard deviation relative to that of the held-out rows; without it every arm is right.
    """

    neighbours: Count = 5
    noise: NonNegative = 1.0

    def __post_init__(self) -> None:
        check(self, "science.evaluate")


class DenoisingAutoencoder(nn.Module):
    """d -> width -> bottleneck -> width -> d, on inputs standardised by the subset it is trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, width: int, bottleneck: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(()))
        self.encoder = nn.Sequential(
            nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, bottleneck)
        )
        self.decoder = nn.Sequential(
            nn.Linear(bottleneck, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim)
        )

    def encode(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b z"]:
        return self.encoder((x - self.mean) / self.std)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.decoder(self.encode(x)) * self.std + self.mean


def prepare(run: StageRun) -> dict[str, float]:
    """Stage action: pool rows and concepts, a trusted set, and new rows of every concept to test on."""
    pool = PoolSettings(**run.settings)
    toy = POOLS[pool.toy](run.seed or 0, held_out=pool.test_rows + pool.trusted_rows)
    held = toy.held_out.reshape(toy.n_concepts, -1, toy.x.shape[1])
    save_array(run.folder / "embeddings.npy", toy.x)
    save_array(run.folder / "labels.npy", np.where(toy.concept_of == NOISE, -1, toy.concept_of))
    save_array(run.folder / "trusted.npy", held[:, : pool.trusted_rows].reshape(-1, toy.x.shape[1]))
    save_array(run.folder / "test.npy", held[:, pool.trusted_rows :])
    return {"samples": float(len(toy.x))}


def _batch(x: Tensor, step: int, seed: int, batch_size: int) -> tuple[Tensor, torch.Generator]:
    """Rows of one step and the generator of its noise: functions of (seed, step), so that a resume repeats nothing."""
    n = len(x)
    rows: list[int] = []
    first = step * batch_size
    while len(rows) < batch_size:
        epoch, place = divmod(first + len(rows), n)
        order = np.random.default_rng([seed, 11, epoch]).permutation(n)
        rows += order[place : place + batch_size - len(rows)].tolist()
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 12, step]).generate_state(1)[0]))
    return x[torch.tensor(rows)], generator


def training_flops(recipe: Recipe, dim: int) -> float:
    """Floating-point operations of the whole training: 6 for each weight and sample."""
    weights = 2 * (dim * recipe.width + recipe.width**2 + recipe.width * recipe.bottleneck)
    return 6.0 * weights * recipe.steps * recipe.batch_size


def train(run: StageRun) -> dict[str, float]:
    """Stage action: train on the subset. Writes ``model.safetensors``, ``model.json`` and ``curve.jsonl``."""
    recipe, seed = fill(TrainSettings, run.settings, "science.train").recipe, run.seed or 0
    whole = np.load(run.upstream("prepare") / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    subset = Subset.load(run.upstream("curate") / "subset")
    x = torch.from_numpy(np.asarray(whole[subset.rows()]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DenoisingAutoencoder(x.shape[1], recipe.width, recipe.bottleneck)
    model.mean.copy_(x.mean(dim=0))
    model.std.copy_((x - model.mean).square().mean().sqrt())
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    test = torch.from_numpy(np.load(run.upstream("prepare") / "test.npy", allow_pickle=False))
    checkpoint, curve = run.folder / ".checkpoint.pt", run.folder / "curve.jsonl"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    cut_curve(curve, start)
    steps = range(start, recipe.steps)
    for step in tqdm(steps, desc="train", unit="step", initial=start, total=recipe.steps, disable=not run.progress):
        rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimiser.param_groups[0]["lr"] = rate
        clean, generator = _batch(x, step, seed, recipe.batch_size)
        noisy = clean + recipe.noise * model.std * torch.randn(clean.shape, generator=generator)
        loss = (model(noisy) - clean).square().mean() / model.std**2
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        done = step + 1
        if done % recipe.log_every == 0 or done == recipe.steps:
            value = float(loss.detach())
            if not np.isfinite(value):
                raise CurationError(f"the loss is {value} at step {done}; lower science.train.recipe.learning_rate")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": done}
            write_atomically(checkpoint, partial(torch.save, state))
            rebuilt = float(concept_errors(model, test).mean())
            point = {"samples": float(done * recipe.batch_size), "train/loss": value, "held_out/error": rebuilt}
            append_point(curve, done, point)
            run.log(point, done)
    path = run.folder / "model.safetensors"
    write_atomically(path, lambda stream: stream.write(save(model.state_dict())))
    shape = {"dim": x.shape[1], "width": recipe.width, "bottleneck": recipe.bottleneck}
    save_json(
        run.folder / "model.json", {"model": shape, "unique_samples": min(len(x), recipe.steps * recipe.batch_size)}
    )
    checkpoint.unlink(missing_ok=True)
    return {"samples": float(recipe.steps * recipe.batch_size), "flops": training_flops(recipe, x.shape[1])}


@torch.inference_mode()
def concept_errors(model: DenoisingAutoencoder, test: Float[Tensor, "c m d"]) -> Float[Tensor, "c"]:
    """Error of each concept: sum ||x - f(x)||^2 / sum ||x - mean||^2 over its rows, the mean being that of all rows."""
    flat = test.reshape(-1, test.shape[2])
    wrong = (model(flat) - flat).square().sum(dim=1).reshape(test.shape[:2]).sum(dim=1)
    return wrong / (flat - flat.mean(dim=0)).square().sum(dim=1).reshape(test.shape[:2]).sum(dim=1)


def evaluate(run: StageRun) -> dict[str, float]:
    """Stage action: error and k-NN accuracy on the held-out rows, per concept; writes ``metrics.json``.

    Head and tail are the third of the concepts with the most and the fewest rows in the pool.
    """
    settings = EvaluateSettings(**run.settings)
    prepared, trained = run.upstream("prepare"), run.upstream("train")
    test = torch.from_numpy(np.load(prepared / "test.npy", allow_pickle=False))
    labels = np.load(prepared / "labels.npy", allow_pickle=False)
    model = DenoisingAutoencoder(**load_json(trained / "model.json")["model"])
    model.load_state_dict(load_file(trained / "model.safetensors"))
    n_concepts, per_concept, dim = test.shape
    with torch.inference_mode():
        flat = test.reshape(-1, dim)
        codes = nn.functional.normalize(model.encode(flat), dim=1).reshape(n_concepts, per_concept, -1)
        noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(run.seed or 0))
        spoilt = flat + settings.noise * (flat - flat.mean(dim=0)).square().mean().sqrt() * noise
        queries = nn.functional.normalize(model.encode(spoilt), dim=1).reshape(n_concepts, per_concept, -1)
    error = concept_errors(model, test).double().numpy()
    half = per_concept // 2
    bank = codes[:, :half].reshape(n_concepts * half, -1)
    concept = torch.arange(n_concepts).repeat_interleave(half)
    queries = queries[:, half:].reshape(n_concepts * (per_concept - half), -1)
    nearest = concept[(queries @ bank.T).topk(settings.neighbours, dim=1).indices]
    votes = nn.functional.one_hot(nearest, n_concepts).sum(dim=1)
    right = (votes.argmax(dim=1).reshape(n_concepts, -1) == torch.arange(n_concepts)[:, None]).double().mean(dim=1)
    counts = np.bincount(labels[labels >= 0], minlength=n_concepts)
    order = np.argsort(-counts, kind="stable")
    third = n_concepts // 3
    head, tail, accuracy = order[:third], order[-third:], right.numpy()
    metrics = {
        "error_macro": float(error.mean()),
        "error_head": float(error[head].mean()),
        "error_tail": float(error[tail].mean()),
        "error_worst_tenth": float(np.sort(error)[-max(1, n_concepts // 10) :].mean()),
        "error_pool_weighted": float((error * counts / counts.sum()).sum()),
        "knn_macro": float(accuracy.mean()),
        "knn_head": float(accuracy[head].mean()),
        "knn_tail": float(accuracy[tail].mean()),
    }
    save_json(run.folder / "metrics.json", {"metrics": metrics})
    return {"samples": float(len(queries))}
