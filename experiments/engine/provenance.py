"""Where a result came from: commit, versions, device."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# every room that can change a number: a change elsewhere (docs, tests, scripts) does not make a result dirty
WATCHED = [
    "foundation",
    "curation",
    "training",
    "pretrain",
    "text_lm",
    "satellite",
    "eval",
    "experiments",
    "benchmarks",
    "configs",
]
PACKAGES = ("torch", "numpy", "numba", "scipy", "scikit-learn")


def commit() -> tuple[str, list[str]]:
    """Commit of the repository, and the files that decide results and differ from it.

    Where there are such files the commit ends in "-dirty"; outside a clone it is "unknown".
    """
    if not (ROOT / ".git").exists():  # an installed copy, which may lie within a repository of another project
        return "unknown", []
    try:
        found = _git("rev-parse", "--short=10", "HEAD").strip()
        changed = [line[3:] for line in _git("status", "--porcelain", "--", *WATCHED).splitlines()]
    except (OSError, subprocess.CalledProcessError):
        return "unknown", []
    return (f"{found}-dirty" if changed else found), changed


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def commits_of(made: Sequence[dict[str, Any]]) -> str:
    """Commits behind results, for a page; files that differed from a commit are named."""
    commits = ", ".join(sorted({item["commit"] for item in made}))
    changed = sorted({file for item in made for file in item.get("changed", [])})
    return f"{commits} with changes of {', '.join(changed)}" if changed else commits


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
    """Commit with the files that differ from it, Python and package versions, device and threads, as JSON."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    where = f"{processor()}, {threads} threads" if device == "cpu" else device
    found, changed = commit()
    return {"commit": found, "changed": changed, "device": where, "versions": versions}
