"""Schedules as arrays over the whole run, one number a step, float64 (DINOv2's published `CosineScheduler`)."""

import numpy as np


def cosine(start: float, end: float, steps: int, warmup_steps: int = 0, warmup_start: float = 0.0) -> np.ndarray:
    """Linear from `warmup_start` to `start` over the warm-up, both ends included; then half a cosine towards `end`.

    Returns:
      [steps] float64. A warm-up longer than the run is cut off where the run ends.
    """
    warmup = np.linspace(warmup_start, start, warmup_steps)
    remaining = max(steps - warmup_steps, 0)
    angle = np.pi * np.arange(remaining) / max(remaining, 1)
    return np.concatenate([warmup, end + 0.5 * (start - end) * (1 + np.cos(angle))])[:steps]


def linear(start: float, end: float, steps: int, warmup_steps: int) -> np.ndarray:
    """Linear from `start` to `end` over the warm-up, both ends included; constant after it. [steps] float64."""
    return np.concatenate([np.linspace(start, end, warmup_steps), np.full(max(steps - warmup_steps, 0), end)])[:steps]
