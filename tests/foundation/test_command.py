"""How commands end: a user should read one line, and a script should be able to tell why a command failed."""

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tqdm import tqdm
from warm import Server

from curation import HierarchicalKMeans
from foundation.command import EXTRAS, explain, run_command
from foundation.errors import CurationError

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "curate": ("curation.cli", ["cluster", "{none}", "-o", "{out}", "--levels", "2"]),
    "pretrain": ("pretrain.cli", ["train", "{none}", "-o", "{out}"]),
    "text_lm": ("text_lm.cli", ["tokenise", "{none}", "-o", "{out}"]),
    "satellite": ("satellite.cli", ["tiles", "{none}", "-o", "{out}"]),
    "eval": ("eval.cli", ["knn", "model={none}", "train={none}", "-o", "{out}"]),
}


def call(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    given = {"capture_output": True, "text": True, "cwd": ROOT, **options}
    return subprocess.run([sys.executable, *map(str, words)], **given)  # type: ignore[call-overload]


def ended(name: str, error: BaseException | int | None) -> int | None:
    """Exit code of a command whose body raises or returns this."""

    def body() -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    try:
        run_command(name, body)
    except SystemExit as stop:
        return int(stop.code or 0)
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_a_mistake_with_one_line_of_its_own_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    module, words = COMMANDS[name]
    places = {"none": tmp_path / "nothing here", "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main([word.format(**places) for word in words])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith(f"{name}: error: ")
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CurationError("row 3\nis bad"), "row 3 is bad"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.npy"), "No such file or directory (x.npy)"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out"), "No space left on device (out)"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space is left where the output goes (Disk quota"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "Tried to allocate 2.00"),
        (MemoryError("Unable to allocate 7 TiB"), "out of memory (Unable to allocate 7 TiB)"),
        (RuntimeError("No CUDA GPUs are available"), "the device cannot be used here"),
        (ImportError("libGL.so.1: cannot open shared object file"), "a library cannot be loaded (libGL.so.1"),
        (ModuleNotFoundError("No module", name="lightning.pytorch"), "pip install 'curated-ssl[train]'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]):
    assert ended("name", error) == 2
    said = capsys.readouterr().err
    assert said.startswith("name: error: ")
    assert words in said
    assert said.count("\n") == 1


def test_what_torch_and_numpy_really_raise_is_understood():
    with pytest.raises(RuntimeError) as no_memory:
        torch.empty(1 << 50)
    assert "out of memory" in (explain(no_memory.value) or "")
    with pytest.raises(MemoryError) as too_large:
        np.empty(1 << 58, np.uint8)
    assert "out of memory" in (explain(too_large.value) or "")
    with pytest.raises(RuntimeError) as no_device:
        torch.device("abacus")
    assert "cannot be used" in (explain(no_device.value) or "")


def test_what_is_missing_names_the_extra_that_brings_all_the_command_needs():
    lightning = ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch")
    assert "curated-ssl[train]" in (explain(lightning) or "")
    assert "curated-ssl[satellite]" in (explain(lightning, "satellite") or "")
    # the extra of the command does not bring it
    assert "curated-ssl[filters]" in (explain(ModuleNotFoundError(name="imagehash"), "satellite") or "")
    assert explain(ModuleNotFoundError(name="foundation.nothing")) is None


def test_the_extras_that_messages_name_bring_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        found = set()
        for line in extras[extra]:
            name, inside = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", line).groups()  # type: ignore[union-attr]
            found |= (
                set().union(*map(brought, inside.split(","))) if name == "curated-ssl" else {name.replace("-", "_")}
            )
        return found

    for package, named in EXTRAS.items():
        bring = {extra for extra in extras if extra not in ("dev", "gpu") and package in brought(extra)}
        assert set(named) == bring
        assert len(brought(named[0])) == min(len(brought(extra)) for extra in bring), f"{package}: the smallest first"


def test_a_mistake_with_a_huge_name_stays_a_line_that_can_be_read():
    line = explain(CurationError(f"{'x' * 5000}.npy cannot be read (File name too long); give a regular file"))
    assert line is not None
    assert len(line) < 620
    assert line.endswith("(File name too long); give a regular file")


def test_a_variable_of_torchrun_that_is_no_number_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Lightning fails on it while it is imported."""
    monkeypatch.setenv("LOCAL_RANK", "abc")
    with pytest.raises(SystemExit) as stopped:
        run_command("x", lambda: None)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "x: error: the variable LOCAL_RANK is 'abc', no whole number; unset it\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError, match="a bug"):
        run_command("name", partial(_raise, TypeError("a bug")))


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("managed", [False, True])
def test_an_interruption_is_said_on_a_line_of_its_own_and_not_within_a_bar(
    managed: bool, capsys: pytest.CaptureFixture[str]
):
    def body() -> None:
        bar = tqdm(range(9), file=sys.stderr, ncols=60, mininterval=0)
        with bar if managed else nullcontext():
            for number in bar:
                if number == 4:
                    os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        run_command("x", body)
    *_earlier, bar, blank, last = capsys.readouterr().err.split("\r")
    assert "/9" in bar
    assert not blank.strip(), "the bar is still there"
    assert last == "x: interrupted; run the same command again to go on\n"


def test_interruption_and_codes_of_the_body(capsys: pytest.CaptureFixture[str]):
    assert ended("name", KeyboardInterrupt()) == 130
    assert ended("name", 130) == 130  # typer's answer to Ctrl-C
    assert capsys.readouterr().err == "name: interrupted; run the same command again to go on\n" * 2
    assert ended("name", 143) == 143
    assert ended("name", 0) is None
    assert ended("name", None) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("curate", ["cluster", "{x}", "-o", "{out}", "--levels", "2", "--tolerance", "nan"]),
        ("curate", ["cluster", "{x}", "-o", "{out}", "--levels", "2", "--seed", "-1"]),
        ("curate", ["embed", "{x}", "-o", "{out}", "--batch-size", "0"]),
        ("text_lm", ["perplexity", "{x}", "{x}", "--stride", "0"]),
        ("pretrain", ["train", "{x}", "-o", "{out}", "seed=-1"]),
        ("satellite", ["tiles", "{x}", "-o", "{out}.parquet", "--size", "0"]),
        ("eval", ["knn", "model={x}", "train={x}", "batch_size=0", "-o", "{out}"]),
    ],
)
def test_a_senseless_number_is_one_line_that_names_it(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    places = {"x": tmp_path / "x.npy", "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(COMMANDS[name][0]).main([word.format(**places) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1
    assert any(setting in said for setting in ("tolerance", "seed", "batch", "stride", "size")), said
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_is_one_line_that_names_the_help(capsys: pytest.CaptureFixture[str]):
    app = typer.Typer()

    @app.command()
    def plain(size: int = 3) -> None: ...

    for words in (["--sise", "3"], ["--size", "three"]):
        body = partial(app, args=words, prog_name="plain", standalone_mode=False)
        with pytest.raises(SystemExit) as stop:
            run_command("plain", body)
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("plain: error: ")
        assert said.endswith("; see plain --help\n")
        assert said.count("\n") == 1


def test_no_command_at_all_is_a_line_that_says_so(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("curation.cli").main([])
    assert (stop.value.code, capsys.readouterr().err) == (2, "curate: error: no command is given; see curate --help\n")


def test_ctrl_c_in_the_middle_of_a_command(tmp_path: Path, warm: Server):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50_000, 64)).astype(np.float32))
    words = ["-m", "curation", "cluster", tmp_path / "x.npy", "-o", tmp_path / "t", "--levels", "5000,100"]
    process = warm.start(*words, cwd=ROOT)
    while not (tmp_path / "t").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for _press in range(20):  # Python forgets one that comes while it frees an object or calls back from C
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            _, said = process.communicate(timeout=5)
            break
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "curate: interrupted; run the same command again to go on"
    assert "Traceback" not in said


def test_ctrl_c_that_python_swallows_is_not_lost(capsys: pytest.CaptureFixture):
    class Freed:
        def __del__(self):
            raise KeyboardInterrupt  # as when the signal comes while the object is freed

    def body() -> None:
        thing = Freed()
        del thing
        for _ in range(1000):
            time.sleep(0.01)

    with pytest.raises(SystemExit) as ended:
        run_command("x", body)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "x: interrupted; run the same command again to go on\n"


def test_a_reader_that_goes_away_is_no_error():
    body = "from foundation.command import run_command; run_command('x', lambda: print('y\\n' * 10**6))"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{body}" | head -1'], cwd=ROOT, capture_output=True)
    assert done.stdout == b"y\n"
    assert not done.stderr


def test_a_full_disk_is_one_line(tmp_path: Path, warm: Server):
    """A limit on the size of files stands in for the disk."""
    x = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    HierarchicalKMeans([50], progress=False).fit(x)  # fills numba's cache, whose files the limit would cut first
    np.save(tmp_path / "x.npy", x)
    code = "import resource, curation.cli; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); curation.cli.main()"
    done = warm.run("-c", code, "cluster", tmp_path / "x.npy", "-o", tmp_path / "t", "--levels", "50", cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("curate: error: cannot write ")
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_too_small_names_the_settings_to_lower():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    line = explain(error)
    assert line is not None
    assert "Tried to allocate 2.00 GiB" in line
    assert "79 GiB" not in line
    assert all(word in line for word in ("speed.micro_batch_size", "--batch-size", "checkpoint_activations=true"))


def test_a_full_disk_under_a_library_in_rust_is_one_line():
    assert "No space left" in (explain(Exception("No space left on device (os error 28)")) or "")


def test_a_progress_bar_that_an_error_left_open_ends_before_its_line(capfd: pytest.CaptureFixture[str]):
    """The line of the error began within that of the bar, and the bar was drawn once more behind it."""
    from tqdm import tqdm

    def body() -> None:
        for _ in tqdm(range(3), mininterval=0, miniters=1):
            raise CurationError("the second picture is none")

    with pytest.raises(SystemExit):
        run_command("x", body)
    err = capfd.readouterr().err
    assert err.endswith("\nx: error: the second picture is none\n"), err


def test_bars_that_no_terminal_shows_speak_rarely(warm: Server):
    code = """
import time
from datasets.utils import tqdm
from foundation.command import run_command
run_command("it", lambda: [time.sleep(0.01) for _ in tqdm(range(50))] and None)
"""
    said = warm.run("-c", code).stderr
    assert 1 <= said.count("/50") <= 3, said
