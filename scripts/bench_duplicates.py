"""Near duplicates by threshold: how many pairs of real images are found, and how many altered copies.

    python scripts/bench_duplicates.py FOLDER...

Of a folder with one image a patient, every pair is a false alarm.
"""

import io
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from dinojax.augment import geometry
from dinojax.data.fingerprints import SIDE, Fingerprints, fingerprint, perceptual_hashes, read_pixels
from dinojax.data.near import hamming_pairs, near_pairs
from dinojax.data.reading import read_records

DISTANCES = (4, 6, 8, 10, 12)
CORRELATIONS = (0.0, 0.95, 0.97, 0.98, 0.99)
COPIES = 100  # images of a folder that are altered


def main(folders: list[str]) -> None:
    """Prints two tables."""
    rng, images = np.random.default_rng(0), []
    print(
        "| pairs of images whose pixels differ | correlation | " + " | ".join(f"≤ {d} bits" for d in DISTANCES) + " |"
    )
    print("|---" * (2 + len(DISTANCES)) + "|")
    for folder in folders:
        records = read_records(folder, labelled=False)
        began = time.perf_counter()
        found = fingerprint(records, threads=2)
        hashed = time.perf_counter() - began
        chosen = np.unique(found.pixels, return_index=True)[1]  # of identical images, one
        for correlation in CORRELATIONS:
            counts = [len(near_pairs(found, distance, correlation, chosen).a) for distance in DISTANCES]
            name = f"{records.root.name}: {len(chosen):,} images, {len(chosen) * (len(chosen) - 1) // 2:,} pairs"
            print(f"| {name} | {correlation or 'any'} | {' | '.join(f'{count:,}' for count in counts)} |")
        print(f"{folder}: {len(records) / hashed:.0f} images/s hashed", file=sys.stderr)
        places = rng.choice(len(records), min(COPIES, len(records)), replace=False)
        images += [geometry.to_pil(geometry.grey(read_pixels(records, int(place)))) for place in places]
    print(f"\n| copies of {len(images)} images found (%) | " + " | ".join(f"{c or 'any'}" for c in CORRELATIONS) + " |")
    print("|---" * (1 + len(CORRELATIONS)) + "|")
    before = [_small(image) for image in images]
    for name, change in CHANGES.items():
        pairs = np.stack([*before, *(_small(change(image)) for image in images)])
        shares = [f"{100 * _found(pairs, correlation):.0f}" for correlation in CORRELATIONS]
        print(f"| {name} | {' | '.join(shares)} |")
    for count in (20_000, 200_000):
        hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
        began = time.perf_counter()
        sum(len(i) for i, _ in hamming_pairs(hashes, 8))
        print(f"{count:,} hashes compared in {time.perf_counter() - began:.1f} s", file=sys.stderr)


def _found(small: np.ndarray, correlation: float, distance: int = 8) -> float:
    """The share of the images in the first half that are near duplicates of their copies in the second."""
    half = len(small) // 2
    hashes, found = perceptual_hashes(small), 0
    for place in range(half):
        two = np.array([place, half + place])
        one = Fingerprints(np.array([0, 1], np.uint64), small[two], hashes[two], np.zeros(2, bool), {})
        found += len(near_pairs(one, distance, correlation).a)
    return found / half


def _small(image: Image.Image) -> np.ndarray:
    return geometry.square(geometry.to_array(image), SIDE)[:, :, 0]


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("L")

    return change


def _gamma(power: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point([round(255 * (value / 255) ** power) for value in range(256)])


def _cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def _marked(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.paste(255, (image.width // 50, image.height // 50, image.width // 5, image.height // 14))
    return image


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 10": _jpeg(10),
    "a quarter of the side": lambda image: image.resize((image.width // 4, image.height // 4)),
    "70 % of the contrast": lambda image: image.point([round(38 + 0.7 * value) for value in range(256)]),
    "gamma 0.7": _gamma(0.7),
    "gamma 1.5": _gamma(1.5),
    "1 % cut off at each edge": _cropped(0.01),
    "2 % cut off at each edge": _cropped(0.02),
    "5 % cut off at each edge": _cropped(0.05),
    "a white label in the corner": _marked,
    "turned by 2°": lambda image: image.rotate(2, Image.Resampling.BILINEAR),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}

if __name__ == "__main__":
    main(sys.argv[1:])
