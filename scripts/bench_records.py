"""Seconds and memory to list a data set of RadImageNet's size: as a plain folder, as class folders, as a manifest.

    python scripts/bench_records.py DIRECTORY [--images 1350000]

Makes empty files in DIRECTORY (no pixel is read), in 165 class folders, and a manifest of them with path, label and
patient; one that is there already is used as it is. Each listing runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarking import machine, table

CLASSES = 165
PATIENTS = 131_872
CHILD = """
import json, pathlib, sys, time

def peak():  # of this process alone, on Linux; getrusage may give that of the one that started it
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20  # KiB to GiB

from dinojax.data.reading import read_records
before, began = peak(), time.perf_counter()
records = read_records(sys.argv[1], labelled=bool(int(sys.argv[2])))
seconds = time.perf_counter() - began
print(json.dumps([len(records), seconds, before, peak()]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=1_350_000)
    arguments = parser.parse_args()
    folder, manifest = arguments.directory / "images", arguments.directory / "manifest.csv"
    if not manifest.exists():
        make(folder, manifest, arguments.images)
    print(f"{machine(('numpy',))}\n")
    rows = []
    listings = (("folder, no labels", folder, 0), ("class folders", folder, 1), ("manifest", manifest, 1))
    for name, data, labelled in listings:
        command = [sys.executable, "-c", CHILD, str(data), str(labelled)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        images, seconds, before, peak = json.loads(done.stdout)
        rows.append([name, f"{images:,}", f"{seconds:.1f}", f"{before:.2f}", f"{peak:.2f}"])
    print(table(["listed", "images", "seconds", "GiB after the imports", "peak GiB"], rows))


def make(folder: Path, manifest: Path, images: int) -> None:
    """Writes the files and, last, the manifest."""
    for place in range(CLASSES):
        (folder / f"class_{place:03}").mkdir(parents=True, exist_ok=True)
    lines = ["path,label,patient_id\n"]
    for number in range(images):
        label = f"class_{number % CLASSES:03}"
        path = f"images/{label}/image{number:07}.png"
        (manifest.parent / path).touch()
        lines.append(f"{path},{label},patient{number % PATIENTS:06}\n")
    manifest.write_text("".join(lines))


if __name__ == "__main__":
    main()
