"""Where a result came from: commit, versions, device."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# every room that can change a number: a change elsewhere (docs, tests, scripts) does not make a result dirty
WATCHED = ["foundation", "curation", "training", "pretrain", "text_lm", "satellite", "eval", "experiments", "configs"]
PACKAGES = ("torch", "numpy", "numba", "scipy", "scikit-learn")


def commit() -> str:
    """Commit of the repository, "-dirty" where code that decides results differs from it; "unknown" outside a clone."""
    if not (ROOT / ".git").exists():  # an installed copy, which may lie within a repository of another project
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", *WATCHED], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found}-dirty" if changed else found


def processor() -> str:
    """Name of the CPU, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Commit, Python and package versions, device and threads, as JSON."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    where = f"{processor()}, {threads} threads" if device == "cpu" else device
    return {"commit": commit(), "device": where, "versions": versions}
