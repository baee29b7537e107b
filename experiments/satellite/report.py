"""``satellite.md``: the finished seeds of the satellite experiment as tables; the numbers choose the sentences."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, METHOD_ARM
from experiments.engine.compare import Row, Summary, summarise
from experiments.engine.inputs import DATA
from experiments.engine.provenance import commits_of
from experiments.engine.stages import MARKER, StageRun
from experiments.pages.markdown import headline
from experiments.pages.verdict import compact, save_compact
from experiments.satellite.cover_report import FIGURE, NOTES, PLAN, cover_rows, effect_figure, render_cover
from experiments.satellite.pool import COVER_CLASSES, SYNTHETIC
from foundation.files import load_json, write_atomically
from foundation.tables import markdown_table

TITLES = {
    "r2": "R2",
    "block_r2": "block-R2",
    "mae": "MAE (m)",
    "rmse": "RMSE (m)",
    "me": "ME (m)",
    "iou_2m": "IoU 2 m",
    "iou_5m": "IoU 5 m",
    "edge_error": "edge error",
}
LOWER = ("mae", "rmse", "edge_error")


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``satellite.md`` in its folder and in ``output.report``.

    Where the pool is unequal over land cover: ``satellite_cover.md`` instead.
    """

    def action(run: StageRun) -> None:
        root = run.folder.parents[1]
        metrics, balance = {}, {}
        for stage, folder in run.before:
            key = (stage.arm, stage.seed or 0)
            train = next(earlier for earlier in stage.upstream if earlier.name == "train")
            curated = next(earlier for earlier in train.upstream if earlier.name == "curate")
            metrics[key] = load_json(folder / "metrics.json")
            balance[key] = load_json(curated.folder(root) / "balance.json")
        made = [load_json(folder / MARKER)["provenance"] for _, folder in run.before]
        report = Path(config["output"]["report"])
        if config["science"]["pool"].get("zipf"):
            _write_cover(metrics, balance, config, made, [run.folder, report])
            return
        page = render(metrics, balance, config, made)
        # written by hand: what no stage measures, and a picture
        notes = report / "satellite_notes.md"
        if notes.exists():
            page += "\n" + notes.read_text()
        for folder in dict.fromkeys([run.folder, report]):
            write_atomically(folder / "satellite.md", lambda stream: stream.write(page.encode()))

    return action


