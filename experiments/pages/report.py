"""The page to put in front of a colleague: one HTML file without a network, the verdict at the top."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from curation.pages.gallery import cluster_examples, contact_sheet, gallery_clusters
from curation.trees.tree import ClusterTree
from experiments.engine.arms import BASE_ARM, METHOD_ARM
from experiments.engine.compare import StageRecord, Summary
from experiments.engine.curves import read_curve
from experiments.engine.experiment import Domain, Metric
from experiments.engine.provenance import commits_of
from experiments.pages.figures import balance_figure, curves_figure, forest_figure
from foundation.files import load_json, write_atomically
from foundation.intervals import NO_DIFFERENCE, TOO_FEW

BALANCE = [
    ("effective", "effective concepts", "{:.1f}"),
    ("kl", "KL to uniform, nats", "{:.3f}"),
    ("gini", "Gini", "{:.3f}"),
    ("rare_covered", "rarest tenth covered", "{:.0%}"),
    ("no_concept", "rows without a concept", "{:.1%}"),
]
CLUSTERS_SHOWN, PICTURES_SHOWN = 9, 10


def number(value: float) -> str:
    """Four significant digits, no exponent between 0.001 and 10,000."""
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def digits_for(width: float) -> int:
    """Decimals that show an interval of this half width with two significant digits."""
    return int(np.clip(1 - np.floor(np.log10(width)), 0, 8)) if np.isfinite(width) and width > 1e-6 else 4


def with_interval(item: Summary) -> str:
    """'0.120 ± 0.011'."""
    if not np.isfinite(item.interval):
        return number(item.mean)
    digits = digits_for(item.interval)
    return f"{item.mean:.{digits}f} ± {item.interval:.{digits}f}"


def difference(item: Summary) -> str:
    """'-0.035 [-0.038, -0.032]'; empty for the base."""
    if not np.isfinite(item.difference):
        return ""
    digits = digits_for((item.high - item.low) / 2)
    return f"{item.difference:+.{digits}f} [{item.low:+.{digits}f}, {item.high:+.{digits}f}]"


def verdict(domain: Domain, summaries: Sequence[Summary], method: str = METHOD_ARM) -> tuple[str, str]:
    """What the headline metric says of the claim: one of better, worse, open; and a sentence that begins with it."""
    metric = domain.headline
    found = [item for item in summaries if item.arm == method and item.metric == metric.name]
    if not found or not found[0].pairs:
        return "open", f"No verdict: it takes the arms {BASE_ARM} and {method}, with the same seeds."
    item = found[0]
    figures = (
        f"{metric.title}, difference to {BASE_ARM} with its 95 % interval: {difference(item)}, {item.pairs} seeds "
        f"({metric.better} is better)."
    )
    kind = item.verdict if item.verdict in ("better", "worse") else "open"
    return kind, f"{item.verdict.capitalize()}. {figures}"


def _table(metrics: Sequence[Metric], summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    cells = {(item.arm, item.metric): item for item in summaries}
    lines = []
    for arm in dict.fromkeys(item.arm for item in summaries):
        values = []
        for metric in metrics:
            item = cells.get((arm, metric.name))
            if item is None:
                values.append({"mean": "-", "note": "", "verdict": ""})
                continue
            values.append({"mean": with_interval(item), "note": difference(item), "verdict": item.verdict})
        lines.append({"arm": arm, "cells": values})
    return lines


def _by_arm(records: Sequence[StageRecord], name: str) -> dict[str, list[StageRecord]]:
    found: dict[str, list[StageRecord]] = {}
    for record in records:
        if record.name == name:
            found.setdefault(record.arm, []).append(record)
    return found


def _balance(records: Sequence[StageRecord]) -> tuple[str, list[dict[str, Any]]]:
    """Figure of the first seed, and measures as means over the seeds; empty where there are no labels."""
    rows, counts, pool = [], {}, None
    before: list[dict[str, Any]] = []
    for arm, mine in _by_arm(records, "curate").items():
        found = [load_json(record.folder / "balance.json") for record in mine]
        found = [item for item in found if "measures" in item]
        if not found:
            continue
        before = before or [item["pool_measures"] for item in found]
        pool = pool or found[0]["pool_counts"]
        counts[arm] = found[0]["subset_counts"]
        rows.append(_balance_row(arm, [item["measures"] for item in found]))
    if pool is None:
        return "", []
    return balance_figure(pool, counts), [_balance_row("pool", before), *rows]


def _balance_row(name: str, measures: Sequence[dict[str, float]]) -> dict[str, Any]:
    means = [form.format(np.mean([item[key] for item in measures])) for key, _title, form in BALANCE]
    return {"name": name, "rows": f"{np.mean([item['rows'] for item in measures]):,.0f}", "cells": means}


def _galleries(domain: Domain, records: Sequence[StageRecord]) -> list[dict[str, Any]]:
    """Random clusters of each level of the first tree of the method; a line of pictures for each cluster."""
    trees = [item for item in records if item.name == "curate" and (item.folder / "tree" / "tree.json").exists()]
    trees.sort(key=lambda item: (item.arm != METHOD_ARM, item.seed or 0))
    prepared = {item.seed: item.folder for item in records if item.name == "prepare"}
    if not trees or domain.pictures is None:
        return []
    first = trees[0]
    pool = domain.pictures(prepared.get(first.seed) or prepared[None])
    tree = ClusterTree.load(first.folder / "tree")
    levels = []
    for level in range(tree.n_levels):
        lines = []
        for cluster in gallery_clusters(tree, level, CLUSTERS_SHOWN, seed=0):
            rows = cluster_examples(tree, level, int(cluster), PICTURES_SHOWN, seed=0)
            rows = rows if tree.row_ids is None else np.asarray(tree.row_ids)[rows]
            picture = base64.b64encode(contact_sheet(pool, rows, columns=PICTURES_SHOWN, size=48)).decode()
            lines.append({"size": int(tree.row_counts(level)[cluster]), "picture": picture})
        levels.append({"level": level + 1, "clusters": len(tree.row_counts(level)), "lines": lines})
    return [{"arm": first.arm, "seed": first.seed, "levels": levels}]


def _costs(records: Sequence[StageRecord]) -> list[dict[str, Any]]:
    lines = []
    for name in dict.fromkeys(record.name for record in records):
        for arm, mine in _by_arm(records, name).items():
            cost = [record.marker["cost"] for record in mine]
            flops = float(np.mean([item["flops"] for item in cost]))
            lines.append(
                {
                    "stage": name,
                    "arm": arm or "shared",
                    "runs": len(mine),
                    "seconds": number(float(np.mean([item["seconds"] for item in cost]))),
                    "samples": number(float(np.mean([item["samples"] for item in cost]))),
                    "flops": f"{flops:.2e}" if flops else "-",
                    "attempts": max(record.marker.get("attempts", 1) for record in mine),
                }
            )
    return lines


def _sources(records: Sequence[StageRecord]) -> dict[str, str]:
    sources = [record.marker["provenance"] for record in records]
    versions = sorted({", ".join(f"{name} {value}" for name, value in item["versions"].items()) for item in sources})
    return {
        "commits": commits_of(sources),
        "devices": "; ".join(sorted({item["device"] for item in sources})),
        "versions": "; ".join(versions),
    }


def write_report(
    path: Path,
    domain: Domain,
    manifest: dict[str, Any],
    records: Sequence[StageRecord],
    summaries: Sequence[Summary],
    notes: Sequence[str],
) -> Path:
    """Write the report.

    Args:
        path: of the HTML file.
        domain: metrics, claim and pictures.
        manifest: of the run folder: command and config.
        records: finished stages.
        summaries: of all metrics.
        notes: warnings, and stages that are missing.
    """
    headline = domain.headline
    curves = {
        arm: [read_curve(record.folder / "curve.jsonl") for record in mine]
        for arm, mine in _by_arm(records, "train").items()
    }
    logged = {name for seeds in curves.values() for points in seeds for point in points for name in point}
    figure, balance = _balance(records)
    mine = [item for item in summaries if item.metric == headline.name]
    kind, sentence = verdict(domain, summaries)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.html.j2").render(
        domain=domain,
        verdict=kind,
        sentence=sentence,
        notes=notes,
        metrics=domain.metrics,
        table=_table(domain.metrics, summaries),
        base=BASE_ARM,
        words=[NO_DIFFERENCE, TOO_FEW],
        forest=forest_figure(mine, headline.title, headline.better) if any(item.pairs for item in mine) else "",
        curves=[curves_figure(curves, name) for name in domain.curves if name in logged],
        balance_figure=figure,
        balance=balance,
        balance_titles=[title for _key, title, _form in BALANCE],
        galleries=_galleries(domain, records),
        costs=_costs(records),
        command=manifest["command"],
        config=yaml.safe_dump(manifest["config"], sort_keys=False),
        **_sources(records),
    )
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return path
