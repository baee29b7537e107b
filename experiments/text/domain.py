"""The text experiment: does a small language model of a curated subset predict every domain better?"""

from functools import partial

from experiments.engine.experiment import Domain, Metric
from experiments.text.pool import PoolSettings, check_names, input_files, opens, prepare
from experiments.text.report import write_up
from experiments.text.training import (
    EvaluateSettings,
    TrainSettings,
    budget,
    check_judges,
    evaluate,
    require_benchmarks_fit,
    train,
)


def _check(pool: PoolSettings, train: TrainSettings, evaluate: EvaluateSettings) -> None:
    check_names(pool, train, evaluate)
    check_judges(pool, train, evaluate)


DOMAIN = Domain(
    title="Text: arms side by side",
    claim="With the same tokens, a language model trained on the balanced subset of hierarchical k-means with "
    "resampling predicts held-out documents better, on average over domains, than one trained on random passages.",
    metrics=(
        Metric("bpb_macro", "bits per byte, mean over domains", "lower", headline=True),
        Metric("bpb_worst", "bits per byte, worst domain", "lower"),
        Metric("bpb_tail", "bits per byte, rare domains", "lower"),
        Metric("bpb_head", "bits per byte, frequent domains", "lower", ours=False),
        Metric("bpb_raw_weighted", "bits per byte, weighted as the pool", "lower", ours=False),
        Metric("bpb_rare", "bits per byte, rarest tenth", "lower"),
        Metric("bpb_common", "bits per byte, commonest tenth", "lower", ours=False),
        Metric("perplexity_macro", "perplexity, mean over domains", "lower"),
        Metric("ngram_macro", "bits per byte of the n-gram model beside it", "lower"),
        Metric("benchmarks", "accuracy on language benchmarks", "higher"),
    ),
    pool_settings=PoolSettings,
    train_settings=TrainSettings,
    evaluate_settings=EvaluateSettings,
    prepare=prepare,
    train=train,
    evaluate=evaluate,
    shape=lambda pool: (float(pool.rows), pool.dim),
    budget=budget,
    files=input_files,
    write_up=write_up,
    distributed=True,
    sharded=True,
    check=_check,
    brings=lambda pool: {"labels"} | ({"trusted set"} if pool.trusted else set()),
    ready=lambda pool, train, evaluate: {
        "prepare": opens(pool),
        "evaluate": [partial(require_benchmarks_fit, train, evaluate, pool.tokenizer)],
    },
)
