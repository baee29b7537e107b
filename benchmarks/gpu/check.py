"""The runner of the check: every part in a process of its own, results kept after each, finished ones skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import describe, device_name, require
from benchmarks.gpu.page import write_page
from benchmarks.gpu.parts import Context, Part, Row, Skipped, Unfinished, chosen_steps
from benchmarks.gpu.steps import all_parts
from experiments.engine.provenance import commit
from foundation.command import explain
from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_json, write_atomically
from foundation.settings import Range

LONGEST = 600.0  # seconds of a part
GRACE = 20.0  # between asking a part to end and ending it
TRIES = 8  # of a part that saves its state and goes on
NEW = ".new.json"  # of an attempt that may not have ended
POSITIVE = Range(gt=0)


@dataclass(frozen=True)
class Options:
    """What the check is asked for.

    Attributes:
        output: markdown; the figures go to a .json beside it.
        work: folder for results of parts and for what is large.
        device: "cuda" or "cpu".
        tiny: sizes of a test.
        steps: comma-separated; "" takes all.
        minutes: no part is begun after that, and a running one is ended.
        since: when the time began to count (seconds of the epoch); 0: now.
        fresh: measure finished parts again.
        install: packages of peers may be fetched.
        data: labelled pictures for the experiment: a folder or parquet file.
        command: how it was called.
    """

    output: Path
    work: Path
    device: str = "cuda"
    tiny: bool = False
    steps: str = ""
    minutes: float = 40.0
    since: float = 0.0
    fresh: bool = False
    install: bool = True
    data: Path | None = None
    command: str = ""


def check(options: Options, say: Callable[[str], None] = print) -> int:
    """Run what is not finished, in order, until the time is up.

    Returns:
        0, or 1 where a part failed.

    Raises:
        CurationError: a bad option, no GPU where one is asked for, or GPUs of several kinds.
    """
    if options.device not in ("cuda", "cpu"):
        raise CurationError(f"--device {options.device!r} is unknown; use cuda or cpu")
    if not POSITIVE.allows(options.minutes):
        raise CurationError(f"--minutes {options.minutes:g} must be above 0")
    if options.data is not None and not options.data.exists():
        raise CurationError(f"--data {options.data} does not exist; give a folder or parquet file of labelled pictures")
    steps = chosen_steps(options.steps)
    require(options.device)
    end = (options.since or time.time()) + 60 * options.minutes
    folder = options.work.absolute() / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part for part in all_parts() if part.step in steps]
    for part in parts:
        _settle(folder, part, options)  # what a killed check left
    say(f"{device_name(options.device)}: {', '.join(steps)}; {max(end - time.time(), 0) / 60:.0f} minutes")
    for part in parts:
        found = _result(folder, part, options)
        if found is not None and found["status"] == "done" and not options.fresh:
            say(f"{part.name}: finished before")
            continue
        for _ in range(TRIES):
            left = end - time.time()
            if left < (0.05 if options.tiny else 1) * part.least:
                say(f"{part.name}: not begun, the time is up")
                break
            say(f"{part.name}: {part.title}")
            status = _run(part, options, folder, min(LONGEST, left), say)
            write_results(options, folder)
            if status != "unfinished":
                break
    write_results(options, folder)
    results = [_result(folder, part, options) for part in parts]
    failed = [result["name"] for result in results if result and result["status"] == "failed"]
    say(f"results: {options.output}, {options.output.with_suffix('.json')}")
    if failed:
        say(f"failed: {', '.join(failed)}; why: {options.output}, and the logs in {folder}")
    return 1 if failed else 0


def identity(part: Part, options: Options) -> str:
    """What a result belongs to: a result of another device, size or pool is measured anew."""
    data = str(options.data.absolute()) if options.data and part.step == "images" else ""
    return digest_json([part.name, part.options, device_name(options.device), options.tiny, data])


def _result(folder: Path, part: Part, options: Options, suffix: str = ".json") -> dict[str, Any] | None:
    try:
        found = load_json(folder / f"{part.name}{suffix}")
    except CurationError:
        return None
    return found if found.get("identity") == identity(part, options) else None


def _settle(folder: Path, part: Part, options: Options, why: str = "the check was ended; what it had is kept") -> str:
    """Let the last attempt of a part be its result, unless an earlier one has more; gives the attempt's status."""
    new = _result(folder, part, options, NEW)
    if new is None:
        return ""
    if new["status"] == "running":
        new |= {"status": "cut", "why": why}
    old = _result(folder, part, options)
    if old is None or new["status"] == "done" or len(new["rows"]) >= len(old["rows"]):
        save_json(folder / f"{part.name}.json", new)
    (folder / f"{part.name}{NEW}").unlink(missing_ok=True)
    return str(new["status"])


