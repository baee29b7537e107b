"""A mistyped -o must not cost a user what the command reads."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from foundation.errors import CurationError
from foundation.options import App, output_option, overwrite_option
from foundation.paths import require_apart

app = App()


@app.command()
def make(
    pool: str,
    settings: Annotated[list[str] | None, typer.Argument()] = None,
    *,
    output: Annotated[Path, output_option()],
    overwrite: Annotated[bool, overwrite_option()] = False,
) -> None:
    output.mkdir(exist_ok=True)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "x.npy").write_bytes(b"a year of work")
    (tmp_path / "link").symlink_to("pool")
    return tmp_path / "pool"


def test_a_place_that_cannot_be_written_is_refused_before_any_work(pool: Path):
    ended = CliRunner().invoke(app, ["pool", "-o", "pool/x.npy/out"])
    assert ended.exit_code == 2
    assert "cannot be made" in ended.output


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["pool", "-o", "pool"], True),
        (["pool", "-o", "./link/"], True),
        (["pool/x.npy", "-o", "link/x.npy"], True),
        (["other", "train=pool", "-o", "pool"], True),
        (["pool/x.npy", "-o", "pool", "--overwrite"], True),
        (["pool", "-o", "link/x.npy", "--overwrite"], True),
        (["pool", "-o", "pool/new", "--overwrite"], False),
        (["pool/x.npy", "-o", "pool"], False),
        (["pool", "-o", "pool/tree"], False),
        (["pool", "-o", "out", "--overwrite"], False),
        (["name/on-the-hub", "x=1e-3", "-o", "out"], False),
        (["a\0b", "-o", "out"], False),
    ],
)
def test_no_command_writes_where_it_reads(pool: Path, words: list[str], refused: bool):
    ended = CliRunner().invoke(app, words)
    if refused:
        assert isinstance(ended.exception, CurationError)
        assert "what is read" in str(ended.exception)
    else:
        assert ended.exit_code == 0, ended.output
    assert (pool / "x.npy").read_bytes() == b"a year of work"


def test_what_is_not_there_is_no_input(tmp_path: Path):
    require_apart(tmp_path / "out", ["", "7", tmp_path / "none", "x" * 5000], overwrite=True)
