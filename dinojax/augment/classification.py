"""Geometry of fine-tuning and evaluation images, on the host: MediDino's (2024), in the order of its code."""

from typing import Any

import numpy as np

from dinojax.augment import geometry
from dinojax.config.finetune import AugmentConfig

Element = dict[str, Any]


def train_transform(element: Element, rng: np.random.Generator, size: int, config: AugmentConfig) -> Element:
    """Resize, rotation, horizontal flip, random resized crop, shear along x, shift.

    Resizing is bilinear and to a square; rotation, shear and shift take the nearest neighbour and fill with zeros,
    torchvision's defaults.

    Args:
      element: `image` uint8 [H, W, C], `label` and `index`.
      rng: of the draws, of which there are always as many before the crop.
      size: side of the result, in pixels.
      config: ranges.

    Returns:
      `image` uint8 [size, size, C], `label` and `index`.
    """
    image = geometry.square(element["image"], size)
    image = geometry.rotate(image, rng.uniform(-config.rotation, config.rotation))
    if rng.random() < config.horizontal_flip:
        image = image[:, ::-1]
    box = geometry.crop_box(rng, size, size, config.scale)
    planes = [geometry.cut(plane, box, size, geometry.BILINEAR) for plane in geometry.to_planes(image)]
    image = geometry.from_planes(planes)
    image = geometry.shear(image, rng.uniform(-config.shear, config.shear))
    reach = config.shift * size
    right, down = (round(rng.uniform(-reach, reach)) for _ in range(2))
    return {**element, "image": geometry.shift(image, right, down)}
