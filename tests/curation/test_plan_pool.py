"""The plan of what comes before clustering: hours are booked by it."""

import json
from dataclasses import replace

import pytest

from curation.cli import main
from curation.plan import PROFILES
from curation.plan_pool import operations_per_row, pool_stages, proposed_levels
from foundation.errors import CurationError


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


@pytest.mark.parametrize("rows", [300, 10_000, 1_000_000, 743_000_000])
def test_proposed_levels_shrink_and_can_be_fitted(rows: int):
    from curation.plan import plan

    levels = proposed_levels(rows)["paper"].split(",")
    plan(rows, 64, levels, PROFILES["h100"])  # raises where a level makes no sense


def test_the_command_prints_stages_and_levels(capsys: pytest.CaptureFixture[str]):
    words = ["plan", "--rows", "1e6", "--dim", "384", "--gpus", "1", "--embedder", "timm:resnet18", "--json"]
    main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["name"].startswith("embed")
    assert found["proposed_levels"]["paper"]
    main([*words[:-1], "--no-dedup"])
    text = capsys.readouterr().out
    assert "near-duplicates" not in text
    assert "--levels" in text
