"""``visual_domains.md``: the finished seeds of the experiment as tables, with sentences that the numbers choose.

What was planned before, and what no stage measures, is written by hand in ``visual_domains_plan.md`` and ``_notes.md``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, ORACLE
from experiments.engine.inputs import DATA
from experiments.engine.stages import StageRun
from experiments.pages.effects import (
    Evaluations,
    Judge,
    domain_table,
    effect_over_balance,
    rarity_section,
    read_evaluations,
    result_sections,
    save_page,
    value_rows,
    with_words,
)
from experiments.pages.markdown import origin
from experiments.visual_domains.pool import POOL
from foundation.files import load_json
from foundation.tables import markdown_table

JUDGE = Judge("bpp", "bits per pixel", "pictures", "pictures")
NAME, PLAN, NOTES = "visual_domains", "visual_domains_plan.md", "visual_domains_notes.md"


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``visual_domains.md`` in its folder and in ``output.report``.

    With it ``visual_domains.json``, the values of every arm and seed, and the figure of effect over balance.
    """

    def action(run: StageRun) -> None:
        found, report = read_evaluations(run), Path(config["output"]["report"])
        pools = {seed: load_json(folder / POOL) for seed, folder in found.prepared.items()}
        page = with_words(render(found, pools, config), report, PLAN, NOTES)
        rounds = in_rounds(found, len(config["science"]["pool"]["domains"]))
        rows = value_rows(rounds.metrics, rounds.balance)
        about = {"experiment": NAME, "commits": sorted({item["commit"] for item in found.made})}
        save_page([run.folder, report], NAME, page, rows, about, effect_over_balance(rows, JUDGE))

    return action


def in_rounds(found: Evaluations, n_domains: int) -> Evaluations:
    """Means over the seeds of each whole round, in which every domain has every rank once, by its number.

    A round that lacks a seed is left out, for its means would depend on who was frequent.
    """
    metrics: dict[tuple[str, int], dict[str, Any]] = {}
    balance: dict[tuple[str, int], dict[str, Any]] = {}
    for arm, number in dict.fromkeys((arm, seed // n_domains) for arm, seed in found.metrics):
        keys = [(arm, number * n_domains + turn) for turn in range(n_domains)]
        if not all(key in found.metrics for key in keys):
            continue
        parts = [found.metrics[key] for key in keys]
        metrics[arm, number] = {
            name: {key: float(np.mean([part[name][key] for part in parts])) for key in parts[0][name]}
            for name in ("metrics", "untrained")
        }
        metrics[arm, number]["by_rarity"] = np.mean([part["by_rarity"] for part in parts], axis=0).tolist()
        balance[arm, number] = {"measures": {"kl": float(np.mean([found.balance[k]["measures"]["kl"] for k in keys]))}}
    return Evaluations(metrics, balance, found.prepared, found.made)


def render(found: Evaluations, pools: dict[int, dict[str, Any]], config: dict[str, Any]) -> str:
    """The page.

    Args:
        found: see `experiments.pages.effects.read_evaluations`.
        pools: seed -> ``pool.json``.
        config: the resolved one.
    """
    science, scale = config["science"], config["scale"]["name"]
    arms, seeds = list(dict.fromkeys(arm for arm, _ in found.metrics)), sorted(pools)
    pool, train = science["pool"], science["train"]
    rounds = in_rounds(found, len(pool["domains"]))
    if not rounds.metrics:
        return (
            f"# Visual domains\n\n## Results\n\nNo whole round of {len(pool['domains'])} seeds: nothing to say yet.\n"
        )
    n_rounds = len({number for _, number in rounds.metrics})
    sections = [
        "# Visual domains (experiment 2 of the paper, a judge that costs seconds)\n",
        "Does a pixel model of a curated subset predict held-out pictures of every domain better than one of as many "
        f"random pictures? The judge is a context model ({train['neighbours']} neighbours, interpolated Witten-Bell, "
        f"`eval/pixel_model.py`) of grey pictures of {pool.get('side', 32)} x {pool.get('side', 32)} pixels and "
        f"{train['levels']} levels: deterministic, nothing to tune, the same for every arm; only the pictures change. "
        "Bits per pixel, lower is better; ± is the 95 % interval of the mean over seeds (Student's t), brackets the "
        "95 % bootstrap interval of the paired difference to raw. Each seed draws its own split, pool and subset; "
        "as many seeds as there are domains are a round, in which every domain has every rank once, and **rounds are "
        f"what the tables call seeds**: {n_rounds} of {len(pool['domains'])} pools each.\n",
        "## Results\n",
        origin(
            f"python scripts/run_experiment.py experiment={NAME} scale={scale} "
            f"seeds=[{','.join(map(str, seeds))}] arms=[{','.join(arms)}]",
            found.made,
            f"with {DATA} naming the folder of public data" if scale != "demo" else "",
        ),
        *result_sections(rounds.metrics, rounds.balance, arms, JUDGE, NAME),
        rarity_section(rounds.metrics, arms, JUDGE, "thumbnails of 16 x 16 colours"),
        "## Domains\n",
        f"{_apart(pools)} The domains' sizes fall as rank^-{pool['zipf']:g}. Pictures of the pool and of each subset, "
        "and bits per pixel; means over all pools.\n",
        domain_table(found.metrics, pools, found.balance, arms, JUDGE, by_rank=True),
        "By the domain that is the most frequent, what true domains change:\n",
        _by_head(found, pools),
        "By domain, over all its ranks:\n",
        domain_table(found.metrics, pools, found.balance, arms, JUDGE, by_rank=False),
    ]
    return "\n".join(sections)


def _by_head(found: Evaluations, pools: dict[int, dict[str, Any]]) -> str:
    """Difference of the oracle to raw in the pools that each domain leads."""
    effects: dict[str, list[float]] = {}
    for seed, pool in pools.items():
        if {(ORACLE, seed), (BASE_ARM, seed)} <= set(found.metrics):
            oracle, raw = (found.metrics[arm, seed]["metrics"][JUDGE.headline] for arm in (ORACLE, BASE_ARM))
            effects.setdefault(max(pool["rows_of"], key=pool["rows_of"].get), []).append(oracle - raw)
    lines = [[name, str(len(part)), f"{np.mean(part):+.3f}"] for name, part in sorted(effects.items())]
    return markdown_table(["most frequent", "pools", "mean over domains, difference to raw"], lines)


def _apart(pools: dict[int, dict[str, Any]]) -> str:
    """What is held out, and how many held-out pictures were left out because the pool has their near-duplicates."""

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    first = next(iter(pools.values()))
    text = (
        f"Pool of one seed: {first['rows']:,} pictures; test: "
        f"{mean([sum(pool['test_of'].values()) for pool in pools.values()]):,.0f} others, at least "
        f"{min(min(pool['test_of'].values()) for pool in pools.values())} of a domain. Held-out pictures that the pool "
        "holds near-duplicates of were left out before these were drawn: "
    )
    of = {
        name: [mean([pool[key][name] for pool in pools.values()]) for key in ("in_pool_of", "held_of")]
        for name in first["rows_of"]
    }
    text += (
        ", ".join(f"{seen:.0f} of {held:,.0f} of {name}" for name, (seen, held) in of.items()) + " (means over seeds)."
    )
    if first["trusted"]:
        text += f" Trusted set of retrieval: {first['trusted']} pictures that are in neither."
    return text
