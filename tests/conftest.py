"""Tests run on the CPU with eight devices simulated. JAX reads its settings from the environment as it starts."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA's own passes run as ever. LLVM's would take longer than the few steps of a test gain by them; to have them all the
# same: XLA_FLAGS=--xla_backend_optimization_level=3
flags = os.environ.get("XLA_FLAGS", "")
if "--xla_backend_optimization_level" not in flags:
    flags += " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"
# Several tests run the same program: it is compiled once a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dinojax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

# Of two workers each begins with one half of the tests, in their order: what takes longest comes first in both.
_FIRST = ({"test_demo.py", "test_sharding.py"}, {"test_notebooks.py", "test_restart.py"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = [[item for item in items if item.path.name in files] for files in _FIRST]
    rest = [item for item in items if not any(item.path.name in files for files in _FIRST)]
    half = (len(items) + 1) // 2 - len(long[0])
    items[:] = [*long[0], *rest[:half], *long[1], *rest[half:]]
