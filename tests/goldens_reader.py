"""Reads the reference figures and rebuilds the tensors behind them, as tests/goldens/README.md describes."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike


def goldens_dir() -> Path:
    """The folder that `$DINOJAX_GOLDENS` names, else the project's own copy."""
    return Path(os.environ.get("DINOJAX_GOLDENS", Path(__file__).parent / "goldens"))


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(goldens_dir() / name) as file:
        return dict(file)


def seed() -> int:
    return json.loads((goldens_dir() / "meta.json").read_text())["seed"]


def rebuild(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor called `name`, float32 (int64 for `num_batches_tracked`), in the shape of the published code."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) ^ seed()) & 0xFFFFFFFF)
    x = generator.standard_normal(shape).astype(np.float32)
    leaf = name.replace("/", ".").split(".")[-1].removesuffix(":0")
    if name.startswith("input"):
        return x
    if leaf in ("running_var", "moving_variance"):
        return 1 + 0.2 * np.abs(x)
    if leaf in ("running_mean", "moving_mean", "bias", "beta"):
        return 0.1 * x
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "gamma" and ".ls" in name:
        return 0.2 * x
    if leaf == "gamma" or (leaf == "weight" and len(shape) == 1):
        return 1 + 0.1 * x
    if leaf in ("pos_embed", "cls_token", "register_tokens", "mask_token"):
        return 0.2 * x
    if leaf == "weight_g":
        return np.ones(shape, np.float32)
    fan_in = np.prod(shape[:-1] if leaf == "kernel" else shape[1:])
    return (x / np.sqrt(fan_in)).astype(np.float32)


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float) -> None:
    """Asserts that the largest difference is at most `tolerance` times the largest value expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual - expected).max()
    bound = tolerance * np.abs(expected).max()
    assert difference <= bound, f"differs by {difference:.3g}, allowed {bound:.3g}"
