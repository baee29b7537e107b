"""``satellite_cover.md``: the seeds of a pool that is unequal over land cover, tested on even ground.

What was planned before is written by hand in ``satellite_plan.md``, what no stage measures in
``satellite_cover_notes.md``.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, ORACLE
from experiments.engine.compare import Row, summarise
from experiments.engine.inputs import DATA
from experiments.engine.zipf import rank_sizes
from experiments.pages.figures import plt, style_of
from experiments.pages.markdown import difference, headline, origin, other_arms, with_interval
from experiments.pages.verdict import ENOUGH, judge_claim, paired, power
from experiments.satellite.cover import COVERS, ENDS
from foundation.tables import markdown_table

HEADLINE, BETTER, WHAT = "even_r2", "higher", "R2 on even ground, where every class of land cover weighs the same"
TITLES = {
    "even_rmse": "RMSE (m)",
    "even_mae": "MAE (m)",
    "even_r2": "R2",
    "even_block_r2": "block-R2",
    "rare_mae": f"MAE, {ENDS} rarest classes",
    "frequent_mae": f"MAE, {ENDS} most frequent",
    "r2": "R2, ground as it is",
}
HIGHER = ("even_r2", "even_block_r2", "r2")
QUESTION = {
    "features": "Does a model pretrained without labels on a curated subset of tiles have frozen features that predict "
    "canopy height better than one pretrained on as many random tiles? Model, tiles seen, labelled tiles, head and "
    "test are the same for every arm.",
    "labels": "**Which tiles are worth a survey?** Heights are learnt from the labels of the subset alone: every arm "
    "chooses as many tiles without seeing a height, these are labelled, and a model learns from nothing else. This is "
    "not the paper's question (pretraining without labels), which this budget cannot tell (see the plan).",
}
PLAN, NOTES, FIGURE = "satellite_plan.md", "satellite_cover_notes.md", "images/satellite_cover.png"
Found = dict[tuple[str, int], dict[str, Any]]


def cover_rows(metrics: Found, balance: Found, turns: int = 1) -> list[Row]:
    """Every figure of every arm and unit, the KL of its subsets ("kl") among them.

    A turn is five seeds, 5 t to 5 t + 4, each class at the head of the pool once: what differs with the head class is
    not noise, so the mean of one turn, or of several that follow each other, is the unit that is paired. Units that an
    arm has not finished are left out.
    """
    seeds_of_unit = turns * len(COVERS)
    values: dict[tuple[str, int, str], list[float]] = {}
    for (arm, seed), found in metrics.items():
        for name, value in (found["metrics"] | {"kl": balance[arm, seed]["measures"]["kl"]}).items():
            values.setdefault((arm, seed // seeds_of_unit, name), []).append(value)
    return [
        Row(arm, unit, name, float(np.mean(mine)))
        for (arm, unit, name), mine in values.items()
        if len(mine) == seeds_of_unit
    ]


def unit_name(turns: int) -> str:
    """The plural that the page uses for what is paired."""
    return "turns" if turns == 1 else f"units of {turns} turns"


def render_cover(metrics: Found, balance: Found, config: dict[str, Any], made: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        metrics: (arm, seed) -> ``metrics.json`` of its evaluation.
        balance: (arm, seed) -> ``balance.json`` of its subset.
        config: the resolved one.
        made: provenance of each evaluation.
    """
    science = config["science"]
    pool = science["pool"]
    arms, seeds = list(dict.fromkeys(arm for arm, _ in metrics)), sorted({seed for _, seed in metrics})
    pools = {seed: found["pool"] for (_, seed), found in metrics.items()}
    turns = science["studies"]["turns"]
    rows = cover_rows(metrics, balance, turns)
    if not rows:
        needed = turns * len(COVERS)
        return f"# Satellite: land cover unequal\n\n## Results\n\nNo unit of {needed} seeds is whole yet.\n"
    several = "" if turns == 1 else f", and {turns} turns are one unit: {len({row.seed for row in rows})} units here"
    told = list(dict.fromkeys(row.arm for row in rows))
    better = {name: "higher" if name in HIGHER else "lower" for name in TITLES}
    kinds = [f"rmse_{i}" for i in range(len(COVERS))]
    cells = {(i.arm, i.metric): i for i in summarise(rows, better | dict.fromkeys(kinds, "lower"))}
    sizes = ", ".join(map(str, rank_sizes(len(COVERS), pool["rows"], pool["zipf"])))
    tested = np.mean([found["test_cover"] for found in pools.values()], 0)
    shown = {key: item for key, item in cells.items() if key[1] == HEADLINE}
    verdict = f"{headline(shown, HEADLINE, WHAT)} {other_arms(shown, HEADLINE)}"
    sections = [
        "# Satellite: land cover unequal on purpose\n",
        f"{QUESTION[science['train']['judge']]} A turn is five seeds, each class of land cover at the head of the "
        f"pool once{several}. ± is the 95 % interval of the mean over units (Student's t), brackets the 95 % bootstrap "
        "interval of the paired difference to raw. The ground as it is: [satellite.md](satellite.md).\n",
        "## Results\n",
        origin(
            "python scripts/run_experiment.py experiment=satellite_cover scale=lab "
            f"seeds=[{','.join(map(str, seeds))}] arms=[{','.join(arms)}]"
            + (f" science.studies.turns={turns}" if turns > 1 else ""),
            made,
            f"with {DATA} naming the folder of {pool['image']}",
        ),
        verdict.replace("paired seeds", f"paired {unit_name(turns)}"),
        power_sentence(rows, unit_name(turns)),
        claims_table(rows, told),
        f"![effect over balance]({FIGURE})\n",
        "## Errors on even ground\n",
        f"Every class of land cover weighs the same. Head: {head_of_page(science)}.\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [[arm, *(with_interval(cells[arm, m].mean, cells[arm, m].interval) for m in TITLES)] for arm in told],
        ),
        "Paired difference to raw:\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [[arm, *(difference(cells[arm, m]) for m in TITLES)] for arm in told if arm != BASE_ARM],
        ),
        "## By land cover\n",
        "RMSE in metres: raw, and the others as differences to it; then R2 and block-R2 of raw and true classes about "
        "the mean of the class itself (below 0: worse than that mean), means over units.\n",
        by_class(rows, told),
        "## Ground\n",
        f"Classes are known from heights and colours: forest (over half of the pixels above 5 m), single trees (over a "
        "tenth), and without trees the greener 40 %, and bright and dark ground parted at the median. The pool of a "
        f"seed: {pool['rows']:,} tiles of {pool['tile']} x {pool['tile']} pixels of {pool['resolution']:g} m, every "
        f"{pool['stride']} pixels, classes of {sizes} tiles "
        f"(rank^-{pool['zipf']:g}), the head class in turns over the seeds; subsets of "
        f"{science['curation']['size']:,}. Squares of {pool['block']:g} m in {pool['n_folds']} folds, seed s tests "
        f"fold s modulo {pool['n_folds']}; test tiles do not overlap, on average "
        f"{', '.join(f'{n:.0f} of {name}' for n, name in zip(tested, COVERS, strict=True))}. {apart(pools)}\n",
        "Tiles of each class by its rank in the pool, means over seeds:\n",
        by_rank(balance, arms),
    ]
    return "\n".join(sections)


