"""The page of the benchmark: a summary, a table of cells by methods, what else was measured, and the principle."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.balance.measure import EVEN, SUBSET, Entry, Table
from benchmarks.balance.methods import METHODS
from benchmarks.balance.pools import CELLS, WIDEST
from experiments.pages.markdown import origin
from foundation.tables import markdown_table

DEVELOPMENT_SEEDS = (0, 1, 2, 3, 500, 501, 502)

INTRODUCTION = f"""# Balance without training

How balanced is a subset, by labels that the method never saw? Every cell is a pool of rows with known concepts; every
method draws one row in {SUBSET}; the KL divergence of the subset's concepts to uniform is measured. **Share of the
way** is 0 for random rows and 100 % for a subset balanced over the true labels; below 0 a method is worse than random.
Pools whose random rows have a KL up to {EVEN} are even already: there the KL itself is compared, and a method should
add nothing. Rows of over 512 dimensions are turned onto their {WIDEST} leading axes first, for every method alike.
"""

PRINCIPLE = """## When does it flatten what?

**k-means levels** put centroids with density p^(d/(d+2)) where rows have density p in d dimensions. In the plane that
is p^(1/2), and a few levels flatten; at intrinsic dimension 20 it is p^(0.9), and a level leaves nearly all as it was.
So a deep tree helps on the toys in the plane, and hardly on embeddings.

**Resampling** goes further: it flattens *volume*, the share of space that rows take. Then wide concepts win, compact
ones share a cell with their neighbours, and outliers get cells of their own. That every row's nearest neighbour is of
its own concept is not enough: concepts must also have similar scatter. Where they have not, a varied head beside
compact tails, or rows of unequal length, resampling can end far below random rows. It works where concepts are alike in
scatter, as the rings are.

**Communities of a neighbour graph** know ranks, not distances: a wide concept and a compact one of as many rows have
graphs of the same shape, so scatter does not matter. What they do not forgive is near-duplicates: a burst of copies
knows only itself and becomes an island with the weight of a concept. A cover of the pool, which lets near-duplicates
stand as one point, is the answer to that within the method; where copies can be told from compact concepts, removing
them first is another. By embedding alone they cannot always be: a compact concept of few rows looks like one row with
its copies, as in the clutter toy. So of more than 4 rows that are alike only equal ones are removed.

**Resolution** decides what is a group: a coarse one finds domains, a fine one the concepts within, and somebody means
either. A varied domain has many communities, a plain one few, so an even share of communities is more for the varied:
where that one is the head, as when clip art leads six visual domains, this is what is left of the old failure. No
single graph wins everywhere: of rows as they are, of directions about the origin or about the mean of the pool, each
fails somewhere. The mean of several shares is never worse than they are on average, since the KL divergence is convex,
and mostly better: they fail in different places. The default is such a mean of four graphs and, with a sixth of the
weight, of k-means levels with resampling and of complete linkage: by themselves they end below random rows in several
cells, but in others than the graphs do. So that they cannot ruin a pool, their shares are brought nearer to even ones
where they differ wildly (KL above 0.6). In few dimensions cells are right, as above: two k-means levels, the second
resampled, have half of the weight where places have an intrinsic dimension up to 7, falling to none at 11, and none
where all graphs fall apart into the same groups (normalised mutual information above 0.95; the whole below 0.9).
Such a mean is too flat, for what one belief sees the others dilute: its shares
are raised to the power 1.4 c / (c + 0.06), where c is the variance of the logarithm of shares that beliefs have in
common (mean covariance of two of them, its sign left out). An even pool has no shares to find, yet every belief finds
some, its own noise; what several say alike is evidence, and without evidence all rows deserve the same.

**Isolation** finds what communities cannot. Classes of one domain that overlap in the embedding make no communities at
all, but they are alike in scatter, and then density is frequency: rows that lie apart from their like are of the rare
classes. SemDeDup and D4 live on that, and lose most where scatter differs: there they take the widest concept. How
unequal density is says which case it is, without labels: where the standard deviation of its logarithm, each community
weighing what it deserves, is below 1.3, the default mixes 90 % of shares in inverse proportion to density into its
mean; above 1.7, 5 %; and none of that where communities share less than 6 % of their edges (the whole from 12 %), for
then they say it all, and the distance from one to the next would be taken for rarity. Density is that of the places of
a wide cover (1.4 times the distance to the nearest neighbour): crowds then count once, and where nearly all rows are
within that of each other all shares come out the same, so that the belief falls silent where it knows nothing.

## Where it fails

