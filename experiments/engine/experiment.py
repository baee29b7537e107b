"""An experiment: arms x seeds x stages, built from one resolved config."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from curation.plan import Hardware
from curation.plan import plan as curation_plan
from experiments.engine.arms import BASE_ARM, METHOD_ARM, CurationSettings, curate, subset_settings
from experiments.engine.stages import Action, Cost, Stage, in_order, state_of
from experiments.engine.tracking import TrackingSettings
from foundation.command import missing_package
from foundation.errors import CurationError
from foundation.settings import Count, CountOrZero, Seed, check, fill, nearest_name, short

# method of an arm -> what of the pool it needs
BRINGS = {"retrieval": "trusted set", "oracle": "labels", "manual": "hand-curated set"}
EXTRAS_OF_DOMAINS = {"text": "language", "satellite": "satellite"}  # the others need "train" alone


@dataclass(frozen=True)
class Metric:
    """One number of the evaluation.

    Attributes:
        name: key in ``metrics.json``.
        title: as people read it.
        better: "higher" or "lower".
        headline: the verdict is about it; exactly one is.
        ours: False where the raw arm is expected to win, so that nobody calls it a defeat of the method.
    """

    name: str
    title: str
    better: str
    headline: bool = False
    ours: bool = True


@dataclass(frozen=True)
class Domain:
    """What an experiment brings along; the rest is shared.

    Attributes:
        title: of the report.
        claim: one sentence that the headline metric decides.
        metrics: of the evaluation, the most important first.
        pool_settings, train_settings, evaluate_settings: dataclasses of ``science.pool``, ``.train``, ``.evaluate``;
            where some of its fields decide no result, or hold settings with defaults of their own, its ``science()``
            gives what does.
        prepare: stage action: embeddings, and labels and a trusted set where there are some.
        train: stage action: trains on the subset of the stage curate; writes a checkpoint and ``curve.jsonl``.
        evaluate: stage action: writes ``metrics.json`` with {"metrics": {name: value}}.
        shape: pool settings -> rows and dimension of the embeddings.
        budget: train settings and dimension -> samples seen, optimiser steps, floating-point operations.
        curves: metrics over steps that the stage train logs.
        pool_of_seed: every seed has a pool of its own.
        pictures: folder of the stage prepare -> its pool with a column "image", for galleries; None: there are none.
        files: pool settings -> input files from outside.
        extra: further stages that are no arm, from the whole config.
        write_up: from the whole config, the action of a last stage that reads all evaluations and writes them up.
        distributed: `train` knows what to do as one process of several.
        sharded: `prepare` does: processes share its shards.
        check: pool, train and evaluate settings -> nothing; raises where they do not go together or name nothing.
        brings: pool settings -> which of `BRINGS` the pool has, for the arms that need them.
        ready: pool, train and evaluate settings -> stage -> calls that open what it will be made with, and raise where
            that is not there or does not go together.
    """

    title: str
    claim: str
    metrics: tuple[Metric, ...]
    pool_settings: type[Any]
    train_settings: type[Any]
    evaluate_settings: type[Any]
    prepare: Action
    train: Action
    evaluate: Action
    shape: Callable[[Any], tuple[float, int]]
    budget: Callable[[Any, int], tuple[float, int, float]]
    curves: tuple[str, ...] = ("train/loss",)
    pool_of_seed: bool = True
    pictures: Callable[[Path], Any] | None = None
    files: Callable[[Any], Sequence[Path]] = lambda _pool: ()
    extra: Callable[[dict[str, Any]], Sequence[Stage]] = lambda _config: ()
    write_up: Callable[[dict[str, Any]], Action] | None = None
    distributed: bool = False
    sharded: bool = False
    check: Callable[[Any, Any, Any], None] = lambda _pool, _train, _evaluate: None
    brings: Callable[[Any], set[str]] = lambda _pool: set(BRINGS.values())
    ready: Callable[[Any, Any, Any], dict[str, Sequence[Callable[[], object]]]] = lambda _pool, _train, _evaluate: {}

    @property
    def headline(self) -> Metric:
        return next(metric for metric in self.metrics if metric.headline)


@dataclass(frozen=True)
class Science:
    """Section ``science``: all that changes the numbers."""

    pool: dict[str, Any]
    curation: CurationSettings
    methods: dict[str, Any]
    train: dict[str, Any]
    evaluate: dict[str, Any]
    studies: dict[str, Any] | None = None


@dataclass(frozen=True)
class Speed:
    """Section ``speed``: changes how long it takes, never the numbers."""

    threads: Count = 2
    device: str = "cpu"
    fresh: bool = False
    hardware: str = "measure"
    n_devices: Count = 1

    def __post_init__(self) -> None:
        check(self, "speed")


@dataclass(frozen=True)
class LaunchSettings:
    """Section ``launch``: where the stages run.

    Attributes:
        where: local, or slurm (through submitit; needs the extra `slurm`).
        partition, account, constraint: of the jobs; "" is the cluster's own.
        minutes: time limit of a job; at its end, and when preempted, a job is queued again.
        requeues: how often at most.
        setup: shell lines that run before each job, such as "module load cuda".
        stages: stage -> what differs from `resources`.
        resources: nodes, tasks_per_node, cpus_per_task, gpus_per_node, mem_gb of a job. A stage whose jobs have no GPU
            computes on the processor, whatever ``speed.device`` says; with GPUs, ``speed.device`` must not be cpu.
    """

    where: str = "local"
    partition: str = ""
    account: str = ""
    constraint: str = ""
    minutes: Count = 60
    requeues: CountOrZero = 10
    setup: list[str] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "launch")


@dataclass(frozen=True)
class Output:
    """Section ``output``: the run folder, and the folder of the written-up results."""

    runs: str
    report: str


@dataclass(frozen=True)
class Settings:
    """The whole config; names as in ``configs/``."""

    name: str
    seeds: list[Seed]
    arms: list[str]
    science: Science
    speed: Speed
    output: Output
    tracking: TrackingSettings
    launch: LaunchSettings
    scale: dict[str, Any]
    dry_run: bool = False


@dataclass(frozen=True)
class Experiment:
    """The stages of a config, and what is needed to compare their results.

    Attributes:
        sections: pool, train and evaluate settings.
        hardware: that estimates are for; None: there are none.
    """

    settings: Settings
    domain: Domain
    root: Path
    stages: list[Stage]
    samples: float
    rows: dict[str, float]
    sections: tuple[Any, Any, Any]
    hardware: Hardware | None

    def missing(self) -> list[str]:
        """One line for each file, network or package that is not here; a stage that is finished needs nothing."""
        found: list[str] = []
        for name, opens in self.domain.ready(*self.sections).items():
            stages = [stage for stage in in_order(self.stages) if stage.name == name]
            if self.settings.speed.fresh or not all(state_of(stage, self.root).finished for stage in stages):
                for open_it in opens:
                    try:
                        open_it()
                    except CurationError as error:
                        found.append(str(error))
        return list(dict.fromkeys(found))

    def require_ready(self) -> None:
        """Refuse an experiment that cannot be made here before anything runs.

        Raises:
            CurationError: the first line of `missing`.
        """
        if missing := self.missing():
            raise CurationError(missing[0])

    def warnings(self) -> list[str]:
        """One line for each arm whose rows are seen more than once, and for what the comparison will lack."""
        lines: list[str] = []
        repeated: dict[float, list[str]] = {}
        for arm, rows in self.rows.items():
            if self.samples > rows:
                repeated.setdefault(rows, []).append(arm)
        for rows, arms in repeated.items():
            lines.append(
                f"the budget of {self.samples:,.0f} samples is {self.samples / rows:.1f} epochs of the {rows:,.0f} "
                f"rows of {', '.join(arms)}"
            )
        if BASE_ARM not in self.rows:
            lines.append(f"no arm {BASE_ARM}: there will be no differences to it")
        if len(self.settings.seeds) < 3:
            n = len(self.settings.seeds)
            lines.append(f"{n} seed(s): too few for an interval of the differences; use 5 or more")
        return lines


def open_domain(name: str) -> Domain:
    """The `Domain` of ``experiments/<name>/domain.py``.

    Raises:
        CurationError: there is none of this name, or it needs packages that an extra brings.
    """
    known = [path.parent.name for path in Path(__file__).parents[1].glob("*/domain.py")]
    if name not in known:
        raise CurationError(f"there is no experiment {short(name)}; {nearest_name(str(name), known)}")
    try:
        return importlib.import_module(f"experiments.{name}.domain").DOMAIN
    except ModuleNotFoundError as error:
        missing = missing_package(error, EXTRAS_OF_DOMAINS.get(name, "train"))
        if missing is None:
            raise
        raise CurationError(f"experiment {name}: {missing}") from error


def parse(config: dict[str, Any]) -> Settings:
    """Dataclasses of a resolved config.

    Raises:
        CurationError: an unknown or missing key, or seeds or arms that repeat.
    """
    settings = fill(Settings, config)
    seeds, arms = settings.seeds, settings.arms
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise CurationError(f"seeds is {seeds}; give one or more different numbers from 0 up, as seeds=[0,1]")
    if not arms or len(set(arms)) < len(arms):
        raise CurationError(f"arms is {arms}; give one or more different names, as arms=[{BASE_ARM},{METHOD_ARM}]")
    return settings


def science_of(settings: Any) -> dict[str, Any]:
    """All that decides a stage's result, defaults included: what its dataclass calls so, else every field."""
    return settings.science() if hasattr(settings, "science") else asdict(settings)


