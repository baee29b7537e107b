"""Advice: a command that fails when typed, or advice worse than the default, costs the user a run."""

import json
import shlex
import sys
from functools import partial

import numpy as np
import pytest

from curation import CurationError
from curation.advise import advise
from curation.cli import main
from curation.pools.labels import Labels
from curation.trial import Way


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


def blobs(widths: list[float], sizes: list[int], dim: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Rows of Gaussians of some widths and sizes, and whose they are, in random order."""
    rng = np.random.default_rng(0)
    concept = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 3 * rng.normal(size=(len(sizes), dim))
    return (centres[concept] + np.array(widths)[concept, None] * rng.normal(size=(len(concept), dim))).astype(
        np.float32
    ), concept


def few_labels(concept: np.ndarray, n: int) -> Labels:
    """The labels of n rows; the others have none."""
    codes = np.full(len(concept), -1)
    codes[:n] = concept[:n]
    return Labels(codes, [str(number) for number in range(concept.max() + 1)])


def test_labels_of_a_few_rows_keep_the_default_where_it_is_as_good_as_any():
    x, concept = blobs([0.2, 1.0, 0.3], [1200, 500, 100])
    advice = advise(x, 300, labels=few_labels(concept, 200))
    assert advice.trial is not None
    assert (advice.trial.best.name, advice.levels, advice.trial.hopeless) == ("the default", "auto", False)
    assert advice.trial.best.way > 0.7
    assert advice.trial.labelled == 200
    assert "no other is better" in advice.table()
    found = json.loads(json.dumps(advice.as_dict()))
    assert len(found["trial"]["tried"]) == 7


def test_labels_that_the_default_fails_on_name_another_method(monkeypatch: pytest.MonkeyPatch):
    """As if the default gave random rows."""
    x, concept = blobs([0.5, 0.5, 0.5], [1200, 500, 100])
    random = Way.fit

    def fit(way: Way, rows: np.ndarray, seed: int):
        tree = random(way, rows, seed)
        if not way.rows:
            tree.sample = partial(tree.sample, method="random")
        return tree

    monkeypatch.setattr(Way, "fit", fit)
    advice = advise(x, 300, labels=few_labels(concept, 300))
    assert advice.trial is not None
    assert advice.trial.best.less < -0.1
    assert advice.levels == [1800 // 25, 1800 // 80, 1800 // 250] or advice.levels == [1800 // 50]
    assert f"--resamples {advice.resamples}" in advice.commands[-2]
    assert "less than the default" in advice.table()


def test_labels_that_the_rows_know_nothing_of_are_said_to_be_hopeless():
    x, _concept = blobs([0.5, 0.5, 0.5], [1200, 500, 100])
    concept = np.random.default_rng(1).choice(3, len(x), p=[0.7, 0.2, 0.1])
    advice = advise(x, 300, labels=few_labels(concept, 400))
    assert advice.trial is not None
    assert advice.trial.hopeless
    random = advice.trial.best.baseline == "random"
    assert random == (advice.trial.tried[0].kl > advice.trial.random)
    assert ("curate baseline random" in advice.commands[-1]) == random
    assert "None of these is better" in advice.table()


def test_labels_that_are_too_few_are_one_line(tmp_path, capsys: pytest.CaptureFixture, monkeypatch):
    x, concept = blobs([0.5, 0.5], [300, 100])
    with pytest.raises(CurationError, match=r"40 rows have a label, of 2 concepts; .* takes 50 rows"):
        advise(x, 100, labels=few_labels(concept, 40))
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(sys, "argv", ["curate", "advise", str(tmp_path / "x.npy"), "--size", "9", "--labels", "kind"])
    with pytest.raises(SystemExit):
        main()
    assert "--pool and --labels belong together" in capsys.readouterr().err


def test_few_rows_and_many_copies_are_tried_as_far_as_it_goes():
    x, concept = blobs([0.5, 0.5], [60, 20])
    copies = np.repeat(x[:16], 5, axis=0)  # 16 distinct rows: SemDeDup and some levels may have too few
    for rows in (x, copies):
        advice = advise(rows, 20, labels=few_labels(concept, 80))
        assert advice.trial is not None
        assert advice.trial.tried[0].name == "the default"
        assert all(np.isfinite(tried.kl) for tried in advice.trial.tried)