def _run(part: Part, options: Options, folder: Path, seconds: float, say: Callable[[str], None]) -> str:
    """One part in a process of its own: neither its memory nor its crash is another's. Gives the status."""
    log = folder / f"{part.name}.log"
    given = json.dumps({**asdict(options), "seconds": seconds}, default=str)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(item for item in (str(root), os.environ.get("PYTHONPATH", "")) if item)
    started, ended = time.time(), ""
    save_json(folder / f"{part.name}{NEW}", _blank(part, options, started))
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            _command(part.name, given),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            ended = f"ended after {seconds:.0f} s; what it had is kept"
        finally:
            _end(process)
    result = _result(folder, part, options, NEW)
    if result is not None and result["status"] == "running" and not ended:  # a crash that Python did not see
        lines = log.read_text(errors="replace").strip().splitlines()
        why = f"its process ended with {process.returncode}: {lines[-1][:200] if lines else 'no word'}"
        save_json(folder / f"{part.name}{NEW}", {**result, "status": "failed", "why": why})
    status = _settle(folder, part, options, ended)
    why = (_result(folder, part, options) or {}).get("why", "")
    say(f"{part.name}: {status} in {time.time() - started:.0f} s{f': {why}' if why and status != 'done' else ''}")
    return status


def _command(name: str, given: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", name, given]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a part and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)


def _blank(part: Part, options: Options, started: float) -> dict[str, Any]:
    found, changed = commit()
    return {
        "name": part.name,
        "identity": identity(part, options),
        "tiny": options.tiny,
        "status": "running",
        "why": "",
        "rows": [],
        "notes": [],
        "seconds": 0.0,
        "started": started,
        "commit": found,
        "changed": changed,
    }


def run_part(name: str, given: str) -> None:
    """What the process of a part does: measure, and keep every row as it comes."""
    content = json.loads(given)
    seconds = content.pop("seconds")
    paths = {key: Path(content[key]) for key in ("output", "work")}
    data = Path(content["data"]) if content["data"] else None
    options = Options(**{**content, **paths, "data": data})
    part = next(item for item in all_parts() if item.name == name)
    path = options.work.absolute() / "parts" / f"{name}{NEW}"
    started = time.time()
    result = _blank(part, options, started) | {"machine": describe(options.device)}

    def save(rows: Sequence[Row]) -> None:
        save_json(path, {**result, "rows": list(rows), "notes": context.notes, "seconds": time.time() - started})

    work = options.work.absolute()
    context = Context(options.device, options.tiny, work, seconds, options.install, data, save)
    save([])
    try:
        rows = part.run(context)
        result["status"] = "done"
        save(rows)
    except Skipped as error:
        result |= {"status": "skipped", "why": str(error)}
        save(load_json(path)["rows"])
    except Unfinished as error:
        result |= {"status": "unfinished", "why": str(error)}
        save(load_json(path)["rows"])
    except Exception as error:
        why = explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        result |= {"status": "failed", "why": why}
        save(load_json(path)["rows"])
        raise


def write_results(options: Options, folder: Path) -> None:
    """The page and its JSON, from all results of this device and size."""
    parts = all_parts()
    results = {part.name: found for part in parts if (found := _result(folder, part, options)) is not None}
    machine = next((item["machine"] for item in results.values() if "machine" in item), None)
    machine = machine or describe(options.device)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    page = write_page(results, parts, machine, options.command)
    write_atomically(options.output, lambda stream: stream.write(page.encode()))
    content = {"command": options.command, "machine": machine, "parts": results}
    save_json(options.output.with_suffix(".json"), content)
