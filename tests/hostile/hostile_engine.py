"""Bent settings and files for any command: it must succeed with a valid result, or say one line; and it must end.

A table of commands (`Command`) is all that a room adds; see ``test_curate.py``.
"""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATIENCE = 120  # seconds until a command hangs: 30 on a machine of its own
FIRST = 120  # of the first call of a command, which imports and compiles
SHARE = "CURATED_SSL_HOSTILE"  # environment variable: 0.2 draws a fifth of the examples, and new ones
_called: set[tuple[str, str]] = set()
INTEGERS = (-1, 0, 1, 2, 3, 7, 1000, 2**31, 2**32, 2**63, -(2**63), 10**30)
NUMBERS = st.one_of(
    st.sampled_from([*map(str, INTEGERS), "nan", "inf", "-inf", "1e300", "-1e300", "1e-320", "0.5", "-0.5", "1.5"]),
    st.sampled_from(["", " ", "abc", "1e3", "0x10", "1_000", "1,2", "1,,2", "true", "None", "*", "{}", "[1]", "3\n"]),
    st.integers(-100, 2000).map(str),
    st.floats(-10, 10).map(str),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [*INTEGERS, float("nan"), 1.5, "", "../x", "/etc/passwd", "x" * 300, "a\0b", [], {}, [[]], [1], {"a": 1}]
    ),
    st.integers(-5, 400),
    st.text(max_size=5),
)


class Hangs(BaseException):
    """Of the alarm: no command may catch it."""


@dataclass(frozen=True)
class Command:
    """A call that succeeds, and what may be bent of it.

    Attributes:
        main: module whose ``main`` takes the words; of curate they stand in ``sys.argv``.
        words: of the good call, relative to the folder it runs in.
        numbers: options that take a number, with their mark: "--size=" or "batch_size=".
        files: that the call reads, and that may be bent.
        writes: files and folders that are removed before every call.
        valid: raises where what an exit code 0 left behind is not a result.
    """

    main: str
    words: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("out",)
    valid: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Ended:
    """How a call ended: exit code, and what stood on stderr."""

    code: int
    err: str
    seconds: float


class Hostile:
    """Calls commands in a folder of their own, a copy of ``world``."""

    def __init__(self, world: Path, work: Path):
        self.world, self.work = world, work

    def fresh(self, command: Command) -> None:
        """The files of the command as they were, and nothing that a call wrote."""
        for name in {*command.writes, *(name.split("/")[0] for name in command.files)}:
            path = self.work / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in self.world.iterdir():
            if path.is_dir():
                shutil.copytree(path, self.work / path.name, dirs_exist_ok=True, symlinks=True)
            elif not (self.work / path.name).exists():
                shutil.copy2(path, self.work / path.name)

    def call(self, command: Command, words: tuple[str, ...]) -> Ended:
        """Run in this process, where a hang is ended by an alarm."""

        def stop(*_: object) -> None:
            raise Hangs

        main = importlib.import_module(command.main).main
        argv, here, before = sys.argv, Path.cwd(), signal.signal(signal.SIGALRM, stop)
        out, err, code, started = io.StringIO(), io.StringIO(), 0, time.monotonic()
        sys.argv = ["x", *words]
        os.chdir(self.work)
        kind = (command.main, words[0])
        patience = PATIENCE if kind in _called else FIRST
        _called.add(kind)
        signal.alarm(patience)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main(list(words))
                except SystemExit as stopped:
                    code = int(stopped.code or 0)
                except Exception:
                    code = 1
                    traceback.print_exc()
        except Hangs:
            pytest.fail(f"still running after {patience} s: {' '.join(words)}")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.chdir(here)
            sys.argv = argv
        return Ended(code, err.getvalue(), time.monotonic() - started)

    def check(self, command: Command, words: tuple[str, ...], about: str) -> Ended:
        """The property: a valid result, or one line and exit code 2; and then the good call works."""
        ended = self.call(command, words)
        lines = [line for line in ended.err.splitlines() if ": error: " in line]
        assert "Traceback" not in ended.err, f"{about}\n{ended.err[-3000:]}"
        assert ended.code in (0, 2), f"{about}: exit code {ended.code}\n{ended.err[-1000:]}"
        if ended.code == 2:
            assert len(lines) == 1, f"{about}\n{ended.err}"
            assert ended.err.endswith(lines[0] + "\n"), f"{about}\n{ended.err}"
            assert len(lines[0]) < 1000, f"{about}: {lines[0]}"
            self.restore(command)
            good = self.call(command, command.words)
            assert good.code == 0, f"after {about} ({lines[0]}) the corrected command fails:\n{good.err}"
        else:
            command.valid(self.work)
        return ended

    def restore(self, command: Command) -> None:
        """The files that the command reads; what a failed call wrote stays, for it must not stand in the way."""
        for name in command.files:
            path = self.work / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.world / name, path)

    def bend_settings(self, command: Command, data: st.DataObject) -> None:
        """One or two numbers of the call are something else."""
        self.fresh(command)
        some = st.lists(st.sampled_from(command.numbers), min_size=1, max_size=2, unique=True)
        bent = tuple(name + data.draw(NUMBERS, label=name) for name in data.draw(some, label="options"))
        kept = [word for word in command.words if not word.startswith(tuple(word.split("=")[0] + "=" for word in bent))]
        self.check(command, (*kept, *bent), " ".join(bent))

    def bend_file(self, command: Command, data: st.DataObject) -> None:
        """One file is damaged, is something else, or is JSON with other content."""
        self.fresh(command)
        name = data.draw(st.sampled_from(command.files), label="file")
        about = f"{name}: {bend(self.work / name, data)}"
        self.check(command, command.words, about)