Seven pools on which the default is known to do little or harm (`--cells` few_characters, all_classes, few_clipart,
overlap_2, overlap_3, twice, plane) are run by their names alone and never count in the mean above; [the
log](../log.md) has their figures. Where a concept has fewer rows than a place has neighbours (242 characters of 4 to
20 rows), and on all classes of six domains at once, the default is worse than random rows, as it can be on parts of a
plane. Even concepts that overlap in two or three dimensions, and small even pools of pictures, come out more uneven
than they were, by a KL of 0.05 to 0.07. The checks of a tree are silent on most of these.
"""


def percent(value: float) -> str:
    """A share as a whole number; no minus before zero."""
    return f"{round(100 * value) + 0:d}"


def _cell_line(name: str, table: Table, methods: Sequence[str], even: bool) -> list[str]:
    entries = table.entries[name]
    line = [CELLS[name].title, *(f"{np.mean(entries[method].kl):.2f}" for method in ("random", "labels"))]
    shown = [method for method in methods if method in entries]
    best = (min if even else max)((entries[method].mean for method in shown), default=0.0)
    for method in methods:
        if method not in entries:
            line.append("")
            continue
        text = f"{entries[method].mean:+.3f}" if even else percent(entries[method].mean)
        line.append(f"**{text}**" if entries[method].mean == best else text)
    return line


def compared(table: Table) -> list[str]:
    """Methods that are there, besides the two references."""
    there = {method for entries in table.entries.values() for method in entries}
    return [method for method in METHODS if method in there - {"random", "labels"}]


def summary_rows(table: Table) -> list[list[str]]:
    """For each method: mean and worst share of the way, worst seed, cells below random, spread, worst even pool."""
    rows = []
    for method in compared(table):
        ways = table.ways(method)
        even = {cell: table.entries[cell][method].mean for cell in table.even if method in table.entries[cell]}
        row = [METHODS[method].title, METHODS[method].what]
        if ways:
            worst = min(ways, key=lambda cell: ways[cell].mean)
            below = sum(entry.mean < 0 for entry in ways.values())
            row += [
                percent(float(np.mean([entry.mean for entry in ways.values()]))),
                f"{percent(ways[worst].mean)} ({CELLS[worst].title})",
                percent(min(min(entry.way) for entry in ways.values())),
                f"{below} of {len(ways)}",
                percent(float(np.mean([entry.spread for entry in ways.values()]))),
            ]
        else:
            row += ["-"] * 5
        row.append(f"{max(even.values()):+.3f}" if even else "-")
        rows.append(row)
    return rows


def headline(table: Table, method: str) -> str:
    """One plain sentence of a method's mean, worst cell, and cells below random rows; empty where it was not tried."""
    ways = table.ways(method)
    if not ways:
        return ""
    worst = min(ways, key=lambda cell: ways[cell].mean)
    below = [CELLS[cell].title for cell in ways if ways[cell].mean < 0]
    mean = percent(float(np.mean([entry.mean for entry in ways.values()])))
    text = (
        f"{METHODS[method].title} goes {mean} % of the way on average and {percent(ways[worst].mean)} % in the worst "
    )
    text += f"cell ({CELLS[worst].title}); "
    return text + (f"it is worse than random rows in {len(below)} of {len(ways)} cells." if below else "never below 0.")


def _others(table: Table) -> str:
    """Rare concepts, junk and near-duplicates."""
    methods = ["random", "labels", *compared(table)]
    dirty = [cell for cell in table.entries if CELLS[cell].bursts]
    rows = []
    for method in methods:
        mine = {cell: entries[method] for cell, entries in table.entries.items() if method in entries}
        line = [METHODS[method].title]
        for measure in ("rare_concepts", "rare_rows"):
            line.append(percent(float(np.mean([entry.means[measure] for entry in mine.values()]))))
        for cell in dirty:
            entry: Entry | None = mine.get(cell)
            line.append(
                "" if entry is None else f"{percent(entry.means['junk'])}, {percent(entry.means['duplicates'])}"
            )
        rows.append(line)
    header = ["", "rarest tenth: concepts", "their rows", *(f"{CELLS[cell].title}" for cell in dirty)]
    return (
        "## Rare concepts, junk and near-duplicates\n\n"
        "Of the tenth of concepts that is rarest in the pool: share that the subset holds, and of their rows, means "
        "over all cells (the paper's, prepared: over those with bursts). Then, for the pools with bursts: junk and "
        "near-duplicates, as shares of the subset. All in percent.\n\n" + markdown_table(header, rows)
    )


def page(
    table: Table,
    records: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    command: str,
    missing: Sequence[str],
    picture: str,
) -> str:
    """The whole page as Markdown.

    Args:
        missing: what was left out for want of data, a line each.
        picture: file in images/.
    """
    made = [record["provenance"] for record in records]
    old = [seed for seed in seeds if seed in DEVELOPMENT_SEEDS]
    note = f"The default was chosen on seeds {', '.join(map(str, DEVELOPMENT_SEEDS))}. "
    if old:
        note += f"**Seeds {', '.join(map(str, old))} of this page are among them: choices were made on these numbers.**"
    else:
        note += "Then it was frozen; the seeds of this page were not seen before, and stand here whatever came out."
    methods = compared(table)
    titles = [METHODS[method].title for method in methods]
    blocks = [INTRODUCTION, origin(command, made) + f"- seeds: {', '.join(map(str, seeds))}\n", note]
    if missing:
        blocks.append("Left out, their data are not here: " + "; ".join(missing) + ".")
    header = [
        "method",
        "",
        "mean share of the way, %",
        "worst cell, %",
        "worst seed of a cell, %",
        "cells below random rows",
    ]
    header += ["spread over seeds, mean", "worst even pool, KL added"]
    told = [f"- {line}" for line in (headline(table, method) for method in methods[:2]) if line]
    blocks += [
        "## Summary",
        "\n".join(told),
        markdown_table(header, summary_rows(table)),
        f"![share of the way](images/{picture})",
    ]
    if table.uneven:
        lines = [_cell_line(cell, table, methods, False) for cell in table.uneven]
        blocks += ["## Share of the way from random rows to true labels, %", "Means over the seeds; best in bold."]
        blocks.append(markdown_table(["cell", "KL random", "KL labels", *titles], lines))
    if table.even:
        lines = [_cell_line(cell, table, methods, True) for cell in table.even]
        blocks += ["## Even pools: KL added to that of random rows", "The least is best."]
        blocks.append(markdown_table(["cell", "KL random", "KL labels", *titles], lines))
    blocks += [_others(table), PRINCIPLE]
    return "\n\n".join(block.strip() for block in blocks) + "\n"
