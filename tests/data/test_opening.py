"""From files to grey levels: slices, patients, and the intensity policy, on files written here."""

import dataclasses
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from dinojax.config.images import ImagesConfig, IntensityConfig, SlicesConfig
from dinojax.data.decode import decode
from dinojax.data.headers import Headers
from dinojax.data.intensity import WINDOWS
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.data.splits import make_folds
from dinojax.errors import RunError, UsageError
from dinojax.levels import Rule
from tests.data.medical import ramp, write_dicom, write_nifti, write_wide


@pytest.fixture(autouse=True)
def salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own configuration"))


def opened(folder: Path, policy: str = "auto", known: tuple[Rule, ...] = (), **more: Any) -> tuple[Records, Headers]:
    fields = {field.name for field in dataclasses.fields(IntensityConfig)}
    intensity = {name: value for name, value in more.items() if name in fields}
    rest = {name: value for name, value in more.items() if name not in fields}
    config = ImagesConfig(intensity=IntensityConfig(policy=policy, **intensity), **rest)  # type: ignore[arg-type]
    return open_images(read_records(str(folder), labelled=False), config, known=known)


def shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """By the definition."""
    return np.clip(np.rint((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255).astype(np.uint8)


def test_twelve_bits_in_sixteen_are_the_picture_of_eight(tmp_path: Path) -> None:
    """Stored as v · 4095 / 255: by value / 257 they would have 17 grey levels."""
    rng = np.random.default_rng(0)
    eight = np.clip(rng.normal(120, 60, (3, 64, 64)), 8, 255).astype(np.uint8)
    for number, values in enumerate(eight):
        write_wide(tmp_path / "data" / f"{number}.png", (values * (4095 / 255)).astype(np.uint16))
    records, headers = opened(tmp_path / "data")
    assert headers.intensity == ("more than 8 bits: 0 to 4095 (percentiles 0.1 and 99.9 of the data set, rounded)",)
    for place in range(3):
        assert np.abs(decode(records, place)[:, :, 0].astype(int) - eight[place]).max() <= 1


def test_images_of_a_set_stay_comparable_and_a_hot_pixel_ruins_nothing(tmp_path: Path) -> None:
    for number in range(1, 6):
        values = ramp(0, 1000 * number, (64, 64), np.uint16)
        values[0, 0] = 60_000 if number == 3 else 0
        write_wide(tmp_path / "data" / f"{number}.png", values)
    records, headers = opened(tmp_path / "data")
    high = headers.rules["more than 8 bits"].high
    assert 4000 < high < 5100
    levels = [int(decode(records, place)[32, 32, 0]) for place in range(5)]
    assert np.ptp(np.diff(levels)) <= 1  # as their values do
    records, _ = opened(tmp_path / "data", "percentiles", over="image", percentiles=(0, 100))
    assert {int(decode(records, place).max()) for place in range(5)} == {255}


CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize("policy", ["auto", *WINDOWS])
def test_ct_is_shown_by_one_window_in_hounsfield_units(tmp_path: Path, policy: str) -> None:
    stored = ramp(0, 3000, (64, 64))
    for number in range(2):  # their own windows make slices incomparable
        write_dicom(tmp_path / "data" / f"{number}.dcm", stored, **CT, WindowCenter=40 + 900 * number, WindowWidth=80)
    records, headers = opened(tmp_path / "data", policy)
    centre, width = WINDOWS["soft_tissue" if policy == "auto" else policy]
    for place in range(2):
        expected = shown(stored - 1024.0, centre - width / 2, centre + width / 2)
        np.testing.assert_array_equal(decode(records, place)[:, :, 0], expected)
    assert headers.intensity[0].startswith(f"CT: {centre - width / 2:g} to {centre + width / 2:g}")


def test_mr_is_shown_by_the_percentiles_of_each_series(tmp_path: Path) -> None:
    for series, scale in (("1", 1), ("2", 20)):
        for number in range(3):
            values = ramp(0, 100 * scale * (number + 1), (32, 32), np.uint16)
            write_dicom(
                tmp_path / "data" / f"{series}{number}.dcm", values, Modality="MR", SeriesInstanceUID=f"1.2.{series}"
            )
    records, headers = opened(tmp_path / "data", percentiles=(0.0, 100.0))
    assert headers.intensity == ("MR: each volume's own range (MR has no unit)",)
    assert [int(decode(records, place).max()) for place in range(6)] == [85, 170, 255] * 2
    assert len(set(records.groups["volume_id"].tolist())) == 2


@pytest.mark.parametrize("modality", ["CR", "DX", "MG", "US", "PT"])
def test_others_are_shown_by_the_file_s_window_or_their_own_range(tmp_path: Path, modality: str) -> None:
    values = ramp(0, 4000, (32, 32), np.uint16)
    more = {"Modality": modality, "BitsStored": 12}
    write_dicom(tmp_path / "data" / "a.dcm", values, **more, WindowCenter=[2000, 500], WindowWidth=[1000, 200])
    write_dicom(tmp_path / "data" / "b.dcm", values // 2, **more)
    records, headers = opened(tmp_path / "data")
    assert headers.intensity == ("other DICOM: the file's window 1 (their own range without one); 1 have none",)
    # DICOM PS3.3 C.11.2.1.2.1, a linear window.
    window = np.clip(((values.astype(float) - 1999.5) / 999 + 0.5) * 255, 0, 255)
    assert np.abs(decode(records, 0)[:, :, 0] - window).max() <= 1
    np.testing.assert_array_equal(decode(records, 1)[:, :, 0], shown(values // 2, 0, 2000))
    records, _ = opened(tmp_path / "data", "file", number=2)
    window = np.clip(((values.astype(float) - 499.5) / 199 + 0.5) * 255, 0, 255)
    assert np.abs(decode(records, 0)[:, :, 0] - window).max() <= 1


def test_monochrome1_is_inverted_and_padding_is_black_and_counts_for_nothing(tmp_path: Path) -> None:
    values = ramp(0, 1000, (32, 32), np.int16)
    values[:, :4] = -2000
    common = {"Modality": "MR", "PixelPaddingValue": -2000}
    write_dicom(tmp_path / "data" / "a.dcm", values, **common)
    write_dicom(tmp_path / "data" / "b.dcm", values, **common, PhotometricInterpretation="MONOCHROME1")
    records, _ = opened(tmp_path / "data", percentiles=(0.0, 100.0))
    first, second = (decode(records, place)[:, :, 0] for place in range(2))
    inside = values[:, 4:]
    np.testing.assert_array_equal(first[:, 4:], shown(inside, inside.min(), inside.max()))
    np.testing.assert_array_equal(second[:, 4:], 255 - first[:, 4:])
    assert not first[:, :4].any()
    assert not second[:, :4].any()


def test_a_window_that_cuts_off_too_much_is_warned_of_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lung = rng.integers(200, 500, (64, 64)).astype(np.int16)  # -824 to -524 Hounsfield units
    lung[:16] = 0  # air
    write_dicom(tmp_path / "data" / "a.dcm", lung, **CT)
    _, headers = opened(tmp_path / "data")
    assert any(text.startswith("CT, -160 to 240: 100% of the pixels") for text in headers.warnings)
    assert not any("beyond" in text for text in opened(tmp_path / "data", "lung")[1].warnings)
    _, headers = opened(tmp_path / "data", "range", range=(-1e5, 1e5))
    assert any("grey levels are in use" in text for text in headers.warnings)


def test_a_checkpoint_s_rules_count_and_may_be_overridden(tmp_path: Path) -> None:
    write_wide(tmp_path / "data" / "a.png", ramp(0, 900, (32, 32), np.uint16))
    known = (Rule("more than 8 bits", "range", 0, 4095),)
    records, headers = opened(tmp_path / "data", known=known)
    assert headers.intensity == ("more than 8 bits: 0 to 4095 (as the checkpoint was trained)",)
    assert int(decode(records, 0).max()) == round(900 / 4095 * 255)
    records, headers = opened(tmp_path / "data", "range", known=known, range=(0, 900))
    assert headers.intensity == ("more than 8 bits: 0 to 900 (intensity.policy range)",)
    assert int(decode(records, 0).max()) == 255


def volume(shape: tuple[int, ...] = (6, 8, 10)) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 1000, shape).astype(np.int16)


def test_volumes_are_listed_slice_by_slice(tmp_path: Path) -> None:
    voxels = volume()
    voxels[:, :, [0, 9]] = 0
    path = write_nifti(tmp_path / "data" / "a.nii.gz", voxels)
    records, headers = opened(tmp_path / "data", percentiles=(0.0, 100.0))
    assert records.frames.tolist() == list(range(1, 9))
    assert "2 empty slices left out" in headers.summary()
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    found = decode(records, 3)[:, :, 0]
    assert sorted(found.ravel()) == sorted(
        shown(canonical[:, :, 4], canonical[..., 1:9].min(), canonical[..., 1:9].max()).ravel()
    )
    records, _ = opened(tmp_path / "data", slices=SlicesConfig(drop_empty=False))
    assert len(records) == 10
    for axis, count in (("coronal", 8), ("sagittal", 6)):
        assert len(opened(tmp_path / "data", slices=SlicesConfig(axis=axis))[0]) == count  # type: ignore[arg-type]
    records, headers = opened(tmp_path / "data", slices=SlicesConfig(middle=5, every=2))
    assert records.frames.tolist() == [2, 4, 6]
    assert "of each the 5 middle ones, every 2" in headers.summary()


def test_a_fourth_axis_has_intensities_of_its_own(tmp_path: Path) -> None:
    voxels = volume((6, 8, 4, 2))
    voxels[..., 1] *= 30
    write_nifti(tmp_path / "data" / "a.nii", voxels)
    records, _ = opened(tmp_path / "data", percentiles=(0.0, 100.0))
    assert len(records) == 8
    assert [int(np.max([decode(records, place).max() for place in part])) for part in (range(4), range(4, 8))] == [
        255,
        255,
    ]
    assert len(opened(tmp_path / "data", slices=SlicesConfig(time=1))[0]) == 4
    with pytest.raises(RunError, match=r"slices\.time 2: a volume has 2"):
        opened(tmp_path / "data", slices=SlicesConfig(time=2))


def test_hounsfield_units_are_recognised_in_nifti(tmp_path: Path) -> None:
    write_nifti(
        tmp_path / "data" / "ct.nii", np.random.default_rng(0).integers(-1000, 1000, (8, 8, 4)).astype(np.int16)
    )
    assert opened(tmp_path / "data")[1].intensity[0].startswith("NIfTI: -160 to 240 (CT by its values below -500")


def test_pixels_become_square_on_request(tmp_path: Path) -> None:
    write_dicom(tmp_path / "data" / "a.dcm", ramp(0, 255, (10, 20), np.uint8), PixelSpacing=[2.0, 1.0])
    write_nifti(tmp_path / "data" / "b.nii", volume((8, 6, 4)), np.diag([1.0, 3.0, 1.0, 1.0]))
    keep, square = (opened(tmp_path / "data", spacing=how)[0] for how in ("keep", "isotropic"))
    assert [decode(records, 0).shape for records in (keep, square)] == [(10, 20, 1), (20, 20, 1)]
    assert [decode(records, 1).shape for records in (keep, square)] == [(6, 8, 1), (18, 8, 1)]


def write_studies(folder: Path) -> Path:
    """Two classes of six patients with two slices each."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for patient in range(6):
            for number in range(2):
                write_dicom(
                    folder / label / f"{patient}_{number}",
                    rng.integers(0, 255, (16, 16), np.uint8),
                    PatientID=f"{label}-{patient}",
                    PatientName="Maier^Otto",
                    SeriesInstanceUID=f"1.2.{ord(label)}.{patient}",
                )
    return folder


def test_patients_of_headers_stay_in_one_part_and_are_hashed(tmp_path: Path) -> None:
    folder = write_studies(tmp_path / "data")
    records, _ = open_images(read_records(str(folder), labelled=True), ImagesConfig())
    assert len(records) == 24
    assert records.patients is not None
    assert records.patient_source == "DICOM headers, hashed"
    patients = records.patients.tolist()
    assert len(set(patients)) == 12
    assert all(len(patient) == 16 and int(patient, 16) >= 0 for patient in patients)
    for fold in make_folds(records, 3, 0):
        parts = [{patients[place] for place in part} for part in (fold.train, fold.val, fold.test)]
        assert sum(map(len, parts)) == 12
    again, _ = open_images(read_records(str(folder), labelled=True), ImagesConfig())
    assert again.patients is not None
    assert again.patients.tolist() == patients
    other, _ = open_images(read_records(str(folder), labelled=True), ImagesConfig(salt_file=str(tmp_path / "salt")))
    assert other.patients is not None
    assert not set(other.patients.tolist()) & set(patients)
    secret = tmp_path / "own configuration" / "dinojax" / "salt"
    assert (len(secret.read_bytes()), secret.stat().st_mode & 0o777) == (32, 0o600)
    secret.write_bytes(b"short")
    with pytest.raises(UsageError, match="too few for a secret"):
        open_images(read_records(str(folder), labelled=True), ImagesConfig())


def test_slices_of_a_volume_stay_in_one_part(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(4):
            write_nifti(tmp_path / "data" / label / f"{number}.nii.gz", volume((6, 6, 5)))
    records, _ = open_images(read_records(str(tmp_path / "data"), labelled=True))
    assert records.patients is None
    assert len(records) == 40
    volumes = records.groups["volume_id"]
    for fold in make_folds(records, 3, 0):
        parts = [set(volumes[part].tolist()) for part in (fold.train, fold.val, fold.test)]
        assert sum(map(len, parts)) == 8
        assert len(fold.test) == 5 * len(parts[2])


def test_a_path_that_tells_a_name_is_warned_of_without_giving_it_away(tmp_path: Path) -> None:
    write_dicom(tmp_path / "data" / "MAIER_otto" / "1.dcm", ramp(0, 255, dtype=np.uint8), PatientName="Maier^Otto")
    write_dicom(tmp_path / "data" / "x" / "1.dcm", ramp(0, 255, dtype=np.uint8), PatientName="Maier^Otto")
    _, headers = opened(tmp_path / "data")
    assert len(headers.warnings) == 1
    assert headers.warnings[0].startswith("the paths of 1 file contain a name or id of their header")
    assert "maier" not in headers.warnings[0].casefold()


def test_a_choice_of_headers_is_stated_and_checked_at_decoding(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(ramp(0, 255, dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "07.png")
    records, headers = open_images(read_records(str(tmp_path), labelled=False), limit=5)
    assert headers.summary().startswith("5 of 20, evenly spaced headers read: 5 grey, 0 RGB")
    source = ImageSource(records, channels=headers.channels)
    with pytest.raises(RunError, match=r"07\.png.*all files whose headers were looked at are grey pictures of 8 bits"):
        source[7]
    assert source[6]["image"].shape == (16, 16, 1)
    write_wide(tmp_path / "00.png", ramp(0, 4095, dtype=np.uint16))
    _, headers = open_images(read_records(str(tmp_path), labelled=False), limit=5)
    assert "20 headers read: 19 grey, 1 RGB" in headers.summary()  # as they are not all alike


def test_the_whole_type_of_floats_is_warned_of(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data" / "a.nii", volume().astype(np.float32))
    _, headers = opened(tmp_path / "data", "full")
    assert headers.intensity == ("NIfTI: the range of the stored type (0 to 1 of floats) (intensity.policy full)",)
    assert [text[:55] for text in headers.warnings] == ["NIfTI, the range of the stored type (0 to 1 of floats): "[:55]]


def test_label_maps_are_pointed_out(tmp_path: Path) -> None:
    write_nifti(tmp_path / "data" / "a.nii", volume())
    write_nifti(tmp_path / "data" / "label_a.nii", (volume() % 3).astype(np.int16))
    _, headers = opened(tmp_path / "data", slices=SlicesConfig(every=5))
    assert len(headers.warnings) == 1
    assert "hold 8 values or fewer, as label maps do (such as label_a.nii)" in headers.warnings[0]


def test_windows_of_ct_are_said_to_be_of_ct(tmp_path: Path) -> None:
    write_dicom(tmp_path / "data" / "a.dcm", ramp(0, 3000, (64, 64), np.uint16), Modality="MR")
    _, headers = opened(tmp_path / "data", "lung")
    assert [("Hounsfield units, of CT" in text, "narrower" in text) for text in headers.warnings] == [(True, False)]


def test_reasons_are_told_once_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(4):
        (tmp_path / "data" / f"{number}.png").write_bytes(b"none" if number else b"")
    write_wide(tmp_path / "data" / "z.png", ramp(0, 4095, dtype=np.uint16))
    with pytest.raises(
        RunError, match=r"4 of 5 files checked cannot be read \(.*0\.png; .*: 3 files such as .*1\.png\)"
    ):
        opened(tmp_path / "data")
