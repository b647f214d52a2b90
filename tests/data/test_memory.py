"""All images decoded once, whatever is made of them."""

import itertools
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from dinojax.augment import geometry
from dinojax.data.formats import BadFile
from dinojax.data.memory import MemorySource, decode_all
from dinojax.data.pipeline import training_batches
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.errors import RunError

VIEWS = {"square": partial(geometry.square, size=6), "shape": lambda image: np.array(image.shape, np.int32)}


def write_images(folder: Path, mode: str = "L") -> Records:
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (8 + number, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L").convert(mode).save(folder / f"{number}.png")
    return read_records(str(folder), labelled=False)


def damage(folder: Path, name: str, header: bool) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[: 10 if header else -30])


@pytest.mark.parametrize("threads", [0, 3])
def test_views_of_every_image(tmp_path: Path, threads: int) -> None:
    records, views, skipped = decode_all(write_images(tmp_path), VIEWS, channels=1, threads=threads, on_bad_file="stop")
    assert not skipped
    assert views["shape"].tolist() == [[8 + number, 12, 1] for number in range(5)]
    assert views["square"].dtype == np.uint8
    for path, found in zip(records.paths, views["square"], strict=True):
        with Image.open(tmp_path / path) as image:
            expected = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(found[:, :, 0], expected)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 3), ("RGB", 1)])
def test_views_get_as_many_channels_as_are_asked_for(tmp_path: Path, mode: str, channels: Literal[1, 3]) -> None:
    decoded = decode_all(write_images(tmp_path, mode), VIEWS, channels=channels, threads=2, on_bad_file="stop")
    assert decoded.views["square"].shape == (5, 6, 6, channels)


def test_unreadable_files_stop_or_are_left_out(tmp_path: Path) -> None:
    records = write_images(tmp_path)
    whole = decode_all(records, VIEWS, channels=1, threads=2, on_bad_file="stop")
    damage(tmp_path, "3.png", header=True)
    with pytest.raises(RunError, match=r"3\.png"):
        decode_all(records, VIEWS, channels=1, threads=2, on_bad_file="stop")
    left = decode_all(records, VIEWS, channels=1, threads=2, on_bad_file="skip")
    assert left.records.paths.tolist() == ["0.png", "1.png", "2.png", "4.png"]
    assert [path for path, _ in left.skipped] == ["3.png"]
    for name in VIEWS:
        np.testing.assert_array_equal(left.views[name], whole.views[name][[0, 1, 2, 4]])


def test_files_that_only_decoding_shows_to_be_bad(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        if number != 1:
            path.write_bytes(path.read_bytes()[:1500])
    records = read_records(str(tmp_path), labelled=False)
    left = decode_all(records, VIEWS, channels=1, threads=2, on_bad_file="skip")
    assert left.records.paths.tolist() == ["1.jpg"]
    assert [path for path, _ in left.skipped] == ["0.jpg", "2.jpg"]
    assert left.views["square"].shape == (1, 6, 6, 1)
    with pytest.raises(BadFile, match=r"0\.jpg"):
        decode_all(records, VIEWS, channels=1, threads=2, on_bad_file="stop")
    with pytest.raises(BadFile, match="none of the 2 images"):
        decode_all(records.take(np.array([0, 2])), VIEWS, channels=1, threads=2, on_bad_file="skip")


@pytest.mark.parametrize("labels", [np.arange(5, dtype=np.int32), np.full((5, 3), np.nan, np.float32)])
def test_a_source_of_images_in_memory(labels: np.ndarray) -> None:
    images = np.arange(5, dtype=np.uint8)[:, None]
    source = MemorySource(images, labels, np.array([4, 1]))
    assert len(source) == 2
    assert [int(source[i]["index"]) for i in range(2)] == [4, 1]
    batches = training_batches(source, lambda element, rng: element, batch_size=2, seed=0, threads=0)
    for batch in itertools.islice(batches, 3):
        assert batch["label"].dtype == labels.dtype
        np.testing.assert_array_equal(batch["label"], labels[batch["index"]])
        np.testing.assert_array_equal(batch["image"], images[batch["index"]])
