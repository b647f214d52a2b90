"""What the tests on damaged and made-up files share."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from dinojax.errors import RunError
from tests import goldens_reader as goldens
from weights_convert import readers
from weights_convert.layouts import recognise

FILES = goldens.goldens_dir() / "files"
Tensors = Mapping[str, np.ndarray]


def fuzzed(examples: int) -> settings:
    """The same examples in each run, and no limit on the time of one."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextmanager
def written(content: bytes, name: str = "x.pth") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        yield Path(folder) / name


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors, copied; None where the file was refused by one line that names it."""
    try:
        return {name: array.copy() for name, array in readers.read(path).items()}
    except RunError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return None


def outline(tensors: Tensors) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in tensors.items()}


def assert_not_recognised(tensors: Tensors) -> None:
    with pytest.raises(RunError) as refusal:
        recognise(tensors, heads=2 if "cls_token" in tensors else None)
    assert "\n" not in str(refusal.value)
