"""One run: a model, some evaluations, and their results as data."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eval.bench import Bench
from eval.models import FrozenModel, open_model
from eval.results import METRICS, Results, inputs_of, require_same
from eval.settings import RunSettings
from eval.tasks import TASKS, Task
from foundation.errors import CurationError
from foundation.locks import locked_folder
from foundation.settings import fill
from foundation.yaml_files import BAD_VALUES, read_yaml_text

SPEED = ("device", "batch_size", "n_workers", "cache", "progress")  # settings that change no figure
SUITES = Path(__file__).parent / "suites"


def make_task(name: str, settings: Mapping[str, Any]) -> Task:
    """A task of its settings.

    Raises:
        CurationError: an unknown task or setting.
    """
    if name not in TASKS:
        raise CurationError(f"evaluation {name!r} is unknown; there are {', '.join(TASKS)}")
    try:
        return fill(TASKS[name], settings)  # type: ignore[no-any-return]
    except CurationError as error:
        raise CurationError(f"{name}: {error}") from error


def evaluate(
    model: FrozenModel,
    tasks: list[Task],
    settings: RunSettings | None = None,
    output: str | Path | None = None,
    overwrite: bool = True,
) -> Results:
    """Run tasks on one model; features of a dataset are computed once for all of them.

    Args:
        output: folder of the results, written after every task: a task that fails takes no finished one with it.
        overwrite: replace results of other settings, of another model or of other data; else refuse.

    Raises:
        CurationError: see above.
    """
    settings = settings or RunSettings()
    science = {name: value for name, value in asdict(settings).items() if name not in SPEED}
    asked = [(task.name, asdict(task)) for task in tasks]  # type: ignore[call-overload]
    # one for each task that is done: a suite that failed at a later one may be mended there
    inputs = [inputs_of([model.identity, science, asked[: n + 1]]) for n in range(len(asked))]
    known = {} if output is None else require_same(Path(output) / METRICS, inputs, overwrite)
    torch.manual_seed(settings.seed)
    bench = Bench(model, settings, known)
    bench.results.settings["run"] = asdict(settings)
    for task, bench.results.inputs in zip(tasks, inputs, strict=True):
        start = time.perf_counter()
        before = [row.key for row in bench.results.rows]
        task.run(bench)
        keys = [row.key for row in bench.results.rows]
        if twice := next((key for key in keys[len(before) :] if key in before), None):
            raise CurationError(f"two evaluations both measure {twice}, and one would hide the other; run them apart")
        seconds = bench.results.seconds
        seconds[task.name] = seconds.get(task.name, 0.0) + time.perf_counter() - start
        bench.results.settings.setdefault(task.name, []).append(asdict(task))  # type: ignore[call-overload]
        if output is not None:
            bench.results.save(output)
    return bench.results


def run(
    given: list[tuple[str, dict[str, Any]]], shared: Mapping[str, Any], output: str | Path, overwrite: bool = False
) -> Results:
    """Open the model and run tasks by name.

    Args:
        given: (task, its settings).
        shared: fields of `RunSettings`.
        overwrite: see `evaluate`.

    Raises:
        CurationError: bad settings, all of them checked before the model is opened, or see `evaluate`.
    """
    settings: RunSettings = fill(RunSettings, shared)
    if not settings.model:
        raise CurationError(
            "no model is given: model=FOLDER, model=timm:NAME, model=random:NAME or model=package.mod:func"
        )
    tasks = [make_task(name, part) for name, part in given]
    with locked_folder(output):
        torch.manual_seed(settings.seed)  # the weights of random:NAME
        model = open_model(
            settings.model, settings.weights or None, settings.image_size or None, settings.device, settings.precision
        )
        return evaluate(model, tasks, settings, output, overwrite)


def read_suite(path: str | Path) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
    """A suite file: YAML with ``tasks`` (a list of ``name: {settings}``) and settings of the run.

    Raises:
        CurationError: unreadable, or without tasks.
    """
    import yaml

    shipped = SUITES / f"{Path(path).stem}.yaml"
    text = read_yaml_text(Path(path) if Path(path).exists() or not shipped.exists() else shipped, "suite")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, *BAD_VALUES) as error:
        raise CurationError(f"suite {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list) or not content["tasks"]:
        raise CurationError(f"suite {path} must have a list 'tasks' of 'name: settings'")
    tasks: list[tuple[str, dict[str, Any]]] = []
    for item in content.pop("tasks"):
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, dict) or len(item) != 1 or not isinstance(next(iter(item.values())) or {}, dict):
            raise CurationError(f"suite {path}: {item!r} is no 'name: {{settings}}'")
        ((name, settings),) = item.items()
        tasks.append((str(name), settings or {}))
    return tasks, content
