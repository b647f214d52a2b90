"""Geometry on the host: uint8 images through Pillow, as torchvision does it on PIL images, to the same pixels.

Images are uint8 [H, W, C], C 1 or 3; draws come from the generator that is passed.
"""

import math

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR


def to_pil(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as a Pillow image of mode L or RGB."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
    """A Pillow image of mode L or RGB as uint8 [H, W, 1] or [H, W, 3]."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws the box of a random resized crop, as torchvision's `RandomResizedCrop.get_params`.

    Args:
      rng: draws area, aspect, top and left.
      height, width: of the image.
      scale: range of the box's share of the image's area.
      ratio: range of width / height, drawn uniformly in its logarithm.

    Returns:
      A box inside the image. Ten draws that do not fit are followed by the largest central box with an aspect in
      `ratio`.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def cut(image: Image.Image, box: Box, size: int, resample: Image.Resampling = BICUBIC) -> Image.Image:
    """Crops a box and then resizes it to a square of `size` pixels; the resize reads no pixel outside the box."""
    top, left, height, width = box
    return image.crop((left, top, left + width, top + height)).resize((size, size), resample)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R 601-2), uint8 [H, W, 1]; a grey image stays as it is."""
    return image if image.shape[2] == 1 else to_array(to_pil(image).convert("L"))


def square(image: np.ndarray, size: int, resample: Image.Resampling = BILINEAR) -> np.ndarray:
    """Resizes to uint8 [size, size, C], whatever the aspect."""
    return to_array(to_pil(image).resize((size, size), resample))


def stretch(image: np.ndarray, ratio: float) -> np.ndarray:
    """Makes pixels square that are `ratio` times as high as wide, by more rows or columns (bicubic)."""
    height, width = image.shape[:2]
    height, width = (round(height * ratio), width) if ratio >= 1 else (height, round(width / ratio))
    if (height, width) == image.shape[:2]:
        return image
    return to_array(to_pil(image).resize((width, height), BICUBIC))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise about the centre, nearest neighbour, zeros outside: torchvision's default."""
    return to_array(to_pil(image).rotate(degrees, Image.Resampling.NEAREST))


def shear(image: np.ndarray, degrees: float) -> np.ndarray:
    """Shears along x about the centre, nearest neighbour, zeros outside, as `RandomAffine(0, shear=...)` does."""
    slope = math.tan(math.radians(degrees))
    return _affine(image, (1, slope, -slope * image.shape[0] / 2, 0, 1, 0))


def shift(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """Moves by whole pixels, with zeros where nothing moves in."""
    return _affine(image, (1, 0, -right, 0, 1, -down))


def _affine(image: np.ndarray, matrix: tuple[float, float, float, float, float, float]) -> np.ndarray:
    """Pixel (x, y) of the result is the source's (a·x + b·y + c, d·x + e·y + f), nearest neighbour."""
    pil = to_pil(image)
    return to_array(pil.transform(pil.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST))
