"""The first page: it is looked at while the rest runs, and must show the pool as it is, whatever is in it."""

from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from curation.pages.first_look import TEXTS, write_first_look


def test_texts_are_shown_as_text_and_labels_by_name_the_commonest_first(tmp_path: Path):
    features = Features({"text": Value("string"), "kind": ClassLabel(names=["rare", "common <b>"])})
    rows = {"text": [f"<script>{i}</script>" for i in range(60)], "kind": [int(i % 6 > 0) for i in range(60)]}
    write_first_look(Dataset.from_dict(rows, features=features), tmp_path / "pool.html", "kind")
    page = (tmp_path / "pool.html").read_text()
    assert page.count("<li>") == TEXTS
    assert "<script>" not in page
    assert page.index("common &lt;b&gt;<td>50") < page.index("rare<td>10")


def test_a_pool_without_pictures_or_text_has_a_page_too(tmp_path: Path):
    write_first_look(Dataset.from_dict({"x": [1.0, 2.0]}), tmp_path / "pool.html")
    assert "2 of 2 rows" in (tmp_path / "pool.html").read_text()
