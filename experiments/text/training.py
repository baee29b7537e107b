"""The stages train and evaluate of the text experiment: model, tokens and settings are frozen, only the rows change."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_only

from curation import Subset
from eval.language import TooLong, chance_of, require_benchmarks, require_context, run_language, usual_metrics
from eval.ngram import HIGHEST, KINDS, ORDER, fit_ngrams
from eval.rarity import parts_by_rank
from experiments.engine.curves import append_point, read_curve
from experiments.engine.processes import placed
from experiments.engine.stages import StageRun
from experiments.text.passages import PASSAGES, read_texts
from experiments.text.pool import DISTANCE, POOL, TEST, passages_of
from foundation.errors import CurationError
from foundation.files import load_array, load_json, save_array, save_json
from foundation.settings import Choices, Count, CountOrZero, Range, check, fill
from text_lm.model import build_model, flops_per_token, load_model
from text_lm.perplexity import TextScores, score_domains, score_texts, summarise
from text_lm.settings import TrainSettings as Recipe
from text_lm.settings import settings_from
from text_lm.tokenizer import Tokenizer, open_tokenizer
from text_lm.tokens import TokenStore
from text_lm.train import MODEL
from text_lm.train import train as train_model
from training.run_folder import LOG

DATA, KEPT = "data.json", "kept.npy"
JUDGES = ("lm", "ngram", "both")
FIGURES = ("macro", "worst", "tail", "head", "raw_weighted")


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``.

    Attributes:
        recipe: of the language model; every arm takes ``recipe.tokens`` in whole steps. Its seed is that of the stage,
            its ``speed.accelerator`` that of ``speed.device``.
        unique_tokens: tokens in the subset of every arm but `all`, to within one passage: subsets of as many rows
            differ in bytes, so each is put in a random order and cut where the next passage would not fit.
        passage_tokens: mean of a passage: the budget in passages is tokens / passage_tokens.
        judge: what is trained and asked: "lm", the language model of ``recipe``; "ngram", a byte n-gram model of the
            same passages (`eval.ngram`), which takes seconds and has nothing to tune; "both".
        initialisation: added to the seed of the weights and of the order of the passages, not to that of the subset:
            what a second training on the same rows changes.
        vocabulary: of the tokenizer; for estimates.
    """

    recipe: Recipe
    unique_tokens: Count
    passage_tokens: Count
    judge: Annotated[str, Choices(*JUDGES)] = "lm"
    initialisation: CountOrZero = 0
    vocabulary: Count = 259

    def __post_init__(self) -> None:
        check(self, "science.train")

    @property
    def has_lm(self) -> bool:
        return self.judge != "ngram"

    def science(self) -> dict[str, Any]:
        """All that decides the result: the recipe with its defaults, and not its ``speed``."""
        return asdict(self) | {"recipe": recipe_of(self, 0).science()}


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``.

    Attributes:
        batch_size: windows per forward pass.
        stride: tokens from one window to the next; 0: the model's context, windows do not overlap.
        order: bytes of the longest n-gram.
        benchmarks: language benchmarks that the language model is asked, of those of `eval.language`; [] asks none.
        benchmark_rows: of each, drawn alike for all arms and seeds; 0: all.
    """

    batch_size: Count = 32
    stride: CountOrZero = 0
    order: Annotated[int, Range(ge=1, le=HIGHEST)] = ORDER
    benchmarks: list[str] = field(default_factory=list)
    benchmark_rows: CountOrZero = 0

    def __post_init__(self) -> None:
        check(self, "science.evaluate")
        if self.benchmarks:  # now, not after days of training
            require_benchmarks(self.benchmarks)


def check_judges(_pool: Any, train: TrainSettings, evaluate: EvaluateSettings) -> None:
    """Refuse benchmarks that no model would be asked.

    Raises:
        CurationError: the n-gram model alone judges.
    """
    if evaluate.benchmarks and not train.has_lm:
        raise CurationError(
            "science.evaluate.benchmarks ask a language model, and science.train.judge=ngram trains none; set "
            "science.train.judge=both, or science.evaluate.benchmarks=[]"
        )


def require_benchmarks_fit(train: TrainSettings, evaluate: EvaluateSettings, tokenizer: str) -> None:
    """Refuse benchmarks that the model's context will have no room for, before it is trained.

    Raises:
        CurationError: such a benchmark.
    """
    if not evaluate.benchmarks:
        return
    known, context = open_tokenizer(tokenizer), train.recipe.model.context
    encode = lambda text: [known.bos, *known.encode([text])[0]]  # noqa: E731
    try:
        require_context(require_benchmarks(evaluate.benchmarks), evaluate.benchmark_rows, encode, context)
    except TooLong as error:
        raise CurationError(
            f"science.evaluate.benchmarks: requests of {', '.join(error.tasks)} have no room in the model's context; "
            f"raise science.train.recipe.model.context={context}, or leave them out"
        ) from error


def recipe_of(train: TrainSettings, seed: int, device: str = "cpu") -> Recipe:
    """The recipe with its seed and place."""
    speed = replace(train.recipe.speed, accelerator="cpu" if device == "cpu" else "gpu", **placed())
    return replace(train.recipe, seed=seed + 1000 * train.initialisation, speed=speed)


def budget(train: TrainSettings, _dim: int) -> tuple[float, int, float]:
    """Passages seen, optimiser steps, and floating-point operations of a training."""
    if not train.has_lm:
        return train.unique_tokens / train.passage_tokens, 0, 0.0
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


def train(run: StageRun) -> dict[str, float]:
    """Stage action: the subset cut to the budget and, unless n-grams alone are the judge, a model trained on it.

    Writes ``kept.npy``, the shared passages that are trained on, and ``data.json``: what the model has seen; of a
    language model also ``run/`` with the Hugging Face folder ``model``, and ``curve.jsonl``.
    """
    settings, seed = fill(TrainSettings, run.settings, "science.train"), run.seed or 0
    prepared, curated = run.upstream("prepare"), run.upstream("curate")
    tokens = passages_of(prepared) / "tokens"
    store = TokenStore.open(tokens)
    lengths = np.diff(store.starts)  # of every passage: none is empty, so documents are rows
    rows = np.asarray(load_array(prepared / "rows.npy"))[Subset.load(curated / "subset").rows()]
    whole = len(rows) == load_json(prepared / POOL)["rows"]  # the arm that takes the whole pool
    kept = rows if whole else cut_to_budget(rows, lengths[rows], settings.unique_tokens, seed)
    samples, steps, flops = budget(settings, 0)
    trained: dict[str, Any] = {"judge": settings.judge, "tokens": int(lengths[kept].sum()), "steps": 0}
    if settings.has_lm:
        recipe = recipe_of(settings, seed, str(run.speed.get("device", "cpu")))
        result = train_model(recipe, tokens, run.folder / "run", rows=kept, progress=run.progress)
        if not result.finished:
            raise KeyboardInterrupt  # a signal: the same command goes on
        if getattr(rank_zero_only, "rank", 0):  # one process of several: the first writes
            return {"samples": samples, "flops": flops}
        planned = steps * recipe.tokens_per_step
        assert result.tokens == planned, f"{result.tokens} tokens were seen, {planned} are the budget of every arm"
        curve = run.folder / "curve.jsonl"
        curve.unlink(missing_ok=True)
        for point in read_curve(run.folder / "run" / LOG):
            values = {"samples": point["tokens"] / settings.passage_tokens, "train/loss": point["loss"]}
            append_point(curve, int(point["step"]), values)
            run.log(values, int(point["step"]))
        trained |= {"tokens": planned, "steps": steps, **result.coverage}
    held, longest = int(lengths[kept].sum()), int(lengths[rows].max())
    assert whole or settings.unique_tokens - longest < held <= settings.unique_tokens
    save_array(run.folder / KEPT, kept)
    data = {
        "subset_passages": len(rows),
        "subset_tokens": held,
        "passages_after_cut": len(kept),
        "unique_passages": len(np.unique(kept)),
        "unique_tokens": int(lengths[np.unique(kept)].sum()),
        "documents": _documents(passages_of(prepared), kept),
        **trained,
    }
    save_json(run.folder / DATA, data)
    return {"samples": samples, "flops": flops}


def _documents(passages: Path, rows: Int[np.ndarray, "n"]) -> int:
    """How many documents the rows were cut from."""
    sources = pq.read_table(passages / PASSAGES, columns=["source"], read_dictionary=["source"])["source"]
    return len(pc.unique(sources.take(pa.array(np.unique(rows)))))


def evaluate(run: StageRun) -> dict[str, float]:
    """Stage action: bits per byte of the held-out passages, by domain and by rarity, and accuracy on language
    benchmarks where some are asked for; writes ``metrics.json``.

    The figures "bpb_..." are the language model's where there is one, else the n-gram model's; where both judge, those
    of the n-gram model are "ngram_...". Head and tail are the third of the domains with the most and the fewest bytes
    in the pool; common and rare the tenths of the passages nearest to the pool and farthest off, domains unknown.
    """
    settings = EvaluateSettings(**run.settings)
    prepared, trained = run.upstream("prepare"), run.upstream("train")
    held = load_json(prepared / TEST)
    passages = passages_of(prepared)
    rows = [(row, domain) for domain, mine in held.items() for row in mine]
    asked, domains = read_texts(passages, np.array([row for row, _ in rows])), [domain for _, domain in rows]
    shares = load_json(prepared / POOL)["bytes_of"]
    weights = {domain: shares.get(domain, 0.0) for domain in held}
    parts = None
    if (prepared / DISTANCE).exists():
        parts = parts_by_rank(np.asarray(load_array(prepared / DISTANCE)))
    found: dict[str, Any] = {"metrics": {}, "data": load_json(trained / DATA)}
    if (trained / "run" / MODEL).exists():
        folder = trained / "run" / MODEL
        tokenizer = open_tokenizer(folder)
        options: dict[str, Any] = {
            "stride": settings.stride or None,
            "batch_size": settings.batch_size,
            "device": str(run.speed.get("device", "cpu")),
        }
        model = load_model(folder, tokenizer)
        scores = score_texts(model, tokenizer, asked, progress=run.progress, **options)
        found = _add(found, "bpb", scores, domains, weights, parts)
        words = summarise(score_domains(scores, domains), weights, "perplexity")
        found["metrics"]["perplexity_macro"] = float(words["macro"])
        # of one passage a domain: what a model knows before it has seen anything hardly differs between texts
        first = [next(i for i, domain in enumerate(domains) if domain == name) for name in held]
        blank = _untrained(trained / "run", tokenizer)
        some = [score_texts(network, tokenizer, [asked[i] for i in first], **options) for network in (model, blank)]
        mine, theirs = (float((part.nats / part.n_bytes).mean() / np.log(2)) for part in some)
        found["untrained"] = {"before": theirs, "after": mine, "passages": len(first)}
        if settings.benchmarks:
            found["benchmarks"] = _benchmarks(folder, settings, options["device"], run.folder / "benchmarks")
            accuracies = [item["value"] for item in found["benchmarks"].values()]
            found["metrics"]["benchmarks"] = float(np.mean(accuracies))
    if found["data"]["judge"] != "lm":
        ngrams = fit_ngrams(read_texts(passages, load_array(trained / KEPT)), settings.order)
        n_bytes = np.asarray([len(text.encode()) for text in asked], np.int64)
        scores = TextScores(ngrams.bits(asked) * np.log(2), n_bytes, n_bytes)
        found = _add(found, "ngram" if found["metrics"] else "bpb", scores, domains, weights, parts)
        before = float(np.log2(KINDS))  # no counts: every byte alike
        found.setdefault(
            "untrained", {"before": before, "after": found["metrics"]["bpb_macro"], "passages": len(asked)}
        )
    save_json(run.folder / "metrics.json", found)
    return {"samples": float(len(rows))}


def _benchmarks(model: Path, settings: EvaluateSettings, device: str, folder: Path) -> dict[str, dict[str, float]]:
    """Of each benchmark the accuracy, that of guessing, the rows, the requests (each asks for an answer or the
    probability of one), and how many of them the context cut; the full results go to ``folder``."""
    names = require_benchmarks(settings.benchmarks)
    asked = {"model": str(model), "tasks": names, "limit": settings.benchmark_rows, "bos": True, "device": device}
    results = run_language(asked, folder, overwrite=True)
    found = {}
    for name, row in usual_metrics(results, names).items():
        cut, requests = results.truncated[name]
        known = {"value": row.value, "chance": chance_of(name), "rows": row.n}
        found[name] = {**known, "requests": requests, "truncated": cut}
    return found


def _add(
    found: dict[str, Any],
    prefix: str,
    scores: TextScores,
    domains: list[str],
    weights: dict[str, float],
    parts: Int[np.ndarray, "n"] | None,
) -> dict[str, Any]:
    """``found`` with the figures of one judge: metrics PREFIX_..., and details (of "bpb" at the top level)."""
    by_domain = score_domains(scores, domains)
    bits = summarise(by_domain, weights)
    found["metrics"] |= {f"{prefix}_{name}": float(bits[name]) for name in FIGURES}
    details: dict[str, Any] = {
        "worst_domain": bits["worst_domain"],
        "domains": {name: vars(score) for name, score in by_domain.items()},
    }
    if parts is not None:
        nats, n_bytes = (np.bincount(parts, weights=column) for column in (scores.nats, scores.n_bytes))
        by_rarity = (nats / n_bytes / np.log(2)).tolist()
        details["by_rarity"] = by_rarity
        found["metrics"] |= {f"{prefix}_common": by_rarity[0], f"{prefix}_rare": by_rarity[-1]}
    return {**found, **(details if prefix == "bpb" else {prefix: details})}


def _untrained(folder: Path, tokenizer: Tokenizer) -> Any:
    """The model of a run with the weights that it began with."""
    recipe = settings_from(load_json(folder / "run.json")["settings"])
    return build_model(recipe.model, tokenizer, recipe.seed)
