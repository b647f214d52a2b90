"""DINOv2's views of an image: crops on the host (uint8), intensities on the device (float32)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment import geometry, intensity
from dinojax.config.pretrain import CropsConfig, PhotometryConfig


def multicrop(element: Mapping[str, Any], rng: np.random.Generator, config: CropsConfig) -> dict[str, Any]:
    """Crops two global and `config.locals` local views, each randomly flipped and rotated (DINOv2, section 5; host).

    Args:
      element: `image` uint8 [H, W, C] and `index`.
      rng: of all draws.
      config: sizes in pixels, scales as shares of the image's area, probabilities of flips and quarter turns.

    Returns:
      `globals` uint8 [2, S, S, C], `locals` uint8 [L, s, s, C] and `index`.
    """
    image = element["image"]
    return {
        "globals": _views(image, rng, 2, config.global_size, config.global_scale, config),
        "locals": _views(image, rng, config.locals, config.local_size, config.local_scale, config),
        "index": element["index"],
    }


def _views(
    image: np.ndarray,
    rng: np.random.Generator,
    count: int,
    size: int,
    scale: tuple[float, float],
    config: CropsConfig,
) -> np.ndarray:
    height, width, channels = image.shape
    views = np.empty((count, size, size, channels), np.uint8)
    planes = geometry.to_planes(image)  # once for all views
    for view in views:
        box = geometry.crop_box(rng, height, width, scale)
        crop = geometry.from_planes([geometry.cut(plane, box, size) for plane in planes])
        if rng.random() < config.horizontal_flip:
            crop = crop[:, ::-1]
        if rng.random() < config.vertical_flip:
            crop = crop[::-1]
        if config.rotate90 and rng.random() < config.rotate90:
            crop = np.rot90(crop, int(rng.integers(1, 4)))
        view[:] = crop
    return views


def augment_views(
    batch: Mapping[str, jax.Array], key: jax.Array, photometry: PhotometryConfig, stacked: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Changes the intensities of all views of a batch; to be called under jit.

    A view's draws are a function of (key, place of its image, number of the view): where in the batch, or on which
    device, an image is processed changes nothing.

    Args:
      batch: `globals` uint8 [B, 2, S, S, C], `locals` uint8 [B, L, s, s, C], `place` uint32 [B]; C 1 or 3, if not
        `stacked`.
      key: the run's.
      photometry: static under jit.
      stacked: whether the channels are images of their own, such as MR sequences, and no colours. Each is then changed
        as a grey image, all of a view by the same draws: brightness and contrast by the same factors (contrast about
        each channel's own mean), blur by the same width, solarisation in all or none; saturation, hue and grayscale
        change nothing. Static under jit.

    Returns:
      float32 [B, 2, S, S, C] and [B, L, s, s, C] in 0..1. Grey stays grey: what makes a model's input of it comes
      after this, so that all this costs a third.
    """
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["place"])

    def views(images: jax.Array, first: int, blur: float, solarization: float = 0.0) -> jax.Array:
        def one(image: jax.Array, image_key: jax.Array, number: jax.Array) -> jax.Array:
            planes = jnp.moveaxis(image, -1, 0).astype(jnp.float32) / 255
            own_key = jax.random.fold_in(image_key, number)
            change = partial(
                intensity.augment, key=own_key, photometry=photometry, blur=blur, solarization=solarization
            )
            augmented = jax.vmap(change)(planes[:, None])[:, 0] if stacked else change(planes)
            return jnp.moveaxis(augmented, 0, -1)

        numbers = first + jnp.arange(images.shape[1])
        return jax.vmap(jax.vmap(one, in_axes=(0, None, 0)), in_axes=(0, 0, None))(images, keys, numbers)

    first = views(batch["globals"][:, :1], 0, photometry.blur_global1)
    second = views(batch["globals"][:, 1:], 1, photometry.blur_global2, photometry.solarize_global2)
    return jnp.concatenate([first, second], 1), views(batch["locals"], 2, photometry.blur_local)
