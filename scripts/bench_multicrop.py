"""Images a second from files to normalised multi-crop batches, on one core, against the published pipeline.

    python scripts/bench_multicrop.py --data FOLDER

Two global crops of 224 and eight local ones of 98 pixels, with MediDino's settings. The published side is DINOv2's
augmentation in a PyTorch DataLoader without workers. torchvision itself is not needed: on PIL images its operations are
calls of Pillow, which are made here, in its order and with its draws; its Gaussian blur is a convolution in PyTorch.
All files are decoded to RGB there; ours keep one channel where all files of FOLDER are grey. Of grey files a second,
coloured set is made in a temporary folder, which measures RGB. Both sides decode each image anew and are pinned to the
same core; they are timed in interleaved rounds.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from benchmarking import against, interleaved, machine, table
from PIL import Image, ImageEnhance, ImageOps
from published_models import F, torch

from dinojax.augment import geometry
from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config import parser as configuration
from dinojax.config.pretrain import PretrainConfig
from dinojax.data import pipeline
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalise, to_channels

PRESET = Path(__file__).parents[1] / "configs" / "pretrain" / "medidino_code.yaml"
TARGETS = {"grey": 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts the cores
    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    given = ["--config", str(PRESET), "--data", arguments.data, "--out", "unused"]
    config = configuration.parse(PretrainConfig, given, "pretrain")
    print(f"{machine(('torch', 'jax', 'pillow'))}\n")
    with tempfile.TemporaryDirectory() as folder:
        records, headers = open_images(read_records(arguments.data, labelled=False))
        print(headers.summary())
        sets = {"RGB": records}
        if headers.channels == 1:
            sets = {"grey": records, "RGB": coloured(records, Path(folder))}
        rows = [measure(kind, found, config, arguments.batch, arguments.rounds) for kind, found in sets.items()]
    print("\n" + table(["images/s on one core", "published", "dinojax", "ratio"], rows))
    print(f"\nMedian of {arguments.rounds} rounds of {arguments.batch} images; load now {os.getloadavg()[0]:.1f}.")


def measure(kind: str, records: Records, config: PretrainConfig, batch: int, rounds: int) -> list[str]:
    ours, theirs = dinojax_batches(records, config, batch), published_batches(records, config, batch)
    for a, b in zip(next(ours), next(theirs), strict=True):  # by chance other crops, but the same kind of numbers
        a = np.moveaxis(np.swapaxes(np.asarray(a), 0, 1), -1, -3).reshape(b.shape)
        print(f"{kind}: {b.shape}, mean ± SD {b.mean():.2f} ± {b.std():.2f} published, {a.mean():.2f} ± {a.std():.2f}")
    seconds = interleaved({"published": lambda: next(theirs), "dinojax": lambda: next(ours)}, rounds)
    rates = [f"{batch / seconds[name]:.0f}" for name in ("published", "dinojax")]
    return [kind, *rates, against(seconds["dinojax"], seconds["published"], TARGETS.get(kind))]


def coloured(records: Records, folder: Path) -> Records:
    """Copies of grey files as RGB, their grey levels mapped to colours."""
    for i in range(len(records)):
        with Image.open(records.file(i)) as image:
            ImageOps.colorize(image.convert("L"), (20, 0, 40), (255, 240, 200), mid=(120, 90, 160)).save(
                folder / f"{i:06}{records.file(i).suffix}"
            )
    return read_records(str(folder), labelled=False)


def dinojax_batches(records: Records, config: PretrainConfig, batch: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """As `pretrain` makes them, in one thread and without the cache of decoded images."""
    _, headers = open_images(records)
    batches = pipeline.training_batches(
        ImageSource(records, channels=headers.channels),
        partial(transform, config=config),
        batch_size=batch,
        seed=0,
        threads=0,
    )

    @jax.jit
    def augment(views: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        augmented = augment_views(views, jax.random.key(0), config.photometry)
        return tuple(normalise(to_channels(view, 3), Preprocessing()) for view in augmented)

    for views in batches:
        yield jax.block_until_ready(augment({name: jax.device_put(array) for name, array in views.items()}))


def transform(element: dict[str, Any], rng: np.random.Generator, config: PretrainConfig) -> dict[str, Any]:
    return multicrop(element, rng, config.crops)


def published_batches(records: Records, config: PretrainConfig, batch: int) -> Iterator[tuple[Any, Any]]:
    loader = torch.utils.data.DataLoader(
        Files(records, config), batch, shuffle=True, drop_last=len(records) >= batch, collate_fn=collate
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def collate(elements: list[tuple[list[Any], list[Any]]]) -> tuple[Any, Any]:
    """Crop-major, as published: all first views, then all second ones."""
    globals_, locals_ = (list(zip(*views, strict=True)) for views in zip(*elements, strict=True))
    return tuple(torch.stack([image for view in views for image in view]) for views in (globals_, locals_))  # type: ignore[return-value]


class Files(torch.utils.data.Dataset):
    """Decoded and augmented images: two global and L local tensors [3, S, S]."""

    def __init__(self, records: Records, config: PretrainConfig) -> None:
        self.records, self.config = records, config
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[list[Any], list[Any]]:
        with Image.open(self.records.file(index)) as file:
            image = file.convert("RGB")
        crops, photometry = self.config.crops, self.config.photometry
        views = [self._crop(image, crops.global_size, crops.global_scale) for _ in range(2)]
        first = self._finish(views[0], photometry.blur_global1)
        second = self._finish(views[1], photometry.blur_global2, photometry.solarize_global2)
        locals_ = (self._crop(image, crops.local_size, crops.local_scale) for _ in range(crops.locals))
        return [first, second], [self._finish(view, photometry.blur_local) for view in locals_]

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _crop(self, image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
        view = geometry.cut(image, geometry.crop_box(self.rng, image.height, image.width, scale), size)
        if self._chance(self.config.crops.horizontal_flip):
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._chance(self.config.crops.vertical_flip):
            view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return view

    def _finish(self, view: Image.Image, blur: float, solarization: float = 0.0) -> Any:
        photometry = self.config.photometry
        if self._chance(photometry.jitter):
            view = self._jitter(view)
        if self._chance(photometry.grayscale):
            view = Image.fromarray(np.dstack([np.asarray(view.convert("L"))] * 3))
        if self._chance(blur):
            view = gaussian_blur(view, self.rng.uniform(*photometry.blur_sigma))
        if self._chance(solarization):
            view = ImageOps.solarize(view, 128)
        tensor = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return tensor.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(torch.tensor(IMAGENET_STD)[:, None, None])

    def _jitter(self, view: Image.Image) -> Image.Image:
        photometry = self.config.photometry
        ranges = (photometry.brightness, photometry.contrast, photometry.saturation)
        factors = [self.rng.uniform(1 - reach, 1 + reach) for reach in ranges]
        enhancements = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for operation in self.rng.permutation(4):
            if operation < 3:
                view = enhancements[operation](view).enhance(factors[operation])
            else:
                view = adjust_hue(view, self.rng.uniform(-photometry.hue, photometry.hue))
        return view


def adjust_hue(view: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = view.convert("HSV").split()
    turned = np.array(hue) + np.int16(turn * 255).astype(np.uint8)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def gaussian_blur(view: Image.Image, sigma: float) -> Image.Image:
    """Kernel 9 by 9, borders reflected; rounded back to 8 bits."""
    line = torch.exp(-0.5 * (torch.linspace(-4, 4, 9) / sigma) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(3, 1, 9, 9)
    image = torch.from_numpy(np.array(view)).permute(2, 0, 1)[None].to(torch.float32)
    blurred = F.conv2d(F.pad(image, [4, 4, 4, 4], mode="reflect"), kernel, groups=3)
    return Image.fromarray(blurred[0].round().to(torch.uint8).permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
