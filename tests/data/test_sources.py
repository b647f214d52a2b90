"""What `--data` may name, what is refused and how, and how files are decoded."""

import csv
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinojax.data.decode import decode
from dinojax.data.files import TEXT
from dinojax.data.formats import BadFile
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.errors import RunError, UsageError


def write_image(path: Path, level: int = 100, mode: str = "L", size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)


def write_csv(path: Path, *rows: tuple[object, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def decoded(path: Path, frame: int = -1) -> np.ndarray:
    """One file by itself."""
    return decode(Records(path.parent, np.array([path.name], TEXT), np.array([frame], np.int32), ""), 0)


def damage_pixels(path: Path) -> None:
    """Leaves a JPEG's header as it is, and cuts the pixels off."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])


@pytest.fixture
def classes(tmp_path) -> Path:
    """Class folders: three images of `b`, two of `a`, the levels telling them apart."""
    for level, name in enumerate(["b/3.png", "a/1.PNG", "b/1.jpg", "b/2.bmp", "a/deep/2.tif"]):
        write_image(tmp_path / name, 40 * level)
    return tmp_path


@pytest.fixture
def task(tmp_path) -> Path:
    """RadImageNet's layout with two folds of six images."""
    names = [f"img/{i}.png" for i in range(6)]
    for name in names:
        write_image(tmp_path / name)
    for fold in (1, 2):
        for split, chosen in {"train": [0, 1, 2], "val": [3, 4], "test": [5]}.items():
            rows = [(names[(i + fold) % 6], ("benign", "malignant")[(i + fold) % 2]) for i in chosen]
            write_csv(tmp_path / f"dataframe/breast_{split}_fold{fold}.csv", ("filename", "label"), *rows)
    return tmp_path


def test_class_folders(classes):
    write_image(classes / "a/.hidden.png")
    write_image(classes / ".cache/1.png")
    (classes / "b/notes.txt").write_text("x")
    records = read_records(str(classes), labelled=True)
    assert records.paths.tolist() == ["a/1.PNG", "a/deep/2.tif", "b/1.jpg", "b/2.bmp", "b/3.png"]
    assert records.classes == ("a", "b")
    assert records.labels is not None
    assert records.labels.tolist() == [0, 0, 1, 1, 1]
    assert records.labels.dtype == np.int32
    assert records.task == classes.name
    left_out = "left out: system folders: .cache, 1 hidden files (such as a/.hidden.png), 1 other files (1 .txt)"
    assert records.summary() == f"class folders: 5 images; 2 a, 3 b; {left_out}"


def test_unlabelled_takes_every_image_below(classes):
    write_image(classes / "loose.webp")
    records = read_records(str(classes), labelled=False)
    assert len(records) == 6
    assert records.labels is None
    assert records.splits is None


def test_linked_folders_are_followed_once(classes, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.move(classes / "b", other / "b")
    (classes / "b").symlink_to(other / "b")
    (classes / "a/loop").symlink_to(classes)
    assert len(read_records(str(classes), labelled=False)) == 5


def test_positive_class_stands_last(classes):
    records = read_records(str(classes), labelled=True, positive_class="a")
    assert records.classes == ("b", "a")
    assert records.labels is not None
    assert records.labels.tolist() == [1, 1, 0, 0, 0]


def test_patient_from_the_path(classes):
    records = read_records(str(classes), labelled=True, group_regex=r"(\d)\.")
    assert records.patients is not None
    assert records.patients.tolist() == ["1", "2", "1", "2", "3"]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Validation", "Testing")])
def test_train_and_test_folders(tmp_path, names):
    for folder in names:
        for kind in ("x", "y"):
            write_image(tmp_path / folder / kind / "1.png")
    records = read_records(str(tmp_path), labelled=True)
    assert records.splits is not None
    assert dict(zip(records.paths, records.splits, strict=True)) == {
        f"{folder}/{kind}/1.png": split
        for folder, split in zip(names, ("train", "val", "test"), strict=True)
        for kind in ("x", "y")
    }
    assert records.classes == ("x", "y")


def test_manifest_by_name_and_as_a_folder(tmp_path):
    for name in ("007.png", "2.png", "masks/2.png"):
        write_image(tmp_path / name)
    table = write_csv(
        tmp_path / "manifest.csv",
        ("\ufeffpath", "label", "patient_id", "split", "other"),
        ("2.png", "2", "010", "test", "x"),
        (),
        ("007.png", "010", "007", "", "y"),
    )
    for data in (tmp_path, table):
        records = read_records(str(data), labelled=True)
        assert records.paths.tolist() == ["2.png", "007.png"]
        assert records.classes == ("2", "010")
        assert records.patients is not None
        assert records.patients.tolist() == ["010", "007"]
        assert records.splits is not None
        assert records.splits.tolist() == ["test", ""]
        assert records.rows.tolist() == [2, 4]
        assert records.frames.tolist() == [-1, -1]
        assert records.task == tmp_path.name
        unlabelled = read_records(str(data), labelled=False)
        assert unlabelled.paths.tolist() == records.paths.tolist()  # the masks are not trained on


def test_manifest_elsewhere_with_data_root(tmp_path, tmp_path_factory):
    write_image(tmp_path / "1.png")
    table = write_csv(tmp_path_factory.mktemp("tables") / "knee.csv", ("img_dir",), ("1.png",))
    records = read_records(str(table), labelled=False, data_root=str(tmp_path))
    assert records.file(0).is_file()
    assert records.task == "knee"


def test_fold_files(task):
    write_csv(task / "manifest.csv", ("path", "label"), ("img/0.png", "not read"))
    records = read_records(str(task), labelled=True)
    assert records.task == "breast"
    assert records.paths.tolist() == [f"img/{i}.png" for i in range(6)]
    assert records.classes == ("benign", "malignant")
    assert records.labels is not None
    assert records.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [(f.train.tolist(), f.val.tolist(), f.test.tolist()) for f in records.folds] == [
        ([1, 2, 3], [4, 5], [0]),
        ([2, 3, 4], [0, 5], [1]),
    ]


def test_fold_files_of_acl(task):
    for path in (task / "dataframe").glob("*.csv"):
        path.write_text(path.read_text().replace("filename,label", "img_dir,acl_label"))
    assert len(read_records(str(task), labelled=True).folds) == 2


def add(path: str, *rows: tuple[object, ...]):
    def change(task: Path) -> None:
        with (task / path).open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    return change


def replace(path: str, old: str, new: str):
    def change(task: Path) -> None:
        text = (task / path).read_text()
        assert old in text
        (task / path).write_text(text.replace(old, new))

    return change


TRAIN = "dataframe/breast_train_fold1.csv"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (add(TRAIN, ("img/9.png", "benign")), [TRAIN, "row 5", "img/9.png"]),
        (add(TRAIN, ("img/1.png", "malignant")), [TRAIN, "row 5", "img/1.png", "row 2"]),
        (add(TRAIN, ("img/./0.png", "benign")), ["test_fold1.csv", "train_fold1.csv", "img/0.png", "split"]),
        (replace(TRAIN, "img/1.png,malignant", "img/1.png,benign"), ["img/1.png", "benign", "malignant", "row 2"]),
        (replace(TRAIN, "filename", "scan"), [TRAIN, "no column path, filename", "scan, label", "--path_column"]),
        (replace(TRAIN, "label", "kind"), [TRAIN, "no column label, acl_label", "filename, kind", "--label_column"]),
        (replace(TRAIN, "img/1.png,malignant", "img/1.png,"), [TRAIN, "row 2", "label is empty"]),
        (replace(TRAIN, "img/1.png,malignant", "img/1.png"), [TRAIN, "row 2", "1 values"]),
        (replace(TRAIN, "img/1.png", "img/1.heic"), [TRAIN, "row 2", "img/1.heic", ".png"]),
        (lambda task: (task / "dataframe/breast_val_fold2.csv").unlink(), ["breast_val_fold2.csv is missing"]),
        (lambda task: (task / TRAIN).rename(task / "dataframe/knee_train_fold1.csv"), ["breast, knee"]),
        (lambda task: (task / TRAIN).write_bytes(b"filename,label\n\xff\xfe,\n"), [TRAIN, "UTF-8"]),
        (lambda task: (task / TRAIN).write_text(""), [TRAIN, "empty"]),
        (lambda task: (task / TRAIN).write_text("filename,label\n"), [TRAIN, "no images"]),
    ],
)
def test_fold_files_are_refused_with_file_and_row(task, change, parts):
    change(task)
    with pytest.raises(RunError) as caught:
        read_records(str(task), labelled=True)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([("1.png", "a", "second")], "split 'second'"),
        ([("1.png", "a", "train"), ("2.png", "a", "test")], "one class, 'a'"),
    ],
)
def test_manifests_are_refused(tmp_path, rows, part):
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    write_csv(tmp_path / "manifest.csv", ("path", "label", "split"), *rows)
    with pytest.raises(RunError, match=part):
        read_records(str(tmp_path), labelled=True)


