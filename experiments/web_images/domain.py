"""The image experiment: does a vision model pretrained on a curated subset have better features?"""

from functools import partial

from experiments.engine.experiment import Domain, Metric
from experiments.web_images.pool import PoolSettings, input_files, opens, pictures, pool_rows, prepare
from experiments.web_images.report import write_up
from experiments.web_images.training import EvaluateSettings, TrainSettings, budget, check_measures, evaluate, train
from pretrain.export import require_state

DOMAIN = Domain(
    title="Images: arms side by side",
    claim="With the same images seen, a model pretrained on the balanced subset of hierarchical k-means with "
    "resampling has better frozen features, on average over classes, than one pretrained on random images of the pool.",
    metrics=(
        Metric("linear", "linear accuracy, mean over classes", "higher", headline=True),
        Metric("knn", "k-NN accuracy, mean over classes", "higher"),
        Metric("linear_tail", "linear accuracy, rare classes", "higher"),
        Metric("linear_medium", "linear accuracy, medium classes", "higher"),
        Metric("linear_head", "linear accuracy, frequent classes", "higher", ours=False),
        Metric("knn_tail", "k-NN accuracy, rare classes", "higher"),
        Metric("knn_head", "k-NN accuracy, frequent classes", "higher", ours=False),
        Metric("linear_worst", "linear accuracy, worst class", "higher"),
        Metric("linear_corrupted", "linear accuracy, corrupted images", "higher"),
        Metric("effective_rank", "effective rank of the features", "higher"),
    ),
    pool_settings=PoolSettings,
    train_settings=TrainSettings,
    evaluate_settings=EvaluateSettings,
    prepare=prepare,
    train=train,
    evaluate=evaluate,
    shape=lambda pool: (pool_rows(pool), pool.dim),
    budget=budget,
    curves=("train/loss", "probe/knn"),
    pictures=pictures,
    files=input_files,
    write_up=write_up,
    distributed=True,
    sharded=True,
    check=check_measures,
    brings=lambda pool: {"labels", "trusted set"} if pool.labelled else {"trusted set"} if pool.test else set(),
    ready=lambda pool, train, _evaluate: {
        "prepare": opens(pool),
        "train": [partial(require_state, train.recipe.init_from)],
    },
)
