"""Bad and odd images and options: what is read of each, or which line it is refused with. Nothing is left out unnamed.

Every kind stands beside three good pictures of its own size.
"""

import dataclasses
import functools
import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate

from dinojax.config.bounds import check
from dinojax.config.images import ImagesConfig
from dinojax.config.parser import parse
from dinojax.data.contrast import check_contrast
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.data.splits import make_folds
from dinojax.errors import RunError, UsageError
from dinojax.verbs import run as run_verb
from tests.data.medical import ramp, write_dicom, write_nifti

GOOD = 3
GREY = ramp(0, 255, dtype=np.uint8)
RGB = np.stack([GREY, GREY.T, GREY[::-1]], axis=2)
WIDE = ramp(0, 65535, dtype=np.uint16)
FLOATS = ramp(0, 100, dtype=np.float32) / 100
VOXELS = np.random.default_rng(0).integers(100, 1000, (16, 16, 6)).astype(np.int16)


@pytest.fixture(autouse=True)
def salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "dinojax" / "salt"


def good(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(GOOD):
        Image.fromarray(np.roll(GREY, number)).save(folder / f"good {number}.png")


# What files hold.


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(kind: str, values: np.ndarray = GREY, **options: Any) -> bytes:
    return packed(Image.fromarray(values), kind, **options)


def frames(kind: str, count: int = 3, **options: Any) -> bytes:
    images = [Image.fromarray(np.roll(GREY, 40 * number)) for number in range(count)]
    return packed(images[0], kind, save_all=True, append_images=images[1:], **options)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(width: int, height: int, bits: int = 8, colours: int = 0, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def dicom(pixels: np.ndarray = GREY, edit: Callable[[Any], None] | None = None, **elements: Any) -> bytes:
    """A DICOM file, which `edit` may change before it is written."""
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "made.dcm"
    write_dicom(path, pixels, **elements)
    if edit is not None:
        dataset = dcmread(path)
        edit(dataset)
        dataset.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    path.unlink()
    return content


def encapsulated(syntax: str, **elements: Any) -> Callable[[Any], None]:
    """Compressed by its header alone."""

    def edit(dataset: Any) -> None:
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        for name, value in elements.items():
            setattr(dataset, name, value)

    return edit


def report(dataset: Any) -> None:
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"


def directory(dataset: Any) -> None:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.1.3.10"


def changed(**elements: Any) -> Callable[[Any], None]:
    def edit(dataset: Any) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)

    return edit


def nifti(voxels: np.ndarray = VOXELS, gz: bool = False, dims: tuple[int, ...] | None = None) -> bytes:
    """A NIfTI file; `dims` are what its header claims to hold."""
    content = bytearray(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())
    if dims is not None:
        content[40 : 42 + 2 * len(dims)] = struct.pack(f"<{len(dims) + 1}h", len(dims), *dims)
    return gzip.compress(bytes(content), mtime=0) if gz else bytes(content)


def cut(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(len(content) * share)]


def noise(count: int = 2000) -> bytes:
    return np.random.default_rng(5).bytes(count)


# What is expected.


class Read(NamedTuple):
    """How many images a file gives, and what the first of them shows: a grey level, or a few places of it."""

    images: int = 1
    first: Callable[[np.ndarray], bool] = lambda image: True
    told: str = ""
    """In what is said of the headers."""


class Unreadable(NamedTuple):
    """What the line says, which also names the file."""

    words: tuple[str, ...]
    images: int = 1
    """That are counted: those that a sound header promises."""
    decoding: bool = False
    """Whether only decoding finds it out."""


class Refused(NamedTuple):
    """A data set or an option that is refused as a whole."""

    error: type[RunError]
    words: tuple[str, ...]


class Kind(NamedTuple):
    """A file beside three good ones."""

    name: str
    content: Callable[[], bytes]
    expected: Read | Unreadable
    options: tuple[str, ...] = ()
    """Of the command line."""


def bad(*words: str, images: int = 1, decoding: bool = False) -> Unreadable:
    return Unreadable(words, images, decoding)


def is_grey(values: np.ndarray) -> Callable[[np.ndarray], bool]:
    return lambda image: image.shape[2] == 1 and bool((image[:, :, 0] == values).all())


def is_constant(level: int) -> Callable[[np.ndarray], bool]:
    return lambda image: bool((image == level).all())


WHOLE = ("--intensity.policy", "range", "--intensity.range", "[0, 255]")
BIGGER = "raise it if the file is meant"
SPECIAL = np.where(np.eye(16) > 0, np.nan, FLOATS).astype(np.float32)
SPECIAL[0, 5] = np.inf
HOLES = np.where(np.arange(6) == 3, np.nan, VOXELS.astype(np.float32)).astype(np.float32)
HOLES[2, 2, 1] = np.inf
MPEG, J2K, JPEG = "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50"


def alpha16() -> bytes:
    """16-bit grey with alpha: half of it transparent."""
    rows = b"".join(b"\0" + struct.pack(">8H", *([40_000, 65_535] * 2 + [40_000, 0] * 2)) for _ in range(4))
    return png_of_size(4, 4, 16, 4, rows)


def palette() -> bytes:
    image = Image.fromarray(GREY // 128, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    return packed(image, "PNG")


FILES: dict[str, Kind] = {
    # Nothing, or too little.
    **{
        f"zero bytes {suffix}": Kind(f"x.{suffix}", lambda: b"", bad("is empty"))
        for suffix in ("png", "jpg", "tif", "dcm", "nii", "nii.gz", "gif", "bmp", "webp", "jp2")
    },
    "png, header cut": Kind("x.png", lambda: picture("PNG")[:20], bad("damaged")),
    "png, pixels cut": Kind("x.png", lambda: cut(picture("PNG", RGB)), bad("is truncated")),
    "png, pixels wrong": Kind(
        "x.png", lambda: picture("PNG", RGB).replace(b"IDAT", b"IDAT\x55", 1)[:-1], bad("damaged")
    ),
    "jpeg, header cut": Kind("x.jpg", lambda: picture("JPEG")[:12], bad("damaged")),
    "jpeg, pixels cut": Kind(
        "x.jpg",
        lambda: cut(picture("JPEG", np.tile(RGB, (9, 9, 1)))),
        bad("damaged", "truncated", decoding=True),
    ),
    "tiff, header cut": Kind("x.tif", lambda: tiff(WIDE)[:6], bad("damaged")),
    "tiff, pixels cut": Kind(
        "x.tif",
        lambda: cut(tiff(np.tile(WIDE, (8, 8)))),
        bad("is truncated", "too short", decoding=True),
    ),
    "dicom, header cut": Kind("x.dcm", lambda: dicom()[:300], bad("no pixel data, or ends before it")),
    "dicom, preamble cut": Kind("x.dcm", lambda: dicom()[:100], bad("not DICOM, or is encrypted")),
    "dicom, pixels cut": Kind("x.dcm", lambda: dicom()[:-50], bad("cut off", "256 bytes of pixel data expected")),
    "dicom, compressed pixels cut": Kind(
        "x.dcm", lambda: cut(dicom(np.tile(GREY, (9, 9)), encapsulated(J2K)), 0.9), bad("is cut off")
    ),
    "nifti, header cut": Kind("x.nii", lambda: nifti()[:200], bad("cut off within its header")),
    "nifti, voxels cut": Kind("x.nii", lambda: cut(nifti()), bad("cut off or damaged")),
    "nifti.gz, header cut": Kind("x.nii.gz", lambda: nifti(gz=True)[:12], bad("no NIfTI file")),
    "nifti.gz, cut in the middle": Kind("x.nii.gz", lambda: cut(nifti(gz=True), 0.5), bad("too early: it is cut off")),
    "nifti.gz, cut, empty slices kept": Kind(
        "x.nii.gz",
        lambda: cut(nifti(gz=True), 0.5),
        bad("too early: it is cut off", images=6, decoding=True),
        ("--slices.drop_empty", "false"),
    ),
    "nifti.gz, damaged in the middle": Kind(
        "x.nii.gz", lambda: (p := nifti(gz=True))[:900] + noise(90) + p[990:], bad("compressed data are damaged")
    ),
    # Another kind than the name says.
    "png called jpg": Kind("x.jpg", lambda: picture("PNG"), Read(1, is_grey(GREY))),
    "jpeg called png": Kind(
        "x.png", lambda: picture("JPEG", np.full((16, 16), 99, np.uint8)), Read(1, is_constant(99))
    ),
    "png called dcm": Kind("x.dcm", lambda: picture("PNG"), Read(1, is_grey(GREY))),
    "dicom called png": Kind("x.png", lambda: dicom(), Read(1, is_grey(GREY))),
    "dicom called like a number": Kind("1.2.840.113", lambda: dicom(), Read(1, is_grey(GREY))),
    "dicom called nii": Kind("x.nii", lambda: dicom(), bad("no NIfTI file")),
    "nifti called png": Kind("x.png", lambda: nifti(), bad("not a PNG")),
    "text called dcm": Kind("x.dcm", lambda: b"Dear colleague,\n" * 30, bad("is not DICOM, or is encrypted")),
    "html called nii.gz": Kind("x.nii.gz", lambda: b"<!DOCTYPE html><html>404</html>" * 30, bad("no NIfTI file")),
    "html called png": Kind("x.png", lambda: b"<!DOCTYPE html><html>404</html>" * 30, bad("not a PNG")),
    "gzip called nii": Kind("x.nii", lambda: nifti(gz=True), Read(6)),
    "nifti called nii.gz": Kind("x.nii.gz", lambda: nifti(), Read(6)),
    "gzip of something else": Kind("x.nii.gz", lambda: gzip.compress(b"hello" * 200), bad("no NIfTI file")),
    **{
        f"garbage {suffix}": Kind(f"x.{suffix}", noise, bad(words))
        for suffix, words in (("png", "not a PNG"), ("dcm", "is encrypted"), ("nii", "no NIfTI"), ("tif", "not a PNG"))
    },
    "garbage behind a preamble": Kind("x.dcm", lambda: bytes(128) + b"DICM" + noise(), bad("")),
    # Sizes that no memory holds.
    "png of 60000×60000": Kind("x.png", lambda: png_of_size(60_000, 60_000), bad("3600 megapixels", BIGGER)),
    "png of no width": Kind("x.png", lambda: png_of_size(0, 16), bad("")),
    "png that is larger than its pixels": Kind(
        "x.png",
        lambda: png_of_size(900, 900, pixels=bytes(99)),
        bad("damaged", decoding=True),
    ),
    "bmp of 60000×60000": Kind(
        "x.bmp",
        lambda: (b := picture("BMP"))[:18] + struct.pack("<ii", 60_000, 60_000) + b[26:],
        bad("3600 megapixels"),
    ),
    "gif of 60000×60000": Kind(
        "x.gif", lambda: (b := picture("GIF"))[:6] + struct.pack("<HH", 60_000, 60_000) + b[10:], bad("3600 megapixels")
    ),
    "dicom of 65535 rows": Kind(
        "x.dcm", lambda: dicom(edit=changed(Rows=65535)), bad("cut off, or its header damaged", "1048560 bytes")
    ),
    "compressed dicom of 65535×65535": Kind(
        "x.dcm", lambda: dicom(edit=encapsulated(J2K, Rows=65535, Columns=65535)), bad("more than 200 megapixels")
    ),
    "dicom of no rows": Kind("x.dcm", lambda: dicom(edit=changed(Rows=0)), bad("has 0 rows")),
    "dicom of 2 billion frames": Kind("x.dcm", lambda: dicom(edit=changed(NumberOfFrames=2**31 - 1)), bad("cut off")),
    "nifti of 30000×30000×3": Kind(
        "x.nii", lambda: nifti(dims=(30_000, 30_000, 3)), bad("asks for", "cut off or damaged")
    ),
    "nifti.gz of 30000×30000×3": Kind(
        "x.nii.gz", lambda: nifti(gz=True, dims=(30_000, 30_000, 3)), bad("compressed bytes can hold at most")
    ),
    "nifti of a negative length": Kind("x.nii", lambda: nifti(dims=(-5, 16, 6)), bad("no volume")),
    "gzip bomb behind the voxels": Kind(
        "x.nii.gz", lambda: gzip.compress(nifti() + bytes(3 << 24), 9, mtime=0), Read(6)
    ),
    "max_megapixels lowered": Kind(
        "x.png",
        lambda: picture("PNG", np.tile(GREY, (4, 4))),
        bad("0.004096 megapixels"),
        ("--max_megapixels", "0.001"),
    ),
    "max_megapixels lowered, dicom": Kind(
        "x.dcm",
        lambda: dicom(np.tile(GREY, (4, 4)), encapsulated(J2K)),
        bad("0.001 megapixels"),
        ("--max_megapixels", "0.001"),
    ),
    "max_megapixels lowered, nifti": Kind(
        "x.nii",
        lambda: nifti(np.ones((64, 64, 2), np.int16)),
        bad("raise max_megapixels"),
        ("--max_megapixels", "0.001"),
    ),
    "max_megapixels raised": Kind(
        "x.png", lambda: picture("PNG", np.tile(GREY, (4, 4))), Read(), ("--max_megapixels", "0.0041")
    ),
    # Values.
    "float tiff with NaN and inf": Kind(
        "x.tif",
        lambda: tiff(SPECIAL),
        Read(1, lambda image: not image[np.eye(16) > 0].any() and image[0, 5, 0] == 0 and image[15, 14, 0] > 240),
    ),
    "float tiff of NaN alone": Kind(
        "x.tif", lambda: tiff(np.full((16, 16), np.nan, np.float32)), Read(1, is_constant(0))
    ),
    "nifti with NaN and inf": Kind("x.nii", lambda: nifti(HOLES), Read(5, told="1 empty slice left out")),
    "a constant picture": Kind(
        "x.png", lambda: picture("PNG", np.full((16, 16), 7, np.uint8)), Read(1, is_constant(7))
    ),
    "a constant wide picture": Kind("x.png", lambda: picture("PNG", np.full((16, 16), 700, np.uint16)), Read()),
    "a constant dicom": Kind("x.dcm", lambda: dicom(np.full((16, 16), 5, np.int16), Modality="MR"), Read()),
    "a constant nifti": Kind("x.nii", lambda: nifti(np.full((16, 16, 3), 5, np.int16)), Read(0, told="3 empty slices")),
    "a dicom of padding alone": Kind(
        "x.dcm",
        lambda: dicom(np.full((16, 16), -2000, np.int16), Modality="MR", PixelPaddingValue=-2000),
        Read(1, is_constant(0)),
    ),
    "a ct of padding alone": Kind(
        "x.dcm",
        lambda: dicom(np.full((16, 16), -2000, np.int16), Modality="CT", PixelPaddingValue=-2000),
        Read(1, is_constant(0)),
    ),
    "rescale slope 0": Kind(
        "x.dcm", lambda: dicom(RescaleSlope=0, RescaleIntercept=5), bad("the slope is 0", decoding=True)
    ),
    "a VOI number that is not there": Kind(
        "x.dcm",
        lambda: dicom(ramp(0, 4000, dtype=np.uint16), WindowCenter=[9, 5], WindowWidth=[9, 5]),
        Read(
            1,
            lambda image: (image.min(), image.max()) == (0, 255),
            "the file's window 3",
        ),
        ("--intensity.policy", "file", "--intensity.number", "3"),
    ),
    "a window of no width": Kind(
        "x.dcm",
        lambda: dicom(ramp(0, 4000, dtype=np.uint16), WindowCenter=9, WindowWidth=0),
        Read(1, lambda image: (image.min(), image.max()) == (0, 255)),
    ),
    # DICOM that is no image, or that nothing decodes.
    "mpeg": Kind("x.dcm", lambda: dicom(edit=encapsulated(MPEG)), bad("no decoder reads that; convert the file")),
    "a syntax that nobody knows": Kind("x.dcm", lambda: dicom(edit=encapsulated("1.2.3.4")), bad("no decoder reads")),
    "no jpeg 2000 inside": Kind("x.dcm", lambda: dicom(edit=encapsulated(J2K)), bad("pixel data", decoding=True)),
    "no jpeg inside": Kind("x.dcm", lambda: dicom(edit=encapsulated(JPEG)), bad("pixel data", decoding=True)),
    "compressed by its header alone": Kind(
        "x.dcm", lambda: dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"), bad("cut off")
    ),
    "a structured report": Kind("x.dcm", lambda: dicom(edit=report), bad("no pixel data")),
    "a directory called dcm": Kind("x.dcm", lambda: dicom(edit=directory), bad("a DICOMDIR, which lists files")),
    "dicom in unknown colours": Kind(
        "x.dcm", lambda: dicom(edit=changed(PhotometricInterpretation="HSV")), bad("stored as HSV")
    ),
    "dicom of 12 frames, 3 there": Kind(
        "x.dcm", lambda: dicom(np.stack([GREY] * 3), changed(NumberOfFrames=12)), bad("cut off")
    ),
    # Pictures of other kinds.
    "several dicom frames": Kind("x.dcm", lambda: dicom(np.stack([GREY] * 4)), Read(4, is_grey(GREY))),
    "every other frame": Kind("x.dcm", lambda: dicom(np.stack([GREY] * 4)), Read(2), ("--slices.every", "2")),
    "an animated gif": Kind("x.gif", lambda: frames("GIF"), Read(3, told="1 file of several images")),
    "an animated png": Kind("x.png", lambda: frames("PNG"), Read(3)),
    "a tiff of several pages": Kind("x.tif", lambda: frames("TIFF"), Read(3, is_grey(GREY))),
    "an mpo": Kind("x.jpg", lambda: frames("MPO", 2), Read(1)),
    "a palette": Kind("x.png", palette, Read(1, lambda image: image[0, 0].tolist() == [10, 20, 30], "1 RGB")),
    "16 bits with alpha": Kind(
        "x.png",
        alpha16,
        Read(1, lambda image: image[0, 0, 0] > 0 and not image[:, 2:].any()),
        (*WHOLE[:2], "--intensity.range", "[0, 65535]"),
    ),
    "1 bit": Kind(
        "x.png",
        lambda: packed(Image.fromarray(GREY).convert("1"), "PNG"),
        Read(1, lambda image: set(image.ravel().tolist()) <= {0, 255}),
    ),
    "cmyk": Kind("x.jpg", lambda: packed(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG"), Read(1, is_constant(0))),
    "a tiff of complex numbers": Kind(
        "x.tif", lambda: tiff(FLOATS.astype(np.complex64)), bad("complex numbers", "save their magnitude")
    ),
    "nifti of 5 axes": Kind("x.nii", lambda: nifti(np.ones((4, 4, 2, 2, 3), np.int16)), bad("has 5 axes")),
    "nifti of complex numbers": Kind("x.nii", lambda: nifti(VOXELS.astype(np.complex64)), bad("complex numbers")),
    "nifti, all slices empty": Kind(
        "x.nii", lambda: nifti(np.zeros((16, 16, 3), np.int16)), Read(0, told="3 empty slices")
    ),
    "nifti, empty slices kept": Kind(
        "x.nii",
        lambda: nifti(np.zeros((16, 16, 3), np.int16)),
        Read(3, is_constant(0)),
        ("--slices.drop_empty", "false"),
    ),
    "nifti, lying nowhere": Kind(
        "x.nii", lambda: (n := nifti())[:280] + bytes(16) + n[296:], bad("how the patient lies")
    ),
    # Names.
    "spaces in a name": Kind(" left  knee (1) .png", lambda: picture("PNG"), Read(1, is_grey(GREY))),
    "unicode in a name": Kind("Größe 肺 🫁.PNG", lambda: picture("PNG"), Read(1, is_grey(GREY))),
    "a comma and quotes in a name": Kind('a,"b".png', lambda: picture("PNG"), Read(1, is_grey(GREY))),
    "a new line in a name": Kind("a\nb.png", lambda: b"", bad("is empty")),
}


class Set(NamedTuple):
    """A whole data set, or an option."""

    write: Callable[[Path], Any]
    """Fills the folder; what `--data` names below it, if that is not the folder."""
    expected: Read | Unreadable | Refused
    options: tuple[str, ...] = ()
    labelled: bool = False


def wrong(*words: str) -> Refused:
    return Refused(RunError, words)


def unusable(*words: str) -> Refused:
    return Refused(UsageError, words)


def manifest(*rows: str) -> Callable[[Path], str]:
    """A table of the three good pictures and of a DICOM file of three frames."""

    def write(folder: Path) -> str:
        good(folder)
        (folder / "us.dcm").write_bytes(dicom(np.stack([GREY] * 3)))
        (folder / "list.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
        return "list.csv"

    return write


def fold_files(**labels: str) -> Callable[[Path], None]:
    """One fold of two pictures a part, with these labels, separated by commas."""

    def write(folder: Path) -> None:
        (folder / "dataframe").mkdir(parents=True)
        for split, names in labels.items():
            lines = ["filename,label"]
            for number, label in enumerate(names.split(",")):
                Image.fromarray(np.roll(GREY, len(split) + number)).save(folder / f"{split}{number}.png")
                lines.append(f"{split}{number}.png,{label}")
            (folder / "dataframe" / f"knee_{split}.csv").write_text("\n".join([*lines, ""]))

    return write


def all_constant(folder: Path) -> None:
    for number in range(4):
        Image.new("L", (16, 16), 9).save(folder / f"{number}.png")


def unlike_constants(folder: Path) -> None:
    for number in range(4):
        Image.new("L", (16, 16), 9 * number).save(folder / f"{number}.png")


def names(folder: Path) -> None:
    """A folder and a link that are called like pictures."""
    good(folder)
    (folder / "folder.png").mkdir()
    (folder / "nowhere.png").symlink_to(folder / "gone.png")


def locked(folder: Path) -> None:
    good(folder)
    (folder / "locked.png").write_bytes(picture("PNG"))
    (folder / "locked.png").chmod(0)


def several(kinds: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        good(folder)
        for number, kind in enumerate(kinds.split()):
            (folder / f"x{number}.{kind}").write_bytes(b"")

    return write


def all_empty(folder: Path) -> None:
    write_nifti(folder / "a.nii", np.zeros((8, 8, 3), np.int16))


def cut_alone(folder: Path) -> None:
    (folder / "a.nii.gz").write_bytes(cut(nifti(gz=True), 0.5))


def series(folder: Path) -> None:
    good(folder)
    write_nifti(folder / "a.nii", VOXELS.reshape(16, 16, 3, 2))


def salted(content: bytes | None) -> Callable[[Path], None]:
    """DICOM, whose ids are hashed by a salt of these bytes, or one that is a folder."""

    def write(folder: Path) -> None:
        write_dicom(folder / "a.dcm", GREY, PatientID="1")
        secret = Path(os.environ["XDG_CONFIG_HOME"]) / "dinojax" / "salt"
        (secret.parent if content is not None else secret).mkdir(parents=True)
        if content is not None:
            secret.write_bytes(content)

    return write


def pseudonyms(change: Callable[[Path], Any]) -> Callable[[Path], str]:
    """A manifest of pseudonyms, after which something changes in the folder or with the key."""

    def write(folder: Path) -> str:
        good(folder / "Wolkenstein")
        run_verb(["index", str(folder), "--out", str(folder / "list.csv"), "--pseudonyms", "true"])
        change(folder)
        return "list.csv"

    return write


def key() -> Path:
    return Path(os.environ["XDG_CONFIG_HOME"]) / "dinojax" / "pseudonyms.csv"


def npz(**arrays: np.ndarray) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return "a.npz"

    return write


def raw(name: str, content: Callable[[], bytes]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content())
        return name

    return write


STACK = np.stack([GREY] * 3)
PATHS = ("good 0.png", "good 1.png", "good 2.png")
SETS: dict[str, Set] = {
    # Constant images.
    "nothing but one constant": Set(all_constant, wrong("nothing can be learned", "the single value 9", "exported")),
    "constants": Set(unlike_constants, wrong("nothing can be learned", "each is of a single colour")),
    # Names, links, permissions.
    "a folder and a link called png": Set(names, bad("No such file or directory", "nowhere.png")),
    "a file without permission": Set(locked, bad("Permission denied", "locked.png")),
    "an empty folder": Set(lambda folder: None, unusable("no images found", "it is empty")),
    "empty files of all kinds": Set(several("png jpg tif dcm nii nii.gz"), bad("6 of 9 files", "is empty", images=6)),
    "nothing that can be read": Set(
        lambda folder: (folder / "x.png").write_bytes(b""), wrong("1 of 1 files", "is empty", "none is left")
    ),
    # Manifests.
    "a table without paths": Set(manifest("name,label", "x,a"), wrong("list.csv", "--path_column")),
    "a table without labels": Set(manifest("path", *PATHS), wrong("list.csv", "--label_column"), labelled=True),
    "a table of nothing": Set(manifest("path,label"), wrong("lists no images")),
    "a row twice": Set(manifest("path", *PATHS, PATHS[0]), wrong("row 5", "listed before, in row 2", "keep one row")),
    "a frame twice": Set(manifest("path,frame", "us.dcm,1", "us.dcm,1"), wrong("row 3", "listed before, in row 2")),
    "a file that is not there": Set(manifest("path", *PATHS, "gone.png"), wrong("row 5", "no image", "--data_root")),
    "a folder in a table": Set(manifest("path", *PATHS, ".."), wrong("row 5")),
    "a cell too many": Set(
        manifest("path,label", "good 0.png,a,b"), wrong("row 2", "3 values, but the header names 2")
    ),
    "an empty label": Set(
        manifest("path,label", "good 0.png,"), wrong("row 2", "column label is empty"), labelled=True
    ),
    "labels in two spellings": Set(
        manifest("path,label", "good 0.png,a b", "good 1.png,A  B", "good 2.png,c"),
        wrong("'A  B'", "'a b'"),
        labelled=True,
    ),
    "labels with spaces": Set(
        manifest("path,label", "good 0.png, type one ", "good 1.png,type one", "good 2.png,type Ä"),
        Read(0),
        labelled=True,
    ),
    "one class alone": Set(
        manifest("path,label", "good 0.png,a", "good 1.png,a"), wrong("of one class, 'a'"), labelled=True
    ),
    "a frame that is no number": Set(manifest("path,frame", "us.dcm,first"), wrong("row 2", "frame 'first'")),
    "a frame beyond the file": Set(
        manifest("path,frame", *(f"{path}," for path in PATHS), "us.dcm,9", "us.dcm,1", "us.dcm,0"),
        bad("has 3 images, numbered from 0, and none of number 9", "us.dcm, frame 9", "row 5", images=3),
    ),
    "a frame of a picture": Set(
        manifest("path,frame", "good 0.png,", "good 1.png,", "good 2.png,1"),
        bad("has 1 image, numbered from 0, and none of number 1", "row 4", images=0),
    ),
    "a split that is none": Set(manifest("path,split", "good 0.png,tryout"), wrong("row 2", "'tryout'", "train")),
    # Fold files.
    "a class of fold files that training lacks": Set(
        fold_files(train="a,b", val="a,b", test="a,c"), wrong("c"), labelled=True
    ),
    "an image in two parts": Set(
        lambda folder: (
            fold_files(train="a,b", val="a,b", test="a,b")(folder),
            (folder / "dataframe" / "knee_test.csv").write_text("filename,label\ntrain0.png,a\n"),
        )[0],
        wrong("train0.png"),
        labelled=True,
    ),
    # Volumes.
    "all slices empty": Set(all_empty, wrong("all slices are empty", "--slices.drop_empty false")),
    "a damaged volume alone": Set(cut_alone, wrong("a.nii.gz", "cut off")),
    "a time that no volume has": Set(
        series, wrong("slices.time 2", "a volume has 2, numbered from 0", "a.nii", "lower it"), ("--slices.time", "2")
    ),
    "a time that it has": Set(series, Read(3), ("--slices.time", "1")),
    # The salt and pseudonyms.
    "a salt that is a folder": Set(salted(None), wrong("neither read nor made", "directory", "--salt_file")),
    "a salt that is too short": Set(salted(b"short"), unusable("has 5 bytes, too few for a secret", "give 16 or more")),
    "pseudonyms without a key": Set(
        pseudonyms(lambda folder: key().unlink()), wrong("whose key", "No such file", "--salt_file")
    ),
    "a key of other pseudonyms": Set(
        pseudonyms(lambda folder: key().write_text("pseudonym,file\n0,/x\n")), wrong("row 2", "has no file of")
    ),
    "a key that is none": Set(pseudonyms(lambda folder: key().write_bytes(noise())), wrong("key", "--salt_file")),
    "a pseudonym whose file moved": Set(
        pseudonyms(lambda folder: (folder / "Wolkenstein" / "good 1.png").rename(folder / "moved.png")),
        wrong(".png is no longer where it was (1 of 3)", "run index again"),
    ),
    "a pseudonym whose file is cut": Set(
        pseudonyms(lambda folder: (folder / "Wolkenstein" / "good 1.png").write_bytes(b"")),
        bad("is empty", "list.csv, row", images=0),
    ),
    "a pseudonym twice": Set(
        pseudonyms(
            lambda folder: (t := folder / "list.csv").write_text(t.read_text() + t.read_text().splitlines()[1] + "\n")
        ),
        wrong("row 5", "is listed before, in row 2"),
    ),
    # Options of the intensities.
    "a range without its policy": Set(good, unusable("intensity.policy range", "give both"), WHOLE[2:]),
    "a policy without its range": Set(good, unusable("intensity.policy range", "give both"), WHOLE[:2]),
    "a range reversed": Set(good, unusable("[9.0, 1.0]", "lower one comes first"), (*WHOLE[:3], "[9, 1]")),
    "a range of no width": Set(good, unusable("[9.0, 9.0]"), (*WHOLE[:3], "[9, 9]")),
    "a range that is not finite": Set(good, unusable("intensity.range", "nan"), (*WHOLE[:3], "[.nan, 9]")),
    "percentiles reversed": Set(
        good, unusable("intensity.percentiles", "lower one comes first"), ("--intensity.percentiles", "[99, 1]")
    ),
    "percentiles that are one": Set(
        good, unusable("intensity.percentiles", "must differ"), ("--intensity.percentiles", "[50, 50]")
    ),
    "percentiles beyond 100": Set(
        good, unusable("intensity.percentiles", "0..100"), ("--intensity.percentiles", "[1, 101]")
    ),
    "a policy that is none": Set(good, unusable("intensity.policy", "spleen"), ("--intensity.policy", "spleen")),
    "window 0": Set(good, unusable("intensity.number", "above 0"), ("--intensity.number", "0")),
    "no megapixels": Set(good, unusable("max_megapixels", "above 0"), ("--max_megapixels", "0")),
    "an axis that is none": Set(good, unusable("slices.axis", "oblique"), ("--slices.axis", "oblique")),
    # Containers.
    "an npz of nothing": Set(raw("a.npz", bytes), wrong("a.npz")),
    "an npz cut": Set(
        lambda folder: (npz(train_images=STACK)(folder), (p := folder / "a.npz").write_bytes(cut(p.read_bytes())))[0],
        wrong("a.npz"),
    ),
    "an npz of other arrays": Set(npz(images=STACK), wrong("a.npz", "no arrays train_images")),
    "an npz of floats": Set(npz(train_images=STACK / 255), wrong("a.npz", "uint8 and uint16")),
    "an npz of volumes": Set(npz(train_images=np.ones((2, 8, 8, 8), np.uint8)), wrong("a.npz", "volumes")),
    "an npz with too few labels": Set(
        npz(train_images=STACK, train_labels=np.ones(2, np.uint8)), wrong("2 rows, but there are 3"), labelled=True
    ),
    "an npz of objects": Set(npz(train_images=np.array([None])), wrong("Python objects")),
    "tfds that is not there": Set(lambda folder: "tfds:nowhere", unusable("nowhere")),
    "a workbook": Set(raw("a.xlsx", noise), unusable("a.xlsx", "only a table")),
    "a picture as data": Set(raw("a.png", lambda: picture("PNG")), unusable("a.png", "a folder of images")),
    "nothing at all": Set(lambda folder: "gone", unusable("no such file or folder")),
}


def beside_good(kind: Kind) -> Set:
    def write(folder: Path) -> None:
        good(folder)
        (folder / kind.name).write_bytes(kind.content())

    return Set(write, kind.expected, kind.options)


KINDS = {name: beside_good(kind) for name, kind in FILES.items()} | SETS
PRIVATE = ("Wolkenstein",)


class Used(NamedTuple):
    """What a run would have used."""

    records: Records
    listed: list[tuple[str, str]]
    told: str
    decoded: dict[int, np.ndarray]
    """By place in the records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ImagesConfig):
    """Those that every verb has which reads images."""

    def __post_init__(self) -> None:
        check(self)


@functools.cache
def configured(options: tuple[str, ...]) -> Options:
    return parse(Options, options, "pretrain")


def use(data: str, kind: Set, on_bad_file: Any) -> Used:
    """Everything that a run does with its images before it learns from them."""
    config = configured(kind.options)
    records = read_records(data, labelled=kind.labelled, on_bad_file=on_bad_file)
    records, headers = open_images(records, config, on_bad_file=on_bad_file)
    check_contrast(records)
    if records.folds:
        make_folds(records, 3, 0)
    source = ImageSource(records, channels=headers.channels, on_bad_file=on_bad_file)
    elements = [source[place] for place in range(len(records))]
    decoded = {int(element["index"]): element["image"] for element in elements}
    told = "; ".join([headers.summary(), *headers.intensity, *headers.warnings])
    return Used(records, [*headers.bad, *source.skipped], told, decoded)


def check_line(line: str, words: tuple[str, ...], kind: Set) -> None:
    assert "\n" not in line
    for word in words:
        assert word in line, line
    assert not any(name in line for name in PRIVATE), line


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_and_what_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    kind, folder = KINDS[name], tmp_path / "data set"
    folder.mkdir()
    below = kind.write(folder)
    data = str(folder / below) if isinstance(below, str) and "tfds:" not in below else below or str(folder)
    expected = kind.expected
    if name == "a file without permission" and os.access(folder / "locked.png", os.R_OK):
        pytest.skip("nothing is forbidden to this user")
    if isinstance(expected, Refused):
        for on_bad_file in ("stop", "skip"):
            with pytest.raises(RunError) as caught:
                use(data, kind, on_bad_file)
            assert isinstance(caught.value, expected.error)
            check_line(str(caught.value), expected.words, kind)
        return
    if isinstance(expected, Read):
        used = use(data, kind, "stop")
        assert len(used.records) == len(used.decoded) == GOOD + expected.images
        assert not used.listed
        assert expected.told in used.told
        odd = [place for place in used.decoded if "good" not in str(used.records.paths[place])]
        if odd:
            assert expected.first(used.decoded[odd[0]]), used.decoded[odd[0]][:, :, 0]
        return
    with pytest.raises(RunError) as caught:
        use(data, kind, "stop")
    assert not isinstance(caught.value, UsageError)
    check_line(str(caught.value), expected.words, kind)
    used = use(data, kind, "skip")
    assert len(used.decoded) + len(used.listed) == GOOD + expected.images
    assert len(used.decoded) >= GOOD - (expected.images == 0)
    if name in FILES:
        assert {path for path, _ in used.listed} == {FILES[name].name}
        assert FILES[name].name.replace("\n", r"\n") in str(caught.value)
    for _, why in used.listed:
        check_line(why, (), kind)
    assert (len(used.records) > len(used.decoded)) == expected.decoding


def test_there_are_many_kinds() -> None:
    assert len(KINDS) == len(FILES) + len(SETS) >= 150
