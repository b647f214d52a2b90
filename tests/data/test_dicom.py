"""DICOM files: values, windows, padding, colours and frames as pydicom has them; refusals in plain words."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from dinojax.data.dicom import is_dicom, list_dicomdir, read_frame, read_header
from tests.data.dicom_files import table, write_dicom

_BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
_NAME = "Quixwell^Zebulon"
_GREY = np.arange(12, dtype=np.int16).reshape(3, 4) * 100 - 300


def _bundled(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found)


def _items(**elements: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
                                    uid.DeflatedExplicitVRLittleEndian, uid.RLELossless])  # fmt: skip
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_stored_values_of_every_type_and_encoding(tmp_path: Path, kind: str, syntax: uid.UID) -> None:
    if syntax == uid.RLELossless and kind.endswith("4"):
        pytest.skip("the encoder does not write it")
    limits = np.iinfo(kind)
    pixels = np.array([[limits.min, limits.max, 1], [2, 3, 4]], kind)
    path = write_dicom(tmp_path / "image", pixels, syntax)
    read = read_frame(path, -1)
    assert read.values.shape == (2, 3, 1)
    assert np.array_equal(read.values[:, :, 0], pixels)
    assert read.values.dtype == np.dtype(kind)  # of the machine's byte order too
    assert read.full == (limits.min, limits.max)
    assert read.padding is None
    assert not read.inverted
    assert read_header(path).bits == limits.bits


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_a_file_without_preamble_is_recognised_and_read(tmp_path: Path, syntax: uid.UID) -> None:
    path = write_dicom(tmp_path / "image", _GREY, syntax, preamble=False)
    assert is_dicom(path)
    assert np.array_equal(read_frame(path, 0).values[:, :, 0], _GREY)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, 3), (-2, 10), (0.001, 0)])
@pytest.mark.parametrize("kind", ["i2", "u2"])
def test_rescale_and_windows_are_pydicoms(tmp_path: Path, kind: str, slope: float, intercept: float) -> None:
    path = write_dicom(
        tmp_path / "image", np.abs(_GREY).astype(kind), BitsStored=12, HighBit=11, RescaleSlope=slope,
        RescaleIntercept=intercept, WindowCenter=[40, 100, 3], WindowWidth=[1, 400.5, 0], PixelSpacing=[0.5, 0.25],
        Modality="CT",
    )  # fmt: skip
    dataset = dcmread(path)
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    read = read_frame(path, 0)
    np.testing.assert_allclose(read.values[:, :, 0], expected, rtol=1e-12)
    ends = sorted(end * slope + intercept for end in ((-2048, 2047) if kind == "i2" else (0, 4095)))
    assert read.full == pytest.approx(ends)
    header = read_header(path)
    assert (header.windows, header.spacing, header.modality, header.bits) == (2, (0.5, 0.25), "CT", 12)
    for number in (1, 2):
        windowed = read_frame(path, 0, voi=number)
        assert windowed.full == pytest.approx(ends)
        reference = apply_voi_lut(expected, dataset, index=number - 1)
        if slope < 0:  # pydicom's output is then upside down
            reference = sum(ends) - reference
        np.testing.assert_allclose(windowed.values[:, :, 0], reference, atol=1e-6)
    with pytest.raises(ValueError, match="has 2 VOI windows and tables: there is no number 3"):
        read_frame(path, 0, voi=3)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions(tmp_path: Path, function: str) -> None:
    path = write_dicom(tmp_path / "image", _GREY, WindowCenter=50, WindowWidth=300, VOILUTFunction=function)
    dataset = dcmread(path)
    values = read_frame(path, 0, voi=1).values[:, :, 0]
    np.testing.assert_allclose(values, apply_voi_lut(dataset.pixel_array, dataset), atol=1e-6)


def test_tables_of_modality_and_voi(tmp_path: Path) -> None:
    pixels = np.array([[0, 3, 5, 9]], np.uint16)
    path = write_dicom(
        tmp_path / "image", pixels, ModalityLUTSequence=[table(2, 16, np.arange(6) * 1000)], WindowCenter=2000,
        VOILUTSequence=[table(0, 12, np.arange(4096)[::-1]), table(-5, 10, np.arange(1000))], WindowWidth=3000,
    )  # fmt: skip
    dataset = dcmread(path)
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    read = read_frame(path, 0)
    assert np.array_equal(read.values[:, :, 0], expected)
    assert read.full == (0, 65535)
    first = read_frame(path, 0, voi=1)
    assert np.array_equal(first.values[:, :, 0], apply_voi_lut(expected, dataset, index=0))
    assert first.full == (0, 4095)
    assert read_frame(path, 0, voi=2).values[0, :, 0].tolist() == [5, 999, 999, 999]
    third = read_frame(path, 0, voi=3)
    assert np.array_equal(third.values[:, :, 0], apply_voi_lut(expected, dataset, prefer_lut=False))
    assert read_header(path).windows == 3


def test_a_table_of_many_8_bit_entries_does_not_wrap(tmp_path: Path) -> None:
    pixels = np.array([[0, 300, 4095]], np.uint16)
    path = write_dicom(tmp_path / "image", pixels, VOILUTSequence=[table(0, 8, np.arange(4096) // 16)])
    assert read_frame(path, 0, voi=1).values[0, :, 0].tolist() == [0, 18, 255]
    assert read_frame(path, 0, voi=1).full == (0, 255)


def test_a_table_of_single_bytes(tmp_path: Path) -> None:
    item = table(0, 8, np.arange(4))
    item.LUTData = bytes([9, 8, 7, 6])
    path = write_dicom(tmp_path / "image", np.array([[0, 1, 3]], np.uint8), VOILUTSequence=[item])
    assert read_frame(path, 0, voi=1).values[0, :, 0].tolist() == [9, 8, 6]


def test_monochrome1_is_marked_and_its_values_untouched(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image", _GREY, PhotometricInterpretation="MONOCHROME1")
    read = read_frame(path, 0)
    assert read.inverted
    assert np.array_equal(read.values[:, :, 0], _GREY)


@pytest.mark.parametrize(
    ("kind", "value", "limit", "expected"),
    [
        ("i2", -300, None, [-300]),
        ("i2", 65536 - 300, None, [-300]),  # written unsigned
        ("u2", 100, 300, [100, 200, 300]),
        ("u2", 300, 100, [100, 200, 300]),
        ("u2", 7, None, []),
    ],
)
def test_padding_is_compared_before_rescale(
    tmp_path: Path, kind: str, value: int, limit: int | None, expected: list[int]
) -> None:
    pixels = (_GREY if kind == "i2" else _GREY + 300).astype(kind)
    path = write_dicom(tmp_path / "image", pixels, RescaleSlope=2, RescaleIntercept=5)
    dataset = dcmread(path)
    signs = "US" if value >= 0 else "SS"
    dataset.add_new("PixelPaddingValue", signs, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", signs, limit)
    dataset.save_as(path)
    padding = read_frame(path, 0).padding
    assert (np.zeros(pixels.shape, bool) if padding is None else padding).tolist() == np.isin(pixels, expected).tolist()
    assert (padding is None) == (not expected)


@pytest.mark.parametrize(("kind", "keyword"), [("f4", "FloatPixelData"), ("f8", "DoubleFloatPixelData")])
def test_floats_and_their_padding(tmp_path: Path, kind: str, keyword: str) -> None:
    pixels = np.array([[0.25, np.nan, -9.0], [np.inf, 0.5, 1.0]], kind)
    padding: dict[str, Any] = {keyword.replace("Data", "PaddingValue"): -9.0}
    path = write_dicom(
        tmp_path / "image", pixels, keyword=keyword, WindowCenter=0.5, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT",
        **padding,
    )  # fmt: skip
    read = read_frame(path, 0)
    assert read.padding is not None
    assert read.padding.tolist() == [[False, True, True], [True, False, False]]
    assert np.array_equal(read.values[~read.padding][:, 0], [0.25, 0.5, 1])
    assert read.full == (0, 1)
    assert read_header(path).bits == pixels.dtype.itemsize * 8
    assert read_frame(path, 0, voi=1).values[~read.padding][:, 0].tolist() == [0, 0.5, 1]


def test_each_frame_has_its_own_functional_groups(tmp_path: Path) -> None:
    pixels = np.stack([_GREY, _GREY + 1, _GREY + 2])
    path = write_dicom(
        tmp_path / "image", pixels, NumberOfFrames=3, RescaleSlope=7, RescaleIntercept=7,
        SharedFunctionalGroupsSequence=_items(PixelMeasuresSequence=_items(PixelSpacing=[0.7, 0.8]),
            FrameVOILUTSequence=_items(WindowCenter=0, WindowWidth=100)),
        PerFrameFunctionalGroupsSequence=[
            _items(PixelValueTransformationSequence=_items(RescaleSlope=number + 1, RescaleIntercept=-number))[0]
            for number in range(2)
        ] + _items(FrameVOILUTSequence=_items(WindowCenter=[1, 2], WindowWidth=[10, 20])),
    )  # fmt: skip
    header = read_header(path)
    assert (header.frames, header.spacing, header.windows) == (3, (0.7, 0.8), 1)
    for number, (slope, intercept) in enumerate([(1, 0), (2, -1), (7, 7)]):
        assert np.array_equal(read_frame(path, number).values[:, :, 0], pixels[number] * slope + intercept)
    read_frame(path, 2, voi=2)
    with pytest.raises(ValueError, match="has 1 VOI windows"):
        read_frame(path, 1, voi=2)
    for frame, why in [(3, "there is no frame 3"), (-1, "has 3 frames; name one"), (-2, "no frame -2")]:
        with pytest.raises(ValueError, match=why):
            read_frame(path, frame)


def test_palettes(tmp_path: Path) -> None:
    names = ("Red", "Green", "Blue")
    colours: dict[str, Any] = {f"{name}PaletteColorLookupTableDescriptor": [4, 10, 16] for name in names}
    colours |= {f"{name}PaletteColorLookupTableData": np.arange(4, dtype="<u2").tobytes() for name in ("Red", "Blue")}
    colours["GreenPaletteColorLookupTableData"] = (np.arange(4, dtype="<u2") * 9000).tobytes()
    pixels = np.array([[0, 10, 11, 200]], np.uint8)
    path = write_dicom(tmp_path / "image", pixels, PhotometricInterpretation="PALETTE COLOR", **colours)
    dataset = dcmread(path)
    read = read_frame(path, 0)
    assert np.array_equal(read.values, apply_color_lut(dataset.pixel_array, dataset))
    assert read.full == (0, 65535)
    assert (read_header(path).channels, read_header(path).bits) == (3, 16)
    shipped = dcmread(_bundled("examples_palette.dcm"))
    expected = apply_color_lut(shipped.pixel_array, shipped)
    assert np.array_equal(read_frame(_bundled("examples_palette.dcm"), 0).values, expected)


def test_one_frame_of_many_in_colour() -> None:
    path = _bundled("examples_ybr_color.dcm")
    header = read_header(path)
    assert (header.frames, header.channels, header.windows, header.modality) == (30, 3, 0, "US")
    for frame in (0, 17, 29):
        assert np.array_equal(read_frame(path, frame).values, pixel_array(path, index=frame))
    with pytest.raises(ValueError, match="in colour and has 0 windows"):
        read_frame(path, 0, voi=1)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]}, (0.5, 0.25)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [1, 2]}, (1, 2)),
        ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (0.1, 0.1)),
        ({"PixelAspectRatio": [4, 3]}, (4, 3)),
        ({"PixelAspectRatio": [1, 1]}, None),
        ({"SequenceOfUltrasoundRegions": [(0.02, 0.03)]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [(0.02, 0.03), (0.02, 0.04)]}, None),
        ({}, None),
    ],
)
def test_spacing(tmp_path: Path, elements: dict[str, Any], expected: tuple[float, float] | None) -> None:
    if regions := elements.get("SequenceOfUltrasoundRegions"):
        units = {"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3, "RegionSpatialFormat": 1}
        items = [_items(PhysicalDeltaX=x, PhysicalDeltaY=y, **units)[0] for x, y in regions]
        elements = {"SequenceOfUltrasoundRegions": items}
    spacing = read_header(write_dicom(tmp_path / "image", _GREY, **elements)).spacing
    assert spacing == (None if expected is None else pytest.approx(expected))


def test_ids_and_names(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "image", _GREY, PatientName=_NAME + "^X", PatientID="ID-77", OtherPatientIDs=["second", "third"],
        PatientBirthDate="19610203", AccessionNumber="acc-9", ReferringPhysicianName="Housewell^Ann",
        InstitutionName="St. Elsewhere", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4",
        OtherPatientIDsSequence=_items(PatientID="fourth"), StudyDate="not a date",
    )  # fmt: skip
    header = read_header(path)
    assert (header.patient, header.study, header.series) == ("ID-77", "1.2.3", "1.2.3.4")
    assert set(header.names) == {
        f"{_NAME}^X", "Quixwell", "Zebulon", "ID-77", "second", "third", "19610203", "acc-9", "Housewell^Ann",
        "Housewell", "Ann", "St. Elsewhere", "fourth", "not a date",
    }  # fmt: skip
    assert "Quixwell" not in repr(header)


_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"Rows": 0}, "has 0 rows and 4 columns"),
    "too many rows": ({"Rows": 60000, "Columns": 60000}, "7200000000 bytes of pixel data expected, 24 found"),
    "too many frames": ({"NumberOfFrames": 2**31 - 1}, "is cut off, or its header damaged"),
    "no columns": ({"Columns": None}, "its header has no Columns"),
    "bits": ({"BitsStored": 17}, "has 17 bits in 16 for a value of PixelData"),
    "upper bits": ({"BitsStored": 12, "HighBit": 15}, "keeps its 12 bits in the upper ones of 16"),
    "colours": ({"PhotometricInterpretation": "ARGB"}, "its colours are stored as ARGB"),
    "name as colours": ({"PhotometricInterpretation": _NAME}, "its colours are stored as an unknown kind"),
    "samples": ({"SamplesPerPixel": 4}, "has 4 samples a pixel in MONOCHROME2"),
    "slope": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "the slope is 0"),
}


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.filterwarnings("ignore")
def test_faults_are_named_without_names(tmp_path: Path, fault: str) -> None:
    elements, why = _FAULTS[fault]
    path = write_dicom(tmp_path / "image", _GREY, PatientName=_NAME, **elements)
    with pytest.raises(ValueError, match=why) as caught:
        read_frame(path, 0)
    assert "Quixwell" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    for content, why in [
        (b"", "is empty"),
        (b"\x89PNG\r\n" * 99, "is not DICOM"),
        (b"\x30\x82" * 99, "or is encrypted"),
    ]:
        (tmp_path / "file").write_bytes(content)
        assert not is_dicom(tmp_path / "file")
        with pytest.raises(ValueError, match=why):
            read_header(tmp_path / "file")
    with pytest.raises(ValueError, match="No such file"):
        read_header(tmp_path / "missing")
    assert not is_dicom(tmp_path / "missing")


def test_compressed_frames_have_a_largest_size(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "image", _GREY, uid.RLELossless)
    assert read_header(path, max_megapixels=12e-6).width == 4
    with pytest.raises(ValueError, match=r"has frames of 4×3 pixels, more than 1\.1e-05 megapixels"):
        read_header(path, max_megapixels=11e-6)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small.dcm",
                                  "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm"])  # fmt: skip
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    content = _bundled(name).read_bytes()
    (tmp_path / "file").write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(ValueError, match=r"cut off|ends before it|damaged"):
        read_header(tmp_path / "file")


def test_fewer_compressed_frames_than_the_header_says_are_refused(tmp_path: Path) -> None:
    content = _bundled("SC_rgb_rle_2frame.dcm").read_bytes()
    place = content.index(b"\x28\0\x08\0IS\x02\x00") + 8
    (tmp_path / "file").write_bytes(content[:place] + b"99" + content[place + 2 :])
    with pytest.raises(ValueError, match="99 frames expected, at most 2 found"):
        read_header(tmp_path / "file")


def test_a_jpeg_of_absurd_precision_is_refused_before_gdcm_ends_the_process(tmp_path: Path) -> None:
    content = _bundled("SC_rgb_jpeg_gdcm.dcm").read_bytes()
    place = content.index(b"\xff\xc3\0\x11\x08") + 4
    (tmp_path / "file").write_bytes(content[:place] + b"\xdc" + content[place + 1 :])
    with pytest.raises(ValueError, match="its pixel data 100×100 with 3 samples of 220 bits"):
        read_frame(tmp_path / "file", 0)


def test_a_codestream_of_another_size_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    content = _bundled("JPEG2000.dcm").read_bytes()
    place = content.index(b"\xff\x4f\xff\x51") + 8
    (tmp_path / "file").write_bytes(content[:place] + b"\0\1\0\0\0\1\0\0" + content[place + 8 :])
    with pytest.raises(ValueError, match="its header says 256×1024 with 1 samples, its pixel data 65536×65536"):
        read_frame(tmp_path / "file", 0)


def test_a_syntax_without_decoder_is_named_with_what_to_install(tmp_path: Path) -> None:
    content = _bundled("JPEG2000.dcm").read_bytes()
    for syntax, why in [
        ("1.2.840.10008.1.2.4.51", "JPEG Extended .* with more than 8 bits: install pylibjpeg"),
        ("1.2.840.10008.1.2.4.57", None),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1: no decoder reads that"),
        ("1.2.840.113619.5.2", "1.2.840.113619.5.2|Implicit"),
    ]:
        old = b"1.2.840.10008.1.2.4.91"
        new = syntax.encode().ljust(len(old), b"\0")
        at, size = content.index(old), len(new) + len(new) % 2
        new = new.ljust(size, b"\0")
        length = int.from_bytes(content[140:144], "little") + size - len(old)
        changed = content[:140] + length.to_bytes(4, "little") + content[144 : at - 2] + size.to_bytes(2, "little")
        (tmp_path / "file").write_bytes(changed + new + content[at + len(old) :])
        if why is None:
            assert read_header(tmp_path / "file").frames == 1
        else:
            with pytest.raises(ValueError, match=why):
                read_header(tmp_path / "file")


def test_what_a_dicomdir_lists() -> None:
    folder = _BUNDLED / "dicomdirtests"
    files = list_dicomdir(folder / "TINY_ALPHA" / "DICOMDIR")
    assert len(files) == 50
    assert files[0] == "PT000000/ST000000/SE000000/IM000000"
    assert all((folder / "TINY_ALPHA" / name).is_file() for name in files)
    assert not is_dicom(folder / "DICOMDIR")
    with pytest.raises(ValueError, match="is a DICOMDIR"):
        read_header(folder / "DICOMDIR")
    with pytest.raises(ValueError, match="is not a DICOMDIR"):
        list_dicomdir(_bundled("MR_small.dcm"))


_WITHOUT_PIXELS = """UN_sequence empty_charset_LEI no_meta_group_length priv_SQ reportsi reportsi_with_empty_number_tags
    rtplan rtplan_truncated rtstruct test-SR waveform_ecg ExplVR_BigEndNoMeta ExplVR_LitEndNoMeta"""
_UNREADABLE = {f"{name}.dcm": "has no pixel data, or ends before it" for name in _WITHOUT_PIXELS.split()} | {
    "JPEG-lossy.dcm": "with more than 8 bits: install pylibjpeg",
    "JPGExtended.dcm": "with more than 8 bits: install pylibjpeg",
    "JPEG2000-embedded-sequence-delimiter.dcm": "its pixel data 3722445056×1024",
    "MR_truncated.dcm": "8192 bytes of pixel data expected, 8130 found",
    "badVR.dcm": "its header's NumberOfFrames is damaged",
    "meta_missing_tsyntax.dcm": "its header has no BitsAllocated",
    "nested_priv_SQ.dcm": "its header has no BitsAllocated",
    "no_meta.dcm": "is not DICOM",
}


def test_every_image_that_pydicom_brings_along() -> None:
    """Decoded to pydicom's own values, or refused with the reason listed above."""
    files = sorted(_BUNDLED.glob("*.dcm"))
    refused = {}
    for path in files:
        try:
            header = read_header(path)
            frames = [read_frame(path, frame).values for frame in range(header.frames)]
        except ValueError as error:
            refused[path.name] = str(error)
            continue
        dataset = dcmread(path)
        for frame, values in enumerate(frames):
            stored = pixel_array(dataset, index=frame)
            grey = header.channels == 1
            palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
            expected = apply_modality_lut(stored, dataset) if grey else stored
            expected = apply_color_lut(stored, dataset) if palette else expected
            assert np.array_equal(values, expected[:, :, None] if grey else expected), path.name
    assert refused.keys() == _UNREADABLE.keys()
    for name, why in _UNREADABLE.items():
        assert why in refused[name]
        assert "\n" not in refused[name]
    assert len(files) - len(refused) == 57


