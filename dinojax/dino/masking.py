"""iBOT's block masks, as published DINOv2 draws them (BEiT, Bao et al. 2021, arXiv 2106.08254, algorithm 1)."""

import itertools
import math

import numpy as np

_SMALLEST_BLOCK = 4
_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


def draw(
    rng: np.random.Generator,
    images: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
    groups: int = 1,
) -> np.ndarray:
    """Masks of a batch of global crops.

    In each group, `probability` of the crops are masked. Their target ratios are drawn from equal slices of `ratio`,
    one slice a crop, and dealt out in random order.

    Args:
      rng: a generator for this batch alone.
      images: number of global crops, a multiple of `groups`.
      grid: rows and columns of patches.
      probability: share of the crops that are masked.
      ratio: lowest and highest share of masked patches.
      groups: equal slices of the batch.

    Returns:
      bool [images, h·w].
    """
    patches = grid[0] * grid[1]
    size = images // groups
    masked = int(size * probability)
    slices = np.linspace(*ratio, masked + 1)
    masks = np.zeros((groups, size, patches), bool)
    for group in masks:
        targets = [int(patches * rng.uniform(low, high)) for low, high in itertools.pairwise(slices)]
        for place, target in zip(rng.permutation(size), targets, strict=False):
            group[place] = _block_mask(rng, grid, target).ravel()
    return masks.reshape(images, patches)


def bound(images: int, patches: int, probability: float, ratio: tuple[float, float], groups: int = 1) -> int:
    """The largest number of masked patches that one group of a batch can have."""
    masked = int(images // groups * probability)
    # Never 0: a batch without any mask still has one row, of padding.
    return max(sum(int(patches * high) for high in np.linspace(*ratio, masked + 1)[1:]), 1)


def _block_mask(rng: np.random.Generator, grid: tuple[int, int], target: int) -> np.ndarray:
    """Blocks are added until `target` patches are masked, or until none that fits is found."""
    mask = np.zeros(grid, bool)
    while (missing := target - int(mask.sum())) > 0:
        if not _add_block(rng, mask, min(missing, 0.5 * mask.size)):
            break
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, most: float) -> bool:
    height, width = mask.shape
    for _ in range(_TRIES):
        area = _SMALLEST_BLOCK + (most - _SMALLEST_BLOCK) * rng.random()  # `most` may be the smaller
        aspect = math.exp(rng.uniform(*_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            block = mask[top : top + h, left : left + w]
            if 0 < block.size - int(block.sum()) <= most:
                block[:] = True
                return True
    return False
