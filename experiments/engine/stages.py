"""Stages: folders that are either finished, with a marker that holds the hash of their inputs, or to be run.

The key of a stage hashes its settings, its seed, the files it reads and the keys of the stages before it, so that the
state of a whole experiment is known before anything runs. A folder is named after its key: results of other settings
stay where they are, and come back into use when the settings come back.
"""

import dataclasses
import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.command import explain
from foundation.errors import CurationError, one_line
from foundation.files import checksum, digest_json, load_json, save_json

CODE_VERSION = 1  # raise it when the meaning of a stage's files changes: finished stages are then run again
MARKER, INPUTS, FAILURE = "stage.json", "inputs.json", "failed.json"
SMALL_FILE = 256_000_000  # bytes up to which an input file is hashed whole
LATE = 90.0  # seconds after which a shared file system shows what another machine wrote: NFS keeps listings for 60


@dataclass(frozen=True)
class Cost:
    """What a stage costs: estimated before, or measured after.

    Attributes:
        seconds: wall-clock time; None: not known.
        samples: rows embedded, clustered or trained on.
        flops: floating-point operations, counted from shapes.
    """

    seconds: float | None = None
    samples: float = 0.0
    flops: float = 0.0


@dataclass
class StageRun:
    """What the action of a stage is given.

    Attributes:
        folder: where it writes; whatever lies there comes from an interrupted run of the same inputs.
        settings: what decides its result, as JSON.
        seed: of this stage; None where the stage has none.
        before: the stages that it reads, with their folders.
        speed: settings that change how long it takes, never the result.
        progress: show progress bars.
        log: takes (metrics, step); keeps the learning curve.
    """

    folder: Path
    settings: dict[str, Any]
    seed: int | None
    before: list[tuple["Stage", Path]]
    speed: dict[str, Any]
    progress: bool = True
    log: Callable[[dict[str, float], int], None] = lambda _metrics, _step: None

    def upstream(self, name: str) -> Path:
        """Folder of the one stage of this name before it."""
        return next(folder for stage, folder in self.before if stage.name == name)


Action = Callable[[StageRun], dict[str, float] | None]


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of one arm and seed.

    Attributes:
        name: prepare, curate, train, evaluate, compare.
        action: does the work; may return its measured cost as {"samples": ..., "flops": ...}.
        settings: what the action is given, as JSON: all that decides the result besides seed and upstream.
        upstream: stages whose outputs it reads.
        arm: "" where arms share it.
        seed: None where seeds share it.
        files: input files and folders from outside.
        estimate: cost before it ran.
        distributed: its action knows what to do as one process of several.
        decides: what of the settings the key hashes, defaults included; None: all of `settings`.
    """

    name: str
    action: Action
    settings: dict[str, Any] = field(default_factory=dict)
    upstream: tuple["Stage", ...] = ()
    arm: str = ""
    seed: int | None = None
    files: tuple[Path, ...] = ()
    estimate: Cost = Cost()
    distributed: bool = False
    decides: dict[str, Any] | None = None

    @property
    def identity(self) -> str:
        """What people call it: "train raw seed 0"."""
        parts = [self.name, self.arm, "" if self.seed is None else f"seed {self.seed}"]
        return " ".join(part for part in parts if part)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that the key hashes."""
        return {
            "version": CODE_VERSION,
            "settings": self.settings if self.decides is None else self.decides,
            "seed": self.seed,
            "files": {path.name: fingerprint(path) for path in self.files},
            "upstream": {stage.identity: stage.key for stage in self.upstream},
        }

    @cached_property
    def key(self) -> str:
        # the name of an arm decides nothing: the same subset by another name is the same
        upstream = sorted(stage.key for stage in self.upstream)
        return digest_json([self.name, {**self.inputs, "upstream": upstream}])

    @cached_property
    def cost_key(self) -> str:
        """What decides how long the stage takes: all settings, but no seed, of it and of those before it."""
        upstream = sorted(stage.cost_key for stage in self.upstream)
        return digest_json([self.name, {**self.inputs, "settings": self.settings, "seed": None, "upstream": upstream}])

    def folder(self, root: Path) -> Path:
        where = root / (self.arm or "shared")
        if self.seed is not None:
            where /= f"seed{self.seed}"
        return where / f"{self.name}-{self.key[:8]}"