_FUZZED = [_bundled(name).read_bytes() for name in ("MR_small_RLE.dcm", "MR_small_implicit.dcm", "SC_rgb_small_odd.dcm",
    "rtdose_rle_1frame.dcm", "JPEGLSNearLossless_08.dcm", "SC_rgb_small_odd_jpeg.dcm", "693_J2KI.dcm",
    "examples_overlay.dcm", "TINY_ALPHA/DICOMDIR")]  # fmt: skip


def _refusal(read: Callable[[Path], object], path: Path) -> str:
    """The message of the ValueError that is raised, if one is."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return ""


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_raises_nothing_but_value_errors(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(_FUZZED)))
    header = max(1, min(len(content), 4000))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(128, len(content) - 1) | st.integers(128, header - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), len(content) // 2]))])
    for read in (read_header, lambda path: read_frame(path, 0, voi=1), lambda path: read_frame(path, 0), list_dicomdir):
        why = _refusal(read, path)
        assert len(why) < 200
        assert "\n" not in why
    is_dicom(path)


def test_threads_read_the_same() -> None:
    paths = [_bundled(name) for name in ("693_J2KI.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_gdcm.dcm")] * 8
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda path: read_frame(path, 0).values, paths))
    assert all(np.array_equal(values, read[index % 3]) for index, values in enumerate(read))


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_the_header_reaches_the_terminal(tmp_path: Path) -> None:
    """In a process of its own: pytest has filters of warnings that hide those of a module."""
    path = write_dicom(
        tmp_path / "image", _GREY, PatientName=_NAME * 9, StudyDate=_NAME, PatientID=_NAME * 9, WindowCenter="1",
        WindowWidth="2", SpecificCharacterSet=_NAME[:8], AccessionNumber=_NAME * 3,
    )  # fmt: skip
    script = (
        "import logging, sys; logging.basicConfig(); from pathlib import Path; from dinojax.data import dicom\n"
        "path = Path(sys.argv[1]); assert dicom.read_header(path).names; dicom.read_frame(path, 0, voi=1)"
    )
    child = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert child.stdout + child.stderr == ""
