"""NIfTI volumes: what is displayed of them, against nibabel, and what is refused."""

import gzip
import itertools
import struct
import threading
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff
from nibabel.testing import data_path

from dinojax.data import nifti, nifti_layout
from dinojax.data.cache import Cache, stamp
from dinojax.data.formats import Axis
from dinojax.data.nifti import frame_of, read_header, read_slice, slice_of, slice_shape, slice_spacing, volume_values

AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")
SHAPE = (4, 5, 6)
NAME = "Erika Mustermann"


def numbers(shape: tuple[int, ...] = SHAPE, dtype: npt.DTypeLike = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray | None = None,
    scale: tuple[float, float] | None = None,
    kind: type = nibabel.Nifti1Image,
    endian: Literal["<", ">"] = "<",
) -> Path:
    """A file of these stored numbers; nibabel itself would choose a scale of its own."""
    header = kind.header_class(endianness=endian)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_xyzt_units("mm")
    if affine is not None:
        header.set_sform(affine, code=1)
        header["pixdim"][1:4] = voxel_sizes(affine)
    offset = header.single_vox_offset
    header["vox_offset"] = offset
    if scale is not None:
        header.set_slope_inter(*scale)
    contents = header.binaryblock.ljust(offset, b"\0") + data.astype(data.dtype.newbyteorder(endian)).tobytes("F")
    path.write_bytes(gzip.compress(contents) if path.suffix == ".gz" else contents)
    return path


def displayed(path: Path, axis: Axis) -> np.ndarray:
    """[T × slices, H, W, ...] by nibabel and by what the words of the module say."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    data = np.asarray(image.dataobj)
    data = data[..., None] if data.ndim == 3 else data
    found = []
    for t in range(data.shape[3]):
        for place in range(data.shape[AXES[::-1].index(axis)]):
            if axis == "axial":
                rows = [[data[x, y, place, t] for x in range(data.shape[0])[::-1]] for y in range(data.shape[1])[::-1]]
            elif axis == "coronal":
                rows = [[data[x, place, z, t] for x in range(data.shape[0])[::-1]] for z in range(data.shape[2])[::-1]]
            else:
                rows = [[data[place, y, z, t] for y in range(data.shape[1])[::-1]] for z in range(data.shape[2])[::-1]]
            found.append(rows)
    return np.array(found)


def all_slices(path: Path, axis: Axis) -> np.ndarray:
    header = read_header(path)
    return np.stack([read_slice(path, frame, axis).values for frame in range(nifti.slices(header, axis))])


ORIENTATIONS = [
    np.array([*zip(order, flips, strict=True)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_all_48_orders_of_the_voxels_are_displayed_alike(tmp_path, suffix):
    data, affine = numbers(), np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = -10, 20, 5
    expected = {axis: displayed(write(tmp_path / "canonical.nii", data, affine), axis) for axis in AXES}
    for number, orientation in enumerate(ORIENTATIONS):
        turned = affine @ inv_ornt_aff(orientation, SHAPE)
        path = write(tmp_path / f"{number}{suffix}", apply_orientation(data, orientation), turned)
        header = read_header(path)
        assert header.volume == (4, 5, 6, 1)
        assert (header.width, header.height, header.frames) == (4, 5, 6)
        assert (header.spacing, header.thickness) == ((2.0, 1.5), 3.0)
        for axis in AXES:
            np.testing.assert_array_equal(all_slices(path, axis)[..., 0], expected[axis])
        np.testing.assert_array_equal(volume_values(path)[..., 0], data)


def test_the_words_of_the_docstring(tmp_path):
    """Marks at the patient's left, front and top are where radiologists expect them."""
    data = np.zeros(SHAPE, np.uint8)
    data[0] = 1  # at the patient's left
    path = write(tmp_path / "a.nii", data, np.diag([1.0, 1, 1, 1]))
    assert read_slice(path, 0, "axial").values[:, -1].all()
    assert read_slice(path, 0, "coronal").values[:, -1].all()
    assert read_slice(path, 0, "sagittal").values.all()
    data = np.zeros(SHAPE, np.uint8)
    data[:, -1] = 1  # in front
    path = write(tmp_path / "b.nii", data, np.diag([1.0, 1, 1, 1]))
    assert read_slice(path, 0, "axial").values[0].all()
    assert read_slice(path, 0, "sagittal").values[:, 0].all()
    assert read_slice(path, 4, "coronal").values.all()
    data = np.zeros(SHAPE, np.uint8)
    data[:, :, -1] = 1  # on top
    path = write(tmp_path / "c.nii", data, np.diag([1.0, 1, 1, 1]))
    assert read_slice(path, 0, "coronal").values[0].all()
    assert read_slice(path, 5, "axial").values.all()


