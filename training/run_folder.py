"""The folder of a training run: it belongs to one run, which it describes, and to no other."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_json, write_atomically
from training.checkpoints import CHECKPOINT, EARLIER

RUN = "run.json"
LOG = "metrics.jsonl"
RESULT = "result.json"
PROBE, BAD_IMAGES = "probe.jsonl", "bad_images.jsonl"  # of pretraining
LOGS = (LOG, PROBE, BAD_IMAGES)


def is_first_process() -> bool:
    """Of those that torchrun, srun or Lightning started; the only one where none of them did."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


@contextmanager
def claimed(folder: Path, identity: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Take the folder for this run; yields the result if it is already finished.

    A run that left neither checkpoint nor result has kept nothing: its folder may be taken. A claim whose run fails
    before it has written anything is given back.

    Args:
        identity: ``settings`` and whatever else tells one run from another, as JSON.

    Raises:
        CurationError: the folder holds another run, or something else.
    """
    done = _claim(folder, identity)
    try:
        yield done
    except BaseException:
        if is_first_process() and not _kept(folder) and not any((folder / log).exists() for log in LOGS):
            (folder / RUN).unlink(missing_ok=True)
        raise


def _claim(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    path = folder / RUN
    if path.exists():
        found = load_json(path)
        # through JSON, as the file went: tuples are lists there
        other = [key for key, value in identity.items() if digest_json(found.get(key)) != digest_json(value)]
        if other and _kept(folder):
            key = other[0]
            what = _difference(found.get(key), identity[key]) if key == "settings" else f"other {key}"
            raise CurationError(f"{folder} holds a run with {what}; use another folder or delete it")
        if not other and (folder / RESULT).exists():
            return load_json(folder / RESULT)
        if other and is_first_process():
            for log in LOGS:
                (folder / log).unlink(missing_ok=True)
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise CurationError(f"{folder} is not empty and holds no run; use another folder")
    if is_first_process():
        save_json(path, identity)
    return None


def _kept(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, EARLIER, RESULT))


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    for key, value in wanted.items():
        old = found.get(key) if isinstance(found, dict) else None
        if digest_json(old) != digest_json(value):
            return f"{key}={old}, not {value}"
    return "other settings"


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, lambda stream: stream.write("".join(kept).encode()))
