"""The experiment on visual domains: does a pixel model of a curated subset predict pictures of every domain better?"""

from experiments.engine.experiment import Domain, Metric
from experiments.visual_domains.pool import PoolSettings, input_files, opens, pictures, prepare
from experiments.visual_domains.report import write_up
from experiments.visual_domains.training import EvaluateSettings, TrainSettings, budget, evaluate, train

DOMAIN = Domain(
    title="Visual domains: arms side by side",
    claim="With as many pictures, a pixel model of the balanced subset of hierarchical k-means with resampling "
    "predicts held-out pictures better, on average over domains, than one of random pictures of the pool.",
    metrics=(
        Metric("bpp_macro", "bits per pixel, mean over domains", "lower", headline=True),
        Metric("bpp_worst", "bits per pixel, worst domain", "lower"),
        Metric("bpp_tail", "bits per pixel, rare domains", "lower"),
        Metric("bpp_head", "bits per pixel, frequent domains", "lower", ours=False),
        Metric("bpp_raw_weighted", "bits per pixel, weighted as the pool", "lower", ours=False),
        Metric("bpp_rare", "bits per pixel, rarest tenth", "lower"),
        Metric("bpp_common", "bits per pixel, commonest tenth", "lower", ours=False),
    ),
    pool_settings=PoolSettings,
    train_settings=TrainSettings,
    evaluate_settings=EvaluateSettings,
    prepare=prepare,
    train=train,
    evaluate=evaluate,
    shape=lambda pool: (float(pool.rows), pool.dim),
    budget=budget,
    pictures=pictures,
    files=input_files,
    write_up=write_up,
    brings=lambda pool: (
        {"labels"} | ({"trusted set"} if pool.trusted else set()) | ({"hand-curated set"} if pool.manual else set())
    ),
    ready=lambda pool, _train, _evaluate: {"prepare": opens(pool)},
)
