"""Views: shapes, draws that depend on the place alone, and channels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config.pretrain import CropsConfig, PhotometryConfig

CROPS = CropsConfig(global_size=28, local_size=14, locals=3)
PUBLISHED = PhotometryConfig()
QUIET = PhotometryConfig(jitter=0, grayscale=0, blur_global2=0, blur_local=0, solarize_global2=0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def batch(channels: int, places: list[int], views: int = 3) -> dict[str, np.ndarray]:
    return {
        "globals": np.stack([noise(2, 28, 28, channels, seed=place) for place in places]),
        "locals": np.stack([noise(views, 14, 14, channels, seed=place + 100) for place in places]),
        "place": np.array(places, np.int32),
    }


@functools.cache
def program(photometry: PhotometryConfig):
    return jax.jit(lambda data: augment_views(data, jax.random.key(0), photometry))


def run(data, photometry=PUBLISHED) -> tuple[np.ndarray, np.ndarray]:
    large, small = program(photometry)(data)
    return np.asarray(large), np.asarray(small)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", [0, 3])
def test_shapes(channels, views):
    crops = dataclasses.replace(CROPS, locals=views)
    element = {"image": noise(40, 50, channels), "index": np.int32(7)}
    cut = multicrop(element, np.random.default_rng(0), crops)
    assert cut["globals"].shape == (2, 28, 28, channels)
    assert cut["locals"].shape == (views, 14, 14, channels)
    assert cut["globals"].dtype == cut["locals"].dtype == np.uint8
    assert cut["index"] == 7
    large, small = run(batch(channels, [1, 2], views), QUIET)
    assert large.shape == (2, 2, 28, 28, channels)
    assert small.shape == (2, views, 14, 14, channels)
    assert large.dtype == small.dtype == np.float32


def test_flips_and_scales_are_the_configured_ones():
    image = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 1))
    crops = CropsConfig(28, (0.5, 1.0), 14, (0.05, 0.1), 20, horizontal_flip=0.25)
    cuts = [multicrop({"image": image, "index": 0}, np.random.default_rng(i), crops) for i in range(30)]
    small = np.stack([cut["locals"] for cut in cuts])[..., 0].astype(int)
    slope = small[:, :, 7, -1] - small[:, :, 7, 0]
    assert abs((slope < 0).mean() - 0.25) < 0.06
    assert np.abs(slope).max() < 75  # sqrt(0.1 * 4 / 3) of 200
    large = np.stack([cut["globals"] for cut in cuts])[..., 0].astype(int)
    assert np.abs(large[:, :, 7, -1] - large[:, :, 7, 0]).min() > 100  # sqrt(0.5 * 3 / 4) of 200, less the border


def test_vertical_flip():
    image = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 40, 3))
    crops = dataclasses.replace(CROPS, vertical_flip=1.0)
    cut = multicrop({"image": image, "index": 0}, np.random.default_rng(0), crops)
    assert (cut["globals"][:, 0, :, :] > cut["globals"][:, -1, :, :]).all()


def test_draws_depend_on_the_place_and_not_on_the_slot():
    forward, backward = run(batch(1, [5, 6])), run(batch(1, [6, 5]))
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b[::-1])
    same = batch(1, [5, 6])
    other = run(same | {"place": np.array([7, 8], np.int32)})
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(run(same), other, strict=True))


def test_views_of_one_image_are_drawn_apart():
    data = batch(1, [3, 4])
    data["globals"][:] = data["globals"][:, :1]
    data["locals"][:] = data["locals"][:, :1]
    blurred = dataclasses.replace(QUIET, blur_global1=1.0, blur_global2=1.0, blur_local=1.0)
    for views in run(data, blurred):
        assert all(np.abs(views[0, 0] - view).max() > 0.01 for view in views[0, 1:])


def test_each_view_has_its_own_probabilities():
    data = batch(1, [3, 4])
    plain = run(data, QUIET)
    np.testing.assert_allclose(plain[0], data["globals"] / 255.0, atol=1e-6)
    changed = {}
    for name in ("blur_global1", "blur_global2", "blur_local", "solarize_global2"):
        large, small = run(data, dataclasses.replace(QUIET, **{name: 1.0}))
        differs = [np.abs(large[:, 0] - plain[0][:, 0]), np.abs(large[:, 1] - plain[0][:, 1]), np.abs(small - plain[1])]
        changed[name] = [bool(d.max() > 0.1) for d in differs]
    assert changed == {
        "blur_global1": [True, False, False],
        "blur_global2": [False, True, False],
        "blur_local": [False, False, True],
        "solarize_global2": [False, True, False],
    }


def test_grey_costs_and_gives_what_equal_channels_give():
    grey = batch(1, [1, 2])
    colour = {name: np.repeat(array, 3, -1) if array.ndim == 5 else array for name, array in grey.items()}
    for a, b in zip(run(grey), run(colour), strict=True):
        np.testing.assert_allclose(np.repeat(a, 3, -1), b, atol=0.006)  # the mean's rounding and PIL's


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_channels_that_are_no_colours_are_changed_one_by_one_and_alike(channels: int) -> None:
    element = {"image": noise(40, 50, channels), "index": np.int32(7)}
    crops = dataclasses.replace(CROPS, vertical_flip=0.5, rotate90=0.5)
    cut = multicrop(element, np.random.default_rng(3), crops)
    strong = dataclasses.replace(PUBLISHED, jitter=1.0, grayscale=1.0, solarize_global2=0.5)
    change = jax.jit(lambda data: augment_views(data, jax.random.key(0), strong, stacked=True))
    data = batch(channels, [1, 2])
    views = change(data)
    for channel in range(channels):
        own = slice(channel, channel + 1)
        alone = multicrop({**element, "image": element["image"][:, :, own]}, np.random.default_rng(3), crops)
        for name in ("globals", "locals"):
            np.testing.assert_array_equal(cut[name][..., own], alone[name])
        one = {name: array[..., own] if array.ndim == 5 else array for name, array in data.items()}
        for all_channels, grey in zip(views, change(one), strict=True):
            np.testing.assert_allclose(all_channels[..., own], grey, atol=1e-5)
    if channels == 3:
        coloured = jax.jit(lambda data: augment_views(data, jax.random.key(0), strong))(data)
        assert np.abs(np.asarray(coloured[0] - views[0])).max() > 0.1, "as colours they would become grey"


def test_sharded_over_eight_devices_gives_the_same():
    data = batch(1, list(range(8)))
    sharp = dataclasses.replace(PUBLISHED, blur_global2=0, blur_local=0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(data, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    for a, b in zip(run(data, sharp), run(spread, sharp), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert jnp.asarray(spread["place"]).sharding.num_devices == 8
