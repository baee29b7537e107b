"""Several subsets of one pool side by side in one page, of one tree or of several: which is more even, and where?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.pages.examples import Examples
from curation.pages.figures import concept_counts_figure
from curation.pages.map import MOST_DOTS, PoolMap, draw_maps
from curation.pages.report import PAGE, Drawn, level_rows, render, some_rows
from curation.pages.verdict import MEASURES, TONES, Comparison, Verdict, decimals_apart
from curation.pools.labels import read_labels
from curation.soundness import Finding
from curation.trees.subset import Subset
from curation.trees.tree import ClusterTree
from foundation.errors import CurationError
from foundation.files import require_own, write_atomically

MOST_LABELS = 1_500  # lines of the table of shares
MOST_SUBSETS = 12
WITH_ROWS = 8  # checks of a subset at least, where its rows were looked at, too; fewer cannot rank


@dataclass
class Candidate:
    """One of the subsets that are compared, under the name that the page gives it; with the folder of its tree."""

    name: str
    tree: ClusterTree
    subset: Subset
    tree_folder: Path | None = None


@dataclass(frozen=True)
class Compared:
    """What the page says.

    Attributes:
        verdict: at its top.
        subsets: of each its ``name``, ``rows``, ``distinct`` rows, counts of ``findings`` by severity (None: not
            checked), and by label ``measures`` (None: no labels), each with its ``value``, the ``random`` mean and the
            ``low`` and ``high`` end of 95 % of random subsets.
    """

    verdict: Verdict
    subsets: list[dict[str, Any]]


def open_candidates(folders: Sequence[str | Path], titles: Sequence[str] = ()) -> list[Candidate]:
    """Trees and subsets from their folders, in any order: each subset finds the tree it was drawn from.

    A subset that names no tree (not drawn from one) belongs to the tree given before it.

    Args:
        titles: of the subsets in their order; none: their folders.

    Raises:
        CurationError: a folder holds neither, a subset's tree is not among them, there are fewer than two subsets, or
            another number of titles or an empty one.
    """
    trees: dict[str, tuple[ClusterTree, Path]] = {}
    subsets: list[tuple[str, Subset, str | None]] = []
    latest: str | None = None
    for folder in map(Path, folders):
        if (folder / "tree.json").exists():
            tree = ClusterTree.load(folder)
            latest = tree.checksum
            trees.setdefault(latest, (tree, folder))
        elif (folder / "subset.json").exists():
            subset = Subset.load(folder)
            subsets.append((str(folder), subset, subset.metadata.get("tree_checksum", latest)))
        else:
            raise CurationError(f"{folder} holds neither a tree nor a subset (no tree.json, no subset.json)")
    if not 2 <= len(subsets) <= MOST_SUBSETS:
        raise CurationError(f"give 2 to {MOST_SUBSETS} subsets and their trees to compare, not {len(subsets)} subsets")
    if not all(titles):
        raise CurationError("a name of a subset is empty; give one for each, in their order, as default,paper")
    if titles and len(titles) != len(subsets):
        raise CurationError(f"{len(titles)} names for {len(subsets)} subsets; give one for each, in their order")
    for name, _subset, checksum in subsets:
        if checksum not in trees:
            raise CurationError(f"{name} was drawn from a tree that is not given; add the folder of its tree")
    shown = titles or [name for name, _subset, _checksum in subsets]
    found = [(subset, *trees[str(checksum)]) for _name, subset, checksum in subsets]
    return [Candidate(name, tree, subset, folder) for name, (subset, tree, folder) in zip(shown, found, strict=True)]


def write_comparison(
    candidates: Sequence[Candidate],
    path: str | Path,
    pool: Any = None,
    labels: Any = None,
    *,
    title: str = "Subsets side by side",
    commands: list[str] | None = None,
    seed: int = 0,
    findings: Sequence[list[Finding]] | None = None,
    overwrite: bool = False,
) -> Compared:
    """Write the page: measures, overlap, shares of each label, maps on one projection, what differs in the settings.

    Args:
        candidates: two to `MOST_SUBSETS`; their trees are of one pool.
        path: the HTML file.
        pool, labels: as for `curation.pages.report.write_report`.
        findings: for each candidate those of its soundness check; without labels they are the verdict.
        overwrite: replace a file that is no page of ours, too.

    Raises:
        CurationError: a name twice, trees of different pools, and what `write_report` refuses.
    """
    require_own(Path(path), PAGE, overwrite)
    pools = {item.tree.settings["pool_fingerprint"] for item in candidates if "pool_fingerprint" in item.tree.settings}
    if len({item.name for item in candidates}) < len(candidates):
        raise CurationError("two subsets have one name; give each once, under a name of its own")
    if len(pools) > 1:
        raise CurationError("the trees are of different pools; compare subsets of one pool")
    concepts = None if labels is None else read_labels(labels, pool)
    drawn = []
    for item in candidates:
        try:
            drawn.append(Drawn(item.tree, item.subset, pool, concepts, seed, all_names=True))
        except CurationError as error:
            raise CurationError(f"{item.name}: {error}") from error
    names = [item.name for item in candidates]
    by_label = [found for item in drawn if (found := item.by_label()) is not None]
    examples = Examples(pool)
    maps = {id(item.tree): item.tree for item in drawn}
    dots = {key: PoolMap(tree, MOST_DOTS // len(maps)) for key, tree in maps.items()}
    verdict = _verdict(drawn, names, by_label, findings)
    html = render(
        "compare.html.j2",
        title=title,
        names=names,
        verdict=verdict,
        facts=_facts(drawn),
        checks=_checks(findings, concepts is not None),
        measures=_measures(by_label),
        overlap=_overlap(drawn),
        agreement=_agreement(drawn, names),
        figure=_figure(names, by_label),
        shares=_shares(by_label),
        n_labels=by_label[0].k if by_label else 0,
        beside=max(item.beside for item in drawn),
        maps=draw_maps(
            [dots[id(item.tree)] for item in drawn],
            [item.rows for item in drawn],
            examples,
            [item.row_ids for item in drawn],
            [item.labels for item in drawn],
            seed,
        ),
        looks=[some_rows(item, item.rows, examples, seed) if examples.kind else {} for item in drawn],
        differences=_differences(drawn),
        commands=commands or [],
        unreadable=len(examples.unreadable),
    )
    write_atomically(Path(path), lambda stream: stream.write(html))
    return Compared(verdict, _numbers(drawn, names, by_label, findings))


def _numbers(
    drawn: list[Drawn], names: list[str], by_label: list[Comparison], findings: Sequence[list[Finding]] | None
) -> list[dict[str, Any]]:
    """`Compared.subsets`."""
    found = []
    for number, (item, name) in enumerate(zip(drawn, names, strict=True)):
        measures = None
        if by_label and by_label[number].measurable:
            values = [(key, by_label[number].ours[key], *by_label[number].random(key)) for key, *_ in MEASURES]
            measures = {key: dict(zip(("value", "random", "low", "high"), rest, strict=True)) for key, *rest in values}
        checks = None if findings is None else Counter(str(finding.severity) for finding in findings[number])
        found.append(
            {
                "name": name,
                "rows": len(item.rows),
                "distinct": len(item.subset.ids),
                "findings": None if checks is None else {kind: checks[kind] for kind in ("ok", "warn", "bad")},
                "measures": measures,
            }
        )
    return found


def _verdict(
    drawn: list[Drawn], names: list[str], by_label: list[Comparison], findings: Sequence[list[Finding]] | None
) -> Verdict:
    if not by_label and findings:
        # of a baseline there is less to check, so that counts do not compare
        of_tree = [number for number, item in enumerate(drawn) if item.of_tree]
        return _verdict_by_findings([names[i] for i in of_tree], [findings[i] for i in of_tree])
    if not by_label:
        return Verdict("none", "Without labels this page cannot tell which subset is better; it shows how they differ.")
    if not all(found.measurable for found in by_label):
        return Verdict("none", "The labels cannot judge these subsets: one label only, or too few rows that have one.")
    values = [found.ours["kl"] for found in by_label]
    best = int(np.argmin(values))
    mean, low, high = by_label[best].random("kl")
    decimals = decimals_apart([*values, mean], 2, 4)
    others = ", ".join(f"{name}: {value:.{decimals}f}" for name, value in zip(names, values, strict=True))
    against = by_label[best].against_random("kl", "lower")
    tone = {"better": "ok", "worse": "bad"}.get(against, "warn")
    what = {"better": "better than", "worse": "worse than"}.get(against, "no better than")
    sentence = (
        f"{names[best]} is the most even over your labels and {what} random rows "
        f"(KL of {others}; of random rows: {mean:.{decimals}f})."
    )
    if sorted(values)[1] - values[best] < high - low:
        sentence += " The next is closer to it than random draws are to each other: compare several seeds."
    return Verdict(tone, sentence)


def _severities(found: list[Finding]) -> tuple[int, int]:
    """Findings that are bad, and warnings."""
    kinds = [finding.severity for finding in found]
    return kinds.count("bad"), kinds.count("warn")


def _verdict_by_findings(names: list[str], findings: Sequence[list[Finding]]) -> Verdict:
    if len(names) < 2:
        return Verdict("none", "Without labels this page cannot tell whether a subset is better than a baseline.")
    counts = [_severities(found) for found in findings]
    told = "; ".join(
        f"{name}: {bad} bad, {warn} to look at, of {len(found)}"
        for name, (bad, warn), found in zip(names, counts, findings, strict=True)
    )
    if min(map(len, findings)) < WITH_ROWS:
        sentence = "The checks of the clusters alone do not rank subsets: give the embeddings (--embeddings), or labels"
        return Verdict("none", f"{sentence} ({told}).")
    first = [name for name, count in zip(names, counts, strict=True) if count == min(counts)]
    if len(first) == len(names):
        sentence = "Without labels, and by the checks of soundness alone, none of these subsets is better than another"
    else:
        sentence = f"Without labels: the checks of soundness find least to say against {' and '.join(first)}"
    tone = "bad" if min(counts)[0] else "warn" if min(counts)[1] else "ok"
    return Verdict(tone, f"{sentence} ({told}).")


def _checks(findings: Sequence[list[Finding]] | None, labelled: bool) -> list[dict[str, Any]]:
    """For each severity one line, and in it the sentences of every subset, but no estimate of what labels say."""
    if not findings:
        return []
    findings = [[one for one in found if not (labelled and one.estimates_evenness)] for found in findings]
    lines = [
        {
            "title": TONES[severity],
            "tone": severity,
            "cells": [
                [f"{finding.sentence} {finding.remedy}".strip() for finding in found if finding.severity == severity]
                for found in findings
            ],
        }
        for severity in ("bad", "warn", "ok")
    ]
    return [line for line in lines if any(line["cells"])]


def _facts(drawn: list[Drawn]) -> list[dict[str, Any]]:
    """Rows of a table with one cell for each subset: sizes, and the shape of every level of its tree."""
    levels = [level_rows(item.tree) if item.of_tree else [] for item in drawn]
    lines: list[dict[str, Any]] = [
        {"title": "rows", "cells": [f"{len(item.rows):,}" for item in drawn]},
        {"title": "distinct rows", "cells": [f"{len(item.subset.ids):,}" for item in drawn]},
        {"title": "drawn from", "cells": [f"{item.tree.n_rows:,}" for item in drawn]},
    ]
    for number in range(max(map(len, levels))):
        cells = []
        for found in levels:
            row = found[number] if number < len(found) else None
            cells.append(
                f"{row['k']:,}, largest {row['largest']:.1%} of rows, {row['singletons']:,} of one row" if row else "-"
            )
        lines.append({"title": f"clusters of level {number + 1}", "cells": cells})
    return lines


def _measures(by_label: list[Comparison]) -> list[dict[str, Any]]:
    if not by_label or not all(found.measurable for found in by_label):
        return []
    lines = []
    for key, title, better, least, percent in MEASURES:
        scale, unit = (100, "%") if percent else (1, "")
        values = [scale * found.ours[key] for found in by_label]
        decimals = decimals_apart(values, least, 4)
        cells = []
        for found, value in zip(by_label, values, strict=True):
            _mean, low, high = (scale * number for number in found.random(key))
            cells.append(
                {
                    "value": f"{value:,.{decimals}f}{unit}",
                    "random": f"{low:,.{decimals}f} to {high:,.{decimals}f}{unit}",
                    "verdict": found.against_random(key, better),
                }
            )
        lines.append({"title": title, "better": better, "cells": cells})
    return lines


def _overlap(drawn: list[Drawn]) -> list[list[str]]:
    """For each pair of subsets, the distinct rows they share and the share that two draws by chance would."""
    table = []
    for one in drawn:
        line = []
        for other in drawn:
            shared = len(np.intersect1d(one.subset.ids, other.subset.ids, assume_unique=True))
            mine = max(1, len(one.subset.ids))
            chance = len(other.subset.ids) / other.tree.n_rows
            by_chance = "" if one is other else f" (by chance {chance:.1%})"
            line.append(f"{shared:,}, {shared / mine:.1%}{by_chance}")
        table.append(line)
    return table


def _agreement(drawn: list[Drawn], names: list[str]) -> list[str]:
    """Adjusted Rand index of the top levels of each pair of different trees, over the rows that both hold."""
    from sklearn.metrics import adjusted_rand_score

    lines = []
    for i, one in enumerate(drawn):
        for j in range(i + 1, len(drawn)):
            other = drawn[j]
            if other.tree is one.tree or not (one.of_tree and other.of_tree):
                continue
            both, mine, theirs = np.intersect1d(one.row_ids, other.row_ids, assume_unique=True, return_indices=True)
            if len(both):
                tops = [item.tree.row_clusters(item.tree.n_levels - 1) for item in (one, other)]
                score = adjusted_rand_score(tops[0][mine], tops[1][theirs])
                lines.append(f"{names[i]} and {names[j]}: {score:.2f} over {len(both):,} rows")
    return lines


def _figure(names: list[str], by_label: list[Comparison]) -> str | None:
    if not by_label:
        return None
    drawn = {name: found.subset for name, found in zip(names, by_label, strict=True)}
    return concept_counts_figure(by_label[0].pool, drawn, "labels", by_label[0].names)


def _shares(by_label: list[Comparison]) -> list[dict[str, Any]]:
    """Pool rows of each label and its share of every subset; of many labels those whose shares differ most."""
    if not by_label:
        return []
    pool = by_label[0].pool
    shares = np.stack([found.subset / max(1, found.subset.sum()) for found in by_label])
    order = np.argsort(-pool, kind="stable")
    if len(order) > MOST_LABELS:
        widest = np.argsort(-np.ptp(shares, axis=0), kind="stable")[:MOST_LABELS]
        order = order[np.isin(order, widest)]
    return [
        {
            "name": (by_label[0].names or [])[i],
            "pool": int(pool[i]),
            "pool_share": pool[i] / max(1, pool.sum()),
            "subsets": [(int(found.subset[i]), share[i]) for found, share in zip(by_label, shares, strict=True)],
        }
        for i in order
    ]


def _differences(drawn: list[Drawn]) -> list[dict[str, Any]]:
    """Settings of tree and subset that are not the same for all."""
    settings = [{**item.settings()[0], **{f"subset: {k}": v for k, v in item.settings()[1].items()}} for item in drawn]
    keys = dict.fromkeys(key for found in settings for key in found)
    lines = [{"title": key, "cells": [str(found.get(key, "-")) for found in settings]} for key in keys]
    return [line for line in lines if len(set(line["cells"])) > 1]