def test_oblique_volumes_are_not_resampled(tmp_path):
    turn = np.array([[np.cos(0.4), -np.sin(0.4), 0], [np.sin(0.4), np.cos(0.4), 0.1], [0.05, -0.1, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, [2, 0, 1]] * [-1.0, 2.0, 0.5]
    path = write(tmp_path / "a.nii.gz", numbers(), affine)
    for axis in AXES:
        np.testing.assert_array_equal(all_slices(path, axis)[..., 0], displayed(path, axis))


def test_without_any_form_the_first_axis_runs_to_the_left(tmp_path):
    path = write(tmp_path / "a.nii", numbers())
    for axis in AXES:
        np.testing.assert_array_equal(all_slices(path, axis)[..., 0], displayed(path, axis))


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
)
def test_types_keep_their_values(tmp_path, dtype, kind, endian):
    path = write(tmp_path / "a.nii.gz", numbers(dtype=dtype), kind=kind, endian=endian)
    header, stored = read_header(path), read_slice(path, 2)
    assert header.bits == np.dtype(dtype).itemsize * 8
    assert header.format == ("NIfTI-2" if kind is nibabel.Nifti2Image else "NIfTI-1")
    assert stored.values.dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
    assert stored.values.flags.c_contiguous
    assert stored.padding is None
    if np.dtype(dtype).kind == "f":
        assert stored.full == (0, 1)
    else:
        assert stored.full == (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    np.testing.assert_array_equal(all_slices(path, "axial")[..., 0], displayed(path, "axial"))
    assert volume_values(path).dtype == stored.values.dtype


@pytest.mark.parametrize(("scale", "full"), [((0.5, -3.0), (-3, 0.5 * 255 - 3)), ((-2.0, 1.0), (-509, 1))])
def test_slope_and_intercept(tmp_path, scale, full):
    path = write(tmp_path / "a.nii", numbers(dtype=np.uint8), np.eye(4), scale)
    stored = read_slice(path, 1)
    assert stored.values.dtype == np.float32
    assert stored.full == full
    np.testing.assert_allclose(all_slices(path, "coronal")[..., 0], displayed(path, "coronal"), rtol=1e-6)
    np.testing.assert_allclose(volume_values(path)[..., 0], numbers(dtype=np.uint8) * scale[0] + scale[1])


@pytest.mark.parametrize("scale", [(0.0, 5.0), (np.nan, np.nan), (1.0, 0.0)])
def test_scales_that_mean_none(tmp_path, scale):
    path = write(tmp_path / "a.nii", numbers(), np.eye(4))
    block = bytearray(path.read_bytes())
    block[112:120] = struct.pack("<2f", *scale)
    path.write_bytes(block)
    assert read_slice(path, 0).values.dtype == np.int16


def test_what_is_not_finite_is_padding(tmp_path):
    data = numbers(dtype=np.float32) + 1
    data[1, 2, 3], data[0, 0, 3], data[2, 2, 4] = np.nan, -np.inf, np.inf
    path = write(tmp_path / "a.nii", data, np.eye(4))
    stored = read_slice(path, 3)
    assert stored.padding is not None
    assert np.argwhere(stored.padding).tolist() == [[2, 2], [4, 3]]  # rows 4 − y, columns 3 − x
    assert (stored.values[stored.padding] == 0).all()
    assert np.isfinite(stored.values).all()
    assert (stored.values[~stored.padding] > 0).all()
    assert read_slice(path, 2).padding is None
    assert np.isnan(volume_values(path)).sum() == 1


def test_doubles_beyond_float32_are_padding(tmp_path, recwarn):
    path = write(tmp_path / "a.nii", numbers(dtype=np.float64) * 1e300, np.eye(4))
    stored = read_slice(path, 0)
    assert stored.padding is not None
    assert np.isfinite(stored.values).all()
    assert not recwarn.list


def test_fourth_axis_comes_after_the_slices(tmp_path):
    path = write(tmp_path / "a.nii.gz", numbers((*SHAPE, 3)), np.diag([-1.0, 1, 1, 1]))
    header = read_header(path)
    assert header.volume == (*SHAPE, 3)
    assert header.frames == 18
    for axis in AXES:
        np.testing.assert_array_equal(all_slices(path, axis)[..., 0], displayed(path, axis))
        each = nifti.slices(header, axis) // 3
        assert slice_of(2 * each + 1, header, axis) == (1, 2)
        assert all(frame_of(*slice_of(frame, header, axis), header, axis) == frame for frame in range(3 * each))
    np.testing.assert_array_equal(volume_values(path, t=1), volume_values(path)[..., 1:2])
    with pytest.raises(ValueError, match="fourth axis has 3"):
        volume_values(path, t=3)


def test_shape_and_spacing_of_slices(tmp_path):
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    path = write(tmp_path / "a.nii", numbers(), affine)
    header = read_header(path)
    for axis, spacing in zip(AXES, [(2.0, 1.5), (3.0, 1.5), (3.0, 2.0)], strict=True):
        assert slice_spacing(header, axis) == spacing
        assert slice_shape(header, axis) == read_slice(path, 0, axis).values.shape[:2]
    block = bytearray(path.read_bytes())
    block[123] = 3  # micrometres
    path.write_bytes(block)
    assert slice_spacing(read_header(path), "axial") == pytest.approx((0.002, 0.0015))


@pytest.mark.parametrize("alpha", [False, True])
def test_colours(tmp_path, alpha):
    names = "RGBA" if alpha else "RGB"
    colours = np.random.default_rng(0).integers(0, 256, (*SHAPE, len(names)), dtype=np.uint8)
    data = colours.view([(name, "u1") for name in names])[..., 0]
    path = write(tmp_path / "a.nii.gz", data, np.diag([1.0, -1, 1, 1]), scale=(2.0, 0.0))
    header = read_header(path)
    assert (header.channels, header.bits) == (3, 8)
    stored = read_slice(path, 4)
    assert stored.values.dtype == np.uint8
    assert stored.full == (0, 255)
    expected = colours[..., :3]
    if alpha:
        expected = np.rint(colours[..., :3] * (colours[..., 3:] / 255)).astype(np.uint8)
    np.testing.assert_array_equal(stored.values, expected[::-1, :, 4].swapaxes(0, 1))  # rows run along the stored y
    assert volume_values(path).shape == (*SHAPE, 1, 3)


def test_planes_are_volumes_of_one_slice(tmp_path):
    path = write(tmp_path / "a.nii", numbers((4, 5)), np.eye(4))
    assert read_header(path).volume == (4, 5, 1, 1)
    np.testing.assert_array_equal(read_slice(path, -1).values[..., 0], numbers((4, 5)).T[::-1, ::-1])


def test_names_are_kept_apart_and_not_shown(tmp_path):
    path = write(tmp_path / "a.nii", numbers(), np.eye(4))
    block = bytearray(path.read_bytes())
    block[14:32] = NAME.encode().ljust(18, b"\0")  # db_name
    block[148:228] = b"DOB 19700101".ljust(80, b"\0")
    block[228:230] = b"ab"
    path.write_bytes(block)
    header = read_header(path)
    assert header.names == ("DOB 19700101", NAME)
    assert NAME not in repr(header)
    block[70:72] = struct.pack("<h", 12345)
    path.write_bytes(block)
    with pytest.raises(ValueError, match="12345") as caught:
        read_header(path)
    assert NAME not in str(caught.value)


def test_no_such_slice(tmp_path):
    path = write(tmp_path / "a.nii", numbers(), np.eye(4))
    for frame in (-1, 6):
        with pytest.raises(ValueError, match="has 6 axial slices"):
            read_slice(path, frame)


def changed(kind: type = nibabel.Nifti1Header, **fields: object) -> bytes:
    """A sound file of 4×5×6 int16 voxels with other values in its header."""
    header = kind()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = kind.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4 + 240)


REFUSED = {
    "nothing": (b"", "is empty"),
    "text": (b"no volume" * 100, "no NIfTI"),
    "cut header": (changed()[:340], "cut off within its header"),
    "cut voxels": (changed()[:-1], "592 bytes, but the file has 591"),
    "cut gzip": (gzip.compress(changed()[:352] + np.random.default_rng(0).bytes(240))[:-60], "bytes too early"),
    "absurd": (changed(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "asks for 54000000000352 bytes"),
    "absurd 4-D": (changed(dim=[4, 3000, 3000, 30000, 30000, 1, 1, 1]), "cut off or damaged"),
    "absurd gzip": (gzip.compress(changed(dim=[4, 3000, 3000, 3000, 30000, 1, 1, 1])), "can hold at most"),
    "vectors": (changed(dim=[5, 4, 5, 2, 1, 3, 1, 1]), "5 axes .*vectors"),
    "one axis": (changed(dim=[1, 40, 1, 1, 1, 1, 1, 1]), "1 axes"),
    "no axis": (changed(dim=[0, 40, 1, 1, 1, 1, 1, 1]), "no volume"),
    "negative": (changed(dim=[3, 4, -5, 6, 1, 1, 1, 1]), "no volume"),
    "complex": (changed(datatype=32, bitpix=64), "complex"),
    "128 bits": (changed(datatype=1536, bitpix=128), "floats of 128 bits"),
    "bits": (changed(datatype=1, bitpix=1), "single bits"),
    "unknown type": (changed(datatype=77), "77"),
    "pair": (changed(magic=b"ni1"), "pair"),
    "analyze": (changed(magic=b""), "Analyze"),
    "singular": (changed(srow_x=[0, 0, 0, 0]), "singular"),
    "not finite": (changed(srow_x=[np.nan, 0, 0, 0]), "not finite"),
    "infinite slope": (changed(scl_slope=1, scl_inter=np.inf), "."),
    "offset": (changed(vox_offset=np.nan), "."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name, capfd):
    contents, message = REFUSED[name]
    path = tmp_path / "a.nii"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message) as caught:  # noqa: PT012 (a header may be sound, its voxels not)
        read_header(path)
        read_slice(path, 0)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_nibabel_repairs_is_not_logged(tmp_path, caplog):
    path = tmp_path / "a.nii"
    path.write_bytes(changed(pixdim=[0, -1, 1, 0, 1, 1, 1, 1], sform_code=77))
    assert read_header(path).spacing == (1, 1)
    assert not caplog.records


def test_missing_files_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_header(tmp_path / "a.nii")


def test_slices_that_are_too_large(tmp_path):
    path = write(tmp_path / "a.nii", numbers(), np.eye(4))
    with pytest.raises(ValueError, match=r"5×4 pixels.*max_megapixels"):
        read_header(path, max_megapixels=1e-6)
    with pytest.raises(ValueError, match="6×5 pixels"):
        read_slice(path, 0, "sagittal", max_megapixels=20e-6)


def test_damaged_voxels_do_not_pass(tmp_path):
    """By the checksum that gzip keeps."""
    whole = write(tmp_path / "a.nii", numbers(), np.eye(4)).read_bytes()
    path = tmp_path / "a.nii.gz"
    block = bytearray(gzip.compress(whole + bytes(100_000)))  # bytes behind the voxels are no damage
    path.write_bytes(block)
    np.testing.assert_array_equal(volume_values(path)[..., 0], numbers())
    block[-6] ^= 1
    path.write_bytes(block)
    read_header(path)
    with pytest.raises(ValueError, match="damaged"):
        read_slice(path, 0)


def test_gzip_in_parts_and_under_another_name(tmp_path):
    contents = write(tmp_path / "a.nii", numbers(), np.eye(4)).read_bytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(contents[:400]) + gzip.compress(contents[400:]) + b"rest")
    (tmp_path / "c.nii.gz").write_bytes(contents)
    for name in ("b.nii", "c.nii.gz"):
        np.testing.assert_array_equal(volume_values(tmp_path / name)[..., 0], numbers())


def test_the_slices_of_a_volume_cost_one_reading(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii.gz", numbers(), np.eye(4))
    reads: list[Path] = []
    asked = [threading.Event() for _ in range(6)]
    waiting = iter(asked)

    def stamped(path: Path) -> object:
        next(waiting, asked[0]).set()
        return stamp(path)

    def unpacked(path: Path) -> object:
        reads.append(path)
        assert all(event.wait(10) for event in asked)
        return nifti_layout.unpacked(path)

    monkeypatch.setattr(nifti, "stamp", stamped)
    monkeypatch.setattr(nifti, "unpacked", unpacked)
    threads = [threading.Thread(target=read_slice, args=(path, frame)) for frame in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    with pytest.raises(ValueError, match="read-only"):
        volume_values(path)[0] = 1
    write(path, numbers((4, 5, 7)) + 1, np.eye(4))  # the file is another one now
    assert read_slice(path, 6).values.min() > 0
    assert len(reads) == 2


def test_cache_is_bounded_and_forgets_failures():
    cache: Cache[str] = Cache(limit=10)
    loaded = []

    def load(name: str, size: int) -> tuple[str, int]:
        loaded.append(name)
        return name, size

    for name in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(name, lambda name=name: load(name, 4)) == name
    assert loaded == ["a", "b", "c", "b"]
    assert cache.get("large", lambda: load("large", 100)) == "large"
    assert cache.get("large", lambda: load("large", 100)) == "large"
    assert loaded.count("large") == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda: (str(1 // 0), 1))
    assert cache.get("bad", lambda: load("bad", 1)) == "bad"


BUNDLED = sorted(path for path in Path(str(data_path)).rglob("*") if path.name.endswith((*nifti.SUFFIXES, ".hdr")))
REASONS = {"row_major.dconn.nii": "6 axes", "analyze.hdr": "Analyze", "nifti1.hdr": "pair|bytes", "nifti2.hdr": "."}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_files_that_nibabel_brings_along(path):
    if path.name in REASONS:
        with pytest.raises(ValueError, match=REASONS[path.name]):
            read_header(path)
        return
    header = read_header(path)
    for axis in AXES:
        found = all_slices(path, axis)[..., 0]
        assert found.shape[1:] == slice_shape(header, axis)
        np.testing.assert_allclose(found, np.nan_to_num(displayed(path, axis)), rtol=1e-5)


SOUND = {1: changed(), 2: changed(nibabel.Nifti2Header)}


@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.sampled_from([1, 2]),
    places=st.lists(st.tuples(st.integers(0, 560), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    cut=st.integers(0, 900),
)
def test_fuzzed_headers_are_read_or_refused(tmp_path, capfd, packed, version, places, cut):
    contents = bytearray(SOUND[version])
    for place, value in places:
        contents[place : place + len(value)] = value
    contents = bytes(contents[: max(len(contents) - cut, 0)] if cut < 200 else contents)
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(contents) if packed else contents)
    try:
        header = read_header(path)
        for axis in AXES:
            for frame in {0, nifti.slices(header, axis) - 1}:
                stored = read_slice(path, frame, axis)
                assert stored.values.shape == (*slice_shape(header, axis), header.channels)
                assert np.isfinite(stored.values).all()
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (it may as well be read)
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 300), value=st.binary(min_size=1, max_size=4))
def test_fuzzed_gzip_is_read_or_refused(tmp_path, place, value):
    contents = bytearray(gzip.compress(changed() + numbers((9, 9, 9)).tobytes()))
    contents[place : place + len(value)] = value
    path = tmp_path / "a.nii.gz"
    path.write_bytes(contents)
    try:
        read_slice(path, read_header(path).frames - 1)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
