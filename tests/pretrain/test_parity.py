"""Parity: a published recipe that computes something else spends its hours on another method."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pretrain.settings import load_settings

spec = importlib.util.spec_from_file_location("parity", Path(__file__).parent / "parity.py")
assert spec is not None
assert spec.loader is not None
parity = importlib.util.module_from_spec(spec)
sys.modules["parity"] = parity  # its dataclass looks its module up
spec.loader.exec_module(parity)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def comparisons() -> list:
    return list(parity.comparisons())


def test_every_part_of_a_step_is_the_float64_formula(comparisons: list):
    assert len(comparisons) > 20
    far = [
        f"{item.what}: {item.difference:.1e} > {item.bound:.0e}"
        for item in comparisons
        if not item.difference < item.bound
    ]
    assert not far, far


def test_the_table_of_the_document_has_these_rows(comparisons: list):
    text = (ROOT / "docs/parity.md").read_text()
    missing = [row for row in parity.table(comparisons) if row.rsplit("|", 2)[0] not in text]
    assert not missing, f"run python tests/pretrain/parity.py and put its table into docs/parity.md: {missing}"


@pytest.mark.parametrize("name", ["vitl16_short", "vitl14_long", "vitl16_high_resolution", "dinov3_vitl16_im1k"])
def test_recipes_with_a_published_name_have_what_the_published_code_runs(name: str):
    given = load_settings(ROOT / f"configs/pretrain/{name}.yaml")
    v3 = name.startswith("dinov3")
    colour = given.crops.colour
    assert (colour.blur_global1, colour.blur_global2, colour.blur_local) == (0.0, 0.9, 0.5)
    assert given.loss.dino_head.prototypes == ("linear" if v3 else "weight_norm")
    if given.loss.ibot_head is not None:
        assert given.loss.ibot_head.prototypes == given.loss.dino_head.prototypes
    assert given.backbone.init == "dinov2"
    assert given.backbone.positions == ("timm" if v3 else "dinov2")  # rotations are not resized
    assert given.mask.fill == v3
    assert (given.loss.dino, given.loss.ibot, given.loss.koleo) == (1.0, 1.0, 0.1)
