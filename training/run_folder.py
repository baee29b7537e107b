"""The folder of a training run: it belongs to one run, which it describes, and to no other."""

import json
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_json, write_atomically

LOG = "metrics.jsonl"
RESULT = "result.json"


def claim(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Take the folder for this run; the result if it is already finished.

    Args:
        identity: ``settings`` and whatever else tells one run from another, as JSON.

    Raises:
        CurationError: the folder holds another run, or something else.
    """
    path = folder / "run.json"
    if path.exists():
        found = load_json(path)
        # through JSON, as the file went: tuples are lists there
        for key, value in identity.items():
            if digest_json(found.get(key)) != digest_json(value):
                what = _difference(found.get(key), value) if key == "settings" else f"other {key}"
                raise CurationError(f"{folder} holds a run with {what}; use another folder or delete it")
        if (folder / RESULT).exists():
            return load_json(folder / RESULT)
    # of several processes another may have written it meanwhile
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()) and not path.exists():
        raise CurationError(f"{folder} is not empty and holds no run; use another folder")
    save_json(path, identity)
    return None


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
        except (ValueError, KeyError):
            continue
    write_atomically(path, lambda stream: stream.write("".join(kept).encode()))
