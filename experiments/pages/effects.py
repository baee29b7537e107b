"""Pages on what a judge of held-out data says: effect of each arm, power, balance against quality, rarity.

The same for every kind of data: the judge gives bits per unit of held-out rows, the lower the better, of every domain
alike, and each arm and seed is an effect against the KL of its subset.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, METHOD_ARM, ORACLE
from experiments.engine.compare import Row, Summary, summarise
from experiments.engine.stages import MARKER, StageRun
from experiments.pages.figures import plt, style_of
from experiments.pages.markdown import difference, headline, with_interval
from experiments.pages.verdict import ENOUGH, compact, judge_claim, paired, power, save_compact
from foundation.files import load_json, write_atomically
from foundation.tables import markdown_table

NO_SUBSET = {"all": "all (the whole pool)", "manual": "manual (a hand-curated set)"}  # of the pool, as large as others

Found = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Judge:
    """How a page speaks of its judge.

    Attributes:
        prefix: of its metrics: PREFIX_macro and so on.
        unit: "bits per byte".
        rows: what is held out: "passages".
        what: the judge is shown: "text".
    """

    prefix: str
    unit: str
    rows: str
    what: str

    @property
    def headline(self) -> str:
        return f"{self.prefix}_macro"

    @property
    def key(self) -> str:
        """Of a domain's value in ``metrics.json``."""
        return self.unit.replace(" ", "_")


@dataclass(frozen=True)
class Evaluations:
    """What the evaluations before a stage found.

    Attributes:
        metrics: (arm, seed) -> ``metrics.json``.
        balance: (arm, seed) -> ``balance.json`` of its subset.
        prepared: seed -> folder of the stage `prepare`.
        made: provenance of each evaluation.
    """

    metrics: dict[tuple[str, int], dict[str, Any]]
    balance: dict[tuple[str, int], dict[str, Any]]
    prepared: dict[int, Path]
    made: list[dict[str, Any]]


def read_evaluations(run: StageRun) -> Evaluations:
    """Of a stage `write_up`."""
    root, found = run.folder.parents[1], Evaluations({}, {}, {}, [])
    for stage, folder in run.before:
        arm, seed = stage.arm, stage.seed or 0
        before = {earlier.name: earlier for earlier in stage.upstream}
        curated = next(earlier for earlier in before["train"].upstream if earlier.name == "curate")
        found.metrics[arm, seed] = load_json(folder / "metrics.json")
        found.balance[arm, seed] = load_json(curated.folder(root) / "balance.json")
        found.prepared[seed] = before["prepare"].folder(root)
        found.made.append(load_json(folder / MARKER)["provenance"])
    return found


def save_page(
    folders: Sequence[Path], name: str, page: str, rows: Sequence[Row], about: dict[str, Any], figure: bytes
) -> None:
    """NAME.md, NAME.json with the values of every arm and seed, and the figure of effect over balance."""
    for folder in dict.fromkeys(folders):
        write_atomically(folder / f"{name}.md", lambda stream: stream.write(page.encode()))
        save_compact(folder / f"{name}.json", compact(rows, about))
        write_atomically(folder / figure_of(name), lambda stream: stream.write(figure))


def figure_of(name: str) -> str:
    """Where the figure of a page lies."""
    return f"images/{name}_balance.png"


def titles_of(judge: Judge, rows: Sequence[Row]) -> dict[str, str]:
    """Metric -> title, of those that there are."""
    titles = {
        "macro": "mean over domains",
        "worst": "worst domain",
        "tail": "rare third",
        "head": "frequent third",
        "raw_weighted": "weighted as the pool",
        "rare": "tenth farthest from the pool",
        "common": "tenth nearest to the pool",
        "own": "domain of the hand-curated set",
        "apart": "the other domains",
    }
    there = {row.metric for row in rows}
    return {f"{judge.prefix}_{n}": title for n, title in titles.items() if f"{judge.prefix}_{n}" in there}


