"""Images in `.npz` files and TFDS data sets: what is listed and read of them, and what is refused."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from dinojax.data import arrays, tfds
from dinojax.data.containers import header_of_member, is_member, read_member, read_npz, read_tfds
from dinojax.errors import RunError, UsageError
from tests.data.hands.hands import Hands, Stereo, encoded

COUNTS = {"train": 5, "val": 2, "test": 3}


def content(shape: tuple[int, ...] = (9, 7), labels: int = 1, dtype: type = np.uint8) -> dict[str, np.ndarray]:
    """Images of random numbers, and labels of up to three classes, or of several columns."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        found[f"{part}_images"] = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype)
        high = 2 if labels > 1 else 3
        found[f"{part}_labels"] = (np.arange(count * labels).reshape(count, labels) % high).astype(np.uint8)
    return found


def save(path: Path, content: Mapping[str, np.ndarray], packed: bool = True) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **dict(content))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("shape", "dtype"), [((9, 7), np.uint8), ((9, 7, 3), np.uint8), ((9, 7), np.uint16)])
def test_npz_is_listed_and_read(tmp_path, packed, shape, dtype):
    there = content(shape, dtype=dtype)
    records = read_npz(save(tmp_path / "hands 28.npz", there | {"extra": np.ones(3)}, packed), labelled=True)
    assert records.root == tmp_path
    assert (records.task, records.reader) == ("hands 28", "MedMNIST arrays hands 28.npz")
    assert records.unread_columns == ("extra",)
    assert records.splits is not None
    assert records.splits.tolist() == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert records.frames.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    assert records.frames.dtype == np.int32
    assert records.labels is not None
    assert records.labels.tolist() == ["0", "1", "2", "0", "1", "0", "1", "0", "1", "2"]
    for place in range(len(records)):
        name = str(records.file(place))
        assert is_member(name)
        assert not Path(name).exists()
        image = there[f"{records.splits[place]}_images"][records.frames[place]]
        stored = read_member(name, int(records.frames[place]))
        np.testing.assert_array_equal(stored.values, image.reshape(9, 7, -1))
        assert stored.values.dtype == dtype
        assert stored.full == (0, np.iinfo(dtype).max)
        header = header_of_member(name, int(records.frames[place]))
        assert (header.width, header.height, header.channels) == (7, 9, image.reshape(9, 7, -1).shape[2])
        assert (header.bits, header.frames) == (8 * image.itemsize, COUNTS[records.splits[place]])


def test_npz_of_several_labels(tmp_path):
    there = content(labels=4)
    records = read_npz(save(tmp_path / "chest.npz", there), labelled=True)
    assert records.classes == ("0", "1", "2", "3")
    assert records.labels is not None
    assert records.labels.dtype == np.float32
    np.testing.assert_array_equal(records.labels[5:7], there["val_labels"])


def test_npz_without_labels_and_with_one_part(tmp_path):
    path = save(tmp_path / "a.npz", {"test_images": content()["test_images"], "test_masks": np.ones(2)})
    records = read_npz(path, labelled=False)
    assert records.labels is None
    assert records.unread_columns == ("test_masks",)
    assert records.paths.tolist() == ["a.npz/test"] * 3
    with pytest.raises(RunError, match="no array test_labels"):
        read_npz(path, labelled=True)


def test_npz_with_text_labels_and_other_orders(tmp_path):
    images = np.asfortranarray(content(dtype=np.uint16)["train_images"].astype(">u2"))
    path = save(tmp_path / "a.npz", {"train_images": images, "train_labels": np.array(list("abcab"))}, packed=False)
    labels = read_npz(path, labelled=True).labels
    assert labels is not None
    assert labels.tolist() == ["a", "b", "c", "a", "b"]
    for number in range(5):
        np.testing.assert_array_equal(read_member(f"{path}/train", number).values[..., 0], images[number])


def test_npz_is_unpacked_once(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", content())
    loads = []
    real = np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: loads.append(args) or real(*args, **options))
    for number in range(5):
        read_member(f"{path}/train", number)
    assert len(loads) == 1
    save(path, {"train_images": np.zeros((5, 20, 20), np.uint8)})
    assert read_member(f"{path}/train", 0).values.shape == (20, 20, 1)
    monkeypatch.setattr(arrays, "_LARGEST", 1000)
    with pytest.raises(ValueError, match=r"numpy\.savez, uncompressed"):
        read_member(f"{save(tmp_path / 'b.npz', content((20, 20)))}/train", 0)


