"""What an experiment says of a claim: effect with interval, power, verdict, from the values of its seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.engine.arms import BASE_ARM, ORACLE
from experiments.engine.compare import Row, Summary, summarise
from foundation.errors import CurationError
from foundation.files import load_json, write_atomically
from foundation.intervals import TOO_FEW

ENOUGH = 3.0  # standard deviations of the paired difference that true labels must gain before a method is judged
HOLDS, FAILS, CANNOT = "holds", "does not hold", "cannot be told here"


def power(differences: Float[np.ndarray, "n"]) -> float:
    """Size of the mean paired difference in standard deviations of one pair; NaN for fewer than three pairs."""
    x = np.asarray(differences, np.float64)
    if len(x) < 3:
        return float("nan")
    spread = float(x.std(ddof=1))
    return abs(float(x.mean())) / spread if spread else float("inf")


def paired(rows: Sequence[Row], arm: str, metric: str, base: str = BASE_ARM) -> dict[int, float]:
    """Seed -> value of the arm minus that of the base, where both are there."""
    values = {(row.arm, row.seed): row.value for row in rows if row.metric == metric}
    seeds = sorted(seed for name, seed in values if name == arm and (base, seed) in values)
    return {seed: values[arm, seed] - values[base, seed] for seed in seeds}


@dataclass(frozen=True)
class Claim:
    """What an experiment says of one claim.

    Attributes:
        effect: the arm against the base.
        power: of true labels against the base: could this experiment have told? NaN: there is no such arm.
        verdict: `HOLDS`, `FAILS` or `CANNOT`.
    """

    effect: Summary
    power: float
    verdict: str


def judge_claim(
    rows: Sequence[Row], arm: str, metric: str, better: str, base: str = BASE_ARM, oracle: str = ORACLE
) -> Claim:
    """Effect of an arm against the base, power of the experiment, and verdict.

    The power is asked first: where true labels gain less than `ENOUGH` standard deviations of the paired difference (or
    lose), no method is judged.

    Raises:
        CurationError: no seed has both the arm and the base.
    """
    found = [item for item in summarise(rows, {metric: better}, base) if item.arm == arm]
    if not found or not found[0].pairs:
        raise CurationError(f"no seed has {metric} of both {arm} and {base}; run these arms on the same seeds")
    gains = np.asarray(list(paired(rows, oracle, metric, base).values()))
    strength = power(gains)
    helps = len(gains) > 0 and (gains.mean() > 0) == (better == "higher")
    told = helps and strength >= ENOUGH and found[0].verdict != TOO_FEW
    verdict = (HOLDS if found[0].verdict == "better" else FAILS) if told else CANNOT
    return Claim(found[0], strength, verdict)


def compact(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Values as metric -> arm -> seed -> value, small enough to stand beside the page; `read_values` reads it."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        values.setdefault(row.metric, {}).setdefault(row.arm, {})[str(row.seed)] = round(row.value, 6)
    return {**about, "values": values}


def save_compact(path: Path, content: dict[str, Any]) -> None:
    """One line an arm: a difference between two versions of it can be read."""
    head = json.dumps({key: value for key, value in content.items() if key != "values"}, indent=1)[:-2]
    metrics = []
    for metric, arms in content["values"].items():
        lines = ",\n".join(f"   {json.dumps(arm)}: {json.dumps(seeds)}" for arm, seeds in arms.items())
        metrics.append(f"  {json.dumps(metric)}: {{\n{lines}\n  }}")
    text = head + ',\n "values": {\n' + ",\n".join(metrics) + "\n }\n}\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_values(path: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """Values of ``metrics.json`` of a run folder or of `compact`, and the rest of the file.

    Raises:
        CurationError: neither of these.
    """
    content = load_json(Path(path))
    values = content.pop("values", None)
    if isinstance(values, list):
        return [Row(**item) for item in values], content
    if not isinstance(values, dict):
        raise CurationError(f"{path} holds no values; give metrics.json of a run folder, or a page's .json")
    rows = [
        Row(arm, int(seed), metric, value)
        for metric, arms in values.items()
        for arm, seeds in arms.items()
        for seed, value in seeds.items()
    ]
    return rows, content
