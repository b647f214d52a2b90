"""Images a second from files to device batches: pictures, DICOM and NIfTI, against a PyTorch DataLoader on these files.

    python scripts/bench_data.py [--files 96] [--rounds 5] [--batch 32]

Writes files of each kind and reads them: decoding alone on one core, and in batches of squares of 224 pixels with 0, 1
and 2 worker processes. The other side is what is usually written: pydicom, nibabel or Pillow in a `Dataset`, the window
and the resize in NumPy and Pillow, `DataLoader` with as many workers. Both sides make the same grey levels. A figure is
the best of the rounds, which take turns; needs `pip install -e '.[bench]'`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import nibabel
import numpy as np
import pydicom
import torch  # pyright: ignore[reportMissingImports]
from benchmarking import machine, table
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from dinojax.augment import geometry
from dinojax.config.images import ImagesConfig, IntensityConfig
from dinojax.data import pipeline
from dinojax.data.decode import decode
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource

SIDE = 224
LOW, HIGH = 0.0, 4095.0
WORKERS = (0, 1, 2)
SLICES = 32


def picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A smooth picture with some noise, as scans are, float in 0..1."""
    small = Image.fromarray(rng.uniform(0, 1, (12, 12)).astype(np.float32))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.normal(0, 0.01, (side, side)), 0, 1)


def write_dicom(path: Path, values: np.ndarray, syntax: UID) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.2"), generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "CT", "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = values.tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax)
    dataset.save_as(path, enforce_file_format=True)


def write_files(folder: Path, count: int) -> dict[str, Path]:
    """Files of each kind, in a folder of their own."""
    rng = np.random.default_rng(0)
    kinds = {"PNG 224², 8 bits": 224, "PNG 512², 8 bits": 512}
    syntaxes = {"": ExplicitVRLittleEndian, ", JPEG 2000": JPEG2000Lossless, ", RLE": RLELossless}
    folders = {}
    for place, (kind, side) in enumerate(kinds.items()):
        folders[kind] = folder / f"png{place}"
        folders[kind].mkdir()
        for number in range(count):
            Image.fromarray((picture(rng, side) * 255).astype(np.uint8)).save(folders[kind] / f"{number:04}.png")
    for name, syntax in syntaxes.items():
        kind = f"DICOM 512², 16 bits{name}"
        folders[kind] = folder / f"dicom{syntax}"
        folders[kind].mkdir()
        for number in range(count):
            write_dicom(folders[kind] / f"{number:04}.dcm", (picture(rng, 512) * HIGH).astype(np.uint16), syntax)
    kind = f"NIfTI 256² × {SLICES}, .nii.gz, by slices"
    folders[kind] = folder / "nifti"
    folders[kind].mkdir()
    for number in range(max(count // SLICES, 1)):
        volume = np.stack([picture(rng, 256) * HIGH for _ in range(SLICES)], axis=2).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folders[kind] / f"{number:04}.nii.gz")
    return folders


class TorchImages(torch.utils.data.Dataset):
    """What is usually written."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.iterdir())
        each = SLICES if files[0].suffix == ".gz" else 1
        self.items = [(file, place) for file in files for place in range(each)]

    def __len__(self) -> int:
        return len(self.items)

    def decode(self, index: int) -> np.ndarray:
        file, place = self.items[index]
        if file.suffix == ".png":
            with Image.open(file) as image:
                return np.asarray(image)
        if file.suffix == ".dcm":
            dataset = pydicom.dcmread(file)
            values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        else:
            values = np.asanyarray(nibabel.load(file).dataobj[:, :, place]).T[::-1]  # type: ignore[attr-defined]
        return np.clip((values - LOW) / (HIGH - LOW) * 255, 0, 255).astype(np.uint8)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.fromarray(self.decode(index)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))[None]


def square(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"image": geometry.square(element["image"], SIDE), "index": element["index"]}


def opened(folder: Path) -> Records:
    intensity = IntensityConfig() if folder.name.startswith("png") else IntensityConfig("range", (LOW, HIGH))
    records = read_records(str(folder), labelled=False)
    return open_images(records, ImagesConfig(intensity=intensity, salt_file=str(folder.parent / "salt")))[0]


def ours(records: Records, batch: int, workers: int) -> Iterator[jax.Array]:
    """Batches on the device."""
    source = ImageSource(records, channels=1)
    for made in pipeline.training_batches(
        source, square, batch_size=batch, seed=0, threads=0 if workers == 0 else 1, workers=workers
    ):
        yield jax.device_put(made["image"])


def theirs(folder: Path, batch: int, workers: int) -> Iterator[torch.Tensor]:
    loader = torch.utils.data.DataLoader(
        TorchImages(folder),
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # JAX has threads, which a fork would lose
    )
    while True:
        yield from loader


def speed(batches: Iterator[Any], count: int, batch: int) -> float:
    """Images a second, after a batch that starts what has to be started."""
    last = next(batches)
    began = time.perf_counter()
    for _ in range(count):
        last = next(batches)
    if isinstance(last, jax.Array):
        last.block_until_ready()
    return count * batch / (time.perf_counter() - began)


def decoding(read: Callable[[int], Any], count: int) -> float:
    read(0)
    began = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    print(f"{machine(('jax', 'torch', 'pydicom', 'nibabel', 'pillow'))}\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, files in write_files(Path(folder), arguments.files).items():
            records, dataset = opened(files), TorchImages(files)
            count = min(len(records), len(dataset))
            # In order of value, as slices are turned otherwise.
            levels = [np.sort(image.ravel()).astype(int) for image in (decode(records, 0), dataset.decode(0))]
            assert np.abs(levels[0] - levels[1]).max() <= 1, "the two sides do not make the same grey levels"
            os.sched_setaffinity(0, {max(cores)})  # one core for both, in turn
            pairs = [
                (decoding(lambda i: decode(records, i), count), decoding(dataset.decode, count))  # noqa: B023
                for _ in range(arguments.rounds)
            ]
            os.sched_setaffinity(0, cores)
            rows.append([kind, "decoding, one core", *figures(pairs)])
            for workers in WORKERS:
                if not workers:
                    os.sched_setaffinity(0, {max(cores)})
                pairs = []
                for _ in range(arguments.rounds):
                    pair = []
                    for batches in (
                        ours(records, arguments.batch, workers),
                        theirs(files, arguments.batch, workers),
                    ):
                        pair.append(speed(batches, max(count // arguments.batch, 2), arguments.batch))
                        batches.close()  # type: ignore[attr-defined]
                    pairs.append(tuple(pair))
                os.sched_setaffinity(0, cores)
                name = f"batches, {workers} workers" if workers else "batches, no worker, one core"
                rows.append([kind, name, *figures(pairs)])
            print(
                table(["files", "what", "dinojax, images/s", "PyTorch, images/s", "ratio"], rows[-1 - len(WORKERS) :])
            )
            print(flush=True)


def figures(pairs: list[tuple[float, ...]]) -> list[str]:
    """The best of each side, and the median of the rounds' ratios."""
    best = [max(pair[side] for pair in pairs) for side in (0, 1)]
    return [f"{best[0]:.0f}", f"{best[1]:.0f}", f"{np.median([a / b for a, b in pairs]):.2f}"]


if __name__ == "__main__":
    main()
