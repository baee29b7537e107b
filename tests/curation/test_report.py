"""The report: a page that does not open, or that flatters the subset, convinces nobody."""

import html
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import entropy
from sklearn.neighbors import KernelDensity

from curation import CurationError, HierarchicalKMeans, Subset
from curation.pages.examples import thumbnail
from curation.pages.report import Drawn, write_report
from curation.pages.verdict import (
    DRAWS,
    LEAST_DRAWS,
    decimals_apart,
    notes,
    random_counts,
    verdict_by_findings,
    verdict_by_labels,
)
from curation.pools.labels import read_labels
from curation.soundness import Finding
from curation.trees.balance import (
    effective_number,
    gini,
    kde_kl_to_uniform,
    kl_to_uniform,
    normalised_entropy,
    rarest_decile_coverage,
)

COUNTS = np.array([100, 50, 3, 1, 0, 7])


def test_entropy_measures_agree_with_scipy():
    uniform = np.full(6, 1 / 6)
    assert kl_to_uniform(COUNTS) == pytest.approx(entropy(COUNTS / COUNTS.sum(), uniform))
    assert effective_number(COUNTS) == pytest.approx(np.exp(entropy(COUNTS)))
    assert normalised_entropy(COUNTS) == pytest.approx(entropy(COUNTS) / np.log(6))
    assert kl_to_uniform(np.full(9, 4)) == pytest.approx(0)
    assert kl_to_uniform(np.array([5, 0, 0])) == pytest.approx(np.log(3))


def test_gini_agrees_with_its_definition():
    differences = np.abs(COUNTS[:, None] - COUNTS[None]).mean()
    assert gini(COUNTS) == pytest.approx(differences / (2 * COUNTS.mean()))


def test_rarest_decile_is_that_of_the_pool():
    pool = np.arange(1, 41)
    subset = np.zeros(40, int)
    subset[[0, 2, 30]] = 1
    assert rarest_decile_coverage(pool, subset) == (0.5, 2 / 10)


def test_density_measure_agrees_with_scikit_learn():
    points = np.random.default_rng(0).normal(size=(400, 2))
    grid = np.arange(-3, 3 + 0.05, 0.1)
    mesh = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(KernelDensity(bandwidth=0.5).fit(points).score_samples(mesh))
    density /= density.sum()
    assert kde_kl_to_uniform(points, step=0.1) == pytest.approx(np.sum(density * np.log(density * len(mesh))), rel=1e-6)


N_CONCEPTS = 8


