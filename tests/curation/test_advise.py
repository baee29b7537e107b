"""Advice: a command that fails when typed, or advice worse than the default, costs the user a run."""

import json
import shlex
import sys

import numpy as np
import pytest

from curation import CurationError
from curation.advise import advise
from curation.cli import main


def rows(n: int = 2000, dim: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def value(advice, name: str) -> float:
    return next(item.value for item in advice.evidence if item.name == name)


def test_many_dimensions_get_angles_and_auto():
    advice = advise(rows() * np.random.default_rng(1).lognormal(size=(2000, 1)).astype(np.float32), 500)
    assert (advice.metric, advice.levels, advice.resamples, advice.dedup) == ("cosine", "auto", 0, False)
    assert value(advice, "spread of lengths") > 0.5
    assert advice.commands[-2:] == [
        "curate cluster embeddings/ -o tree/ --metric cosine --levels auto",
        "curate sample tree/ -o subset/ --size 500",
    ]


def test_a_plane_gets_the_levels_of_the_paper():
    advice = advise(rows(5000, 2), 500)
    assert (advice.metric, advice.levels, advice.resamples) == ("l2", [200, 62, 20], 10)
    assert value(advice, "intrinsic dimension") == pytest.approx(2, rel=0.2)
    assert "--levels 200,62,20 --resamples 10" in advice.commands[-2]
    assert advise(rows(300, 2), 30).levels == "auto"  # too few rows for such levels


def test_copies_bad_rows_and_a_common_direction_are_seen():
    x = rows()
    x[1000:1400] = x[:400] + 1e-4
    x[1999] = np.nan
    x += 10
    advice = advise(x, 1500)
    assert advice.dedup
    assert value(advice, "near-duplicates") == pytest.approx(0.2, abs=0.02)
    assert value(advice, "bad rows") == pytest.approx(1 / 2000)
    assert value(advice, "mean cosine") == pytest.approx(100 / 101, abs=0.01)
    assert "--rows distinct/ --drop-bad-rows" in advice.commands[1]
    text = " ".join(advice.reasons)
    assert all(word in text for word in ("cosine of 0.99", "nearly repeat", "More than half"))


def test_the_command_prints_a_table_or_json_without_nan(tmp_path, capsys: pytest.CaptureFixture, monkeypatch):
    path = tmp_path / "my rows.npy"
    np.save(path, np.ones((50, 20), np.float32))
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["curate", "advise", str(path), "--size", "9", *extra])
        main()
    table, parsed = capsys.readouterr().out.split("\n{", 1)
    assert shlex.quote(str(path)) in table
    # all rows alike: the dimension is not known, which JSON calls null
    found = json.loads("{" + parsed, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert next(item["value"] for item in found["evidence"] if item["name"] == "intrinsic dimension") is None


def test_rows_that_are_all_alike_are_near_duplicates():
    advice = advise(np.ones((50, 20), np.float32), 9)
    assert value(advice, "near-duplicates") == pytest.approx(49 / 50)
    assert advice.dedup


@pytest.mark.parametrize(("x", "size"), [(rows(20), 21), (rows(20), 0), (np.zeros((20, 3)), 5), (rows(2), 1)])
def test_what_cannot_be_advised_is_one_line(x: np.ndarray, size: int):
    with pytest.raises(CurationError):
        advise(x, size)
