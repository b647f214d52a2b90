"""Geometry against the published operations on PIL images, and against pixels moved by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from dinojax.augment import geometry
from tests import goldens_reader


class Draws:
    """A generator whose draws are given."""

    def __init__(self, uniform=(), integers=()):
        self._uniform, self._integers = list(uniform), list(integers)

    def uniform(self, low, high):
        assert low <= high
        return self._uniform.pop(0)

    def integers(self, high):
        value = self._integers.pop(0)
        assert 0 <= value < high
        return value


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    return goldens_reader.load("image_ops.npz")


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_grey_is_the_mean_of_channels_that_are_no_colours():
    image = np.array([10, 20, 61], np.uint8).reshape(1, 1, 3)
    assert geometry.grey(image, stacked=True).tolist() == [[[30]]]
    assert geometry.grey(image).tolist() == [[[22]]]  # 0.299, 0.587, 0.114
    assert geometry.grey(np.array([0, 1, 2, 4], np.uint8).reshape(1, 1, 4)).tolist() == [[[2]]]
    assert geometry.grey(image[:, :, :1], stacked=True).tolist() == [[[10]]]


def test_crops_golden(goldens):
    image = geometry.to_pil(goldens["image"])
    for name in (name for name in goldens if name.endswith(".box")):
        top, left, height, width, size = (int(number) for number in goldens[name])
        crop = geometry.to_array(geometry.cut(image, (top, left, height, width), size))
        np.testing.assert_array_equal(crop, goldens[name.removesuffix(".box")])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resample", [geometry.BILINEAR, geometry.BICUBIC])
def test_square_is_pillows_resize(channels, resample):
    image = noise(50, 80, channels)
    pil = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
    expected = np.asarray(pil.resize((64, 64), resample)).reshape(64, 64, channels)
    np.testing.assert_array_equal(geometry.square(image, 64, resample), expected)
    assert (geometry.square(image, 64) == expected).all() == (resample == geometry.BILINEAR)


def test_grey_is_pillows_luminance():
    colour, grey = noise(9, 8, 3), noise(9, 8, 1)
    np.testing.assert_array_equal(geometry.grey(colour)[:, :, 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert geometry.grey(grey) is grey


def test_grey_crop_equals_a_channel_of_colour():
    grey = noise(50, 60, 1)
    images = (geometry.to_pil(np.repeat(grey, channels, 2)) for channels in (1, 3))
    crops = [geometry.to_array(geometry.cut(image, (3, 5, 40, 30), 32)) for image in images]
    np.testing.assert_array_equal(np.repeat(crops[0], 3, 2), crops[1])


def test_box_follows_the_published_draws():
    # Area and aspect of the first try are too wide; the second gives 80 by 50 at (11, 7).
    rng = Draws([1.0, math.log(4 / 3), 80 * 50 / 12000, math.log(80 / 50)], [11, 7])
    assert geometry.crop_box(rng, 100, 120, (0.1, 1), (0.5, 2)) == (11, 7, 50, 80)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))])
def test_box_falls_back_to_the_middle(height, width, box):
    rng = np.random.default_rng(0)
    assert geometry.crop_box(rng, height, width, (0.99, 1.0)) == box


def test_boxes_have_the_scales_and_aspects_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([geometry.crop_box(rng, 400, 400, (0.05, 0.32)) for _ in range(4000)])
    top, left, height, width = boxes.T
    area, aspect = height * width / 400**2, width / height
    assert area.min() > 0.049
    assert area.max() < 0.325
    assert abs(area.mean() - 0.185) < 0.005
    assert abs(np.log(aspect).mean()) < 0.01
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36
    assert (top + height).max() <= 400
    assert (left + width).max() <= 400
    assert (top == 0).any()
    assert (left + width == 400).any()


def test_rotation_by_a_right_angle_is_counter_clockwise():
    image = noise(20, 20, 3)
    np.testing.assert_array_equal(geometry.rotate(image, 90), np.rot90(image))


def test_shift_moves_and_fills_with_zeros():
    image = noise(10, 12, 1)
    expected = np.zeros_like(image)
    expected[:-2, 3:] = image[2:, :-3]
    np.testing.assert_array_equal(geometry.shift(image, 3, -2), expected)


def test_shear_moves_rows_in_proportion_to_their_distance_from_the_middle():
    image = noise(40, 40, 1)
    sheared = geometry.shear(image, math.degrees(math.atan(0.5)))
    for row in (4, 20, 30):
        by = math.floor(0.5 + 0.5 * (row + 0.5 - 20))  # source column is column + by, at the pixel's centre
        columns = np.arange(max(0, -by), min(40, 40 - by))
        np.testing.assert_array_equal(sheared[row, columns], image[row, columns + by])