@pytest.fixture(scope="module")
def curated():
    """300 one-coloured pictures of eight uneven concepts, a tree of two levels, a balanced subset."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    labels = rng.choice(N_CONCEPTS, 300, p=np.array([120, 60, 20, 10, 5, 3, 2, 1]) / 221)
    colours = rng.integers(0, 255, (N_CONCEPTS, 3))
    images = [Image.new("RGB", (20, 20), tuple(int(c) for c in colours[label])) for label in labels]
    names = ClassLabel(names=[f"kind <{i}> $x$" for i in range(N_CONCEPTS)])
    features = Features({"image": ImageFeature(), "label": names})
    pool = Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
    x = (colours[labels] + rng.normal(size=(300, 3))).astype(np.float32)
    tree = HierarchicalKMeans([60, 10], n_resamples=2, progress=False).fit(x)
    return pool, tree, Subset.from_rows(tree.sample(60), tree, seed=0, method="balanced")


@pytest.fixture
def page(curated, tmp_path: Path):
    """Write a report and give its text."""

    def write(subset: Subset | None = None, **options) -> str:
        _pool, tree, balanced = curated
        write_report(tree, subset or balanced, tmp_path / "report.html", progress=False, **options)
        return html.unescape((tmp_path / "report.html").read_text())

    return write


def test_bad_input_is_one_line_and_leaves_no_page(curated, tmp_path: Path):
    pool, tree, subset = curated
    other = HierarchicalKMeans([50, 10], progress=False).fit(np.random.default_rng(1).normal(size=(300, 3)))
    path = tmp_path / "report.html"
    for message, call in {
        "another tree": lambda: write_report(other, subset, path),
        "no label column 'lable'.*did you mean 'label'": lambda: write_report(tree, subset, path, pool, "lable"),
        "no pool was given": lambda: write_report(tree, subset, path, labels="label"),
        "the pool has 299 rows but row 299 is in the tree": lambda: write_report(
            tree, subset, path, pool.select(range(299))
        ),
        "5 labels, but row 299": lambda: write_report(tree, subset, path, labels=np.arange(5)),
        "none of the rows has a label": lambda: write_report(tree, subset, path, labels=np.full(300, -1)),
        "holds list": lambda: write_report(tree, subset, path, labels=[[1]] * 300),
        "the subset is empty": lambda: write_report(tree, Subset(np.empty(0), np.empty(0)), path),
    }.items():
        with pytest.raises(CurationError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def judge(tree, subset: Subset, labels) -> tuple[str, str, list[str]]:
    """Tone and sentence of the verdict over labels, and the notes under it."""
    drawn = Drawn(tree, subset, None, read_labels(labels), seed=0)
    found = drawn.by_label()
    verdict = verdict_by_labels(found, tree, subset)
    return verdict.tone, verdict.sentence, notes(found)


def test_the_verdict_follows_the_labels(curated):
    pool, tree, _subset = curated
    codes = np.array(pool["label"])
    by_size = np.argsort(np.bincount(codes)[codes], kind="stable")  # rows of rare concepts first
    taken = np.concatenate([np.flatnonzero(codes == concept)[:12] for concept in range(N_CONCEPTS)])
    tone, sentence, _notes = judge(tree, Subset.from_rows(np.sort(taken), tree), codes)
    assert (tone, sentence[:45]) == ("ok", "Better than random rows on your labels (KL 0.")
    tone, sentence, _notes = judge(tree, Subset.from_rows(by_size[-60:], tree), codes)
    assert (tone, sentence[:42]) == ("bad", "Worse than random rows on your labels (KL ")
    assert sentence.endswith(": resample less or take fewer levels.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tree.settings, "upper_levels", "communities")
        _tone, sentence, _notes = judge(tree, Subset.from_rows(by_size[-60:], tree), codes)
    assert sentence.endswith("let labels of some rows choose a method (curate advise --labels).")
    inside = Subset.from_rows(tree.sample(60, method="random", seed=0), tree, method="random")
    tone, sentence, _notes = judge(tree, inside, codes)
    assert (tone, sentence[:45]) == ("warn", "No better than random rows on your labels (KL")
    assert sentence.endswith(": draw a balanced one.")
    even = np.arange(len(codes)) % 4  # even as it is: a perfect subset gains nothing
    tone, sentence, _notes = judge(tree, Subset.from_rows(np.arange(80), tree), even)
    assert tone == "ok"
    assert sentence.endswith("random rows are nearly even already and would do as well.")


def test_without_labels_the_verdict_is_the_worst_finding(page):
    fine = Finding("ok", "All is fine.", "", 0.1)
    bad = Finding("bad", "One cluster <holds> 94% of the rows.", "Take fewer levels.", 0.94)
    assert "cannot tell whether the subset is better" in verdict_by_findings(None).sentence
    assert verdict_by_findings([fine, fine]).sentence.endswith("2 checks passed; no labels were given.")
    as_well = Finding("ok", "The subset is about as even as random rows.", "They would do as well.", 1.0)
    assert verdict_by_findings([fine, as_well]).sentence.endswith("no labels were given. They would do as well.")
    text = page(findings=[fine, bad])
    assert '<p class="verdict bad"><small>bad</small>One cluster <holds> 94% of the rows. Take fewer levels.' in text
    assert "No labels were given" in text


def test_few_random_subsets_are_called_better_or_worse(curated):
    """Of ten draws the extremes would call 18 % of them so, and one odd draw hide every gain."""
    pool, tree, _subset = curated
    codes = np.array(pool["label"])
    drawn = [Subset.from_rows(tree.sample(60, method="random", seed=seed), tree) for seed in range(100, 140)]
    outside = sum(judge(tree, subset, codes)[0] != "warn" for subset in drawn)
    assert outside <= 5


def test_random_counts_are_those_of_random_rows():
    pool, size = np.array([40, 8, 2]), 20
    found = random_counts(pool, size, copies=2, seed=1, beside=10)
    assert found.shape == (DRAWS, 3)
    assert (found <= 2 * pool).all()
    assert found.sum(1).max() <= size
    np.testing.assert_allclose(found.mean(0), size * pool / 60, rtol=0.1)
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), [80, 16, 4, 20])
    drawn = np.stack([np.bincount(rng.choice(codes, size, replace=False), minlength=4) for _ in range(2000)])
    np.testing.assert_allclose(found.std(0), drawn.std(0)[:3], rtol=0.1)
    assert len(random_counts(np.full(300_000, 3), size)) == LEAST_DRAWS


def test_rows_without_a_label_are_left_out_and_counted(curated):
    pool, tree, subset = curated
    codes = np.array(pool["label"])
    holes = codes.astype(object)
    holes[::3] = None
    _tone, sentence, lines = judge(tree, subset, holes)
    hidden = int(np.isin(subset.rows(), np.arange(0, 300, 3)).sum())
    assert f"100 rows (33.3%) have no label, {hidden} of the subset's among them" in lines[0]
    left = codes[subset.rows()][subset.rows() % 3 > 0]
    k = len(np.unique(codes[np.arange(300) % 3 > 0]))
    assert f"(KL {kl_to_uniform(np.bincount(left), k):.2f}" in sentence


def test_one_concept_and_more_concepts_than_rows_are_said(curated, page):
    _pool, tree, _subset = curated
    assert "All labelled rows are 'cat': balance over one concept cannot be told" in page(labels=["cat"] * 300)
    few = Subset.from_rows(tree.sample(20), tree)
    lines = judge(tree, few, np.arange(300) // 3)[2]
    assert f"There are 100 labels but 20 labelled rows in the subset: KL cannot fall below {np.log(5):.3f}" in lines[0]
    only_elsewhere = np.where(np.isin(np.arange(300), few.ids), -1, np.arange(300) % 5)
    assert judge(tree, few, only_elsewhere)[:2] == (
        "none",
        "Too few of the rows drawn have a label: the labels cannot judge this subset.",
    )


def test_shares_of_every_label_by_name(curated, page):
    pool, _tree, subset = curated
    text = page(pool=pool, labels="label")
    table = text[text.index("sortable shares") :]
    lines = re.findall(r"<tr><td>(kind <\d> \$x\$)</td><td data-value=\"(\d+)\">.*?</tr>", table)
    pool_rows = np.bincount(pool["label"])
    assert lines == [(f"kind <{i}> $x$", str(pool_rows[i])) for i in np.argsort(-pool_rows, kind="stable")]
    rarest = int(np.argmin(pool_rows))
    taken = np.bincount(np.array(pool["label"])[subset.rows()], minlength=N_CONCEPTS)[rarest]
    last = table[: table.index("</table>")].rsplit("<tr>", 1)[1]
    assert ("all taken" in last) == (taken == pool_rows[rarest])


def test_without_labels_the_headline_is_of_the_level_that_is_balanced(page):
    assert "of the 10 clusters of level 2 holds" in page()


def test_an_estimate_of_evenness_is_silent_where_labels_say_it(page, curated):
    pool, *_ = curated
    estimate = Finding("warn", "About as even as random rows.", "Look.", 1.0, estimates_evenness=True)
    other = Finding("warn", "Copies there are.", "Dedup.", 1.0)
    alone = page(findings=[estimate, other])
    judged = page(findings=[estimate, other], pool=pool, labels="label")
    assert ["About as even" in text for text in (alone, judged)] == [True, False]
    assert "Copies there are." in judged


def test_a_headline_does_not_round_the_difference_away():
    for values in ([2.5, 1.5, 1.5], [73.9, 49.5, 52.4], [0.126, 0.002], [1.0449, 1.0612], [3.0, 3.0]):
        decimals = decimals_apart(values)
        shown = [float(f"{value:.{decimals}f}") for value in values]
        assert shown == pytest.approx(values, rel=0.02)
        assert [a == b for a in shown for b in shown] == [a == b for a in values for b in values]
        assert (
            decimals == 0
            or any(abs(round(value, decimals - 1) - value) > 0.02 * value for value in values)
            or len({round(value, decimals - 1) for value in values}) < len(set(values))
        ), "no more decimals than needed"


def test_settings_preparation_and_unreadable_pictures_are_shown(page):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    broken = Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": None}] * 300}, features=Features({"image": ImageFeature()})
    )
    text = page(pool=broken, preparation={"near-duplicates": 1200, "report": "out/dedup.json"}, commands=["curate x"])
    assert "near-duplicates 1,200; report out/dedup.json" in text
    assert re.search(r"\d+ of the pictures shown could not be read", text)
    assert "<tr><td>n_resamples</td><td>2, 2</td></tr>" in text
    assert "<tr><td>method</td><td>balanced</td></tr>" in text
    assert "curate x" in text


def test_small_pictures_are_enlarged_and_large_ones_shrunk():
    for side in (5, 32, 300):
        picture = np.asarray(thumbnail(Image.new("RGB", (side, side // 5 * 4), "black"), 64))
        assert picture.shape == (64, 64, 3)
        assert (picture[32] < 128).all(), "the longer side fills the square"
        assert (picture[0] > 128).all(), "the rest is white"


def test_texts_are_shown_where_there_are_no_pictures(page, assert_opens, tmp_path: Path):
    from datasets import Dataset

    texts = [f"<script>alert({i})</script> \n row {i} " + "word " * 60 for i in range(299)] + [None]
    text = page(pool=Dataset.from_dict({"text": texts}))
    assert "data:image/jpeg" not in text
    snippets = re.findall(r'<p class="snippet">(.*?)</p>', text)
    assert len(snippets) > 40
    assert max(map(len, snippets)) == 160
    browser = assert_opens(tmp_path / "report.html")
    assert "<script>alert(" in browser.find_element("css selector", ".snippet").text, "shown, not run"


def test_the_page_opens_in_a_browser_without_errors(curated, tmp_path: Path, assert_opens):
    pool, tree, subset = curated
    write_report(tree, subset, tmp_path / "report.html", pool=pool, labels="label", title="<b>a & b", progress=False)
    browser = assert_opens(tmp_path / "report.html")
    asked = "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
    assert browser.execute_script(asked) == 0, "the page needs no other file"
    assert browser.find_element("tag name", "h1").text == "<b>a & b"
    assert len(browser.find_elements("tag name", "img")) > 15
    axis = browser.find_element("css selector", "figure svg").text
    assert "kind <0> $x$" in axis, "the label axis has names"

    # the table of shares sorts both ways by a click
    def column() -> list[int]:
        cells = browser.find_elements("css selector", "table.shares tbody td:nth-child(5)")
        return [int(cell.get_attribute("data-value")) for cell in cells]

    for expected in (sorted(column(), reverse=True), sorted(column())):
        head = browser.find_element("css selector", "table.shares th:nth-child(5) button")
        browser.execute_script("arguments[0].click()", head)
        assert column() == expected

    # the map: a dot for every cluster, areas that follow the subset after a click, pictures on hovering
    counts = np.bincount(subset.clusters["level_1"], weights=subset.copies, minlength=60)
    circles = browser.find_elements("css selector", "#map-1 circle")
    assert len(circles) == np.count_nonzero(tree.row_counts(0))
    button = browser.find_element("css selector", "#map-1 [data-value=subset]")
    browser.execute_script("arguments[0].click()", button)
    assert (
        sum(circle.get_attribute("class") == "none" for circle in circles)
        == (counts[tree.row_counts(0) > 0] == 0).sum()
    )
    browser.execute_script(
        "const b = arguments[0].getBoundingClientRect();"
        "document.querySelector('#map-1 svg').dispatchEvent(new PointerEvent('pointermove',"
        "{clientX: b.x + b.width / 2, clientY: b.y + b.height / 2}))",
        circles[0],
    )
    tip = browser.find_element("css selector", "#map-1 .tip")
    assert re.search(r"cluster \d+ of level 1\npool: [\d,]+ rows", tip.text)
    assert "url(" in tip.find_element("css selector", ".tiles div").value_of_css_property("background-image")
    assert browser.get_log("browser") == []
