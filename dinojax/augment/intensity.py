"""Intensities on the device: one float32 image [C, H, W] in [0, 1], C 1 or 3; vmapped under jit.

The operations are those of PIL and torchvision that DINOv2's published augmentation uses, without the rounding to
8 bits between them: within 2 grey levels of them (hue 4). On grey images saturation, hue and grayscale change nothing
and are left out of the program; so is whatever has probability 0. Channels stand first, as whole planes: on a CPU
interleaved ones cost several times as much.
"""

import jax
import jax.numpy as jnp

from dinojax.config.pretrain import PhotometryConfig

# ITU-R 601-2, PIL's conversion to grey.
_LUMINANCE = (0.299, 0.587, 0.114)


def luminance(image: jax.Array) -> jax.Array:
    """[3, H, W] to [1, H, W]; a grey image is returned as it is."""
    if image.shape[0] == 1:
        return image
    red, green, blue = (weight * image[i : i + 1] for i, weight in enumerate(_LUMINANCE))
    return red + green + blue


def to_grayscale(image: jax.Array) -> jax.Array:
    """Luminance in every channel."""
    return jnp.broadcast_to(luminance(image), image.shape)


def adjust(image: jax.Array, operation: jax.typing.ArrayLike, factor: jax.typing.ArrayLike) -> jax.Array:
    """Brightness (0), contrast (1) or saturation (2).

    `factor` 1 is the image; 0 is black, the image's mean grey level, or the image without colour.
    """
    grey = luminance(image)
    mean = jnp.floor(grey.mean() * 255 + 0.5) / 255  # rounded to 8 bits as PIL's contrast has it
    base = jnp.where(operation == 0, 0, jnp.where(operation == 1, mean, grey))
    return _computed(jnp.clip(base + factor * (image - base), 0, 1))


def adjust_hue(image: jax.Array, turn: jax.typing.ArrayLike) -> jax.Array:
    """Turns the hue by `turn` of the circle, -0.5 to 0.5, in steps of 1/255 as PIL; a grey image stays."""
    if image.shape[0] == 1:
        return image
    value, low = image.max(0), image.min(0)
    chroma = value - low
    red, green, blue = image
    difference, third = jnp.where(value == green, blue - red, red - green), jnp.where(value == green, 2, 4)
    difference, third = jnp.where(value == red, green - blue, difference), jnp.where(value == red, 0, third)
    sixths = third + difference / jnp.where(chroma > 0, chroma, 1)
    # PIL cuts hue and saturation off to 8 bits: half a step less on average, and this keeps within half a step of it.
    steps = _wrap(sixths, 6) * (255 / 6) - 0.5 + jnp.trunc(turn * 255.0)
    sixths = _wrap(steps, 256) * (6 / 255)
    chroma = jnp.maximum(chroma - value * (0.5 / 255), 0)

    def channel(offset: int) -> jax.Array:
        # Closed form of HSV to RGB: a trapezium along the circle, shifted for each channel.
        k = _wrap(offset + sixths, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)])


def _wrap(x: jax.Array, period: int) -> jax.Array:
    """`x % period` to float32's rounding; the exact remainder takes ten times as long on a CPU."""
    return x - period * jnp.floor(x * (1 / period))


def solarize(image: jax.Array) -> jax.Array:
    """Inverts what is at level 128 of 255 or above."""
    return jnp.where(image > 127.5 / 255, 1 - image, image)


def gaussian_blur(image: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Kernel of 9 pixels, border reflected (the border pixel itself not repeated); `sigma` in pixels, may be traced.

    The image must measure 5 pixels or more each way.
    """
    weights = jnp.exp(-0.5 * (jnp.arange(5) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    image = _computed(image)
    for axis in (1, 2):
        length = image.shape[axis]
        border = [(4, 4) if i == axis else (0, 0) for i in range(3)]
        padded = _computed(jnp.pad(image, border, mode="reflect"))
        taps = [jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(9)]
        pairs = (weights[k] * (taps[4 - k] + taps[4 + k]) for k in range(1, 5))
        image = _computed(weights[0] * taps[4] + sum(pairs))
    return image


def _computed(image: jax.Array) -> jax.Array:
    """Keeps XLA from computing an image again for each of its uses, 50 times slower for the taps of a blur."""
    return jax.lax.optimization_barrier(image)


def color_jitter(
    image: jax.Array, key: jax.Array, brightness: float, contrast: float, saturation: float, hue: float
) -> jax.Array:
    """torchvision's `ColorJitter`: the four operations in random order.

    Args:
      image: float32 [C, H, W].
      key: draws the order, and factors from 1 ± brightness, contrast, saturation (0 at least) and ± hue.
    """
    draws = jax.random.uniform(key, (8,))
    moments, strengths = draws[:4], 2 * draws[4:] - 1
    factors = jnp.maximum(1 + jnp.array([brightness, contrast, saturation]) * strengths[:3], 0)
    if image.shape[0] == 1:
        # Of the order of four, only which of these two comes first is left.
        contrast_first = (moments[1] < moments[0]).astype(int)
        for operation in (contrast_first, 1 - contrast_first):
            image = adjust(image, operation, factors[operation])
        return image
    ranks = (moments[:, None] > moments).sum(1)
    order = [jnp.argmax(ranks == rank) for rank in range(4)]
    # Under vmap all branches are computed. Hue, the dearest, is computed once; the three others, which are all blends,
    # have their slots before and after it, idle (factor 1) on the side where they are not.
    for rank in (0, 1, 2):
        image = adjust(image, order[rank], jnp.where(rank < ranks[3], factors[order[rank]], 1))
    image = _computed(adjust_hue(image, hue * strengths[3]))
    for rank in (1, 2, 3):
        image = adjust(image, order[rank], jnp.where(rank > ranks[3], factors[order[rank]], 1))
    return image


def augment(
    image: jax.Array, key: jax.Array, photometry: PhotometryConfig, *, blur: float = 0.0, solarization: float = 0.0
) -> jax.Array:
    """One view's intensities: colour jitter, grayscale, blur, solarisation, in this order (DINOv2, section 5 and code).

    Args:
      image: float32 [C, H, W] in [0, 1].
      key: makes all draws.
      photometry: strengths, and the probabilities of jitter and grayscale.
      blur, solarization: this view's probabilities; those in `photometry` are not read.
    """
    jitter_key, own_key = jax.random.split(key)
    *chances, width = jax.random.uniform(own_key, (5,))
    colour = image.shape[0] == 3
    if photometry.jitter > 0:
        spans = (photometry.brightness, photometry.contrast, photometry.saturation, photometry.hue)
        jittered = color_jitter(image, jitter_key, *spans)
        image = jnp.where(chances[0] < photometry.jitter, jittered, image)
    if photometry.grayscale > 0 and colour:
        image = jnp.where(chances[1] < photometry.grayscale, to_grayscale(image), image)
    if blur > 0:
        low, high = photometry.blur_sigma
        sigma = low + width * (high - low)
        image = jnp.where(chances[2] < blur, gaussian_blur(image, sigma), image)
    if solarization > 0:
        image = jnp.where(chances[3] < solarization, solarize(image), image)
    return image
