"""What others wrote is checked before it is believed: a bent file costs a line, never a wrong result or a hang."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer

from foundation import files
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import (
    check_files,
    check_json,
    checksum,
    load_array,
    load_json,
    save_json,
    verify_checksums,
    write_atomically,
)
from foundation.locks import locked_folder
from foundation.options import number, number_type, seed_option, whole_numbers
from foundation.paths import inside, regular_file
from foundation.schema import check_content
from foundation.settings import Choices, Count, Range
from foundation.yaml_files import read_yaml_text

ROOT = Path(__file__).parents[2]


@dataclass
class Piece:
    file: str
    rows: Count
    note: str | None = None


@dataclass
class Content:
    pieces: list[Piece]
    counts: dict[str, Count]
    kind: Annotated[str, Choices("a", "b")] = "a"
    share: float = 0.5


GOOD: dict[str, Any] = {"pieces": [{"file": "x", "rows": 3, "more": 1}], "counts": {"x": 2}, "unknown": None}


def refused(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(CurationError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pieces": None}, "pieces = None; it must be a list"),
        ({"pieces": [{"file": "x"}]}, "has no 'pieces[0].rows'"),
        ({"pieces": [{"file": "x", "rows": 0}]}, "pieces[0].rows = 0; it must be at least 1"),
        ({"pieces": [{"file": "x", "rows": True}]}, "pieces[0].rows = True; it must be a whole number"),
        ({"pieces": [{"file": 3, "rows": 1}]}, "pieces[0].file = 3; it must be text"),
        ({"pieces": [{"file": "x", "rows": 1, "note": 2}]}, "pieces[0].note = 2; it must be text"),
        ({"counts": {"x": 1.5}}, "counts.x = 1.5; it must be a whole number"),
        ({"counts": {"x": 10**400}}, "counts.x = about 1e400; it must be a whole number of at most 1e+15"),
        ({"kind": "c"}, "kind = 'c'; it must be one of a, b"),
        ({"share": float("nan")}, "share = nan; it must be a finite number"),
        ({"share": "1"}, "share = '1'; it must be a number"),
    ],
)
def test_json_that_is_not_what_it_must_be_is_named(change: dict[str, Any], words: str):
    check_content(Content, GOOD, "f.json")
    assert words in refused(check_content, Content, {**GOOD, **change}, "f.json")


def test_a_sealed_file_shows_that_it_was_changed(tmp_path: Path):
    path = tmp_path / "a.json"
    save_json(path, {**GOOD, 3: (1, 2.5)}, seal=True)
    assert load_json(path, Content) == {**GOOD, "3": [1, 2.5]}
    path.write_text(path.read_text().replace('"x": 2', '"x": 3'))
    assert f"{path} was changed after it was written" in refused(load_json, path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{", b"\xff\xfe\x00", b"[1]", b"", b'{"a": ' + b"9" * 5000, b'{"a": 1, "a": 2}']
)
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    assert str(tmp_path / "a.json") in refused(load_json, tmp_path / "a.json")


def test_pipes_devices_sockets_and_folders_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    for name, what in (("pipe", "a pipe"), ("zero", "a device"), ("socket", "a socket"), (".", "a folder")):
        assert what in refused(regular_file, tmp_path / name)
        refused(load_array, tmp_path / name)
        refused(load_json, tmp_path / name)
    for name in ("loop", "none", "a" * 300, "a\0b"):
        refused(regular_file, tmp_path / name)
    listening.close()


def test_huge_json_is_refused_before_it_is_read(tmp_path: Path):
    """Libraries read a model's config.json of zeros for minutes, or all the memory."""
    with open(tmp_path / "config.json", "wb") as stream:
        stream.truncate(1 << 40)
    for read, path in ((load_json, tmp_path / "config.json"), (check_json, tmp_path)):
        assert "1099.5 GB, too many for JSON" in refused(read, path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", "..", 3, None, "a\0b", "link", "away/x"])
def test_a_path_that_leaves_its_folder(tmp_path: Path, name: object):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "x").touch()
    (folder / "link").symlink_to(tmp_path / "x")
    (folder / "away").symlink_to(tmp_path)
    (folder / "here").symlink_to(folder / "y")
    assert inside(folder, "sub/y", "f.json") == folder / "sub" / "y"
    assert inside(folder, "here", "f.json") == folder / "here"
    assert "f.json names" in refused(inside, folder, name, "f.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"(2, 5)", b"(-2,5)"), (b"(2, 5), }    ", b"(2000000,5),}"), (b"<f8", b"<f9"), (b"<f8", b"|O8"), (b"{'", b"['")],
)
def test_an_array_whose_header_lies(tmp_path: Path, old: bytes, new: bytes):
    np.save(tmp_path / "a.npy", np.ones((2, 5)))
    content = (tmp_path / "a.npy").read_bytes()
    assert old in content
    (tmp_path / "a.npy").write_bytes(content.replace(old, new))
    assert "not a whole .npy array" in refused(load_array, tmp_path / "a.npy", mmap=False)


