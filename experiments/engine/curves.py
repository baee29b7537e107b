"""Learning curves: a JSON line for each logged step, cut back to the checkpoint when training goes on after a kill."""

import json
from pathlib import Path

from foundation.files import write_atomically


def append_point(path: Path, step: int, metrics: dict[str, float]) -> None:
    """Add one line; ``step`` counts finished optimiser steps."""
    with open(path, "a") as stream:
        stream.write(json.dumps({"step": step, **metrics}) + "\n")


def read_curve(path: Path) -> list[dict[str, float]]:
    """All whole lines, in order; a line cut by a kill is left out; no file is an empty curve."""
    if not path.exists():
        return []
    points = []
    for line in path.read_text().splitlines():
        try:
            points.append(json.loads(line))
        except ValueError:
            continue
    return points


def cut_curve(path: Path, step: int) -> None:
    """Drop the points after ``step``, where training goes on."""
    if path.exists():
        kept = [point for point in read_curve(path) if point["step"] <= step]
        text = "".join(json.dumps(point) + "\n" for point in kept)
        write_atomically(path, lambda stream: stream.write(text.encode()))
