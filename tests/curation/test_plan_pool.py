"""What `curate plan` says: hours and machines are booked by it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation.cli import main
from curation.plan import PROFILES, plan_tree
from curation.plan_pool import operations_per_row, pool_stages, proposal, proposed_levels, shape_of, with_pool
from foundation.errors import CurationError

H100 = PROFILES["h100"]
CPU = replace(H100, name="cpu", skips=True)


def test_a_network_is_counted_without_its_weights():
    # 3 x 3 convolutions and products of the published ResNet-18: 1.8 G multiply-adds at 224 pixels
    operations, about = operations_per_row("timm:resnet18")
    assert operations == pytest.approx(2 * 1.81e9, rel=0.03)
    assert about == "224 px"
    smaller, _ = operations_per_row("timm:resnet18", 112)
    assert smaller == pytest.approx(operations / 4, rel=0.1)
    with pytest.raises(CurationError, match="is not known"):
        operations_per_row("checkpoint:somewhere")


def test_time_falls_with_gpus_and_dedup_grows_with_rows():
    one, few = pool_stages(1e8, 384, PROFILES["h100"], "timm:resnet18"), pool_stages(1e6, 384, PROFILES["h100"])
    assert [stage.name.split(":")[0] for stage in one] == ["embed", "near-duplicates", "near-duplicates"]
    assert one[2].seconds > 100 * few[0].seconds, "the inverted file costs more than linear, up to the size of a part"
    many = {
        n: pool_stages(1e9, 1024, replace(PROFILES["h100"], n_devices=n), "timm:resnet18")[2].seconds for n in (8, 64)
    }
    assert many[64] == pytest.approx(many[8] / 8, rel=0.2), "nodes share the clusters"
    assert one[0].operations == pytest.approx(1e8 * operations_per_row("timm:resnet18")[0])


def test_near_duplicates_are_the_work_of_processors():
    """Whoever books eight GPUs for a pool whose index fits would wait as long as with one."""
    one, eight = (pool_stages(1e6, 1024, replace(H100, n_devices=n)) for n in (1, 8))
    assert one == eight, "one process searches"
    one, faster = (pool_stages(1e9, 1024, replace(H100, tflops=t)) for t in (495, 5000))
    assert one == faster
    assert all(stage.on_processors for stage in one)
    tree = plan_tree(1e6, 64, [1000, 10], H100)
    assert with_pool(tree, one).device_hours == pytest.approx(tree.device_hours)
    assert with_pool(tree, one).processor_seconds > tree.processor_seconds + 3600
    # on the processor it is the speed of faiss that counts, not that of seeding
    slow = pool_stages(1e5, 64, replace(CPU, search_tflops=CPU.search_tflops / 2))[0].seconds
    assert slow == pytest.approx(2 * pool_stages(1e5, 64, replace(CPU, greedy_tflops=9.0))[0].seconds)


def test_memory_of_a_split_level_has_its_finished_centroids():
    """A process that keeps what the plan left out is killed after hours."""
    rows, dim, k = 1e7, 1024, 1_000_000
    split = {n: plan_tree(rows, dim, [(k // 100, 100), 100], replace(CPU, n_devices=n), n_resamples=0) for n in (1, 8)}
    assert split[1].memory > 3 * 4 * k * dim, "the pieces, the centroids, and their copy that the next level clusters"
    assert split[8].memory > 2 * 4 * k * dim / 8, "a share of the pieces, and while they are joined once more"
    assert split[8].memory < split[1].memory / 2
    whole = plan_tree(rows, dim, [k, 100], replace(H100, n_devices=8), n_resamples=0)
    assert whole.memory > 2 * 4 * k * dim, "of an unsplit level each process has all centroids"
    assert whole.gpu_memory > 40 * k * dim > split[8].gpu_memory == 0


def test_memory_of_near_duplicates_is_that_of_their_index(capsys: pytest.CaptureFixture[str]):
    words = ["plan", "--rows", "2e6", "--dim", "1024", "--levels", "100", "--resamples", "0", "--gpus", "1", "--json"]
    main(words)
    with_index = json.loads(capsys.readouterr().out)["memory"]
    main([*words, "--no-dedup"])
    assert with_index > json.loads(capsys.readouterr().out)["memory"] + 2e6 * 1024 * 2 / 2


@pytest.mark.parametrize("rows", [1, 2, 12, 49])
def test_a_tiny_pool_has_a_table_to_read_and_no_levels(rows: int, capsys: pytest.CaptureFixture[str]):
    main(["plan", "--rows", str(rows), "--dim", "8", "--gpus", "1"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[2 : lines.index("", 2)]
    assert {len(re.split(" {2,}", line)) for line in table[:-1]} == {5}
    assert lines[-1] == proposal(rows)
    assert "too few to group" in lines[-1]


def test_rows_and_dimensions_are_read_off_what_is_there(tmp_path: Path):
    x = tmp_path / "x.npy"
    np.save(x, np.ones((70, 6), np.float32))
    (tmp_path / "texts.txt").write_text("one\ntwo\nthree\n")
    assert shape_of(str(x), None, None, None) == (70, 6, "float32")
    assert shape_of(str(tmp_path / "texts.txt"), None, 6, None) == (3, 6, "float16")
    assert shape_of(None, 50, None, None, "timm:resnet18") == (50, 512, "float16")
    assert shape_of(None, 50, 384, None, "sentence") == (50, 384, "float16")
    for arguments, message in [
        ((str(x), 71, None, None), "--rows is 71, but that of .*x.npy is 70; leave --rows out"),
        ((None, 50, 384, None, "timm:resnet18"), "--dim is 384, but that of timm:resnet18 is 512"),
        ((str(x), None, None, None, "timm:resnet18"), "nothing is embedded"),
        ((None, None, 6, None), "how many rows"),
        ((None, 50, None, None, "char_svd"), "how many dimensions"),
    ]:
        with pytest.raises(CurationError, match=message):
            shape_of(*arguments)


@pytest.mark.parametrize("rows", [50, 300, 10_000, 1_000_000, 743_000_000, 10**10])
def test_proposed_levels_shrink_and_can_be_fitted(rows: int):
    from curation.plan import plan

    levels = proposed_levels(rows)["paper"].split(",")
    plan(rows, 64, levels, PROFILES["h100"])  # raises where a level makes no sense


def test_the_command_prints_stages_and_levels(capsys: pytest.CaptureFixture[str]):
    words = ["plan", "--rows", "1e6", "--dim", "512", "--gpus", "1", "--embedder", "timm:resnet18", "--json"]
    main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["name"].startswith("embed")
    assert found["proposed_levels"]["paper"]
    main([*words[:-1], "--no-dedup"])
    text = capsys.readouterr().out
    assert "near-duplicates" not in text
    assert "--levels" in text
