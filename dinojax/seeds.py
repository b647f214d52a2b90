"""One seed a run, and a stream of random numbers of its own for everything that draws from it."""

import zlib

import numpy as np


def mix(*numbers: int) -> int:
    """A seed of 32 bits that looks unlike those of neighbouring numbers; each is 0 to 2^32 − 1."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def derive(seed: int, purpose: str | int, *more: str | int) -> int:
    """A seed for one purpose; different purposes have unrelated streams.

    Args:
      seed: of the run, 0 to 2^32 − 1.
      purpose: words or a number, 0 to 2^32 − 1, such as `"drop path"`.
      more: what tells purposes of one kind apart, likewise, such as the numbers of a fold and an epoch.

    Returns:
      0 to 2^31 − 1.

    >>> derive(0, "drop path"), derive(0, "fold", 1), derive(0, "fold", 2)
    (829657895, 2003421108, 982955867)
    """
    parts = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in (purpose, *more)]
    # Zeros at the end of its entropy change nothing of a SeedSequence, so the number of parts comes after several.
    return mix(seed, *parts, *([len(parts)] if more else [])) >> 1