def power_sentence(rows: Sequence[Row], units: str = "turns") -> str:
    """Whether the experiment can tell at all."""
    gains = np.asarray(list(paired(rows, ORACLE, HEADLINE).values()))
    strength = power(gains)
    if np.isnan(strength):
        return f"**Power** is not known: it takes the arm {ORACLE}, and three {units}.\n"
    told = gains.mean() > 0 and strength >= ENOUGH
    return (
        f"**Power**: true classes change R2 on even ground by {gains.mean():+.3f}, {strength:.1f} standard "
        f"deviations of the paired difference between {units}; {ENOUGH:.0f} are asked for, "
        f"{'so it can tell' if told else 'so **no method can be judged here**'}.\n"
    )


def claims_table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Effect of each arm, its power and what it says."""
    lines = []
    for arm in arms:
        effects = np.asarray(list(paired(rows, arm, HEADLINE).values()))
        if arm == BASE_ARM or not len(effects):
            continue
        found = judge_claim(rows, arm, HEADLINE, BETTER)
        kl = np.mean([row.value for row in rows if row.arm == arm and row.metric == "kl"])
        lines.append(
            [arm, f"{kl:.3f}", difference(found.effect), str(len(effects)), f"{power(effects):.1f}", found.verdict]
        )
    return markdown_table(["arm", "KL", "difference to raw", "units", "its own power", "better than raw?"], lines)


def effect_figure(rows: Sequence[Row]) -> bytes:
    """PNG: does balance buy quality? Each arm and turn, difference to raw over the KL of its subset."""
    kl = {(row.arm, row.seed): row.value for row in rows if row.metric == "kl"}
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for place, arm in enumerate(dict.fromkeys(row.arm for row in rows)):
        effects = paired(rows, arm, HEADLINE)
        if not effects or arm == BASE_ARM:
            continue
        look = style_of(place) | {"linestyle": "none"}
        x, y = [kl[arm, seed] for seed in effects], list(effects.values())
        axes.plot(x, y, markersize=4, alpha=0.45, **look)
        axes.plot(np.mean(x), np.mean(y), label=arm, markersize=10, markeredgecolor="black", **look)
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set_xlabel("KL of the subset's land cover to uniform (nats)")
    axes.set_ylabel("R2 on even ground,\ndifference to raw (higher is better)")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def head_of_page(science: dict[str, Any]) -> str:
    """The judge in words."""
    head = science["evaluate"].get("head")
    if head:
        kind, steps = head.get("head", {}).get("kind", "dpt"), head.get("steps")
        trained = "a small network trained with it" if head.get("backbone", {}).get("trainable") else "frozen features"
        return f"{kind} decoder, {steps} steps on {trained}"
    if science["train"]["judge"] == "labels":
        return "linear, in closed form, on colours and textures of cells of 8 x 8 pixels, made by hand"
    return "linear on the frozen features, ridge regression in closed form"


def by_class(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """A line for each arm and measure, a column for each class."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row.arm, row.metric), []).append(row.value)
    lines = []
    for arm in arms:
        line = [f"{arm}, RMSE"]
        for kind in range(len(COVERS)):
            effects = list(paired(rows, arm, f"rmse_{kind}").values())
            line.append(
                f"{np.mean(values[arm, f'rmse_{kind}']):.2f}" if arm == BASE_ARM else f"{np.mean(effects):+.2f}"
            )
        lines.append(line)
    for arm in (BASE_ARM, ORACLE):
        for measure, title in (("r2", "R2"), ("block_r2", "block-R2")):
            found = [values.get((arm, f"{measure}_{kind}"), [np.nan]) for kind in range(len(COVERS))]
            if arm in arms:
                lines.append([f"{arm}, {title}", *(f"{np.mean(mine):.2f}" for mine in found)])
    return markdown_table(["arm", *COVERS], lines)


