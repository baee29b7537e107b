"""Files: a reader must see the old content or the new, never half of it, and no rubbish may stay behind."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import CurationError
from foundation.files import load_array, load_json, save_array, save_json, whole_file, whole_folder
from foundation.locks import HOST, locked_folder


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug"), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").write_text("old")
    (tmp_path / "file").write_text("old")
    wanted = CurationError if isinstance(error, OSError) else type(error)
    for write in (_write_file, _write_folder):
        with pytest.raises(wanted):
            write(tmp_path, error)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"file", "model", "model/old"}
    assert (tmp_path / "file").read_text() == "old"


def _write_file(folder: Path, error: BaseException) -> None:
    with whole_file(folder / "file") as path:
        path.write_text("new")
        raise error


def _write_folder(folder: Path, error: BaseException) -> None:
    with whole_folder(folder / "model") as fresh:
        (fresh / "new").write_text("new")
        raise error


def test_a_finished_write_takes_the_place_of_the_old(tmp_path: Path):
    for content in ("first", "second"):
        with whole_file(tmp_path / "deep/file") as path:
            path.write_text(content)
        with whole_folder(tmp_path / "deep/model") as folder:
            (folder / content).write_text(content)
        assert (tmp_path / "deep/file").read_text() == content
        assert [path.name for path in (tmp_path / "deep/model").iterdir()] == [content]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["file", "model"]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path):
    """Else a corpus that is killed while it is cut fills the disk; other hosts have other processes."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    running, elsewhere = f".file.1-{HOST}.tmp", f".file.{gone.pid}-00000000.tmp"
    other = f".other.{gone.pid}-{HOST}.tmp"
    for name in (running, elsewhere, other, f".file.{gone.pid}-{HOST}.tmp"):
        (tmp_path / name).touch()
    save_json(tmp_path / "file", {})
    assert {path.name for path in tmp_path.iterdir()} == {"file", running, elsewhere, other}
    with locked_folder(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"file", running, elsewhere, ".lock"}


def test_what_cannot_be_written_is_one_line_with_the_path(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for write in (lambda: save_json(tmp_path / "file/x.json", {}), lambda: _folder(tmp_path / "file/x")):
        with pytest.raises(CurationError, match=r"(cannot write .*file/x|file/.*a file is in its way)") as caught:
            write()
        assert "\n" not in str(caught.value)


def _folder(path: Path) -> None:
    with whole_folder(path):
        pass


def test_truncated_files_are_refused(tmp_path: Path):
    save_array(tmp_path / "x.npy", np.arange(1000))
    save_json(tmp_path / "x.json", {"a": 1})
    for name, load in (("x.npy", load_array), ("x.json", load_json)):
        load(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CurationError, match="make it again"):
            load(tmp_path / name)
        with pytest.raises(CurationError, match="does not exist"):
            load(tmp_path / f"no {name}")
