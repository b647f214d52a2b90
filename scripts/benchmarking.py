"""What the benchmarks share: interleaved timing, tables, and what to say about the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    summary: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median seconds a call, or another summary of a contender's seconds.

    Every round calls each once, so that other work on the machine falls on all of them.
    """
    for run in contenders.values():
        run()  # compiles, and fills caches
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: summary(found) for name, found in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def against(ours: float, theirs: float, target: float | None) -> str:
    """How many times faster, and the target where there is one."""
    return f"{theirs / ours:.2f}" + ("" if target is None else f" (target {target:g})")


def machine(packages: Sequence[str] = ("torch", "jax")) -> str:
    """Processor, cores that this process may use, load of the last minute, versions."""
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1] for line in information.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].strip() if names else cpu
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} core(s), load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"