def _train_cost(samples: float, flops: float, hardware: Hardware | None) -> Cost:
    seconds = None if hardware is None else flops / (hardware.tflops * 1e12 * hardware.n_devices)
    return Cost(seconds, samples, flops)


def _curate_cost(spec: dict[str, Any], rows: float, dim: int, hardware: Hardware | None) -> Cost:
    clusters = spec.get("levels") or ([spec["k"]] if "k" in spec else [])
    if not clusters or hardware is None:
        return Cost(None if hardware is None else 1.0, rows, 0.0)
    sizes = [size or None for size in spec.get("sample_sizes", [])]
    known = [int(size) for size in sizes if size is not None]
    cost = curation_plan(
        rows,
        dim,
        clusters,
        hardware,
        n_resamples=spec.get("n_resamples", 0),
        sample_sizes=known if len(known) == len(clusters) else None,
        max_iterations=spec.get("max_iterations", 50),
    )
    return Cost(cost.seconds, rows, sum(stage.operations for stage in cost.stages))


def build(config: dict[str, Any], hardware: Hardware | None = None) -> Experiment:
    """The experiment of a resolved config; reads input files for their hashes, writes nothing.

    Args:
        config: see `experiments.engine.settings.compose`.
        hardware: for estimates; None: none are made.

    Raises:
        CurationError: a setting that makes no sense; every one is checked before anything runs.
    """
    settings = parse(config)
    config = {**config, "seeds": settings.seeds, "arms": settings.arms}  # as lists, however they were written
    domain, science = open_domain(settings.name), settings.science
    pool = fill(domain.pool_settings, science.pool, "science.pool")
    train = fill(domain.train_settings, science.train, "science.train")
    evaluate = fill(domain.evaluate_settings, science.evaluate, "science.evaluate")
    domain.check(pool, train, evaluate)
    decides = {name: science_of(part) for name, part in (("pool", pool), ("train", train), ("evaluate", evaluate))}
    subsets = subset_settings(settings.arms, science.methods, science.curation)
    for arm, spec in subsets.items():
        needed = BRINGS.get(spec["method"])
        if needed and needed not in domain.brings(pool):
            raise CurationError(f"arm {arm} needs {needed}, and science.pool gives none; leave it out of arms")
    n_rows, dim = domain.shape(pool)
    samples, _steps, flops = domain.budget(train, dim)
    rows = {arm: float(spec.get("size", n_rows)) for arm, spec in subsets.items()}
    for arm, size in rows.items():
        if not 0 < size <= n_rows:
            raise CurationError(
                f"arm {arm} wants {size:,.0f} of the {n_rows:,.0f} rows of the pool; lower science.curation.size"
            )
    make_subset = partial(curate, pictures=domain.pictures)
    prepared: dict[int | None, Stage] = {}
    stages: list[Stage] = []
    for seed in settings.seeds:
        own = seed if domain.pool_of_seed else None
        if own not in prepared:
            files = tuple(domain.files(pool))
            prepared[own] = Stage(
                "prepare",
                domain.prepare,
                asdict(pool),
                seed=own,
                files=files,
                distributed=domain.sharded,
                decides=decides["pool"],
            )
        before = prepared[own]
        for arm, spec in subsets.items():
            cost = _curate_cost(spec, n_rows, dim, hardware)
            curated = Stage("curate", make_subset, spec, (before,), arm, seed, estimate=cost)
            cost = _train_cost(samples, flops, hardware)
            upstream, alike = (before, curated), domain.distributed
            trained = Stage(
                "train",
                domain.train,
                asdict(train),
                upstream,
                arm,
                seed,
                estimate=cost,
                distributed=alike,
                decides=decides["train"],
            )
            judged = (before, trained)
            stages.append(
                Stage("evaluate", domain.evaluate, asdict(evaluate), judged, arm, seed, decides=decides["evaluate"])
            )
    if domain.write_up is not None:
        about = {"seeds": settings.seeds, "arms": settings.arms, "scale": settings.scale["name"]}
        about |= {"studies": science.studies} if science.studies else {}  # computed while it is written
        stages.append(Stage("write_up", domain.write_up(config), about, tuple(stages)))
    stages += domain.extra(config)
    root = Path(settings.output.runs)
    return Experiment(settings, domain, root, stages, samples, rows, (pool, train, evaluate), hardware)
