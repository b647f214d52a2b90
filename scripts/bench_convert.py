"""What converting a checkpoint costs: seconds for ViT-S/14, memory for ViT-g/14.

    python scripts/bench_convert.py

Both are seeded float32 hub files, written to a temporary folder tensor by tensor, as torch.save lays them out; the
larger one and what it becomes need 9.1 GB there (`--folder` names another place). Seconds are those of the command less
those of starting Python and importing the command, each the median of interleaved rounds. Memory is the largest RssAnon
of /proc/PID/status, read every two milliseconds: pages of the process's own, without those of mapped files, which the
kernel can drop at any time. Linux only.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from benchmarking import machine, table

sys.path.append(str(Path(__file__).parents[1]))
from tests.weights_convert import published, torch_files

COMMAND = (sys.executable, "-m", "weights_convert")


def write_checkpoint(path: Path, shapes: published.Shapes) -> Path:
    """A hub file of random float32 weights, written without holding more than one tensor."""
    generator = np.random.default_rng(0)

    def storages() -> Iterator[tuple[str, bytes]]:
        for number, shape in enumerate(shapes.values()):
            yield str(number), (0.02 * generator.standard_normal(shape, np.float32)).tobytes()

    records = torch_files.state_dict({name: (shape, "float32") for name, shape in shapes.items()})
    return torch_files.write(path, torch_files.pickled(records), storages())


def seconds(source: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of the whole command (`convert`), and of starting Python and importing (`start`)."""
    found: dict[str, list[tuple[float, float]]] = {"convert": [], "start": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            found["convert"].append(_run([*COMMAND, str(source), f"{folder}/model"]))
        found["start"].append(_run([sys.executable, "-c", "import weights_convert.__main__"]))
    return {name: (median(wall for wall, _ in times), median(cpu for _, cpu in times)) for name, times in found.items()}


def _run(command: list[str]) -> tuple[float, float]:
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def peak_memory(source: Path, directory: Path) -> tuple[float, float]:
    """The most anonymous memory of a conversion in MiB, and its seconds."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen([*COMMAND, str(source), str(directory)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        most = max(most, *map(int, found), 0)
        time.sleep(0.002)
    if process.returncode:
        raise SystemExit(f"the conversion of {source} failed")
    return most / 1024, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the temporary files go")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine(("jax", "numpy")))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        small = write_checkpoint(folder / "vits14.pth", published.backbone(384, 12, 37))
        _run([*COMMAND, "--inspect", str(small)])  # fills caches
        took = seconds(small, options.rounds)
        giant = write_checkpoint(folder / "vitg14.pth", published.backbone(1536, 40, 37, gated=4096))
        size = giant.stat().st_size
        memory, all_of_it = peak_memory(giant, folder / "model")
    rows = [
        [f"ViT-S/14 beyond start and imports: {what}", f"{whole - start:.2f} s ({whole:.2f} − {start:.2f})", "2 s"]
        for what, whole, start in zip(("wall", "processor"), took["convert"], took["start"], strict=True)
    ]
    rows += [
        [f"ViT-g/14 ({size / 1e9:.2f} GB): anonymous memory", f"{memory:.0f} MiB (in {all_of_it:.0f} s)", "1024 MiB"],
    ]
    print(table(["converting", "measured", "target"], rows))


if __name__ == "__main__":
    main()