def refused_arrays() -> dict[str, tuple[dict[str, np.ndarray], str]]:
    there = content()
    images, labels = there["train_images"], there["train_labels"]

    def made(images: np.ndarray = images, labels: np.ndarray = labels) -> dict[str, np.ndarray]:
        return {"train_images": images, "train_labels": labels}

    return {
        "no images": ({"images": images}, "no arrays train_images.*its arrays are images"),
        "volumes": (made(np.zeros((5, 8, 8, 8), np.uint8)), "5×8×8×8, volumes: save their slices"),
        "five axes": (made(np.zeros((5, 8, 8, 8, 3), np.uint8)), "shape 5×8×8×8×3"),
        "floats": (made(images.astype(np.float32)), "type float32"),
        "objects": (made(np.array([None] * 5)), "Python objects"),
        "object labels": (made(labels=np.array([None] * 5)), "train_labels holds Python objects"),
        "fewer labels": (made(labels=labels[:4]), "4 rows, but there are 5 images"),
        "real labels": (made(labels=labels + 0.5), "type float64"),
        "columns of 2": (made(labels=np.full((5, 3), 2)), "3 columns, which must be 0 or 1"),
        "none": (made(images[:0], labels[:0]), "no images"),
        "mixed": (made() | {"val_images": images, "val_labels": np.ones((5, 2), int)}, "different numbers of labels"),
    }


@pytest.mark.parametrize("name", refused_arrays())
def test_npz_refused(tmp_path, name):
    there, message = refused_arrays()[name]
    path = save(tmp_path / "a.npz", there)
    with pytest.raises(RunError, match=message) as caught:
        read_npz(path, labelled=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path):
    path = save(tmp_path / "a.npz", content((40, 40)))
    contents = path.read_bytes()
    names = ["cut", "text", "none", "flipped"]
    (tmp_path / "cut.npz").write_bytes(contents[:-30])
    (tmp_path / "text.npz").write_text("no arrays")
    flipped = bytearray(contents)
    flipped[600:640] = bytes(40)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in names:
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read_member(f"{tmp_path / name}.npz/train", 0)
    for name in names[:3]:
        with pytest.raises(RunError, match=r"^cannot read [^\n]+$"):
            read_npz(tmp_path / f"{name}.npz", labelled=True)


def test_npz_whose_header_asks_for_more_than_it_holds(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (10**6, 10**4, 10**4), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", file.getvalue() + bytes(100))
    with pytest.raises(RunError, match="train_images is cut off"):
        read_npz(tmp_path / "a.npz", labelled=False)
    with pytest.raises(ValueError, match="train_images is cut off"):
        read_member(f"{tmp_path}/a.npz/train", 0)


@pytest.mark.parametrize("frame", [-1, 5])
def test_no_such_row(tmp_path, frame):
    path = save(tmp_path / "a.npz", content())
    with pytest.raises(ValueError, match="has 5 images"):
        read_member(f"{path}/train", frame)


def test_what_a_member_is():
    assert is_member("a/b.NPZ/val")
    assert is_member("/data/tfds:hands/left:1.0.0/extra")
    for name in ("a.npz", "a.npz/other", "a.npz/train/1.png", "tfds:hands", "tfds:hands/1.0.0/train", "a/train"):
        assert not is_member(name)
    with pytest.raises(ValueError, match="is no image of"):
        read_member("a.png", 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder of TFDS data sets."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder, options in ((Hands, {}), (Stereo, {"config": "near"}), (Stereo, {"config": "far"})):
        builder(data_dir=str(folder), file_format="array_record", **options).download_and_prepare()
    return folder


def test_tfds_is_listed_and_read(prepared):
    records = read_tfds("tfds:hands", prepared, labelled=True)
    assert records.root == prepared.resolve()
    assert (records.task, records.reader) == ("hands", "TFDS data set tfds:hands:1.2.0")
    assert len(records) == 12  # of 13 one has no label
    assert records.left_out == ("1 images without a label",)
    assert records.unread_columns == ("age",)
    assert records.patient_source == "column Patient ID"
    assert records.splits is not None
    assert records.labels is not None
    assert records.patients is not None
    counts = {split: int((records.splits == split).sum()) for split in ("train", "val", "test", "")}
    assert counts == {"train": 6, "val": 3, "test": 2, "": 1}
    assert set(records.paths.tolist()) == {
        f"tfds:hands:1.2.0/{part}" for part in ("train", "validation", "test", "extra")
    }
    for place in range(len(records)):
        name, frame = str(records.file(place)), int(records.frames[place])
        assert is_member(name)
        stored = read_member(name, frame)
        assert stored.values.shape == (10, 12, 1)
        number = int(stored.values[0, 0, 0]) // 10
        assert records.labels[place] == ("right", "left")[number % 2]
        assert records.patients[place] == f"p{number // 2}"
        header = header_of_member(name, frame)
        assert (header.width, header.height, header.channels, header.bits, header.format) == (12, 10, 1, 8, "PNG")
        assert header.frames == {"train": 6, "val": 3, "test": 3, "": 1}[records.splits[place]]
    assert not {"tensorflow", "torch"} & set(sys.modules)


def test_tfds_without_labels(prepared):
    records = read_tfds("tfds:hands:1.2.0", prepared, labelled=False)
    assert len(records) == 13
    assert records.labels is None
    assert records.unread_columns == ("age", "label")


def test_tfds_with_configurations(prepared):
    records = read_tfds("tfds:stereo/near", prepared, labelled=True)
    assert records.paths[0].startswith("tfds:stereo/near:1.2.0/")
    assert records.labels is not None
    assert set(records.labels.tolist()) == {"0", "1", "2"}
    widths = {header_of_member(str(records.file(i)), int(records.frames[i])).width for i in range(len(records))}
    assert widths == {8 + number for number in range(13)}
    stored = read_member(str(records.file(0)), int(records.frames[0]))
    assert stored.values.shape[2] == 3
    assert (stored.values[0, 0, 1:] == (0, 200)).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:feet", "no such TFDS data set in .*array_record"),
        ("tfds:hands/left", "no such TFDS data set"),
        ("tfds:hands:9.0.0", "only version 1.2.0|no such"),
        ("tfds:", "write tfds:NAME"),
        ("tfds:a/b/c", "write tfds:NAME"),
        ("tfds:stereo/far", r"several images \(other, photo\)"),
    ],
)
def test_tfds_refused(prepared, name, message, capfd):
    with pytest.raises(RunError, match=message) as caught:
        read_tfds(name, prepared, labelled=True)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_tfds_says_where_it_looked():
    with pytest.raises(UsageError, match=r"no such TFDS data set in .*tensorflow_datasets"):
        read_tfds("tfds:feet", None, labelled=True)


