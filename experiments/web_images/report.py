"""``web_images.md``: the finished seeds of the image experiment as tables, with sentences that the numbers choose.

What no stage measures is written by hand in ``web_images_notes.md``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM
from experiments.engine.compare import Row, summarise
from experiments.engine.stages import MARKER, StageRun
from experiments.pages.effects import with_words
from experiments.pages.markdown import difference, headline, origin, other_arms, with_interval
from experiments.web_images.pool import COUNTS, KINDS
from foundation.files import load_json, write_atomically
from foundation.tables import markdown_table

PLAN, NOTES = "web_images_plan.md", "web_images_notes.md"
TITLES = {
    "linear": "linear",
    "linear_tail": "rare third",
    "linear_medium": "medium third",
    "linear_head": "frequent third",
    "knn": "k-NN",
    "linear_corrupted": "corrupted",
    "effective_rank": "effective rank",
}


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``web_images.md`` in its folder and in ``output.report``."""

    def action(run: StageRun) -> None:
        root = run.folder.parents[1]
        metrics, balance, pools = {}, {}, {}
        for stage, folder in run.before:
            arm, seed = stage.arm, stage.seed or 0
            before = {earlier.name: earlier for earlier in stage.upstream}
            curated = next(earlier for earlier in before["train"].upstream if earlier.name == "curate")
            metrics[arm, seed] = load_json(folder / "metrics.json")
            balance[arm, seed] = load_json(curated.folder(root) / "balance.json")
            pools[seed] = load_json(before["prepare"].folder(root) / COUNTS)
        made = [load_json(folder / MARKER)["provenance"] for _, folder in run.before]
        report = Path(config["output"]["report"])
        page = with_words(render(metrics, pools, balance, config, made), report, PLAN, NOTES)
        for folder in dict.fromkeys([run.folder, report]):
            write_atomically(folder / "web_images.md", lambda stream: stream.write(page.encode()))

    return action


def render(
    metrics: dict[tuple[str, int], dict[str, Any]],
    pools: dict[int, dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    config: dict[str, Any],
    made: Sequence[dict[str, Any]],
) -> str:
    """The page.

    Args:
        metrics: (arm, seed) -> ``metrics.json`` of its evaluation.
        pools: seed -> ``pool.json``.
        balance: (arm, seed) -> ``balance.json`` of its subset.
        config: the resolved one.
        made: provenance of each evaluation.
    """
    science, scale = config["science"], config["scale"]["name"]
    arms, seeds = list(dict.fromkeys(arm for arm, _ in metrics)), sorted({seed for _, seed in metrics})
    rows = [
        Row(arm, seed, name, value)
        for (arm, seed), found in metrics.items()
        for name, value in found["metrics"].items()
    ]
    cells = {(item.arm, item.metric): item for item in summarise(rows, dict.fromkeys(TITLES, "higher"))}
    pool, recipe, source = next(iter(pools.values())), science["train"]["recipe"], science["pool"]
    kinds = ", ".join(f"{pool['kinds'][name]:,} {name.replace('_', '-')}s" for name in KINDS[:2])
    sections = [
        "# Images (experiment 2 of the paper)\n",
        "Does a model pretrained without labels on a curated subset have better frozen features than one pretrained on "
        "a random subset of the same pool? Model, images seen, settings and probes are the same for every arm; only "
        f"the rows change. {_judge(science['evaluate'])}, "
        "higher is better; ± is the 95 % interval of the mean over seeds (Student's t), brackets the 95 % bootstrap "
        "interval of the paired difference to raw. Each seed draws its own pool, frequency of the classes, subset and "
        "initial weights.\n",
        origin(
            f"python scripts/run_experiment.py experiment=web_images scale={scale} seeds=[{','.join(map(str, seeds))}]",
            made,
        ),
        f"Pool of one seed, from {source['source']}: {pool['rows']:,} rows ({kinds}, {pool['kinds']['junk']:,} of "
        f"junk), {_classes(pool)}. "
        f"Embeddings: {source['embedder']} at {source['image_size']} pixels. Subsets of "
        f"{science['curation']['size']:,} rows, levels {', '.join(map(str, science['curation']['levels']))}. "
        f"Training: {recipe['backbone']['name']}, {recipe['steps']:,} steps of {recipe['batch_size']} images.\n",
        f"{headline(cells, 'linear', 'linear accuracy averaged over classes')} {other_arms(cells, 'linear')}",
        "## The data alone\n",
        "Before any training. KL to uniform of the classes of a subset (nats; 0 is as many images of each), the share "
        "of the images of the rare classes that it keeps, and the share of its rows that are near-duplicates or junk. "
        "Means over seeds.\n",
        _data(metrics, balance, arms) if pool["images"] else "The pool has no classes: there is no balance to tell.\n",
        "## Frozen features\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [
                [
                    arm,
                    *(
                        with_interval(cells[arm, m].mean, cells[arm, m].interval) if (arm, m) in cells else "-"
                        for m in TITLES
                    ),
                ]
                for arm in arms
            ],
        ),
        "Paired difference to raw:\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [
                [arm, *(difference(cells[arm, m]) if (arm, m) in cells else "-" for m in TITLES)]
                for arm in arms
                if arm != BASE_ARM
            ],
        ),
        "## What each arm saw\n",
        _seen(metrics, arms),
    ]
    return "\n".join(sections)


def _judge(evaluate: dict[str, Any]) -> str:
    if suite := evaluate.get("suite"):
        return f"Accuracies are means over the data sets of the suite {suite} (`eval/suites`)"
    return "Accuracies are means over classes on a balanced test set with a balanced labelled bank"


def _classes(pool: dict[str, Any]) -> str:
    if not pool["images"]:
        return "whose classes nobody knows"
    return f"{len(pool['classes'])} classes of {max(pool['images']):,} to {min(pool['images']):,} images"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _data(
    metrics: dict[tuple[str, int], dict[str, Any]], balance: dict[tuple[str, int], dict[str, Any]], arms: list[str]
) -> str:
    lines = []
    for arm in arms:
        mine = [key for key in metrics if key[0] == arm]
        kl, kept = (_mean([balance[key]["measures"][name] for key in mine]) for name in ("kl", "rare_kept"))
        shares = [_mean([metrics[key]["data"][f"share_{kind}"] for key in mine]) for kind in KINDS[1:]]
        lines.append([arm, f"{kl:.3f}", f"{kept:.0%}", *(f"{share:.1%}" for share in shares)])
    return markdown_table(["arm", "KL to uniform", "rare images kept", "near-duplicates", "junk"], lines)


def _seen(metrics: dict[tuple[str, int], dict[str, Any]], arms: list[str]) -> str:
    lines = []
    for arm in arms:
        data = [found["data"] for (name, _), found in metrics.items() if name == arm]
        line = [arm] + [
            f"{_mean([item[name] for item in data]):,.0f}" for name in ("rows", "samples", "unique_samples")
        ]
        lines.append([*line, f"{_mean([item['times_seen'] for item in data]):.1f}"])
    return markdown_table(["arm", "rows of the subset", "images seen", "distinct", "times each"], lines)
