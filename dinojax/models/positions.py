"""Bicubic interpolation of positional embeddings, as PyTorch computes it for the published models.

Both of its variants are separable and linear, so each is a pair of small matrices: `out = Wy · table · Wxᵀ`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def interpolate(table: jax.Array, grid: tuple[int, int], antialias: bool, offset: float = 0.1) -> jax.Array:
    """Interpolates the positional embeddings of the patches for another grid.

    Args:
      table: float [M, M, D].
      grid: rows h and columns w of the new grid.
      antialias: False as in the models without registers (by scale factor with an offset, cubic with a = -0.75); True
        as in those with registers (by size, a = -0.5).
      offset: added to the new size in the scale factor: 0.1 as published; 0 is by size. Unused with antialiasing.

    Returns:
      [h, w, D]; the table itself at its own size.
    """
    side = table.shape[0]
    if grid == (side, side):
        return table
    weights = _antialiased_weights if antialias else functools.partial(_offset_weights, offset=offset)
    rows, columns = weights(side, grid[0]), weights(side, grid[1])
    return jnp.einsum("hi,ijd,wj->hwd", rows, table, columns, precision=jax.lax.Precision.HIGHEST)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE TASSP 1981, eq. 15 with a free parameter)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache
def _offset_weights(side: int, size: int, offset: float) -> np.ndarray:
    """[size, side]: `torch.nn.functional.interpolate(mode="bicubic", scale_factor=(size + offset) / side)`."""
    # The published code passes the scale factor, so its inverse is rounded to float32 before it is used.
    step = np.float64(np.float32(1 / ((size + offset) / side)))
    centres = (np.arange(size) + 0.5) * step - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((size, side))
    for tap in range(4):
        index = first + tap
        np.add.at(weights, (np.arange(size), np.clip(index, 0, side - 1)), _cubic(centres - index, -0.75))
    return weights.astype(np.float32)


@functools.lru_cache
def _antialiased_weights(side: int, size: int) -> np.ndarray:
    """[size, side]: `torch.nn.functional.interpolate(mode="bicubic", size=size, antialias=True)`."""
    step = side / size
    scale = max(step, 1.0)
    support = 2 * scale
    weights = np.zeros((size, side))
    for i in range(size):
        centre = (i + 0.5) * step
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), side)
        taps = _cubic((np.arange(low, high) - centre + 0.5) / scale, -0.5)
        weights[i, low:high] = taps / taps.sum()
    return weights.astype(np.float32)
