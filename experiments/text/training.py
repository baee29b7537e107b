"""The stages train and evaluate of the text experiment: model, tokens and settings are frozen, only the rows change."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_only

from curation import Subset
from experiments.curves import append_point, read_curve
from experiments.stages import StageRun
from experiments.text.pool import PASSAGES, POOL, TEST, passages_of
from foundation.errors import CurationError
from foundation.files import load_array, load_json, save_json
from foundation.settings import Count, CountOrZero, check
from text_lm.callbacks import LOG
from text_lm.model import flops_per_token, load_model
from text_lm.perplexity import evaluate_perplexity
from text_lm.settings import TrainSettings as Recipe
from text_lm.settings import settings_from
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import TokenStore
from text_lm.train import MODEL
from text_lm.train import train as train_model

DATA = "data.json"


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``.

    Attributes:
        recipe: of `text_lm.settings.TrainSettings`, without seed; every arm takes ``recipe.tokens`` in whole steps.
        unique_tokens: tokens in the subset of every arm but `all`, to within one passage: subsets of as many rows
            differ in bytes, so each is put in a random order and cut where the next passage would not fit.
        passage_tokens: mean of a passage: the budget in passages is tokens / passage_tokens.
        vocabulary: of the tokenizer; for estimates.
        speed: of the recipe: devices, checkpoints, compilation.
    """

    recipe: dict[str, Any]
    unique_tokens: Count
    passage_tokens: Count
    vocabulary: Count = 259
    speed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "science.train")

    def science(self) -> dict[str, Any]:
        """All that decides the result: the recipe with its defaults, and not ``speed``."""
        content = asdict(self) | {"recipe": recipe_of(self, 0).science()}
        content.pop("speed")
        return content


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``.

    Attributes:
        batch_size: windows per forward pass.
        stride: tokens from one window to the next; 0: the model's context, windows do not overlap.
    """

    batch_size: Count = 32
    stride: CountOrZero = 0

    def __post_init__(self) -> None:
        check(self, "science.evaluate")


def recipe_of(train: TrainSettings, seed: int, device: str = "cpu") -> Recipe:
    """The recipe with its seed and place; keys and types checked."""
    speed = {"accelerator": "cpu" if device == "cpu" else "gpu", **train.speed}
    return settings_from({**train.recipe, "seed": seed, "speed": speed})


def budget(train: TrainSettings, _dim: int) -> tuple[float, int, float]:
    """Passages seen, optimiser steps, and floating-point operations of a training."""
    recipe = recipe_of(train, 0)
    tokens = recipe.steps * recipe.tokens_per_step
    flops = tokens * flops_per_token(recipe.model, train.vocabulary, recipe.model.context)
    return tokens / train.passage_tokens, recipe.steps, flops


def cut_to_budget(
    rows: Int[np.ndarray, "n"], lengths: Int[np.ndarray, "n"], tokens: int, seed: int
) -> Int[np.ndarray, "m"]:
    """Rows of a subset that hold ``tokens`` tokens, less than one passage short.

    A random order, cut before the first row that does not fit: every row has the same chance whatever its length, so
    the cut keeps the subset's mixture.

    Args:
        rows: of a subset, repeated as often as they are taken.
        lengths: tokens of each.
        seed: of the order.

    Raises:
        CurationError: the subset has fewer tokens.
    """
    order = np.random.default_rng([seed, 31]).permutation(len(rows))
    ends = np.cumsum(lengths[order])
    if not len(ends) or ends[-1] < tokens:
        raise CurationError(
            f"a subset of {len(rows):,} rows has {int(ends[-1]) if len(ends) else 0:,} tokens, fewer than "
            f"science.train.unique_tokens={tokens:,}; raise science.curation.size"
        )
    return rows[order[: int(np.searchsorted(ends, tokens, side="right"))]]


def fit(run: StageRun) -> dict[str, float]:
    """Stage action: train on the subset.

    Writes ``run/`` with the Hugging Face folder ``model``, ``curve.jsonl``, and ``data.json``: what the model has seen.
    """
    train, seed = TrainSettings(**run.settings), run.seed or 0
    recipe = recipe_of(train, seed, str(run.speed.get("device", "cpu")))
    prepared, curated = run.upstream("prepare"), run.upstream("curate")
    tokens = passages_of(prepared) / "tokens"
    store = TokenStore.open(tokens)
    lengths = np.diff(store.starts)  # of every passage: none is empty, so documents are rows
    rows = np.asarray(load_array(prepared / "rows.npy"))[Subset.load(curated / "subset").rows()]
    whole = len(rows) == load_json(prepared / POOL)["rows"]  # the arm that takes the whole pool
    kept = rows if whole else cut_to_budget(rows, lengths[rows], train.unique_tokens, seed)
    result = train_model(recipe, tokens, run.folder / "run", rows=kept, progress=run.progress)
    if not result.finished:
        raise KeyboardInterrupt  # a signal: the same command goes on
    samples, _, flops = budget(train, 0)
    if getattr(rank_zero_only, "rank", 0):  # one process of several: the first writes
        return {"samples": samples, "flops": flops}
    planned = recipe.steps * recipe.tokens_per_step
    assert result.tokens == planned, f"{result.tokens} tokens were seen, {planned} are the budget of every arm"
    held, longest = int(lengths[kept].sum()), int(lengths[rows].max())
    assert whole or train.unique_tokens - longest < held <= train.unique_tokens
    curve = run.folder / "curve.jsonl"
    curve.unlink(missing_ok=True)
    for point in read_curve(run.folder / "run" / LOG):
        values = {"samples": point["tokens"] / train.passage_tokens, "train/loss": point["loss"]}
        append_point(curve, int(point["step"]), values)
        run.log(values, int(point["step"]))
    data = {
        "tokens": planned,
        "steps": recipe.steps,
        "subset_passages": len(rows),
        "subset_tokens": held,
        "passages_after_cut": len(kept),
        "unique_passages": len(np.unique(kept)),
        "unique_tokens": int(lengths[np.unique(kept)].sum()),
        "documents": _documents(passages_of(prepared), kept),
        **result.coverage,
    }
    save_json(run.folder / DATA, data)
    return {"samples": samples, "flops": flops}


def _documents(passages: Path, rows: Int[np.ndarray, "n"]) -> int:
    """How many documents the rows were cut from."""
    sources = pq.read_table(passages / PASSAGES, columns=["source"])["source"].to_numpy(zero_copy_only=False)
    return len(set(sources[rows].tolist()))


def judge(run: StageRun) -> dict[str, float]:
    """Stage action: bits per byte of every domain's held-out passages; writes ``metrics.json``.

    Head and tail are the third of the domains with the most and the fewest bytes in the pool.
    """
    settings = EvaluateSettings(**run.settings)
    prepared, trained = run.upstream("prepare"), run.upstream("train")
    held = load_json(prepared / TEST)
    texts = pq.read_table(passages_of(prepared) / PASSAGES, columns=["text"])["text"].to_pylist()
    rows = [(row, domain) for domain, mine in held.items() for row in mine]
    folder = trained / "run" / MODEL
    tokenizer = open_tokenizer(folder)
    model = load_model(folder, tokenizer)
    shares = load_json(prepared / POOL)["bytes_of"]
    found = evaluate_perplexity(
        model,
        tokenizer,
        [texts[row] for row, _ in rows],
        [domain for _, domain in rows],
        {domain: shares.get(domain, 0.0) for domain in held},
        stride=settings.stride or None,
        batch_size=settings.batch_size,
        device=str(run.speed.get("device", "cpu")),
        progress=run.progress,
    )
    bits, words = found["bits_per_byte"], found["perplexity"]
    metrics = {f"bpb_{name}": float(bits[name]) for name in ("macro", "worst", "tail", "head", "raw_weighted")}
    metrics |= {"perplexity_macro": float(words["macro"])}
    save_json(
        run.folder / "metrics.json",
        {
            "metrics": metrics,
            "worst_domain": bits["worst_domain"],
            "domains": found["domains"],
            "data": load_json(trained / DATA),
        },
    )
    return {"samples": float(len(rows))}
