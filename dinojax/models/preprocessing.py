"""What every backbone is, what it returns, and how an image becomes its input."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dinojax.levels import WIDE, Rule

if TYPE_CHECKING:
    from dinojax.models.zoo import Arguments

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
    """What a checkpoint expects of its input; stored with it.

    Raises:
      ValueError: an `order` other than RGB or BGR.
    """

    size: int = 224
    """Side of the image in pixels that the weights were used at."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """A value for each channel that the model reads, in that order; for intensities in 0..1."""
    std: tuple[float, ...] = IMAGENET_STD
    intensity: tuple[Rule, ...] = ()
    """How stored values became grey levels where the model was trained, by kind of images; () if that is not known."""
    order: Literal["RGB", "BGR"] = "RGB"
    """Order of three channels as the model reads them; images are given as RGB."""

    def __post_init__(self) -> None:
        rules = tuple(Rule(**rule) if isinstance(rule, Mapping) else rule for rule in self.intensity)
        object.__setattr__(self, "intensity", rules)
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"the channels' order is RGB or BGR, not {self.order!r}")


def keep_intensity(model: "Backbone", rules: Mapping[str, Rule]) -> None:
    """Lets a model keep how its images are shown, by kind; rules of kinds that do not occur here stay as they were."""
    known = {rule.group: rule for rule in model.preprocessing.intensity} | dict(rules)
    model.preprocessing = dataclasses.replace(model.preprocessing, intensity=tuple(known.values()))


def imagenet_preprocessing(channels: int, size: int = 224) -> Preprocessing:
    """ImageNet's mean and standard deviation, as DINOv2 uses them; averaged over the colours for one channel."""
    if channels == 3:
        return Preprocessing(size)
    return Preprocessing(size, (float(np.mean(IMAGENET_MEAN)),) * channels, (float(np.mean(IMAGENET_STD)),) * channels)


