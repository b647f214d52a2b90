"""What every backbone returns, and how an image becomes its input."""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ITU-R 601-2, as Pillow converts RGB to grey.
LUMINANCE = (0.299, 0.587, 0.114)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a batch of images, after the backbone's final norm."""

    pooled: jax.Array
    """[B, D]: the class token; of a ResNet, the global average."""
    patches: jax.Array
    """[B, h, w, D]: the patch tokens; of a ResNet, the last feature map."""
    registers: jax.Array | None = None
    """[B, R, D]: the register tokens, where there are any."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint expects of its input: it belongs to the checkpoint and travels with it."""

    size: int = 224
    """Side of the image in pixels that the weights were used at."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """One per channel that the model reads, for values in 0..1 and in the order of `order`."""
    std: tuple[float, ...] = IMAGENET_STD
    window: tuple[float, float] | None = None
    """Lowest and highest value of 16-bit images: these become 0 and 1."""
    order: Literal["RGB", "BGR"] = "RGB"
    """Of three channels, as the model reads them; images come in RGB."""

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"the channels' order is RGB or BGR, not {self.order!r}")


def imagenet_preprocessing(channels: int, size: int = 224) -> Preprocessing:
    """ImageNet's mean and standard deviation, as DINOv2 uses them; averaged over the colours for one channel."""
    if channels == 3:
        return Preprocessing(size)
    return Preprocessing(size, (float(np.mean(IMAGENET_MEAN)),) * channels, (float(np.mean(IMAGENET_STD)),) * channels)


class Backbone(Protocol):
    """The interface of every model of this package."""

    width: int
    channels: int
    preprocessing: Preprocessing
    __call__: Callable[..., Features]


def to_channels(images: jax.Array, channels: int) -> jax.Array:
    """[B, H, W, C] with C 1 or 3 to `channels` 1 or 3: grey is repeated, RGB becomes luminance."""
    given = images.shape[-1]
    if given == channels:
        return images
    if given == 1:
        return jnp.repeat(images, channels, axis=-1)
    if given == 3 and channels == 1:
        return images @ jnp.asarray(LUMINANCE, images.dtype)[:, None]
    raise ValueError(f"images have {given} channels, the model reads {channels}")


def normalise(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Puts the channels in the model's order, subtracts the mean and divides by the deviation; [..., C] in 0..1."""
    if preprocessing.order == "BGR" and images.shape[-1] == 3:
        images = images[..., ::-1]
    return (images - jnp.asarray(preprocessing.mean)) / jnp.asarray(preprocessing.std)


def preprocess(images: np.ndarray | jax.Array, model: Backbone, size: int | None = None) -> jax.Array:
    """Turns images into the model's input.

    Args:
      images: [B, H, W, C] with C 1 or 3; uint8 in 0..255, uint16 where the model stores a window, or floating point
        in 0..1.
      model: its `channels` and `preprocessing` say what it reads.
      size: resizes to size × size pixels (bicubic, antialiased); without it the images keep their size.

    Returns:
      float32 [B, H, W, channels], normalised, in the model's order of channels.

    Raises:
      ValueError: another number of axes or channels, another dtype, floats outside 0..1, or uint16 without a window.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got shape {images.shape}")
    x = to_channels(_to_unit_range(images, model.preprocessing), model.channels)
    if size is not None and x.shape[1:3] != (size, size):
        x = jnp.clip(jax.image.resize(x, (len(x), size, size, x.shape[-1]), "cubic"), 0.0, 1.0)
    return normalise(x, model.preprocessing)


def _to_unit_range(images: np.ndarray | jax.Array, preprocessing: Preprocessing) -> jax.Array:
    if images.dtype == np.uint8:
        return jnp.asarray(images, jnp.float32) / 255
    if images.dtype == np.uint16:
        if preprocessing.window is None:
            raise ValueError(
                "uint16 images need a window, which the model does not store; scale them to floats in 0..1"
            )
        low, high = preprocessing.window
        return jnp.clip((jnp.asarray(images, jnp.float32) - low) / (high - low), 0.0, 1.0)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8, uint16 or floating point, got {images.dtype}")
    # Inside a transformation the values are not known; there the caller answers for the range.
    if not isinstance(images, Tracer) and images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"floating-point images must lie in 0..1, got {low:.3g}..{high:.3g}")
    return jnp.asarray(images, jnp.float32)
