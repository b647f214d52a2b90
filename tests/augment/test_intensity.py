"""Intensities against the published operations on PIL images."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.augment import intensity
from dinojax.config.pretrain import PhotometryConfig
from tests import goldens_reader

OPERATIONS = {
    "brightness_1.3": lambda x: intensity.adjust(x, 0, 1.3),
    "contrast_0.7": lambda x: intensity.adjust(x, 1, 0.7),
    "saturation_1.2": lambda x: intensity.adjust(x, 2, 1.2),
    "hue_0.07": lambda x: intensity.adjust_hue(x, 0.07),
    "hue_-0.1": lambda x: intensity.adjust_hue(x, -0.1),
    "grayscale": intensity.to_grayscale,
    "solarize_128": intensity.solarize,
    "blur_0.5": lambda x: intensity.gaussian_blur(x, 0.5),
    "blur_1.0": lambda x: intensity.gaussian_blur(x, 1.0),
    "blur_2.0": lambda x: intensity.gaussian_blur(x, 2.0),
}


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    return goldens_reader.load("image_ops.npz")


def noise(channels: int, seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (channels, 24, 20))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_golden(name, goldens):
    planes = jnp.asarray(goldens["image"].transpose(2, 0, 1), jnp.float32) / 255
    result = np.asarray(jax.jit(OPERATIONS[name])(planes)).transpose(1, 2, 0)
    levels = np.abs(result * 255 - goldens[name])
    most, mean = (4, 1.5) if name.startswith("hue") else (2, 0.75)
    assert levels.max() <= most
    assert levels.mean() <= mean


def test_one_channel_is_what_three_equal_ones_are():
    grey = noise(1)
    colour = jnp.repeat(grey, 3, 0)
    for name, operation in OPERATIONS.items():
        np.testing.assert_allclose(
            jnp.repeat(jax.jit(operation)(grey), 3, 0), jax.jit(operation)(colour), atol=0.003, err_msg=name
        )


def test_hue_of_one_colour_follows_colorsys():
    turned = intensity.adjust_hue(jnp.array([0.9, 0.3, 0.2]).reshape(3, 1, 1), 0.25)[:, 0, 0]
    hue, saturation, value = colorsys.rgb_to_hsv(0.9, 0.3, 0.2)
    np.testing.assert_allclose(turned, colorsys.hsv_to_rgb(hue + 0.25, saturation, value), atol=6 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_takes_every_order_and_no_other(channels):
    """Each key's result is that of one of the orders, done by hand; over many keys all of them occur."""
    image, spans = noise(channels), (0.4, 0.4, 0.2, 0.1)
    jitter = jax.jit(lambda key: intensity.color_jitter(image, key, *spans))
    seen = set()
    for seed in range(40):
        key = jax.random.key(seed)
        uniform = np.asarray(jax.random.uniform(key, (8,)))
        order = tuple(np.argsort(uniform[:4]).tolist())
        draws = 2 * uniform[4:] - 1
        expected = image
        for operation in order:
            expected = [
                lambda x, f=1 + 0.4 * draws[0]: intensity.adjust(x, 0, f),
                lambda x, f=1 + 0.4 * draws[1]: intensity.adjust(x, 1, f),
                lambda x, f=1 + 0.2 * draws[2]: intensity.adjust(x, 2, f),
                lambda x, f=0.1 * draws[3]: intensity.adjust_hue(x, f),
            ][operation](expected)
        # One step of the hue's 8 bits, or of the mean's, may fall to the other side.
        assert np.abs(jitter(key) - expected).mean() < 1e-3
        seen.add(order)
    assert len(seen) > 12


def test_probabilities_are_those_that_take_effect():
    image, photometry = noise(3), PhotometryConfig(jitter=0.0, grayscale=0.2)
    views = jax.jit(jax.vmap(lambda key: intensity.augment(image, key, photometry, solarization=0.5)))(
        jax.random.split(jax.random.key(1), 2000)
    )
    grey = np.asarray(jnp.ptp(views, axis=1).max((1, 2)) < 1e-6)
    solarized = np.asarray(views.max((1, 2, 3)) < 0.51)
    assert abs(grey.mean() - 0.2) < 0.04
    assert abs(solarized.mean() - 0.5) < 0.05
    assert abs((grey & solarized).mean() - 0.1) < 0.03


@pytest.mark.parametrize(("blur", "share"), [(0.0, 0.0), (0.9, 0.9)])
def test_blur_probability_is_the_effective_one(blur, share):
    image, photometry = noise(1), PhotometryConfig(jitter=0.0, blur_sigma=(1.0, 2.0))
    keys = jax.random.split(jax.random.key(2), 500)
    views = jax.vmap(lambda key: intensity.augment(image, key, photometry, blur=blur))(keys)
    assert abs(np.mean(np.abs(views - image).max((1, 2, 3)) > 0) - share) < 0.05