def test_folders_are_refused(classes, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UsageError, match=r"no images found.*it is empty"):
        read_records(str(empty), labelled=False)
    (empty / "scan.heic").write_text("x")
    with pytest.raises(UsageError, match=r"1 \.heic"):
        read_records(str(empty), labelled=False)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_records(str(empty / "nowhere"), labelled=False)
    with pytest.raises(UsageError, match="only a table"):
        read_records(str(empty / "scan.heic"), labelled=False)
    with pytest.raises(UsageError, match="TFDS"):
        read_records("tfds:knee", labelled=False)
    with pytest.raises(UsageError, match=r"positive_class c: .* a, b"):
        read_records(str(classes), labelled=True, positive_class="c")
    with pytest.raises(UsageError, match="no group"):
        read_records(str(classes), labelled=True, group_regex="x")
    with pytest.raises(RunError, match=r"finds no patient in .*a/1.PNG"):
        read_records(str(classes), labelled=True, group_regex="(q)")
    (classes / "train").mkdir()
    shutil.move(classes / "a", classes / "train/a")
    with pytest.raises(UsageError, match="train but no images in a folder test"):
        read_records(str(classes), labelled=True)
    write_image(classes / "test/1.png")
    with pytest.raises(UsageError, match="b lies beside"):
        read_records(str(classes), labelled=True)
    shutil.rmtree(classes / "b")
    with pytest.raises(UsageError, match=r"1 images lie in no class folder, such as test/1.png"):
        read_records(str(classes), labelled=True)


