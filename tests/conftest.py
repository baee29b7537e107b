"""Fixtures of several rooms: quick processes, a browser that opens the pages we write, and a SLURM."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.append(str(Path(__file__).parent))
from warm import Server

# the same draws every time: a test that fails by chance tells nobody what changed
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# the slowest files, the slowest first: two processes that take a file each end together only if none is left for last
SLOWEST = (
    "experiments/test_experiment.py",
    "curation/test_group.py",
    "hostile/test_curate.py",
    "curation/test_kmeans.py",
    "experiments/test_text.py",
    "benchmarks/test_edges.py",
    "pretrain/test_train.py",
    "pretrain/test_cli.py",
    "hostile/test_trainers.py",
    "experiments/test_web_images.py",
    "experiments/test_processes.py",
    "experiments/test_satellite.py",
    "experiments/test_simulated.py",
    "satellite/test_model.py",
    "pretrain/test_backbones.py",
    "eval/test_language.py",
    "hostile/test_eval.py",
    "curation/test_cli.py",
    "eval/test_run.py",
    "curation/test_hierarchy.py",
    "curation/test_community_tree.py",
    "satellite/test_infer.py",
    "foundation/test_command.py",
    "benchmarks/test_gpu.py",
    "pretrain/test_schedules.py",
)
SLURM = Path(__file__).parent / "slurm.sh"


def pytest_configure(config: pytest.Config) -> None:
    """What libraries and daemons leave in the folder for temporary files goes with the run; pytest's own stays."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    place = tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = place.name
    config.add_cleanup(place.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; the order within a file stays."""
    place = {name: number for number, name in enumerate(SLOWEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(root).as_posix(), len(SLOWEST)))


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A test that lets torch compute with more threads does not leave them to the next: beside another process each
    waits for the other's, ten times slower."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts Python processes whose imports are done already."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium, with its console log kept."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        assert not os.environ.get("CI"), "continuous integration must have chromium"
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def assert_opens(browser: Any) -> Any:
    """Open a page: every picture loads, the console stays empty, and a phone does not scroll sideways."""

    def check(path: Path) -> Any:
        browser.get(f"file://{path}")
        images = browser.find_elements("tag name", "img")
        assert all(browser.execute_script("return arguments[0].naturalWidth", image) > 0 for image in images)
        assert browser.get_log("browser") == []
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        browser.set_window_size(420, 900)
        assert browser.execute_script(overflow) <= 0, "the page must not scroll sideways on a phone"
        return browser

    return check


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which sbatch talks to the test cluster."""
    if not all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")) or os.geteuid() != 0:
        pytest.skip("SLURM is not installed (apt install slurm-wlm munge), or this user is not root")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    started = subprocess.run(["sh", str(SLURM), "start", str(folder)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run(["sh", str(SLURM), "stop", str(folder)], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