def bend(path: Path, data: st.DataObject) -> str:
    """Do something to a file; says what."""
    kinds = ["flip", "cut", "empty", "more", "pipe", "device", "folder", "gone", "loop", "noise"]
    kind = data.draw(st.sampled_from([*kinds, *(["json"] * 10 if path.suffix == ".json" else [])]), label="how")
    content = path.read_bytes()
    if kind == "json":
        return bend_json(path, data)
    if kind == "flip":
        at = data.draw(st.integers(0, len(content) - 1), label="byte")
        bits = data.draw(st.integers(1, 255), label="bits")
        path.write_bytes(content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :])
        return f"byte {at} ^ {bits}"
    if kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="bytes")])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "more":
        path.write_bytes(content * 2)
    elif kind == "noise":
        path.write_bytes(data.draw(st.binary(max_size=200), label="bytes"))
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind in ("device", "loop"):
            path.symlink_to("/dev/zero" if kind == "device" else path.name)
    return kind


def bend_json(path: Path, data: st.DataObject) -> str:
    """Drop or replace a value somewhere in JSON; its seal is made to fit, or taken away."""
    from foundation.files import SEAL, digest_json

    content = json.loads(path.read_text())
    content.pop(SEAL, None)
    node: Any = content
    where = []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys), label="key")
        where.append(key)
        if not isinstance(node[key], dict | list) or not node[key] or not data.draw(st.booleans(), label="deeper"):
            break
        node = node[key]
    if data.draw(st.booleans(), label="drop"):
        del node[key]
        said = f"{where} dropped"
    else:
        node[key] = data.draw(VALUES, label="value")
        said = f"{where} = {node[key]!r}"
    if data.draw(st.booleans(), label="seal"):
        content[SEAL] = digest_json(json.loads(json.dumps(content)))
    path.write_text(json.dumps(content))
    return said


def bend_calls(commands: Mapping[str, Command], n: int, method: str) -> Any:
    """A property test of n draws: (hostile, name of a command) -> None; method: "bend_settings" or "bend_file"."""

    @few(n)
    @given(data=st.data())
    def run(hostile: Hostile, name: str, data: st.DataObject) -> None:
        getattr(hostile, method)(commands[name], data)

    return run


def few(n: int) -> Any:
    """Hypothesis with so many examples, the same in every run; with `SHARE` that part of them, and new ones."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    share = os.environ.get(SHARE)
    n = n if share is None else max(1, round(n * float(share)))
    return settings(
        max_examples=n, deadline=None, derandomize=share is None, suppress_health_check=checks, database=None
    )