def fingerprint(path: Path) -> dict[str, Any]:
    """Bytes and content of an input: hashed whole up to 256 MB, above and for folders by sizes and times.

    Raises:
        CurationError: it is not there.
    """
    if path.is_file():
        size = path.stat().st_size
        return {"bytes": size} | (
            {"checksum": checksum(path)} if size <= SMALL_FILE else {"modified_ns": path.stat().st_mtime_ns}
        )
    if not path.is_dir():
        raise CurationError(f"{path} does not exist; an input of the experiment is missing")
    digest, n_files = hashlib.blake2b(digest_size=16), 0
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        state = file.stat()
        digest.update(f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
        n_files += 1
    return {"files": n_files, "listing": digest.hexdigest()}


@dataclass(frozen=True)
class State:
    """Whether a stage is finished, and why it is to be run where it is not."""

    finished: bool
    why: str


@dataclass
class _Marker:
    """What the record of a finished stage must hold."""

    name: str
    arm: str
    seed: int | None
    key: str
    cost: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)


def load_marker(folder: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        CurationError: it is truncated or edited.
    """
    return load_json(folder / MARKER, _Marker, "remove it, and the stage is run again")


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new), key=str):
            place = f"{where}.{name}" if where else str(name)
            yield from _differences(old.get(name), new.get(name), place)
    elif old != new:
        short = [str(value) if len(str(value)) <= 24 else f"{str(value)[:21]}..." for value in (old, new)]
        yield f"{where} {short[0]} -> {short[1]}"


def _why_changed(stage: Stage, folder: Path) -> str | None:
    """What differs from the newest finished stage of this name, arm and seed; None where there is none."""
    found = [path for path in folder.parent.glob(f"{stage.name}-*/{MARKER}") if path.parent != folder]
    if not found:
        return None
    try:
        before = load_marker(max(found, key=lambda path: path.stat().st_mtime).parent)
    except CurationError:  # it only explains
        return None
    old = before.get("inputs", {})
    parts = list(_differences(old.get("settings"), stage.inputs["settings"]))
    parts += [f"file {part}" for part in _differences(old.get("files"), stage.inputs["files"])]
    upstream = old.get("upstream", {})
    parts += [f"{name} changed" for name, key in stage.inputs["upstream"].items() if upstream.get(name) != key]
    if old.get("version") != CODE_VERSION:
        parts.append("this program changed")
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"inputs changed: {'; '.join(parts[:3])}{more}"


def outputs_of(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of what a stage made; hidden files and its own records left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        own = str(name) in (MARKER, INPUTS, FAILURE)
        if path.is_file() and not own and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.stat().st_size
    return found


def state_of(stage: Stage, root: Path) -> State:
    """Finished: its marker holds the key and every output is there in its size. Reads, never writes."""
    folder = stage.folder(root)
    if (folder / MARKER).exists():
        try:
            marker = load_marker(folder)
        except CurationError:
            return State(False, f"its {MARKER} is not whole")
        if marker["key"] == stage.key:
            there = outputs_of(folder)
            lost = [name for name, size in marker.get("outputs", {}).items() if there.get(name) != size]
            return State(False, f"output {lost[0]} is missing or truncated") if lost else State(True, "finished before")
        return State(False, "its marker is of other inputs")
    if (folder / FAILURE).exists():
        return State(False, f"failed before: {load_json(folder / FAILURE).get('error', '')}")
    if (folder / INPUTS).exists():
        return State(False, "interrupted before; goes on")
    return State(False, _why_changed(stage, folder) or "not run yet")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold ``folder/.lock``; the system lets go of it when the process dies.

    Raises:
        CurationError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CurationError(
            f"another process is running {what} in {folder}; wait for it, or name another folder with output.runs"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run_stage(
    stage: Stage,
    root: Path,
    speed: dict[str, Any],
    provenance: dict[str, Any],
    progress: bool = True,
    *,
    track: Callable[[Stage, Path], Any] | None = None,
    leader: bool = True,
    begin: Callable[[Stage], None] = lambda _stage: None,
    patience: float = 0.0,
) -> Path:
    """Run one stage that is not finished; its upstream must be.

    Args:
        stage: what to run.
        root: run folder.
        speed: settings that never change the result.
        provenance: commit, versions, device; written into the marker.
        progress: show progress bars.
        track: gives a tracker (see `experiments.engine.tracking`) for the stage and its folder.
        leader: False for the other processes of a distributed stage: they work but write no records.
        begin: called by the leader before the work, to let the others begin too.
        patience: seconds to wait for the files of the upstream, where another machine has just finished it (`LATE`).

    Returns:
        Its folder.

    Raises:
        CurationError: an upstream stage is not finished, or another process is at this stage.
        Exception: whatever the action raised, after it was written to failed.json.
    """
    folder = stage.folder(root)
    for earlier in stage.upstream:
        deadline = time.monotonic() + patience
        while not (state := state_of(earlier, root)).finished and time.monotonic() < deadline:
            time.sleep(0.5)
        if not state.finished:
            raise CurationError(f"{stage.identity} needs {earlier.identity}, which is not finished ({state.why})")
    before = [(earlier, earlier.folder(root)) for earlier in stage.upstream]
    run = StageRun(folder, stage.settings, stage.seed, before, speed, progress)
    if not leader:
        if stage.distributed:
            stage.action(run)
        return folder
    with locked(folder, stage.identity):
        if state_of(stage, root).finished:
            return folder
        (folder / FAILURE).unlink(missing_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        attempts = 1 + (load_json(folder / INPUTS).get("attempts", 0) if (folder / INPUTS).exists() else 0)
        who = {"name": stage.name, "arm": stage.arm, "seed": stage.seed, "key": stage.key, "attempts": attempts}
        save_json(folder / INPUTS, {**who, "inputs": stage.inputs})
        tracker = track(stage, folder) if track else None
        if tracker is not None:
            run.log = tracker.log
        started = time.time()
        try:
            begin(stage)
            measured = stage.action(run) or {}
        except Exception as error:
            with suppress(CurationError):  # on a full disk the error itself has no room
                save_json(folder / FAILURE, {**who, "error": _one_line(error), "traceback": traceback.format_exc()})
            if tracker is not None:
                tracker.finish(failed=True)
            raise
        except BaseException:  # Ctrl-C, a signal: the folder is kept and goes on later
            if tracker is not None:
                tracker.finish(failed=True)
            raise
        cost = dataclasses.asdict(Cost(time.time() - started, **measured))
        cost |= {"key": stage.cost_key, "device": str(speed.get("device", "cpu"))}
        marker = {**who, "inputs": stage.inputs, "started": started, "cost": cost, "provenance": provenance}
        save_json(folder / MARKER, {**marker, "outputs": outputs_of(folder)})
        if tracker is not None:
            tracker.finish()
    return folder


def _one_line(error: BaseException) -> str:
    text = one_line(error, None)
    if isinstance(error, CurationError) or type(error).__name__ == "OutOfMemoryError":
        return explain(error) or text
    return f"{type(error).__name__}: {text}"


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages and all before them, each once, none before its upstream."""
    found: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in found:
            for earlier in stage.upstream:
                visit(earlier)
            found[stage] = None

    for stage in stages:
        visit(stage)
    return list(found)


@dataclass
class Outcome:
    """What a run did: identities of the stages, and one line for each failure."""

    finished_before: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def run_stages(stages: Sequence[Stage], root: Path, say: Callable[[str], None] = print, **options: Any) -> Outcome:
    """Run what is not finished, in order; what stands behind a failure is skipped and named.

    Args:
        stages: the wanted ones; those before them are found.
        root: run folder.
        say: takes one line a stage: skipped or run, and why.
        options: of `run_stage`.
    """
    outcome, broken = Outcome(), set()
    ordered = in_order(stages)
    for number, stage in enumerate(ordered, 1):
        head = f"[{number}/{len(ordered)}] {stage.identity}"
        state = state_of(stage, root)
        culprit = next((earlier for earlier in stage.upstream if earlier in broken), None)
        if culprit is not None:
            broken.add(stage)
            outcome.skipped[stage.identity] = f"{culprit.identity} failed or was skipped"
            say(f"{head}: skipped, {outcome.skipped[stage.identity]}")
        elif state.finished:
            outcome.finished_before.append(stage.identity)
            say(f"{head}: {state.why}")
        else:
            say(f"{head}: starts ({state.why})")
            try:
                run_stage(stage, root, **options)
                outcome.done.append(stage.identity)
            except Exception as error:
                broken.add(stage)
                outcome.failed[stage.identity] = _one_line(error)
                say(f"{head}: failed, {_one_line(error)}")
    return outcome
