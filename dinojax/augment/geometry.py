"""Geometry on the host: uint8 images through Pillow, as torchvision does it on PIL images, to the same pixels.

Images are uint8 [H, W, C]; draws come from the generator that is passed. Of other numbers of channels than 1 and 3,
such as MR sequences, each is treated by itself, in the very same way.
"""

import math
from collections.abc import Callable, Sequence

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


def to_planes(image: np.ndarray) -> list[Image.Image]:
    """uint8 [H, W, C] as one Pillow image of mode L or RGB; of other numbers of channels, one of mode L for each."""
    channels = image.shape[2]
    if channels in (1, 3):
        return [to_pil(image)]
    return [to_pil(image[:, :, channel : channel + 1]) for channel in range(channels)]


def from_planes(planes: Sequence[Image.Image]) -> np.ndarray:
    """The inverse of `to_planes`."""
    arrays = [to_array(plane) for plane in planes]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)


def _each(image: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return from_planes([operation(plane) for plane in to_planes(image)])


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


def grey(image: np.ndarray, stacked: bool = False) -> np.ndarray:
    """Luminance (ITU-R 601-2) of RGB, uint8 [H, W, 1]; a grey image stays as it is.

    Of an image that is `stacked`, whose channels are no colours, and of other numbers of channels: their rounded mean.
    """
    if image.shape[2] == 1:
        return image
    if stacked or image.shape[2] != 3:
        return np.rint(image.mean(axis=2, keepdims=True)).astype(np.uint8)
    return to_array(to_pil(image).convert("L"))


def square(image: np.ndarray, size: int, resample: Image.Resampling = BILINEAR) -> np.ndarray:
    """Resizes to uint8 [size, size, C], whatever the aspect."""
    return _each(image, lambda plane: plane.resize((size, size), resample))


def stretched(height: int, width: int, ratio: float) -> tuple[int, int]:
    """Height and width that `stretch` makes of these."""
    return (round(height * ratio), width) if ratio >= 1 else (height, round(width / ratio))


def stretch(image: np.ndarray, ratio: float) -> np.ndarray:
    """Makes pixels square that are `ratio` times as high as wide, by more rows or columns (bicubic)."""
    height, width = stretched(image.shape[0], image.shape[1], ratio)
    if (height, width) == image.shape[:2]:
        return image
    return _each(image, lambda plane: plane.resize((width, height), BICUBIC))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise about the centre, nearest neighbour, zeros outside: torchvision's default."""
    return _each(image, lambda plane: plane.rotate(degrees, Image.Resampling.NEAREST))


def shear(image: np.ndarray, degrees: float) -> np.ndarray:
    """Shears along x about the centre, nearest neighbour, zeros outside, as `RandomAffine(0, shear=...)` does."""
    slope = math.tan(math.radians(degrees))
    return _affine(image, (1, slope, -slope * image.shape[0] / 2, 0, 1, 0))


def shift(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """Moves by whole pixels, with zeros where nothing moves in."""
    return _affine(image, (1, 0, -right, 0, 1, -down))


def _affine(image: np.ndarray, matrix: tuple[float, float, float, float, float, float]) -> np.ndarray:
    """Pixel (x, y) of the result is the source's (a·x + b·y + c, d·x + e·y + f), nearest neighbour."""
    return _each(
        image, lambda plane: plane.transform(plane.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    )
