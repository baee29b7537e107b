"""The table of claims: no method is judged without power, and the page says what the files beside it say."""

from pathlib import Path

import numpy as np
import pytest

from experiments.claims import (
    CLAIMS,
    END,
    FIGURE,
    PAGE,
    START,
    all_claims,
    between_marks,
    judged_pages,
    main,
    main_claims,
)
from experiments.engine.compare import Row
from experiments.pages.verdict import compact, judge_claim, power, read_values, save_compact
from foundation.errors import CurationError

FRONT = Path(__file__).parents[2] / "README.md"
RESULTS = FRONT.parent / "docs" / "results"


def values(method: list[float], oracle: list[float]) -> list[Row]:
    arms = {"raw": [0.0] * len(method), "ours": method, "oracle": oracle}
    return [Row(arm, seed, "m", value) for arm, found in arms.items() for seed, value in enumerate(found)]


GAINS = [-0.2, -0.21, -0.19, -0.2, -0.2]


def test_claims_ask_for_power_before_they_judge():
    told = judge_claim(values(GAINS, [-0.3, -0.31, -0.29, -0.3, -0.3]), "ours", "m", "lower")
    assert (told.verdict, told.power > 3) == ("holds", True)
    assert judge_claim(values([-v for v in GAINS], GAINS), "ours", "m", "lower").verdict == "does not hold"
    assert judge_claim(values([0.1, -0.1, 0.2, -0.2, 0.0], GAINS), "ours", "m", "lower").verdict == "does not hold"
    weak = judge_claim(values(GAINS, [0.3, -0.31, 0.2, -0.3, 0.1]), "ours", "m", "lower")
    assert weak.verdict == "cannot be told here"
    # labels that make it worse are no power, however sure
    assert judge_claim(values(GAINS, [-v for v in GAINS]), "ours", "m", "lower").verdict == "cannot be told here"


def test_an_experiment_without_labels_or_without_pairs_is_not_judged():
    without = [row for row in values(GAINS, GAINS) if row.arm != "oracle"]
    assert judge_claim(without, "ours", "m", "lower").verdict == "cannot be told here"
    with pytest.raises(CurationError, match="no seed has m of both flat and raw"):
        judge_claim(without, "flat", "m", "lower")


def test_two_seeds_tell_nothing_however_sure_they_look():
    assert judge_claim(values([-0.2, -0.201], [-0.3, -0.301]), "ours", "m", "lower").verdict == "cannot be told here"


def test_power_is_the_mean_in_standard_deviations():
    assert power([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert power([-1.0, -1.0, -1.0]) == float("inf")
    assert np.isnan(power([-1.0, -1.1]))


def test_the_pages_say_what_the_values_beside_them_say():
    for page, made in ((RESULTS / PAGE, all_claims(RESULTS)), (FRONT, main_claims(RESULTS, FRONT))):
        assert between_marks(page, made) == page.read_text(), "run python -m experiments.claims"


def test_values_survive_the_file_and_a_missing_key_is_named(tmp_path: Path):
    rows = values(GAINS, GAINS)
    save_compact(tmp_path / "v.json", compact(rows, {"judge": "ngram"}))
    found, about = read_values(tmp_path / "v.json")
    assert (found, about) == (rows, {"judge": "ngram"})
    line = "section: s, claim: a, test: b, link: c, values: v.json, arm: ours, metric: m"
    (tmp_path / CLAIMS).write_text(f"claims: [{{{line}}}]")
    with pytest.raises(CurationError, match=r"claim 'a' lacks 'better'"):
        all_claims(tmp_path)
    (tmp_path / CLAIMS).write_text(f"claims: [{{{line}, better: lower}}]\nmain: [{{{line}, better: lower}}]")
    assert "### s\n\n" in all_claims(tmp_path)
    assert "| a | [b](c) | -0.200 [" in all_claims(tmp_path)
    assert f"| [s]({tmp_path.name}/c) | a | 0.000 | -0.200 [" in main_claims(tmp_path, tmp_path.parent / PAGE)
    (tmp_path / PAGE).write_text("nothing")
    with pytest.raises(CurationError, match=r"README\.md lacks the marks"):
        between_marks(tmp_path / PAGE, "")


def test_the_figure_shows_the_experiments_that_know_balance_and_true_labels(tmp_path: Path):
    pages, metric = judged_pages(RESULTS)
    assert {"text", "text_communities"} <= set(pages)
    assert "text_lm" not in pages  # its subsets' balance was not kept
    assert metric["text"] == "bpb_macro"
    arms = {"raw": (1.0, 0.0), "ours": (0.5, -0.1), "oracle": (0.0, -0.2)}
    rows = [
        Row(arm, seed, name, value)
        for arm, both in arms.items()
        for seed in range(3)
        for name, value in zip(("kl", "m_macro"), both, strict=True)
    ]
    save_compact(tmp_path / "v.json", compact(rows, {"experiment": "made up"}))
    line = "{section: s, claim: a, test: b, link: c, values: v.json, arm: ours, metric: m_macro, better: lower}"
    (tmp_path / CLAIMS).write_text(f"claims: [{line}]\nmain: [{line}]")
    for page in (tmp_path / PAGE, tmp_path / "front.md"):
        page.write_text(f"x\n{START}\n{END}\ny")
    main(tmp_path, tmp_path / "front.md")
    assert "| a | [b](c) | -0.100" in (tmp_path / PAGE).read_text()
    assert "| [s](c) | a | 0.000 | -0.100" in (tmp_path / "front.md").read_text()
    assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG")
