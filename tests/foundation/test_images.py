"""Pictures: the same file must be the same pixels in every room, and a broken one no more than a line."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundation.errors import CurationError
from foundation.images import read_image, reason_of


def stored(image: Image.Image, kind: str, **options: object) -> dict:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"bytes": stream.getvalue(), "path": None}


def test_pictures_of_every_mode_are_upright_rgb_on_white():
    """A transparent background read as black, or a picture on its side, would make clusters of its own."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert read_image(stored(clear, "png")).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(stored(Image.new("RGB", (40, 20)), "jpeg", exif=exif)).size == (20, 40)
    for mode in ("L", "LA", "P", "1", "CMYK"):
        kind = "tiff" if mode == "CMYK" else "png"
        assert read_image(stored(Image.new(mode, (8, 8)), kind)).mode == "RGB"
    grey = Image.new("RGB", (8, 8), (200, 200, 200))
    for kind in ("jpeg", "webp", "gif", "bmp", "tiff", "ppm"):
        assert read_image(stored(grey, kind)).getpixel((4, 4))[0] in range(198, 203)


def test_a_jpeg_may_be_decoded_smaller_but_not_too_small():
    picture = stored(Image.new("RGB", (800, 400)), "jpeg")
    assert read_image(picture).size == (800, 400)
    assert 128 <= min(read_image(picture, least_side=64).size) < 400


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_grey_of_16_bits_is_scaled_by_its_type_and_not_by_its_values(kind: str):
    """A dark picture must stay dark: scaled by its own values it would be another picture in every file."""
    ramp = np.array([[0, 200, 0x0100, 0x8000, 0xFFFF]], np.uint16).repeat(5, 0)
    found = np.asarray(read_image(stored(Image.fromarray(ramp), kind)))[0, :, 0]
    assert found.tolist() == [0, 0, 1, 128, 255]
    dark = np.full((5, 5), 200, np.uint16)
    assert np.asarray(read_image(stored(Image.fromarray(dark), kind))).max() == 0


def test_numbers_of_no_known_range_are_refused():
    for values in (np.full((5, 5), 0.5, np.float32), np.full((5, 5), 70_000, np.int32)):
        with pytest.raises(CurationError, match="black and white are not known"):
            read_image(stored(Image.fromarray(values), "tiff"))


def test_what_is_no_picture_is_refused_without_running_or_waiting_for_it(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "program.eps")
    Image.new("RGB", (8, 8)).save(tmp_path / "document.pdf")
    (tmp_path / "program.eps").rename(tmp_path / "program.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "sparse.png", "wb") as stream:
        stream.truncate(3_200_000_000)
    Image.new("RGB", (2, 900)).save(tmp_path / "strip.png")
    for name, words in {
        "program.png": "cannot identify",
        "document.pdf": "cannot identify",
        "pipe.png": "is a pipe",
        "strip.png": "no photograph",
        "none.png": "does not exist",
        ".": "is a folder",
        "sparse.png": "3.2 GB, more than a picture needs",
    }.items():
        with pytest.raises((OSError, CurationError), match=words):
            read_image(tmp_path / name)
    for nothing in (None, {}, {"bytes": None, "path": None}):
        with pytest.raises(CurationError, match="no image"):
            read_image(nothing)
    with pytest.raises(CurationError, match="is a device"):
        read_image("/dev/zero")


def test_a_reason_is_the_same_in_every_run():
    reasons = set()
    for _ in range(2):
        with pytest.raises(OSError, match="cannot identify") as caught:
            read_image({"bytes": b"no picture" * 50, "path": None})
        reasons.add(reason_of(caught.value))
    assert reasons == {"UnidentifiedImageError: cannot identify image file"}
    assert reason_of(ValueError()) == "ValueError"
