"""The folder that a run leaves: another tool with its default arguments must find the figures that we report."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from eval.language import LanguageSettings, _model
from foundation.errors import CurationError
from text_lm.model import TOKENIZERS, load_model
from text_lm.perplexity import score_texts
from text_lm.settings import settings_from
from text_lm.tokenizer import Tokenizer, open_tokenizer, train_bpe
from text_lm.tokens import tokenise_pool
from text_lm.train import train

TEXTS = [
    "The number 7 is here.",
    "x",
    "naïve 日本語 text, twice as long as the context of the model; " * 5,
    "A text that spells <|eos|> and <|bos|> and <|pad|> is still a text.",
    "<|bos|> may even come first.",
]
CONTEXT = 32


def exported(tokenizer: Tokenizer, folder: Path) -> Path:
    """A model that was trained for a few steps."""
    pool = Dataset.from_dict({"text": [f"The number {i} is here; its square is {i * i}." for i in range(100)]})
    tokenise_pool(pool, tokenizer, folder / "tokens", progress=False)
    shape = {"width": 32, "layers": 1, "heads": 2, "context": CONTEXT}
    speed = {"accelerator": "cpu"}
    given = settings_from({"model": shape, "tokens": 8 * 4 * CONTEXT, "batch_size": 4, "speed": speed})
    assert train(given, folder / "tokens", folder / "run", progress=False).finished
    return folder / "run/model"


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = open_tokenizer("bytes")
    if request.param == "bpe":
        tokenizer = train_bpe([f"The number {i} is here, and the text is still a text" for i in range(50)], 300)
    return exported(tokenizer, tmp_path_factory.mktemp(request.param))


def harness_bits_per_byte(model: Path, folder: Path) -> float:
    """Of TEXTS, by lm_eval nothing is told but the model's folder, the task, and that there is no GPU."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task: dict[str, Any] = {
        "task": "our_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "should_decontaminate": False,
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    }
    (folder / "our_texts.yaml").write_text(json.dumps(task))  # JSON is YAML
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        "hf", model_args=f"pretrained={model}", tasks=["our_texts"], task_manager=manager, device="cpu"
    )
    return float(found["results"]["our_texts"]["bits_per_byte,none"])


def test_lm_eval_with_its_default_arguments_finds_our_bits_per_byte(model: Path, tmp_path: Path):
    scores = score_texts(load_model(model), open_tokenizer(model), TEXTS)
    ours = scores.nats.sum() / scores.n_bytes.sum() / math.log(2)
    assert harness_bits_per_byte(model, tmp_path) == pytest.approx(ours, rel=1e-5)


def test_the_exported_tokeniser_is_ours_and_knows_the_context(model: Path):
    from transformers import AutoTokenizer

    ours, theirs = open_tokenizer(model), AutoTokenizer.from_pretrained(model)
    assert theirs.model_max_length == CONTEXT
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode([text])[0].tolist()
    assert len(theirs(TEXTS[2], truncation=True).input_ids) == CONTEXT
    assert open_tokenizer(model.parents[1] / "tokens/tokenizer").fingerprint == ours.fingerprint
    with_bos = AutoTokenizer.from_pretrained(model, add_bos_token=True)
    assert with_bos("a").input_ids[0] == ours.bos


def test_a_tokeniser_made_elsewhere_that_adds_tokens_is_exported_without_them(tmp_path: Path):
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = open_tokenizer("bytes")
    hf = tokenizer.hf
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", tokenizer.bos), ("<|eos|>", tokenizer.eos)]
    )
    hf.save_pretrained(tmp_path / "theirs")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "theirs")("a").input_ids) == 3
    open_tokenizer(tmp_path / "theirs").export(tmp_path / "ours", 64)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("a").input_ids == [ord("a")]


@pytest.mark.parametrize("wanted", [True, False])
def test_benchmarks_see_the_bos_where_it_is_asked_for(wanted: bool, model: Path):
    """`bos=true` must still put one before a prompt, though the saved tokeniser adds none."""
    pytest.importorskip("lm_eval")
    harness = _model(LanguageSettings(model=str(model), device="cpu", bos=wanted))
    ours = open_tokenizer(model)
    start = [ours.bos] if wanted else []
    assert harness.tok_encode("a prompt") == start + ours.encode(["a prompt"])[0].tolist()
    assert harness.max_length == CONTEXT


def test_a_tokenizer_of_the_same_size_is_not_taken_for_that_of_the_model(model: Path, tmp_path: Path):
    """Every token would stand for another text, and the figures would look like those of a bad model."""
    size = open_tokenizer(model).vocab_size
    if size == open_tokenizer("bytes").vocab_size:
        pytest.skip("no other tokenizer has so few tokens")
    alone = shutil.copytree(model, tmp_path / "alone")  # without the result of its run, which knows the files
    assert score_texts(load_model(alone), open_tokenizer(alone), TEXTS).nats.all()
    other = train_bpe([f"Another {i * i} text of other words" for i in range(50)], size)
    other.save(tmp_path / "other")
    config = json.loads((alone / "config.json").read_text())
    for wrong in (3, True, ["x", 3]):
        (alone / "config.json").write_text(json.dumps({**config, TOKENIZERS: wrong}))
        with pytest.raises(CurationError, match=f"{TOKENIZERS} of the model"):
            load_model(alone, open_tokenizer(alone))
    (alone / "config.json").write_text(json.dumps(config))
    shutil.copy(tmp_path / "other/tokenizer.json", alone / "tokenizer.json")
    with pytest.raises(CurationError, match="is not the one that the model was trained with"):
        load_model(alone, open_tokenizer(alone))
