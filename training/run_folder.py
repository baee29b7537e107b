"""The folder of a training run: it belongs to one run, which it describes, and to no other."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from foundation.errors import CurationError
from foundation.files import RESULT, check_export, checksum, digest_json, load_json, save_json, write_atomically
from foundation.locks import locked_folder
from foundation.schema import check_content

T = TypeVar("T")
RUN = "run.json"
CHECKPOINT, EARLIER = "last.ckpt", "earlier.ckpt"
LOG = "metrics.jsonl"
PROBE, BAD_IMAGES = "probe.jsonl", "bad_images.jsonl"  # of pretraining
LOGS = (LOG, PROBE, BAD_IMAGES)


def is_first_process() -> bool:
    """Of those that torchrun, srun or Lightning started; the only one where none of them did."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


@contextmanager
def claimed(folder: Path, identity: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Take the folder for this run; yields the result if it is already finished.

    Within the block no other run can take it. A run that left neither checkpoint nor result has kept nothing: its
    folder may be taken. A claim whose run fails before it has written anything is given back.

    Args:
        identity: ``settings`` and whatever else tells one run from another, as JSON.

    Raises:
        CurationError: the folder holds another run, or something else, or a process that trains, or a finished run
            whose exported files are not those that it wrote.
    """
    with locked_folder(folder) if is_first_process() else nullcontext():  # one lock for all processes of a run
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
        found = load_json(path, remedy="delete the folder and train again")
        # through JSON, as the file went: tuples are lists there
        other = [key for key, value in identity.items() if digest_json(found.get(key)) != digest_json(value)]
        if other and _kept(folder):
            key = other[0]
            what = _difference(found.get(key), identity[key]) if key == "settings" else f"other {key}"
            raise CurationError(f"{folder} holds a run with {what}; use another folder or delete it")
        if not other and (folder / RESULT).exists():
            done = load_json(folder / RESULT, remedy="delete the folder and train again")
            check_export(folder)
            return done
        if not _kept(folder) and is_first_process():  # it starts again, or another one does
            for log in LOGS:
                (folder / log).unlink(missing_ok=True)
    # of several processes the first may have written it meanwhile
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()) and not path.exists():
        raise CurationError(f"{folder} is not empty and holds no run; use another folder")
    if is_first_process():
        save_json(path, identity)
    return None


def restored(kind: type[T], content: dict[str, Any], folder: Path) -> T:
    """The result of a finished run from the content of its file; what else it holds is left out.

    Args:
        kind: a dataclass with a field ``folder``, which is not taken from the file.

    Raises:
        CurationError: something is missing or of another type.
    """
    content = {**content, "folder": folder}
    check_content(kind, content, str(folder.parent / RESULT), "delete the folder and train again")
    return kind(**{entry.name: content[entry.name] for entry in fields(kind)})  # type: ignore[arg-type]


def checksums_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Of files, and of all in folders but what people write (``.md``), by their path within ``folder``."""
    files = [
        file for name in names for file in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
    ]
    return {str(file.relative_to(folder)): checksum(file) for file in files if file.is_file() and file.suffix != ".md"}


def is_finished(folder: Path) -> bool:
    """Whether a run ended here: the same call returns its result, and another is refused."""
    return (folder / RESULT).exists()


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