def test_decode_keeps_one_channel_and_scales_sixteen_bits(tmp_path):
    for mode, channels in {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3}.items():
        write_image(tmp_path / "x.png", 255, mode)
        image = decoded(tmp_path / "x.png")
        assert image.shape == (10, 12, channels)
        assert image.dtype == np.uint8
        assert (image == 255).all()
    wide = np.array([[0, 128, 129, 257, 1000, 65535]], np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert decoded(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 1, 4, 255]


def test_frames_are_named_or_all_are_taken(tmp_path):
    pages = [Image.new("L", (4, 4), level) for level in (10, 20, 30)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadFile, match="has 3 frames"):
        decoded(tmp_path / "stack.tif")
    records, headers = open_images(read_records(str(tmp_path), labelled=False))
    assert records.frames.tolist() == [0, 1, 2]
    assert records.groups["volume_id"].tolist() == ["stack.tif"] * 3
    assert "1 file of several images or slices: 3 in all" in headers.summary()
    assert [int(decode(records, place).max()) for place in range(3)] == [10, 20, 30]
    table = write_csv(tmp_path / "manifest.csv", ("path", "frame"), ("stack.tif", 2), ("stack.tif", 0))
    source = ImageSource(read_records(str(table), labelled=False), channels=1)
    assert [int(source[i]["image"].max()) for i in range(2)] == [30, 10]
    with pytest.raises(BadFile, match=r"stack.tif"):
        decoded(tmp_path / "stack.tif", 3)


def test_headers_count_modes_and_sizes(classes):
    records, headers = open_images(read_records(str(classes), labelled=True))
    assert (headers.grey, headers.colour, headers.channels) == (5, 0, 1)
    write_image(classes / "a/z.png", mode="RGB", size=(30, 20))
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(classes / "a/y.png")
    records, headers = open_images(read_records(str(classes), labelled=True))
    assert (headers.grey, headers.colour, headers.channels) == (6, 1, 3)
    assert headers.groups == {"8 bits": 6, "more than 8 bits": 1}
    assert (headers.smallest, headers.largest) == ((2, 2), (30, 20))
    assert len(records) == 7
    assert "3 of 7, evenly spaced headers read" in open_images(records, limit=3)[1].summary()


def test_unreadable_headers_stop_or_are_left_out(task):
    truncate(task / "img/2.png")
    (task / "img/4.png").write_text("no image")
    records = read_records(str(task), labelled=True)
    with pytest.raises(RunError, match=r"2 of 6 files .*img/2.png.*img/4.png.*on_bad_file skip"):
        open_images(records)
    kept, headers = open_images(records, on_bad_file="skip")
    assert [path for path, _ in headers.bad] == ["img/2.png", "img/4.png"]
    assert kept.paths.tolist() == ["img/0.png", "img/1.png", "img/3.png", "img/5.png"]
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 1, 1, 1]
    assert [(f.train.tolist(), f.val.tolist(), f.test.tolist()) for f in kept.folds] == [
        ([1, 2], [3], [0]),
        ([2], [0, 3], [1]),
    ]
    for path in (task / "img").iterdir():
        path.write_text("no image")
    with pytest.raises(RunError, match="6 of 6"):
        open_images(records, on_bad_file="skip")


