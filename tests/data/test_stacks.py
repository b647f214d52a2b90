"""Images of several channels: columns of files in a manifest, or the fourth axis of a NIfTI volume."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinojax.config.images import ImagesConfig, IntensityConfig, SlicesConfig
from dinojax.config.pretrain import WindowJitterConfig
from dinojax.data.decode import decode
from dinojax.data.duplicates import find_duplicates
from dinojax.data.fingerprints import fingerprint
from dinojax.data.headers import Headers
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource, jitter_window
from dinojax.errors import RunError
from tests.data.medical import write_dicom, write_nifti, write_wide

SEQUENCES = ("t1", "t2", "flair")
CHANNELS = ImagesConfig(
    slices=SlicesConfig(time="channels"), intensity=IntensityConfig(policy="range", range=(0.0, 1000.0))
)


def write_table(folder: Path, suffix: str, rows: int = 3, **more: list[str]) -> Path:
    """A manifest whose row i lists the files `<sequence>/<i><suffix>`."""
    columns = {f"path_{name}": [f"{name}/{row}{suffix}" for row in range(rows)] for name in SEQUENCES}
    pd.DataFrame({**columns, **more}).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def voxels(shape: tuple[int, ...] = (12, 10, 3), seed: int = 0, scale: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 1000, shape) * scale).astype(np.int16)


def write_volumes(folder: Path, rows: int = 3) -> Path:
    for row in range(rows):
        for number, name in enumerate(SEQUENCES):
            write_nifti(folder / name / f"{row}.nii.gz", voxels(seed=3 * row + number, scale=1 + 3 * number))
    return write_table(folder, ".nii.gz", rows)


def write_pictures(folder: Path, rows: int = 3) -> Path:
    """Of 8 bits, 12 bits in 16, and 8 bits."""
    rng = np.random.default_rng(0)
    for row in range(rows):
        for name in SEQUENCES:
            bits = 12 if name == "t2" else 8
            values = rng.integers(0, 2**bits, (12, 10)).astype(np.uint16 if bits > 8 else np.uint8)
            write_wide(folder / name / f"{row}.png", values)
    return write_table(folder, ".png", rows)


def opened(
    data: Path, config: ImagesConfig | None = None, column: str | None = None, **more
) -> tuple[Records, Headers]:
    return open_images(read_records(str(data), labelled=False, path_column=column), config, **more)


@pytest.mark.parametrize("write", [write_volumes, write_pictures])
def test_every_channel_is_its_own_file(write: Callable[[Path], Path], tmp_path: Path) -> None:
    table = write(tmp_path)
    records, headers = opened(table)
    assert (headers.channels, headers.stacked, headers.colour) == (3, True, 0)
    assert "images of 3 channels: path_t1, path_t2, path_flair" in headers.summary()
    assert records.paths[0] == f"t1/0{'.nii.gz' if write is write_volumes else '.png'}"
    assert records.unread_columns == ()
    alone = [opened(table, column=f"path_{name}")[0] for name in SEQUENCES]
    assert len(records) == len(alone[0]) == (9 if write is write_volumes else 3)
    for place in range(len(records)):
        image = decode(records, place)
        assert image.shape == (10, 12, 3) if write is write_volumes else (12, 10, 3)
        for channel, one in enumerate(alone):
            np.testing.assert_array_equal(image[:, :, channel : channel + 1], decode(one, place))
            assert np.ptp(image[:, :, channel]) > 200, "by levels of its own"
        np.testing.assert_array_equal(ImageSource(records, channels=3)[place]["image"], image)
    if write is write_volumes:
        levels = np.stack([one.display.levels for one in records.channels if one.display is not None])
        assert (levels[1, :, 1] > 3 * levels[0, :, 1]).all(), "of each channel's own volume"
        assert records.groups["volume_id"].tolist() == [f"t1/{row}.nii.gz" for row in range(3) for _ in range(3)]


@pytest.mark.parametrize("given", [{"axis": "axial"}, {"axis": "sagittal", "every": 2}])
def test_a_fourth_axis_is_the_same_as_columns(given: dict, tmp_path: Path) -> None:
    table = write_volumes(tmp_path / "columns")
    for row in range(3):
        channels = [voxels(seed=3 * row + number, scale=1 + 3 * number) for number in range(3)]
        write_nifti(tmp_path / "four" / f"{row}.nii.gz", np.stack(channels, axis=3))
    columns, _ = opened(table, ImagesConfig(slices=SlicesConfig(**given)))
    four, headers = opened(tmp_path / "four", ImagesConfig(slices=SlicesConfig(time="channels", **given)))
    assert headers.channels == 3
    assert "images of 3 channels, along the fourth axis" in headers.summary()
    assert len(four) == len(columns)
    for place in range(len(four)):
        np.testing.assert_array_equal(decode(four, place), decode(columns, place))
    apart, headers = opened(tmp_path / "four", ImagesConfig(slices=SlicesConfig(**given)))
    assert (len(apart), headers.channels) == (3 * len(four), 1)


def test_a_slice_that_is_listed_takes_its_channels_along(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", voxels((12, 10, 3, 4)))
    pd.DataFrame({"path": ["a.nii"] * 2, "frame": [0, 2]}).to_csv(tmp_path / "some.csv", index=False)
    some, whole = opened(tmp_path / "some.csv", CHANNELS)[0], opened(tmp_path, CHANNELS)[0]
    for place, slice_ in enumerate((0, 2)):
        np.testing.assert_array_equal(decode(some, place), decode(whole, slice_))
    pd.DataFrame({"path": ["a.nii"], "frame": [3]}).to_csv(tmp_path / "some.csv", index=False)
    with pytest.raises(RunError, match=r"a\.nii, frame 3 .*some\.csv, row 2\): has 3 slices"):
        opened(tmp_path / "some.csv", CHANNELS)
    write_nifti(tmp_path / "b.nii", voxels((12, 10, 3, 4)))
    write_nifti(tmp_path / "c.nii", voxels((12, 10, 3, 2)))
    with pytest.raises(RunError, match=r"^c\.nii: 2 channels, where most images have 4 \(1 of 3 entries\)"):
        opened(tmp_path, CHANNELS)


def test_a_slice_is_empty_where_all_channels_are(tmp_path: Path) -> None:
    write_volumes(tmp_path, rows=1)
    for number, name in enumerate(SEQUENCES):
        values = voxels(seed=number)
        values[:, :, : 1 + (number > 0)] = 0  # the second slice shows something in the first channel alone
        write_nifti(tmp_path / name / "0.nii.gz", values)
    records, headers = opened(tmp_path / "manifest.csv")
    assert records.frames.tolist() == [1, 2]
    assert [one.frames.tolist() for one in records.further] == [[1, 2]] * 2
    assert "1 empty slice left out" in headers.summary()


def test_sizes_count_after_the_spacing(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", voxels((12, 10, 2)))
    write_nifti(tmp_path / "b.nii", voxels((12, 5, 2)), np.diag([1.0, 2.0, 1.0, 1.0]))
    pd.DataFrame({"path_a": ["a.nii"], "path_b": ["b.nii"]}).to_csv(tmp_path / "manifest.csv", index=False)
    records, _ = opened(tmp_path / "manifest.csv", ImagesConfig(spacing="isotropic"))
    assert decode(records, 0).shape == (10, 12, 2)
    with pytest.raises(RunError, match=r"differ in size: a\.nii 12×10, b\.nii 12×5 pixels \(.*manifest\.csv, row 2\)"):
        opened(tmp_path / "manifest.csv")


def test_files_of_two_sizes_are_refused_with_their_row_or_left_out(tmp_path: Path) -> None:
    table = write_pictures(tmp_path)
    write_wide(tmp_path / "t2" / "1.png", np.arange(120, dtype=np.uint16).reshape(10, 12))
    wrong = r"differ in size: t1/1\.png 10×12, t2/1\.png 12×10, flair/1\.png 10×12 pixels \(.*manifest\.csv, row 3\)"
    with pytest.raises(RunError, match=wrong):
        opened(table)
    records, headers = opened(table, on_bad_file="skip")
    assert records.paths.tolist() == ["t1/0.png", "t1/2.png"]
    assert [one.paths.tolist() for one in records.further] == [
        [f"{name}/{row}.png" for row in (0, 2)] for name in ("t2", "flair")
    ]
    assert [path for path, _ in headers.bad] == ["t1/1.png"]
    with pytest.raises(RunError, match=r"manifest\.csv, row 3\): its channels must be grey and of one size"):
        decode(read_records(str(table), labelled=False), 1)
    (tmp_path / "flair" / "0.png").write_bytes(b"no picture")
    records, headers = opened(table, on_bad_file="skip")
    assert records.paths.tolist() == ["t1/2.png"]
    assert decode(records, 0).shape == (12, 10, 3)
    assert [path for path, _ in headers.bad] == ["flair/0.png", "t1/1.png"]


def colour(folder: Path) -> None:
    Image.new("RGB", (10, 12)).save(folder / "t2" / "1.png")


def missing(folder: Path) -> None:
    (folder / "flair" / "1.png").unlink()


def rewrite(column: str, row: int, value: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = pd.read_csv(folder / "manifest.csv", dtype=str)
        table.loc[row, column] = value
        table.to_csv(folder / "manifest.csv", index=False)

    return change


def columns(**names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        pd.read_csv(folder / "manifest.csv").rename(columns=names).to_csv(folder / "manifest.csv", index=False)

    return change


def patients(folder: Path) -> None:
    for name in SEQUENCES:
        values = np.arange(120, dtype=np.uint16).reshape(12, 10)
        write_dicom(folder / name / "1.dcm", values, PatientID="A" if name == "t1" else "B")
        rewrite(f"path_{name}", 1, f"{name}/1.dcm")(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (colour, r"^t2/1\.png is RGB; a channel's file must be grey \(.*manifest\.csv, row 3\) \(1 of 3 entries\)"),
        (missing, r"manifest\.csv, row 3, column path_flair: there is no image .*flair/1\.png"),
        (
            rewrite("path_flair", 1, "t1/1.png"),
            r"row 3, column path_flair: t1/1\.png is listed before, in row 3, column path_t1; list it once",
        ),
        (
            rewrite("path_flair", 2, "t1/1.png"),
            r"row 4, column path_flair: t1/1\.png is listed before, in row 3, column path_t1; list it once",
        ),
        (rewrite("path_t2", 1, ""), r"manifest\.csv, row 3: column path_t2 is empty"),
        (rewrite("path_t2", 1, "t2/1.pdf"), r"manifest\.csv, row 3: t2/1\.pdf is not a kind of file that is read"),
        (columns(path_flair="path_mask"), r"path_mask reads like a mask; name the one column .* --path_column"),
        (columns(path_t1="pseudonym"), r"has columns pseudonym and path_t2 and path_flair"),
        (columns(path_t2="path_T1"), r"column 'path_T1' .* and 'path_t1' .* look like two spellings of one"),
        (columns(path_t2="second", path_flair="third"), r"no column path.*; path_t1 alone makes no image of several"),
        (patients, r"^t1/1\.dcm, t2/1\.dcm, flair/1\.dcm are of different patients, by their headers \(.*row 3\)"),
    ],
)
def test_what_makes_no_image_is_named(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    table = write_pictures(tmp_path)
    change(tmp_path)
    with pytest.raises(RunError, match=message):
        opened(table, ImagesConfig(salt_file=str(tmp_path / "salt")))


def test_volumes_of_other_depths_are_no_channels(tmp_path: Path) -> None:
    table = write_volumes(tmp_path)
    write_nifti(tmp_path / "t2" / "1.nii.gz", voxels((12, 10, 4)))
    with pytest.raises(
        RunError, match=r"numbers of slices: t1/1.nii.gz 3, t2/1.nii.gz 4, flair/1.nii.gz 3 \(.*row 3\)"
    ):
        opened(table)


def test_a_column_of_paths_comes_before_those_of_channels(tmp_path: Path) -> None:
    table = write_pictures(tmp_path)
    columns(path_t1="path")(tmp_path)
    records, headers = opened(table)
    assert (headers.channels, records.unread_columns) == (1, ("path_t2", "path_flair"))


def test_a_window_moves_in_all_channels_alike(tmp_path: Path) -> None:
    table, config = write_volumes(tmp_path, rows=1), WindowJitterConfig(probability=1)

    def jittered(records: Records, place: int) -> np.ndarray:
        element = ImageSource(records, channels=len(records.channels), windowed=True)[place]
        return jitter_window(element, np.random.default_rng(5), config)["image"]

    records = opened(table)[0]
    image = jittered(records, 1)
    assert (image != decode(records, 1)).any()
    for channel, name in enumerate(SEQUENCES):
        alone = jittered(opened(table, column=f"path_{name}")[0], 1)
        np.testing.assert_array_equal(image[:, :, channel : channel + 1], alone)


def test_stacks_are_equal_where_all_their_channels_are(tmp_path: Path) -> None:
    table = write_pictures(tmp_path)
    for name in SEQUENCES:
        shutil.copy(tmp_path / name / "0.png", tmp_path / name / "2.png")
        if name != "flair":
            shutil.copy(tmp_path / name / "0.png", tmp_path / name / "1.png")
    records = opened(table)[0]
    assert find_duplicates(records) == [[0, 2]]
    found = fingerprint(records, threads=1)
    assert found.pixels[0] == found.pixels[2] != found.pixels[1]