def test_an_archive_named_as_an_array_is_told_apart(tmp_path: Path):
    with open(tmp_path / "a.npy", "wb") as stream:
        np.savez(stream, x=np.ones(3))
    assert ".npz archive" in refused(load_array, tmp_path / "a.npy")
    np.save(tmp_path / "empty.npy", np.ones((0, 4)))
    assert load_array(tmp_path / "empty.npy").shape == (0, 4)


def test_too_many_open_files_are_not_the_fault_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever reads "make it again" would cluster for a day."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    np.save(tmp_path / "x.npy", np.ones(3))
    monkeypatch.setattr(np, "load", full)
    with pytest.raises(OSError, match="Too many open files"):
        load_array(tmp_path / "x.npy")


def test_changed_bytes_are_found_and_unchanged_ones_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(1000))
    said, reads = checksum(path), []
    monkeypatch.setattr(files, "checksum", lambda path: reads.append(path) or checksum(path))
    for _ in range(3):
        check_files([(path, said), (tmp_path / "of unknown checksum", None)], "make it again")
    assert reads == [path]
    content = bytearray(1000)
    content[500] = 1
    time.sleep(0.01)
    path.write_bytes(content)
    assert f"{path} is not the file that was written" in refused(check_files, [(path, said)], "make it again")
    try:
        verify_checksums(False)
        check_files([(path, said)], "make it again")
    finally:
        verify_checksums(True)
    refused(check_files, [(tmp_path / "none", said)], "make it again")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1,2]\n" + "".join(f"{c}: &{c} [{','.join(['*' + b] * 9)}]\n" for b, c in pairwise("abcdefghi")),
        "a: &a [*a]",
        "a: " + "[" * 3000,
        "a: " + "[" * 3000 + "]" * 3000,
        "a: [",
        "x" * 5_000_000,
    ],
    ids=["bomb", "itself", "open", "deep", "broken", "huge"],
)
def test_yaml_that_would_not_end(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(text)
    started = time.monotonic()
    assert str(tmp_path / "a.yaml") in refused(read_yaml_text, tmp_path / "a.yaml")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "a: [{b: 1, b: 1}]\n"])
def test_a_key_that_yaml_says_twice_is_refused(tmp_path: Path, text: str):
    """A parser would take the last one unseen."""
    (tmp_path / "a.yaml").write_text(text)
    assert "twice" in refused(read_yaml_text, tmp_path / "a.yaml")


