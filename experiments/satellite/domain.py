"""The satellite experiment: does a model pretrained on a curated subset of tiles predict canopy height better?"""

from functools import partial

from experiments.engine.experiment import Domain, Metric
from experiments.satellite.pool import PoolSettings, input_files, opens, pictures, prepare
from experiments.satellite.report import write_up
from experiments.satellite.training import EvaluateSettings, TrainSettings, budget, evaluate, train
from pretrain.export import require_state

DOMAIN = Domain(
    title="Canopy height: arms side by side",
    claim="With the same tiles seen, a model pretrained on the balanced subset of hierarchical k-means with resampling "
    "has frozen features that predict canopy height better than one pretrained on random tiles of the pool.",
    metrics=(
        Metric("r2", "R2 of pixels", "higher", headline=True),
        Metric("block_r2", "block-R2, 50 pixels", "higher"),
        Metric("mae", "mean absolute error (m)", "lower"),
        Metric("rmse", "root mean squared error (m)", "lower"),
        Metric("mae_10_20", "mean absolute error, 10-20 m", "lower"),
        Metric("mae_20_30", "mean absolute error, 20-30 m", "lower"),
        Metric("mae_30_up", "mean absolute error, 30 m and up", "lower"),
        Metric("mae_0_2", "mean absolute error, 0-2 m", "lower", ours=False),
        Metric("iou_2m", "cover IoU at 2 m", "higher"),
        Metric("iou_5m", "cover IoU at 5 m", "higher"),
        Metric("edge_error", "edge error", "lower"),
        # of a pool that is unequal over land cover
        Metric("even_rmse", "root mean squared error (m), mean over land cover", "lower"),
        Metric("even_mae", "mean absolute error (m), mean over land cover", "lower"),
        Metric("even_r2", "R2, land cover weighed alike", "higher"),
        Metric("even_block_r2", "block-R2, land cover weighed alike", "higher"),
        Metric("rare_mae", "mean absolute error (m), rare land cover", "lower"),
        Metric("frequent_mae", "mean absolute error (m), frequent land cover", "lower", ours=False),
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
    distributed=True,
    sharded=True,
    brings=lambda _pool: {"labels"},
    ready=lambda pool, train, _evaluate: {
        "prepare": opens(pool),
        "train": [partial(require_state, train.recipe.init_from)],
    },
)