def _write_cover(
    metrics: dict[tuple[str, int], dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    config: dict[str, Any],
    made: list[dict[str, Any]],
    folders: list[Path],
) -> None:
    """``satellite_cover.md``, the values of every arm and seed beside it, and the figure of effect over balance."""
    page = render_cover(metrics, balance, config, made)
    words = {name: folders[-1] / name for name in (PLAN, NOTES)}
    if words[PLAN].exists():
        head, tail = page.split("## Results\n", 1)
        page = f"{head}{words[PLAN].read_text().rstrip()}\n\n## Results\n{tail}"
    if words[NOTES].exists():
        page += "\n" + words[NOTES].read_text()
    rows = cover_rows(metrics, balance, config["science"]["studies"]["turns"])
    about = {"experiment": "satellite", "judge": config["science"]["train"]["judge"]}
    about |= {"commits": sorted({item["commit"] for item in made})}
    picture = effect_figure(rows)
    for folder in dict.fromkeys(folders):
        write_atomically(folder / "satellite_cover.md", lambda stream: stream.write(page.encode()))
        save_compact(folder / "satellite_cover.json", compact(rows, about))
        write_atomically(folder / FIGURE, lambda stream: stream.write(picture))


def render(
    metrics: dict[tuple[str, int], dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    config: dict[str, Any],
    made: list[dict[str, Any]],
) -> str:
    """The page.

    Args:
        metrics: (arm, seed) -> ``metrics.json`` of its evaluation.
        balance: (arm, seed) -> ``balance.json`` of its subset.
        config: the resolved one.
        made: provenance of each evaluation.
    """
    science, scale = config["science"], config["scale"]["name"]
    pool = science["pool"]
    arms, seeds = list(dict.fromkeys(arm for arm, _ in metrics)), sorted({seed for _, seed in metrics})
    tested = [m["test_pixels"] for m in metrics.values()]
    classes = sorted({m for found in metrics.values() for m in found["metrics"] if m.startswith("mae_")}, key=_lowest)
    names = [*TITLES, *classes, *(name.replace("mae", "me", 1) for name in classes)]
    rows = [
        Row(arm, seed, name, found["metrics"][name])
        for (arm, seed), found in metrics.items()
        for name in names
        if name in found["metrics"]
    ]
    better = {name: "lower" if name in LOWER or name.startswith("mae") else "higher" for name in names}
    cells = {(item.arm, item.metric): item for item in summarise(rows, better)}
    synthetic = pool["image"] == SYNTHETIC
    source = (
        "**synthetic scenes**, generated for each seed (experiments/satellite/scenes.py): they show that the machinery "
        "works and nothing about forests"
        if synthetic
        else f"`{pool['image']}` and `{pool['heights']}` in the folder of {DATA}: one scene"
    )
    sections = [
        "# Satellite (experiment 4 of the paper)\n",
        "Does a model pretrained without labels on a curated subset of tiles have frozen features that predict canopy "
        "height better than one pretrained on as many random tiles? Model, tiles seen, labelled tiles, head and test "
        "ground are the same for every arm; only the tiles of the pretraining change. ± is the 95 % interval of the "
        "mean over seeds (Student's t), brackets the 95 % bootstrap interval of the paired difference to raw.\n",
        f"- data: {source}\n"
        f"- command: `python scripts/run_experiment.py experiment=satellite scale={scale} "
        f"seeds=[{','.join(map(str, seeds))}] arms=[{','.join(arms)}]`\n"
        f"- commit of the code: {commits_of(made)}\n"
        f"- device: {', '.join(sorted({item['device'] for item in made}))}\n",
        f"Ground is cut into squares of {pool['block']:g} m in {pool['n_folds']} folds; seed s tests fold s modulo "
        f"{pool['n_folds']}, and no tile of pool or labels comes nearer than {pool['margin']:g} m. Pool: "
        f"{pool['rows']:,} tiles of {pool['tile']} x {pool['tile']} pixels of {pool['resolution']:g} m, every "
        f"{pool['stride']} pixels; subsets of {science['curation']['size']:,}; {pool['labelled']:,} labelled tiles for "
        f"the head ({_head(science['evaluate'])}); "
        f"{min(tested) / 1e3:,.0f} to {max(tested) / 1e3:,.0f} thousand test pixels a seed. The folds of a "
        "scene share its light, season and sensor: the spread over seeds says nothing about other places.\n",
        verdict(cells),
        "## Errors on the ground set apart\n",
        markdown_table(["arm", *TITLES.values()], [[arm, *(_cell(cells, arm, m) for m in TITLES)] for arm in arms]),
        "Paired difference to raw:\n",
        markdown_table(
            ["arm", *(TITLES[m] for m in TITLES if m != "me")],
            [[arm, *(_difference(cells, arm, m) for m in TITLES if m != "me")] for arm in arms if arm != BASE_ARM],
        ),
        "## By true height\n",
        "Mean absolute error and, in parentheses, mean error (negative: too low), metres.\n",
        markdown_table(
            ["arm", *(_class_title(name) for name in classes)],
            [[arm, *(_by_class(cells, arm, name) for name in classes)] for arm in arms],
        ),
        "## What each arm was pretrained on\n",
        "Tiles by their share of pixels of 5 m and more, means over seeds; the curation never saw heights.\n",
        _seen(balance, arms),
    ]
    return "\n".join(sections)


def verdict(cells: dict[tuple[str, str], Summary]) -> str:
    """What the headline says about the method."""
    text = headline(cells, "r2", "R2 of pixels")
    if (METHOD_ARM, "r2") not in cells or (BASE_ARM, "r2") not in cells:
        return f"{text}\n"
    mine, raw = cells[METHOD_ARM, "r2"], cells[BASE_ARM, "r2"]
    share = f" That is {100 * mine.difference / raw.mean:+.1f} % of raw." if raw.mean > 0 else ""
    best = max((item for (_, metric), item in cells.items() if metric == "r2"), key=lambda item: item.mean)
    return f"{text}{share} Best of all arms: {best.arm}, {best.mean:.3f}.\n"


def _head(evaluate: dict[str, Any]) -> str:
    head = evaluate.get("head")
    if not head:
        return "linear on the frozen features, ridge regression in closed form"
    return f"{head.get('head', {}).get('kind', 'dpt')}, trained for {head.get('steps')} steps on the frozen features"


def _cell(cells: dict[tuple[str, str], Summary], arm: str, metric: str) -> str:
    if (arm, metric) not in cells:
        return "-"
    item = cells[arm, metric]
    return f"{item.mean:.3f}" if np.isnan(item.interval) else f"{item.mean:.3f} ± {item.interval:.3f}"


def _difference(cells: dict[tuple[str, str], Summary], arm: str, metric: str) -> str:
    item = cells.get((arm, metric))
    if item is None or not item.verdict:
        return "-"
    return f"{item.difference:+.3f} [{item.low:+.3f}, {item.high:+.3f}], {item.verdict}"


def _by_class(cells: dict[tuple[str, str], Summary], arm: str, name: str) -> str:
    mae, me = cells.get((arm, name)), cells.get((arm, name.replace("mae", "me", 1)))
    return "-" if mae is None or me is None else f"{mae.mean:.2f} ({me.mean:+.2f})"


def _lowest(name: str) -> float:
    return float(name.split("_")[1])


def _class_title(name: str) -> str:
    _, low, high = name.split("_")
    return f"{low} m and up" if high == "up" else f"{low}-{high} m"


def _seen(balance: dict[tuple[str, int], dict[str, Any]], arms: list[str]) -> str:
    borders = [0.0, *COVER_CLASSES, 1.0]
    header = ["", *(f"{100 * a:g}-{100 * b:g} %" for a, b in pairwise(borders))]
    lines = [["pool", *_shares([found["pool_counts"] for found in balance.values()])]]
    for arm in arms:
        lines.append([arm, *_shares([found["subset_counts"] for key, found in balance.items() if key[0] == arm])])
    return markdown_table(header, lines)


def _shares(counts: Sequence[Sequence[int]]) -> list[str]:
    wide = np.zeros((len(counts), len(COVER_CLASSES) + 1))
    for line, mine in zip(wide, counts, strict=True):
        line[: len(mine)] = np.array(mine) / max(sum(mine), 1)
    return [f"{100 * share:.1f} %" for share in wide.mean(0)]
