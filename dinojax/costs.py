"""What a computation costs, and what the machine has: for what a run says before it begins."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.wording import counted

_REPEATS = 3
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def flops(function: Callable[..., Any], *shapes: Any) -> float:
    """Floating-point operations of a function, as XLA counts them before it optimises; nothing is computed.

    Args:
      function: as `jax.jit` takes it; the body of a loop is counted once.
      shapes: its arguments, or `jax.ShapeDtypeStruct` in their place.
    """
    analysis = jax.jit(function).lower(*shapes).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))


def measured_rate() -> float:
    """FLOP/s of all devices, taken from the best of a few products of square float32 matrices: an upper bound."""
    on_cpu = jax.default_backend() == "cpu"
    side = 1024 if on_cpu else 8192  # an accelerator reaches its rate in large products alone
    matrix = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    # Devices that a CPU is divided into share its cores.
    devices = 1 if on_cpu else jax.local_device_count()
    return devices * 2 * side**3 / min(seconds)


def duration(operations: float) -> str:
    """The least time that so many operations take here, in words."""
    rate = measured_rate()
    seconds = operations / rate
    unit, length = next((pair for pair in (("hours", 3600), ("minutes", 60)) if seconds >= 2 * pair[1]), ("seconds", 1))
    least = f"at least {seconds / length:.{1 if length > 1 else 0}f} {unit}" if seconds >= 1.5 else "about a second"
    return f"{least}: {operations / 1e12:.3g} TFLOP at {rate / 1e9:.3g} GFLOP/s"


def memory_gib() -> float:
    """GiB that are free for this process: of its devices where they tell, else of the machine or its container."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(found and "bytes_limit" in found for found in stats):
        return sum(found["bytes_limit"] for found in stats if found) / 2**30
    limits = [
        float(text) for path in map(Path, _LIMITS) if path.exists() and (text := path.read_text().strip()).isdigit()
    ]
    return min([*limits, _available()]) / 2**30


def machine() -> str:
    """Devices, cores and memory in words."""
    device, devices = jax.devices()[0], jax.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind = "" if device.device_kind == device.platform else f" ({device.device_kind})"
    found = f"{counted(devices, f'{device.platform} device')}{kind}; {counted(cores, 'core')}"
    return f"{found}; {memory_gib():.1f} GiB of memory free"


def _available() -> float:
    """Bytes of the host's memory that new work can have."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
