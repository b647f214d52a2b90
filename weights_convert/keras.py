"""Reads Keras `.h5` files, weights alone or whole models, into named arrays that are views of the mapped file."""

import itertools
import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.errors import RunError

START = b"\x89HDF\r\n\x1a\n"
_SECONDS = 120  # a file of 100 MB takes less than one
_PROGRAM = Path(__file__).with_name("hdf5.py")
_ENVIRONMENT = {
    "HDF5_PLUGIN_PRELOAD": "::",  # no filter is loaded because a file names it
    "OPENBLAS_NUM_THREADS": "1",  # which starts threads, each with memory of its own, for as many cores as there are
}


def read_keras(path: Path, mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """The arrays below `model_weights`, or of the whole file where it has none, by name.

    Names are those of Keras without what repeats or never differs: `conv1_conv/conv1_conv/kernel:0` becomes
    `conv1_conv/kernel`. The file is listed in a process of its own, see `hdf5`; what that says is checked here.

    Raises:
      RunError: damaged, or some of it is kept elsewhere.
    """
    with tempfile.TemporaryFile() as output:
        listing = _listing(path, output)
        copies = mmap.mmap(output.fileno(), 0, access=mmap.ACCESS_READ)
    behind = copies.find(b"\n") + 1
    tensors: dict[str, np.ndarray] = {}
    extents: list[tuple[int, int, str]] = []
    for stored, kind, shape, offset, copied in listing:
        name = _name(stored)
        if name in tensors:
            raise RunError(f"two arrays are called {name}")
        buffer, start = (copies, behind + offset) if copied else (mapped, offset)
        if offset < 0:  # numpy would read before the beginning
            raise RunError(f"damaged: {name} is not whole")
        try:
            tensors[name] = np.ndarray(shape, kind, buffer, start) if math.prod(shape) else np.empty(shape, kind)
        except (ValueError, TypeError, OverflowError):
            raise RunError(f"damaged: {name} is not whole") from None
        if not copied and tensors[name].nbytes:
            extents.append((start, start + tensors[name].nbytes, name))
    _check_apart(extents)
    return tensors


def _listing(path: Path, output: Any) -> list[Any]:
    command = [sys.executable, "-P", str(_PROGRAM), str(path.resolve())]
    try:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.DEVNULL, timeout=_SECONDS, env=os.environ | _ENVIRONMENT
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"damaged: the HDF5 library did not finish within {_SECONDS} seconds") from None
    output.seek(0)
    try:
        found = json.loads(output.readline())
        if "error" in found:
            raise RunError(found["error"])
        if done.returncode == 0:
            return found["arrays"]
    except ValueError:
        pass
    raise RunError("damaged: the HDF5 library failed on it")


def _name(stored: str) -> str:
    parts = list(_unrepeated(stored.strip("/").removesuffix(":0").split("/")))
    return "/".join(parts[1:] if parts[0] == "model_weights" else parts)


def _unrepeated(parts: list[str]) -> Iterator[str]:
    for i, part in enumerate(parts):
        if i == 0 or part != parts[i - 1]:
            yield part


def _check_apart(extents: list[tuple[int, int, str]]) -> None:
    """HDF5's older formats have no checksums; an address that has changed mostly falls upon another array."""
    for (_, stop, first), (start, _, second) in itertools.pairwise(sorted(extents)):
        if start < stop:
            raise RunError(f"damaged: {first} and {second} lie in the same place")