def result_sections(metrics: Found, balance: Found, arms: Sequence[str], judge: Judge, name: str) -> list[str]:
    """What the numbers say: who wins, power, every arm, balance against quality, and the tables of the judge."""
    rows = value_rows(metrics, balance)
    titles = titles_of(judge, rows)
    cells = {(item.arm, item.metric): item for item in summarise(rows, dict.fromkeys(titles, "lower"))}
    return [
        verdict(cells, judge),
        power_sentence(rows, judge),
        untrained_sentence(metrics, judge),
        claims_table(rows, arms, judge),
        balance_sentence(rows, judge),
        f"![effect over balance]({figure_of(name)})\n",
        f"## {judge.unit.capitalize()}\n",
        markdown_table(
            ["arm", *titles.values()],
            [[arm, *(with_interval(cells[arm, m].mean, cells[arm, m].interval) for m in titles)] for arm in arms],
        ),
        f"Paired difference to raw, which is expected to win on {judge.what} like the pool's (frequent "
        "third, weighted as the pool, nearest tenth):\n",
        markdown_table(
            ["arm", *titles.values()],
            [[arm, *(difference(cells[arm, m]) for m in titles)] for arm in arms if arm != BASE_ARM],
        ),
    ]


def with_words(page: str, folder: Path, plan: str, notes: str) -> str:
    """The page with the plan behind its first paragraph and the notes at its end, where the folder has them."""
    for name in (plan, notes):
        if (folder / name).exists():
            words = (folder / name).read_text().rstrip() + "\n"
            place = page.index("## Results\n") if name == plan else len(page)
            page = page[:place] + ("\n" if name == notes else "") + words + "\n" + page[place:]
    return page.rstrip() + "\n"


def value_rows(metrics: Found, balance: Found) -> list[Row]:
    """Every figure of every arm and seed, the KL of its subset ("kl") and the tenths by rarity among them."""
    rows = []
    for (arm, seed), found in metrics.items():
        values = dict(found["metrics"])
        values |= {f"tenth_{i + 1}": value for i, value in enumerate(found.get("by_rarity", []))}
        values["kl"] = balance[arm, seed]["measures"]["kl"]
        rows += [Row(arm, seed, name, value) for name, value in values.items()]
    return rows


