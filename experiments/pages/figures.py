"""Figures of the experiment report, as SVG; readable in greyscale: arms differ by dash and marker, not colour alone."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments.engine.compare import Summary

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MADE_BY = "made by curated-ssl dashboard"
COLOURS = ("#8a8a8a", "#1b4965", "#c8553d", "#5b8c5a", "#b08ea2", "#2f2f2f", "#d9a441", "#4a7fa5", "#7a4e2d", "#999933")
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (8, 2)),
    (0, (3, 3)),
    (0, (6, 1, 1, 1)),
)
MARKERS = ("s", "o", "^", "v", "D", "P", "X", "<", ">", "*", "p", "d", "8")


def style_of(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the arm at this place of the legend."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def to_svg(figure: Any) -> str:
    """The <svg> element alone; the same figure gives the same bytes."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "experiments"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def forest_figure(summaries: Sequence[Summary], title: str, better: str) -> str:
    """Difference of each arm to the base with its interval; the base is the line at zero."""
    shown = [item for item in summaries if np.isfinite(item.difference)]
    figure, axes = plt.subplots(figsize=(7.2, 0.42 * max(2, len(shown)) + 1.1))
    for place, item in enumerate(shown):
        filled = item.verdict in ("better", "worse")
        axes.plot([item.low, item.high], [place, place], color="#1b4965", linewidth=2)
        axes.plot(item.difference, place, marker="o", color="#1b4965", markerfacecolor="#1b4965" if filled else "white")
        axes.annotate(item.verdict, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yticks(range(len(shown)), [item.arm for item in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(f"{title}: difference to raw ({better} is better)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return to_svg(figure)


def curves_figure(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], metric: str) -> str:
    """Mean over seeds of a logged metric, and the range of the seeds as a band.

    Args:
        curves: arm -> for each seed its points, with "samples" and the metric.
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for place, (arm, seeds) in enumerate(curves.items()):
        lines = [{point["samples"]: point[metric] for point in points if metric in point} for points in seeds]
        lines = [line for line in lines if line]
        if not lines:
            continue
        x = np.array(sorted(set.intersection(*(set(line) for line in lines))))
        if not len(x):
            continue
        y = np.array([[line[step] for step in x] for line in lines])
        axes.plot(x, y.mean(axis=0), label=arm, markevery=max(1, len(x) // 8), markersize=4, **style_of(place))
        if len(y) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style_of(place)["color"], alpha=0.12, linewidth=0)
    axes.set(xlabel="samples seen", ylabel=metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return to_svg(figure)


def dashboard_figure(
    title: str,
    sections: Mapping[str, Sequence[str]],
    values: Mapping[str, Mapping[str, Sequence[float]]],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
) -> bytes:
    """A PNG of the dashboard: a panel for each metric, bars for the mean of every arm, lines for what has steps.

    Args:
        sections: name of a section -> its metrics.
        values: metric -> arm -> one value for each seed, drawn as dots upon the bar.
        curves: as of `curves_figure`; metrics that are in no ``values`` are drawn from them.
    """
    panels = [(section, name) for section, names in sections.items() for name in names]
    arms = list(dict.fromkeys([*curves, *(arm for found in values.values() for arm in found)]))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    height = max(2.1, 0.32 * len(arms) + 1.2)
    figure, grid = plt.subplots(lines, columns, figsize=(4.2 * columns, height * lines), squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(panels))
        axes.spines[["top", "right"]].set_visible(False)
    for axes, (section, name) in zip(grid.flat, panels, strict=False):
        axes.set_title(f"{section}\n{name}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        if name not in values:
            for place, arm in enumerate(arms):
                for points in curves.get(arm, ()):
                    line = [(point["samples"], point[name]) for point in points if name in point]
                    if line:
                        look = {**style_of(place), "marker": "", "linewidth": 1}
                        axes.plot(*zip(*line, strict=True), **look, label=arm if points is curves[arm][0] else None)
            axes.set_xlabel("samples", fontsize=8)
            axes.legend(frameon=False, fontsize=7)
            continue
        for place, arm in enumerate(arms):
            own = list(values[name].get(arm, ()))
            if own:
                axes.barh(place, np.mean(own), color=style_of(place)["color"], alpha=0.75, height=0.7)
                axes.plot(own, [place] * len(own), "|", color="black", markersize=8)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": MADE_BY})
    plt.close(figure)
    return stream.getvalue()


def balance_figure(pool: Sequence[int], subsets: Mapping[str, Sequence[int]]) -> str:
    """Rows of each concept, most frequent in the pool first: the pool as a line, each subset as dots; log scale."""
    names = list(subsets)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.3 * lines), squeeze=False, sharex=True, sharey=True
    )
    before = np.asarray(pool)
    order = np.argsort(-before, kind="stable")
    x = np.arange(1, len(order) + 1)
    for place, panel in enumerate(panels.flat):
        if place >= len(names):
            panel.set_visible(False)
            continue
        after = np.asarray(subsets[names[place]])[order]
        panel.plot(x, np.maximum(before[order], 0.5), color="#9a9a9a", linewidth=2)
        panel.plot(x, np.maximum(after, 0.5), ".", color="#1b4965", markersize=3)
        panel.set_yscale("log")
        panel.set_title(names[place], fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("concepts, most frequent in the pool first", fontsize=9)
    figure.supylabel("rows (none: at the foot)", fontsize=9)
    figure.tight_layout()
    return to_svg(figure)