def by_rank(balance: Found, arms: Sequence[str]) -> str:
    """Rows of the pool and of each subset, the class that is most frequent in the pool first."""
    order = {key: np.argsort(-np.array(found["pool_counts"]), kind="stable") for key, found in balance.items()}

    def mean(counts: str, keys: Sequence[tuple[str, int]]) -> list[str]:
        found = []
        for key in keys:
            wide = np.zeros(len(COVERS))
            wide[: len(balance[key][counts])] = balance[key][counts]
            found.append(wide[order[key]])
        return [f"{value:.0f}" for value in np.mean(found, 0)]

    lines = [["pool", *mean("pool_counts", list(balance))]]
    lines += [[arm, *mean("subset_counts", [key for key in balance if key[0] == arm])] for arm in arms]
    return markdown_table(["", *(f"rank {i + 1}" for i in range(len(COVERS)))], lines)


def apart(pools: dict[int, dict[str, Any]]) -> str:
    """How far test and pool lie apart, and what of the pool looks like a test tile all the same."""
    gap = min(found["least_gap"] for found in pools.values())
    near, total = (sum(found[name] for found in pools.values()) for name in ("near_test", "rows"))
    return (
        f"No tile of pool or labels comes nearer to a test tile than {gap:g} m (else the run is refused); {near:,} of "
        f"{total:,} pool tiles over all seeds are near-duplicates of a test tile by their embeddings."
    )