def effect_over_balance(rows: Sequence[Row], judge: Judge) -> bytes:
    """PNG: does balance buy quality? Each arm and seed, difference to raw over the KL of its subset."""
    kl = {(row.arm, row.seed): row.value for row in rows if row.metric == "kl"}
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for place, arm in enumerate(arms_of(rows)):
        effects = paired(rows, arm, judge.headline)
        if not effects or arm == BASE_ARM:
            continue
        style = {key: value for key, value in style_of(place).items() if key != "linestyle"}
        x, y = [kl[arm, seed] for seed in effects], list(effects.values())
        axes.plot(x, y, linestyle="none", markersize=4, alpha=0.45, **style)
        style |= {"linestyle": "none", "markersize": 10, "markeredgecolor": "black"}
        axes.plot(np.mean(x), np.mean(y), label=NO_SUBSET.get(arm, arm), **style)
    raw = [value for (arm, _), value in kl.items() if arm == BASE_ARM]
    if raw:
        axes.axvline(_mean(raw), color="#777777", linewidth=1, linestyle=":")
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set_xlabel("KL of the subset's domains to uniform (nats); dotted: raw")
    axes.set_ylabel(f"{judge.unit}, mean over domains,\ndifference to raw (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def gain_over_balance(pages: Mapping[str, Sequence[Row]], metric: Mapping[str, str]) -> bytes:
    """PNG: what balance buys, over experiments: gain over raw as a share of the oracle's, over KL as a share of raw's.

    A point is an arm of an experiment, its mean over the seeds; raw stands at (1, 0), true labels at about (0, 1). The
    whole pool and a hand-curated set, which are no subsets, are left out.

    Args:
        pages: title -> values of an experiment, with "kl", and the arms raw and oracle.
        metric: title -> its headline.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    arms = list(dict.fromkeys(row.arm for rows in pages.values() for row in rows))
    shown = [arm for arm in arms if arm not in (BASE_ARM, ORACLE, *NO_SUBSET)]
    colours = {arm: style_of(place)["color"] for place, arm in enumerate(shown)}
    shapes = {title: style_of(place)["marker"] for place, title in enumerate(pages)}
    for title, rows in pages.items():
        kl = {arm: _mean([row.value for row in rows if (row.arm, row.metric) == (arm, "kl")]) for arm in arms_of(rows)}
        gain = {arm: _mean(list(paired(rows, arm, metric[title]).values())) for arm in kl}
        for arm in (arm for arm in shown if arm in kl):
            x, y = kl[arm] / kl[BASE_ARM], gain[arm] / gain[ORACLE]
            axes.plot(x, y, marker=shapes[title], color=colours[arm], markersize=8, alpha=0.85)
    for arm, colour in colours.items():
        axes.plot([], [], linestyle="none", marker="o", color=colour, label=arm)
    for title, shape in shapes.items():
        axes.plot([], [], linestyle="none", marker=shape, color="#777777", label=title)
    axes.plot([1, 0], [0, 1], color="#777777", linewidth=1, linestyle=":", label="raw to true labels")
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set_xlabel("KL of the subset's domains to uniform, as a share of raw's (1: as unequal as raw)")
    axes.set_ylabel("gain over raw, as a share\nof what true labels gain")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def arms_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def power_sentence(rows: Sequence[Row], judge: Judge, oracle: str = ORACLE) -> str:
    """Whether the experiment can tell at all."""
    gains = np.asarray(list(paired(rows, oracle, judge.headline).values()))
    strength = power(gains)
    if np.isnan(strength):
        return "**Power** is not known: it takes the arm oracle, and three seeds.\n"
    word = "so it can tell" if gains.mean() < 0 and strength >= ENOUGH else "so **no method can be judged here**"
    return (
        f"**Power**: true domains change the mean over domains by {gains.mean():+.3f}, {strength:.1f} standard "
        f"deviations of the paired difference between seeds; {ENOUGH:.0f} are asked for, {word}.\n"
    )


def balance_sentence(rows: Sequence[Row], judge: Judge) -> str:
    """What a nat of balance buys, over all arms that draw from the pool without its true domains, and all seeds."""
    kl = {(row.arm, row.seed): row.value for row in rows if row.metric == "kl"}
    arms = [arm for arm in arms_of(rows) if arm not in (BASE_ARM, ORACLE, *NO_SUBSET)]
    found = [
        (kl[arm, seed] - kl[BASE_ARM, seed], effect)
        for arm in arms
        for seed, effect in paired(rows, arm, judge.headline).items()
    ]
    if len(found) < 10:
        return ""
    gap, effect = np.asarray(found).T
    slope, start = np.polyfit(gap, effect, 1)
    return (
        f"**Balance and quality**: over {', '.join(arms)} and all seeds, the difference to raw falls by {slope:.2f} "
        f"{judge.unit} for each nat of KL that a subset has less than raw's (correlation "
        f"{np.corrcoef(gap, effect)[0, 1]:.2f}; {start:+.2f} where both have the same).\n"
    )


def untrained_sentence(metrics: Found, judge: Judge) -> str:
    """What the model predicts before it has seen anything, and which arms are no better."""
    found = {key: item["untrained"] for key, item in metrics.items() if "untrained" in item}
    if not found:
        return ""
    before = _mean([item["before"] for item in found.values()])
    failed = sorted({arm for (arm, _), item in found.items() if item["after"] >= item["before"]})
    if failed:
        return f"**The budget is too small**: no better than the untrained model ({before:.2f}): {', '.join(failed)}.\n"
    best = _mean([item["after"] for item in found.values()])
    return f"Untrained, the model needs {before:.2f} {judge.unit}; trained, {best:.2f} on the same {judge.what}.\n"


def claims_table(rows: Sequence[Row], arms: Sequence[str], judge: Judge) -> str:
    """Effect of each arm, its power and what it says."""
    lines = []
    for arm in arms:
        effects = np.asarray(list(paired(rows, arm, judge.headline).values()))
        if arm == BASE_ARM or not len(effects):
            continue
        found = judge_claim(rows, arm, judge.headline, "lower")
        kl = [row.value for row in rows if row.arm == arm and row.metric == "kl"]
        item = found.effect
        cells = [arm, f"{np.mean(kl):.3f}", f"{item.difference:+.3f} [{item.low:+.3f}, {item.high:+.3f}]"]
        lines.append([*cells, str(item.pairs), f"{power(effects):.1f}", item.verdict, found.verdict])
    header = ["arm", "KL", "difference to raw", "seeds", "its own power", "against raw", "better than raw?"]
    return markdown_table(header, lines)


def rarity_section(metrics: Found, arms: Sequence[str], judge: Judge, encoder: str) -> str:
    """Differences to raw in tenths of the test rows, ordered by their distance to the pool."""
    with_parts = {key: item["by_rarity"] for key, item in metrics.items() if "by_rarity" in item}
    if not with_parts:
        return ""
    lines = []
    for arm in arms:
        seeds = [seed for name, seed in with_parts if name == arm and (BASE_ARM, seed) in with_parts]
        if not seeds:
            continue
        mine, raw = (np.mean([with_parts[name, seed] for seed in seeds], axis=0) for name in (arm, BASE_ARM))
        shown = raw if arm == BASE_ARM else mine - raw
        lines.append([arm, *(f"{value:.2f}" if arm == BASE_ARM else f"{value:+.2f}" for value in shown)])
    header = ["arm", *(str(i + 1) for i in range(len(lines[0]) - 1))] if lines else []
    return (
        "## By rarity, without labels\n\n"
        f"Test {judge.rows} in tenths by their distance to the pool under {encoder}, which the curation "
        f"does not see: 1 is nearest, 10 farthest. Raw in {judge.unit}, the others as differences to it; means over "
        "seeds.\n\n" + markdown_table(header, lines)
    )


def verdict(cells: dict[tuple[str, str], Summary], judge: Judge, oracle: str = ORACLE) -> str:
    """What the headline says about the method, and how much of the way to the oracle it goes."""
    text = headline(cells, judge.headline, f"{judge.unit} averaged over domains")
    if (METHOD_ARM, judge.headline) not in cells or (BASE_ARM, judge.headline) not in cells:
        return f"{text}\n"
    text += " "
    mine, raw = cells[METHOD_ARM, judge.headline], cells[BASE_ARM, judge.headline]
    if (oracle, judge.headline) in cells:
        gain, most = raw.mean - mine.mean, raw.mean - cells[oracle, judge.headline].mean
        share = f", so the method goes {100 * gain / most:.0f} % of the way without labels" if most > 0 else ""
        text += f"True domain labels (oracle) gain {most:.3f}{share}. "
    best = min((item for (_, metric), item in cells.items() if metric == judge.headline), key=lambda item: item.mean)
    text += f"Lowest mean of all arms: {best.arm}, {best.mean:.3f}. "
    weighted = cells[METHOD_ARM, f"{judge.prefix}_raw_weighted"]
    text += f"Weighted as the pool, where raw should win: {difference(weighted)}.\n"
    return text


def domain_table(
    metrics: Found,
    pools: Mapping[int, Mapping[str, Any]],
    balance: Found,
    arms: Sequence[str],
    judge: Judge,
    by_rank: bool,
) -> str:
    """A line for each domain, or for each rank where seeds give a domain different ones.

    Args:
        metrics: of each arm and seed, with "domains": name -> {`Judge.key`: value}.
        pools: of each seed, with "rows_of" and, where domains are ranked by something else, "bytes_of".
        balance: of each arm and seed, with "subset_counts" of the domains in the order of their numbers.
    """
    shown = [arm for arm in (BASE_ARM, METHOD_ARM, ORACLE) if arm in arms]
    # a domain may be untested in one seed and not in another
    names = sorted(set().union(*(found["domains"] for found in metrics.values())))
    size = {
        seed: {name: pool.get("bytes_of", pool["rows_of"]).get(name, 0.0) for name in names}
        for seed, pool in pools.items()
    }
    total = {name: _mean([mine[name] for mine in size.values()]) for name in names}
    order = {seed: sorted(names, key=lambda name: -(size[seed] if by_rank else total)[name]) for seed in pools}
    lines = []
    for place in range(len(names)):
        of_seed = {seed: order[seed][place] for seed in pools}
        line = [str(place + 1) if by_rank else next(iter(of_seed.values()))]
        line.append(f"{_mean([pools[seed]['rows_of'].get(name, 0) for seed, name in of_seed.items()]):,.0f}")
        for arm in shown:
            mine = [key for key in metrics if key[0] == arm]
            rows = _mean([balance[key]["subset_counts"][names.index(of_seed[key[1]])] for key in mine])
            tested = [(metrics[key]["domains"], of_seed[key[1]]) for key in mine]
            bits = _mean([domains[name][judge.key] for domains, name in tested if name in domains])
            line += [f"{rows:.0f}", f"{bits:.3f}"]
        lines.append(line)
    header = ["rank in the pool" if by_rank else "domain", "pool"]
    for arm in shown:
        header += [f"{arm}, rows", judge.unit]
    return markdown_table(header, lines)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