class Backbone(Protocol):
    """What every model of this package is, whatever its architecture: the type that all other packages use."""

    name: str
    """The named size that the arguments were derived from, such as `vits14`."""
    width: int
    """D, the width of the features."""
    channels: int
    """C, the channels that the model reads: 1 (grey), 3 (RGB), or N images of a place, such as MR sequences."""
    preprocessing: Preprocessing

    @property
    def arguments(self) -> "Arguments":
        """Size and form, as `build` takes them."""
        ...

    @property
    def final_norm(self) -> Callable[[jax.Array], jax.Array] | None:
        """The norm that made the features, [..., D] to the same; None where the architecture has none (a ResNet)."""
        ...

    def __call__(
        self, x: jax.Array, masks: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> Features:
        """Features of normalised images, float [B, H, W, C]; ValueError where the shape does not fit."""
        ...

    def intermediate(self, x: jax.Array, blocks: int = 4) -> tuple[Features, ...]:
        """Features after each of the last `blocks` blocks, the last block last; ValueError if it has fewer."""
        ...

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError, which says what sizes fit, if the model cannot read images of this size in pixels."""
        ...

    def check_batch(self, batch_size: int, height: int, width: int) -> None:
        """Raises ValueError if the model cannot be trained on batches of so many images of this size."""
        ...

    def for_inference(self) -> "Backbone":
        """A model with the same features, but for rounding, and possibly faster; not one to train or to save."""
        ...

    def images_per_chunk(self, height: int, width: int) -> int:
        """How many images of this size in pixels a CPU should process at a time, so that its cache holds them."""
        ...


def to_channels(images: jax.Array, channels: int) -> jax.Array:
    """Images as a model of 1 or 3 channels reads them: grey is repeated to RGB, RGB becomes luminance. As many channels
    as the model has are taken as they are; else ValueError."""
    given = images.shape[-1]
    if given == channels:
        return images
    if given == 1 and channels == 3:
        return jnp.repeat(images, channels, axis=-1)
    if given == 3 and channels == 1:
        red, green, blue = (weight * images[..., i : i + 1] for i, weight in enumerate(LUMINANCE))
        return red + green + blue
    hint = ""
    if images.ndim == 4 and images.shape[1] in _channel_counts(channels):
        hint = "; they seem to stand channels first; pass np.moveaxis(images, 1, -1)"
    elif given == 4 and channels in (1, 3):
        hint = "; without alpha pass images[..., :3]"
    elif given == 1:  # repeated, it would stand for images that were never taken
        hint = f"; pass the {channels} images of a place, such as MR sequences, stacked along the last axis"
    raise ValueError(f"images have {given} channel{'s' * (given != 1)}, the model reads {channels}{hint}")


def _channel_counts(channels: int) -> tuple[int, ...]:
    """Numbers of channels that images for a model may have."""
    return (1, 3) if channels in (1, 3) else (channels,)


def normalise(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Reorders the channels of RGB images [..., C] in 0..1 for the model, and standardises them."""
    if preprocessing.order == "BGR" and images.shape[-1] == 3:
        images = images[..., ::-1]
    return (images - jnp.asarray(preprocessing.mean)) / jnp.asarray(preprocessing.std)


def denormalise(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The inverse of `normalise`: RGB or grey images [..., C], clipped to 0..1, to be looked at."""
    images = np.clip(images * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean), 0, 1)
    return images[..., ::-1] if preprocessing.order == "BGR" and images.shape[-1] == 3 else images


def model_input(images: jax.Array, model: Backbone) -> jax.Array:
    """Images in 0..1 [..., C] as the model reads them, [..., model.channels]: its channels, their order,
    standardised. Every input of a model is made here, in training as elsewhere.

    Raises:
      ValueError: another number of channels, or the model's mean or standard deviation is not one number for each.
    """
    form, channels = model.preprocessing, model.channels
    if not len(form.mean) == len(form.std) == channels:
        raise ValueError(f"mean {form.mean} and std {form.std} are not of the model's {channels} channels")
    return normalise(to_channels(images, channels), form)


def preprocess(images: np.ndarray | jax.Array, model: Backbone, size: int | None = None) -> jax.Array:
    """Turns images into the model's input.

    Args:
      images: [B, H, W, C] with C 1 or 3, or as many as the model reads; uint8 in 0..255, uint16 where the model stores
        their range, or floating point in 0..1.
      model: that they are for.
      size: side in pixels to resize to (bicubic, antialiased); None keeps their size.

    Returns:
      float32 [B, H, W, model.channels], standardised, in the model's order of channels.

    Raises:
      TypeError: no array, but a path, an image of PIL's or a list; the message says what to pass.
      ValueError: another number of axes (the message says what to pass) or channels, another dtype, floats outside
        0..1, or uint16 of a model that stores no range for them.
    """
    if not hasattr(images, "ndim"):
        raise TypeError(f"images must be an array [B, H, W, C], got {_instead(images)}")
    if images.ndim != 4:
        raise ValueError(
            f"images must be [B, H, W, C], got shape {images.shape}; {_with_axes(images.shape, model.channels)}"
        )
    x = to_channels(_to_unit_range(images, model.preprocessing), model.channels)
    if size is not None and x.shape[1:3] != (size, size):
        x = jnp.clip(jax.image.resize(x, (len(x), size, size, x.shape[-1]), "cubic"), 0.0, 1.0)
    return model_input(x, model)


def _instead(given: object) -> str:
    """What was given in the place of an array, and the array to pass in its place."""
    if isinstance(given, str | Path):
        return "a path; pass np.asarray(PIL.Image.open(path).convert('RGB'))[None]"
    if isinstance(given, list | tuple):
        return f"a {type(given).__name__}; pass np.stack(images), of arrays [H, W, C] of one size"
    mode = getattr(given, "mode", None)  # of a PIL image
    if mode is not None and hasattr(given, "convert"):
        convert = {"L": "image)[None, ..., None]", "RGB": "image)[None]"}.get(mode, "image.convert('RGB'))[None]")
        return f"a PIL image of mode {mode}; pass np.asarray({convert}"
    return f"a {type(given).__name__}; pass a NumPy or JAX array"


def _with_axes(shape: tuple[int, ...], channels: int) -> str:
    """How to make [B, H, W, C] of an array of another number of axes, for a model of so many channels."""
    counts = _channel_counts(channels)
    if len(shape) == 2:
        return "for one grey image [H, W] pass images[None, ..., None]"
    if len(shape) == 3 and shape[-1] in counts:
        return "for one image [H, W, C] pass images[None]"
    if len(shape) == 3 and shape[0] in counts:
        return "for one image [C, H, W] pass np.moveaxis(images, 0, -1)[None]"
    if len(shape) == 3:
        return "for a batch of grey images [B, H, W] pass images[..., None]"
    return "pass a batch of images, channels last"


def _range_of_wide(preprocessing: Preprocessing) -> tuple[float, float]:
    """The values of uint16 images that become 0 and 1."""
    rule = next((rule for rule in preprocessing.intensity if rule.group == WIDE), None)
    if rule is not None and rule.name == "range":
        return rule.low, rule.high
    if rule is not None and rule.name == "full":
        return 0.0, 65535.0
    raise ValueError(
        "uint16 images need a range that becomes black to white, which the model does not store, as it was not trained "
        "on such images; scale them to floats in 0..1"
    )


def _to_unit_range(images: np.ndarray | jax.Array, preprocessing: Preprocessing) -> jax.Array:
    if images.dtype == np.uint8:
        return jnp.asarray(images, jnp.float32) / 255
    if images.dtype == np.uint16:
        low, high = _range_of_wide(preprocessing)
        return jnp.clip((jnp.asarray(images, jnp.float32) - low) / (high - low), 0.0, 1.0)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8, uint16 or floating point, got {images.dtype}")
    # Values are unknown while a function is traced: there the caller must see to the range.
    if not isinstance(images, Tracer) and images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"floating-point images must lie in 0..1, got {low:.3g}..{high:.3g}")
    return jnp.asarray(images, jnp.float32)