def test_source_gives_labels_indices_and_channels(classes):
    records = read_records(str(classes), labelled=True)
    source = ImageSource(records, np.array([4, 0]), channels=3)
    element = source[0]
    assert len(source) == 2
    assert element["image"].shape == (10, 12, 3)
    assert (element["label"], element["index"]) == (1, 4)
    assert element["label"].dtype == element["index"].dtype == np.int32
    Image.fromarray(np.full((4, 4, 3), (200, 100, 50), np.uint8)).save(classes / "a/1.PNG")
    luminance = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    grey = ImageSource(records, np.array([0]), channels=1)[0]["image"]
    assert grey.shape == (4, 4, 1)
    assert abs(grey - luminance).max() <= 0.5


def test_a_file_unreadable_later_stops_naming_file_and_row(tmp_path):
    write_image(tmp_path / "1.jpg")
    damage_pixels(tmp_path / "2.jpg")
    table = write_csv(tmp_path / "m.csv", ("path",), ("1.jpg",), ("2.jpg",))
    records, _ = open_images(read_records(str(table), labelled=False))  # nothing wrong with the headers
    with pytest.raises(BadFile, match=r"2\.jpg.*m\.csv, row 3") as caught:
        ImageSource(records)[1]
    assert caught.value.status == 1


def test_a_skipped_file_is_replaced_by_the_next_and_listed(tmp_path):
    for name in ("0.jpg", "1.jpg", "4.jpg"):
        write_image(tmp_path / name)
    for name in ("2.jpg", "3.jpg"):
        damage_pixels(tmp_path / name)
    records = read_records(str(tmp_path), labelled=False)
    source = ImageSource(records, on_bad_file="skip")
    assert source.skipped == []
    assert [int(source[i]["index"]) for i in range(5)] == [0, 1, 4, 4, 4]
    assert [path for path, _ in source.skipped] == ["2.jpg", "3.jpg"]
    assert "truncated" in source.skipped[0][1]
    nothing = ImageSource(records, np.array([2, 3]), on_bad_file="skip")
    with pytest.raises(BadFile, match="none of the 2 images"):
        nothing[0]


def test_the_cache_changes_nothing_and_keeps_its_budget(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in range(5):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    records = read_records(str(tmp_path), labelled=False)
    names_read: list[str] = []

    def counted(records: Records, place: int) -> np.ndarray:
        names_read.append(records.file(place).name)
        return decode(records, place)

    monkeypatch.setattr("dinojax.data.sources.decode", counted)
    plain = [ImageSource(records)[i]["image"] for i in range(5)]
    names_read.clear()
    source = ImageSource(records, channels=3, cache_gib=3.5 * 16 * 16 * 3 / 2**30)  # room for three images of five
    for _ in range(2):
        for i, image in enumerate(plain):
            np.testing.assert_array_equal(source[i]["image"], image)
    names = [f"{name}.png" for name in range(5)]
    assert names_read == [*names, *names[3:]]

    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][:] = 0
    copy = pickle.loads(pickle.dumps(source))
    names_read.clear()
    np.testing.assert_array_equal(copy[0]["image"], plain[0])
    assert names_read == ["0.png"]
    assert len(pickle.dumps(source)) == len(pickle.dumps(ImageSource(records, channels=3, cache_gib=source.cache_gib)))


def test_threads_share_one_budget(tmp_path):
    for name in range(8):
        write_image(tmp_path / f"{name}.png", 20 * name, size=(40, 40))
    records = read_records(str(tmp_path), labelled=False)
    source = ImageSource(records, channels=1, cache_gib=4 * 40 * 40 / 2**30)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: source[i % 8]["image"], range(200)))
    assert [int(image[0, 0, 0]) for image in images] == [20 * (i % 8) for i in range(200)]
    assert sum(source[i]["image"] is source[i]["image"] for i in range(8)) == 4