@pytest.mark.parametrize(
    ("dtype", "channels", "read"),
    [(np.uint8, 4, True), (np.uint16, 1, True), (np.uint16, 3, False), (np.float32, 1, False)],
)
def test_types_of_tfds_images(dtype, channels, read):
    features = {
        "scan": tensorflow_datasets.features.Image(shape=(None, None, channels), dtype=dtype, encoding_format="png")
    }
    if read:
        assert tfds._image_feature("tfds:a", features) == "scan"
    else:
        with pytest.raises(RunError, match=f"scan is {np.dtype(dtype).name} of {channels} channels"):
            tfds._image_feature("tfds:a", features)


def test_image_files_in_tfds():
    wide = np.array([[0, 300], [65535, 7]], np.uint16)
    stored = tfds._decoded(encoded(Image.fromarray(wide)).getvalue())
    np.testing.assert_array_equal(stored.values[..., 0], wide)
    assert stored.full == (0, 65535)
    clear = Image.new("RGBA", (3, 2), (200, 100, 50, 0))
    clear.putpixel((1, 0), (200, 100, 50, 255))
    stored = tfds._decoded(encoded(clear).getvalue())
    assert stored.values.reshape(-1, 3).tolist() == [[0, 0, 0], [200, 100, 50], *[[0, 0, 0]] * 4]
    assert tfds._decoded(encoded(Image.new("LA", (3, 2), (200, 0))).getvalue()).values.shape == (2, 3, 1)
    turned = Image.new("L", (3, 2))
    turned.getexif()[274] = 6  # a quarter turn
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=turned.getexif())
    assert tfds._decoded(file.getvalue()).values.shape == (3, 2, 1)
    with pytest.raises(ValueError, match="mode F"):
        tfds._decoded(encoded(Image.new("F", (3, 2)), "TIFF").getvalue())


def test_tfds_of_another_format_is_refused(prepared):
    copy = prepared / "copy"
    shutil.copytree(prepared / "hands", copy / "hands", dirs_exist_ok=True)
    info = copy / "hands/1.2.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UsageError, match=r"as tfrecord; .*array_record"):
        read_tfds("tfds:hands", copy, labelled=True)


def test_tfds_members_that_are_not_there(prepared):
    for name in ("tfds:hands:1.2.0/nothing", "tfds:hands:1.0.0/train", "tfds:feet:1.0.0/train"):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read_member(f"{prepared}/{name}", 0)
    with pytest.raises(ValueError, match="has 6 images"):
        read_member(f"{prepared}/tfds:hands:1.2.0/train", 6)


def test_tfds_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match="tensorflow-datasets cannot be imported"):
        read_tfds("tfds:hands", tmp_path, labelled=True)
