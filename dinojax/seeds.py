"""One seed a run, and a stream of its own for everything that draws from it."""

import zlib

import numpy as np


def derive(seed: int, purpose: str) -> int:
    """A seed for one purpose, such as `drop path`; streams of different purposes have nothing in common.

    Args:
      seed: of the run, 0 to 2^32 − 1.
      purpose: any words; they are part of the result.

    Returns:
      0 to 2^31 − 1.
    """
    return int(np.random.SeedSequence((seed, zlib.crc32(purpose.encode()))).generate_state(1)[0] >> 1)
