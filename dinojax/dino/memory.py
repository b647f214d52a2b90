"""Memory that a run's step needs, against what there is: found out before the first step."""

from typing import Any, NamedTuple

import numpy as np

from dinojax.errors import UsageError
from dinojax.models import ViTArguments

_GIB = 2**30
_SAVED = 8
"""Numbers that a block keeps for the way back, at least, for each token and feature: its normalised input, query, key
and value, and the four of the MLP's hidden layer."""


class Need(NamedTuple):
    """Bytes on all devices of this process."""

    fixed: float
    """Whatever the batch size: student, teacher and optimizer."""
    growing: float
    """In proportion to the batch size."""

    @property
    def total(self) -> float:
        return self.fixed + self.growing

    def largest_batch(self, free: float, batch_size: int, multiple: int) -> int:
        """The largest batch size that fits into so many bytes; 0 if none does.

        Args:
          free: bytes.
          batch_size: that the need is of.
          multiple: of which batch sizes have to be multiples.
        """
        if self.growing <= 0:
            return batch_size
        return max(0, int((free - self.fixed) / self.growing * batch_size) // multiple * multiple)


def gib(size: float) -> str:
    """So many bytes, in words: two digits below 10 GiB, none after the point above."""
    number = size / _GIB
    return f"{number:.0f} GiB" if number >= 10 else f"{number:.2g} GiB"


def state_bytes(params: Any) -> float:
    """Bytes of a state: the student, the teacher and two moments of each of its parameters, float32."""
    return 4.0 * sum(4 * np.prod(array.shape, dtype=float) for array in params.values())


def lower_bound(
    state: float, arguments: ViTArguments, images: float, crops: tuple[tuple[int, int], ...], itemsize: int
) -> Need:
    """What a step needs at least, known without compiling it.

    Args:
      state: bytes of the state on the devices of this process.
      arguments: of the backbone.
      images: of a slice of the batch, on the devices of this process.
      crops: (number, side in pixels) of each kind that an image has.
      itemsize: bytes of a number in the blocks.
    """
    tokens = sum(count * (1 + (side // arguments.patch_size) ** 2) for count, side in crops)
    kept = 1 - arguments.drop_path if arguments.drop_path_subset else 1.0
    return Need(state, images * tokens * arguments.depth * _SAVED * arguments.width * itemsize * kept)


def compiled_need(compiled: Any, state: float, devices: int) -> Need | None:
    """What a compiled step needs, as XLA planned it; None where it does not say.

    Args:
      compiled: what `jax.jit(step).lower(...).compile()` returns.
      state: as of `lower_bound`.
      devices: of this process.
    """
    planned = compiled.memory_analysis()
    if planned is None:
        return None
    each = planned.argument_size_in_bytes + planned.output_size_in_bytes + planned.temp_size_in_bytes
    total = float(devices * (each - planned.alias_size_in_bytes))
    return Need(min(state, total), max(total - state, 0.0))


def check_memory(need: Need, free_gib: float, batch_size: int, multiple: int, least: bool = False) -> str:
    """Compares a need with the memory that is free.

    Args:
      need: of a step.
      free_gib: GiB.
      batch_size: that the need is of.
      multiple: of which batch sizes have to be multiples.
      least: whether the need is a lower bound.

    Returns:
      Both, in words.

    Raises:
      UsageError: it does not fit; names the batch size that would, and the keys that save memory.
    """
    about = "at least" if least else "about"
    told = f"needs {about} {gib(need.total)} of {gib(free_gib * _GIB)} free"
    if need.total / _GIB <= free_gib:
        return told
    fits = need.largest_batch(free_gib * _GIB, batch_size, multiple)
    size = f"no batch_size above {fits} can fit" if least else f"batch_size {fits} should fit"
    if not fits:
        size = "no batch_size fits, take a smaller model"
    raise UsageError(
        f"a training step of {batch_size} images {told}; {size}; memory is saved by a lower batch_size, "
        "accumulate (with groups), loop_blocks true, precision bfloat16 and, over several devices, fsdp 0"
    )