def test_yaml_with_an_ordinary_alias_is_read(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    assert "*a" in read_yaml_text(tmp_path / "a.yaml")


TRY = """
import sys
from foundation.locks import locked_folder
with locked_folder(sys.argv[1]):
    print("held", flush=True)
    {rest}
"""


def other_process(folder: Path, rest: str = "pass") -> list[str]:
    return [sys.executable, "-c", TRY.format(rest=rest), str(folder)]


def test_a_folder_belongs_to_one_process_until_that_is_gone(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    with locked_folder(folder):
        with locked_folder(folder):  # the same process may
            pass
        done = subprocess.run(other_process(folder), cwd=ROOT, capture_output=True, text=True)
        assert f"{folder} is in use by process {os.getpid()} on " in done.stderr
        (folder / "result").touch()
    assert sorted(path.name for path in folder.iterdir()) == ["result"]
    killed = subprocess.Popen(other_process(folder, "sys.stdin.read()"), cwd=ROOT, stdin=-1, stdout=-1, text=True)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "held\n"
    assert f"in use by process {killed.pid} on " in refused(locked_folder(folder).__enter__)
    killed.kill()
    killed.wait()
    with locked_folder(folder):
        pass


def test_a_folder_that_stayed_empty_is_gone_again(tmp_path: Path):
    with pytest.raises(CurationError, match="wrong"), locked_folder(tmp_path / "a" / "b"):
        raise CurationError("wrong")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    assert "a file is in its way" in refused(locked_folder(tmp_path / "file" / "x").__enter__)
    assert "a file is in its way" in refused(locked_folder(tmp_path / "file").__enter__)
    (tmp_path / ".lock").symlink_to("file")  # somebody planted it: what it leads to stays as it is
    assert f"{tmp_path}/.lock cannot be written" in refused(locked_folder(tmp_path).__enter__)
    assert (tmp_path / "file").read_bytes() == b""


def test_numbers_of_a_command_have_ranges(capsys: pytest.CaptureFixture[str]):
    app, seen = typer.Typer(), []

    @app.command()
    def command(
        size: Annotated[int, number("Rows.", ge=1)],
        share: Annotated[float | None, number("Share.", "--share", "-s", ge=0, le=1)] = None,
        seed: Annotated[int, seed_option()] = 0,
    ) -> None:
        seen.append((size, share, seed))

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run_command("x", lambda: app(list(words), prog_name="x", standalone_mode=False))
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    run_command("x", lambda: app(["--size", "3", "-s", "0.5"], prog_name="x", standalone_mode=False))
    assert seen == [(3, 0.5, 0)]
    assert "--size is 0; it must be at least 1" in run("--size", "0")
    assert "--size is about 1e40; it must be a whole number" in run("--size", str(10**40))
    assert "--share is nan; it must be at least 0 and at most 1" in run("--size", "1", "--share", "nan")
    assert "--seed is 4294967296; it must be at least 0 and at most 4294967295" in run(
        "--size", "1", "--seed", str(2**32)
    )
    assert "--seed is -1" in run("--size", "1", "--seed=-1")
    assert whole_numbers("0,10", "--k", Range(ge=0)) == [0, 10]
    assert "--k is -1" in refused(whole_numbers, "0,-1", "--k", Range(ge=0))
    assert "is not a number or a list" in refused(whole_numbers, "inf", "--k", Range(ge=0))
    assert number_type(int, ge=1)("3") == 3
    with pytest.raises(Exception, match="at least 1"):
        number_type(int, ge=1)("0")


def test_a_broken_library_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import pyarrow.parquet as pq
    from safetensors import safe_open

    for suffix, read in ((".parquet", pq.read_table), (".safetensors", lambda path: safe_open(path, "np"))):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(json.dumps({}).encode() * 10)
        with pytest.raises(SystemExit):
            run_command("x", lambda read=read, path=path: read(path))
        assert capsys.readouterr().err.startswith("x: error: ")


def test_a_pipe_among_files_with_checksums_is_no_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in refused(check_files, [(tmp_path / "pipe", "00")], "make it again")
    assert "a pipe" in refused(checksum, tmp_path / "pipe")


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'.encode("utf-16"), b'{"a": "\xff"}'])
def test_json_of_another_encoding_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CurationError, match="cannot be read as JSON"):
        load_json(tmp_path / "a.json")


def test_a_file_never_takes_the_place_of_what_is_no_file(tmp_path: Path):
    """As root, -o /dev/full would replace the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "pipe", tmp_path / "folder", Path(".")):
        with pytest.raises(CurationError, match="is a"):
            write_atomically(place, lambda stream: stream.write(b"x"))
    assert (tmp_path / "pipe").is_fifo()
