"""Crops and colours: batched arithmetic must be that of torchvision, or the recipe is another one."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from foundation.errors import CurationError
from pretrain import colour
from pretrain.crops import BOX_DRAWS, Boxes, _resize_weights_anywhere, random_boxes, resize_weights, resized_crops
from pretrain.multicrop import ColourSettings, CropSettings, multi_crop, step_draws

SMALL = CropSettings(global_size=16, local_size=8, n_local=3, canvas=24)


def images(n: int = 4, height: int = 61, width: int = 47) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_crop_is_torchvisions_antialiased_bicubic_crop(size: int):
    x = images()
    boxes = Boxes(*(np.array(v) for v in ([0, 3, 10, 5], [1, 0, 7, 20], [61, 20, 40, 1], [30, 47, 9, 1])))
    found = resized_crops(x, boxes, size, np.array([False, True, False, True]))
    for i in range(4):
        box = [int(v[i]) for v in (boxes.top, boxes.left, boxes.height, boxes.width)]
        expected = F.resized_crop(x[i], *box, [size, size], F.InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(found[i], expected.flip(-1) if i % 2 else expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("n_in", "n_out"), [(24, 16), (61, 64), (500, 32), (7, 96)])
def test_crops_on_a_cpu_are_those_of_any_device(n_in: int, n_out: int):
    """A run goes on elsewhere with the same crops."""
    length = torch.arange(1, n_in + 1)
    start = (n_in - length) * torch.arange(n_in) // max(n_in - 1, 1)
    found = resize_weights(start, length, n_in, n_out)
    torch.testing.assert_close(found, _resize_weights_anywhere(start, length, n_in, n_out), atol=2e-5, rtol=0)


def test_boxes_have_the_distribution_of_torchvision():
    n, shape = 4000, (60, 100)
    draws = np.random.default_rng(0).random((n, BOX_DRAWS))
    boxes = random_boxes(np.tile(shape, (n, 1)), draws, (0.05, 0.6))
    torch.manual_seed(0)
    blank = torch.empty(3, *shape)
    theirs = np.array([list(v2.RandomResizedCrop(8, (0.05, 0.6)).make_params([blank]).values()) for _ in range(n)])
    ours = np.stack([boxes.top, boxes.left, boxes.height, boxes.width], 1)
    for column in range(4):
        a, b = ours[:, column], theirs[:, column]
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(n)
        assert abs(a.std() - b.std()) < 0.05 * b.std()
    assert (boxes.top >= 0).all()
    assert (boxes.top + boxes.height <= shape[0]).all()
    assert (boxes.left + boxes.width <= shape[1]).all()


def test_an_image_in_which_no_box_fits_gives_its_largest_central_box():
    boxes = random_boxes(np.array([[10, 1000], [1, 1]]), np.full((2, BOX_DRAWS), 0.99), (0.9, 1.0))
    assert (boxes.height[0], boxes.width[0], boxes.left[0]) == (10, 13, 493)
    assert (boxes.height[1], boxes.width[1]) == (1, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (colour.adjust_brightness, F.adjust_brightness, [0.3, 1.2, 0.8, 1.4]),
        (colour.adjust_contrast, F.adjust_contrast, [0.3, 1.2, 0.8, 1.4]),
        (colour.adjust_saturation, F.adjust_saturation, [0.0, 1.2, 0.8, 1.4]),
        (colour.adjust_hue, F.adjust_hue, [-0.1, 0.05, 0.3, -0.5]),
    ],
)
def test_colours_are_those_of_torchvision(ours, theirs, values: list[float]):
    x = images()
    x[0, :, :5] = 0.5  # grey has no hue
    found = ours(x, torch.tensor(values))
    for i, value in enumerate(values):
        torch.testing.assert_close(found[i], theirs(x[i], value), atol=2e-6, rtol=0)


def test_blur_solarisation_and_grey_are_those_of_torchvision():
    x, sigma = images(), torch.tensor([0.2, 0.7, 1.3, 2.0])
    found = colour.gaussian_blur(x, sigma, 9)
    for i in range(4):
        torch.testing.assert_close(found[i], F.gaussian_blur(x[i], [9, 9], [float(sigma[i])] * 2), atol=2e-6, rtol=0)
    torch.testing.assert_close(colour.solarize(x, 0.5), F.solarize(x, 0.5))
    torch.testing.assert_close(colour.grey(x), F.rgb_to_grayscale(x))


@pytest.mark.parametrize("jitter", [colour.jitter, colour._jitter_anywhere])
def test_jitter_applies_the_four_operations_in_the_order_of_each_image(jitter):
    x = images(2, 8, 8)
    order = torch.tensor([colour.ORDERS.index((3, 1, 0, 2)), colour.ORDERS.index((0, 1, 2, 3))])
    values = [torch.tensor([0.7, 1.3]), torch.tensor([1.4, 0.6]), torch.tensor([0.5, 1.2]), torch.tensor([0.1, -0.1])]
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    found = jitter(x, order, *values)
    for i in range(2):
        expected = x[i]
        for step in colour.ORDERS[int(order[i])]:
            expected = steps[step](expected, float(values[step][i]))
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


def test_jitter_on_a_cpu_is_that_of_any_device():
    """A run goes on elsewhere with the same colours; greys, extremes and every order included."""
    n = 4 * len(colour.ORDERS)
    x = images(n, 19, 23)
    x[0], x[1], x[2, :, :9] = 0.0, 1.0, 0.25
    order = torch.arange(n) % len(colour.ORDERS)
    draw = torch.Generator().manual_seed(1)
    values = [torch.rand(n, generator=draw) * 1.6 for _ in range(3)] + [torch.rand(n, generator=draw) - 0.5]
    before = x.clone()
    found = colour.jitter(x, order, *values)
    torch.testing.assert_close(found, colour._jitter_anywhere(x, order, *values), atol=2e-5, rtol=0)
    assert torch.equal(x, before)
    strided = x.permute(0, 1, 3, 2)
    torch.testing.assert_close(colour.jitter(strided, order, *values), found.permute(0, 1, 3, 2), atol=2e-5, rtol=0)


def test_crops_come_crop_by_crop_and_depend_on_seed_and_step_alone():
    canvases = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = np.array([[24, 24], [10, 24], [24, 5], [1, 1], [7, 7], [24, 23]])
    draws = step_draws(SMALL, 6, seed=3, step=5)
    globals_, locals_ = multi_crop(canvases, sizes, draws, SMALL)
    assert globals_.shape == (12, 3, 16, 16)
    assert locals_.shape == (18, 3, 8, 8)
    assert bool(torch.isfinite(globals_).all())
    # a process that has only images 2 and 3 makes the same crops of them
    some, _ = multi_crop(canvases[2:4], sizes[2:4], step_draws(SMALL, 6, 3, 5)[2:4], SMALL)
    torch.testing.assert_close(some, globals_[[2, 3, 8, 9]], atol=1e-5, rtol=1e-5)
    assert not np.array_equal(draws, step_draws(SMALL, 6, 3, 6))


def test_shares_of_the_augmentations_are_the_published_ones():
    n = 1500
    canvases = torch.full((n, 3, 24, 24), 200, dtype=torch.uint8)
    canvases[:, 0] = 40
    plain = CropSettings(global_size=4, local_size=4, n_local=0, canvas=24, mean=(0, 0, 0), std=(1, 1, 1))
    views, _ = multi_crop(canvases, np.full((n, 2), 24), step_draws(plain, n, 0, 0), plain)
    spread = views.amax(1) - views.amin(1)
    grey = (spread.amax((1, 2)) < 1e-3).float().view(2, n).mean(1)
    assert bool(((grey - 0.2).abs() < 0.05).all())
    only = CropSettings(**{**vars(plain), "colour": ColourSettings(jitter=0, grey=0, blur_global1=0, blur_global2=0)})
    views, _ = multi_crop(canvases, np.full((n, 2), 24), step_draws(only, n, 0, 0), only)
    solarised = (views[:, 1].mean((1, 2)) < 0.5).float().view(2, n).mean(1)
    assert float(solarised[0]) == 0
    assert abs(float(solarised[1]) - 0.2) < 0.05


def test_bad_settings_name_themselves():
    with pytest.raises(CurationError, match="local_scale"):
        CropSettings(local_scale=(0.5, 0.1))
    with pytest.raises(CurationError, match=r"colour\.grey"):
        ColourSettings(grey=1.5)
