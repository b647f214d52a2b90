"""Seeds are derived in one place, and never change."""

import itertools

import numpy as np

from dinojax.seeds import derive


def test_seeds_stay_what_they_are() -> None:
    """The numbers that runs began with, so that they can be repeated."""
    assert [derive(seed, "drop path") for seed in (0, 7, 2**32 - 1)] == [829657895, 312281069, 1563263788]
    assert [derive(seed, "backbone") for seed in (0, 7, 2**32 - 1)] == [1032090654, 614854966, 999378951]
    assert derive(3, 5) == int(np.random.SeedSequence((3, 5)).generate_state(1)[0] >> 1)


def test_purposes_have_nothing_in_common() -> None:
    words = ("a", "b", 0, 1)
    purposes = [parts for length in (1, 2, 3) for parts in itertools.product(words, repeat=length)]
    found = [derive(seed, *parts) for seed in (0, 1) for parts in purposes]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**31 for seed in found)
