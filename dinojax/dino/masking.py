"""iBOT's block masks, as published DINOv2 draws them (BEiT, Bao et al. 2021, arXiv 2106.08254, algorithm 1)."""

import dataclasses
import itertools
import math

import numpy as np

_SMALLEST_BLOCK = 4
_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class MaskPlan:
    """How the global crops of a batch are masked.

    In each group, `probability` of the crops are masked. Their target ratios are drawn from equal slices of `ratio`,
    one slice per crop, and dealt out in random order.
    """

    images: int
    """Global crops in a batch, a multiple of `groups`."""
    grid: tuple[int, int]
    """Rows and columns of patches, h and w."""
    probability: float
    """Share of the crops that are masked."""
    ratio: tuple[float, float]
    """Lowest and highest share of masked patches in such a crop."""
    groups: int = 1
    """Equal slices of the batch."""

    @property
    def bound(self) -> int:
        """The largest number of masked patches that one group can have."""
        # Never 0: a batch without any mask still has one row, of padding.
        return max(sum(int(math.prod(self.grid) * high) for _, high in self._ratios()), 1)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The masks of a batch, bool [images, h·w]; `rng` serves this batch alone."""
        size, patches = self.images // self.groups, math.prod(self.grid)
        masks = np.zeros((self.groups, size, patches), bool)
        for group in masks:
            targets = [int(patches * rng.uniform(low, high)) for low, high in self._ratios()]
            for place, target in zip(rng.permutation(size), targets, strict=False):
                group[place] = _block_mask(rng, self.grid, target).ravel()
        return masks.reshape(self.images, patches)

    def _ratios(self) -> list[tuple[float, float]]:
        """Lowest and highest ratio of each masked crop of a group."""
        masked = int(self.images // self.groups * self.probability)
        return list(itertools.pairwise(np.linspace(*self.ratio, masked + 1).tolist()))


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
