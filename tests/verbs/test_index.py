"""`index`: what it writes of a tree of mixed kinds, how it resumes, and that `--data` reads it."""

import hashlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinojax.data import indexing, privacy
from dinojax.data.decode import decode
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.errors import RunError, UsageError
from dinojax.verbs import run as run_verb
from tests.data.medical import ramp, write_dicom, write_nifti, write_wide

GREY = ramp(0, 255, dtype=np.uint8)
NAME = "Wolkenstein"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "dinojax"


def write_tree(folder: Path) -> Path:
    """Two classes, below train and test, of all kinds of files, readable and not."""
    train, test = folder / "train", folder / "test"
    for label in ("a", "b"):
        for part in (train, test):
            (part / label).mkdir(parents=True)
            Image.fromarray(np.tile(GREY, (1, 2))).save(part / label / "1 ä.png")
    write_wide(train / "a" / "wide.png", ramp(0, 4095, dtype=np.uint16))
    ids = {
        "PatientName": f"{NAME}^X",
        "PatientID": f"{NAME}1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
    }
    write_dicom(train / "a" / NAME / "us.dcm", np.stack([GREY, GREY.T, GREY[::-1]]), Modality="US", **ids)
    for number in range(2):
        more = {"Modality": "CT", "PixelSpacing": [0.7, 0.5], "BitsStored": 12, "SeriesInstanceUID": "1.2.3.5"}
        write_dicom(test / "b" / f"ct{number}", ramp(0, 3000 + number, dtype=np.int16), **(ids | more))
    voxels = np.random.default_rng(0).integers(100, 999, (6, 8, 5)).astype(np.int16)
    write_nifti(test / "a" / "mr.nii.gz", voxels, np.diag([2.0, 3.0, 4.0, 1.0]))
    (train / "b" / "notes.txt").write_text("nothing")
    (test / "b" / "cut.dcm").write_bytes((test / "b" / "ct0").read_bytes()[:-9])
    (test / "b" / "empty.png").touch()
    return folder


def index(folder: Path, out: Path, *options: str) -> pd.DataFrame:
    run_verb(["index", str(folder), "--out", str(out), *options])
    assert not [*out.parent.glob("*.part"), *out.parent.glob(".*.partial")]
    return pd.read_csv(out, dtype=str, keep_default_na=False)


def images_of(data: Path) -> tuple[Records, dict[tuple[Path, int], np.ndarray]]:
    records, _ = open_images(read_records(str(data), labelled=False), on_bad_file="skip")
    keys = [(records.file(place).resolve(), max(int(records.frames[place]), 0)) for place in range(len(records))]
    return records, {key: decode(records, place) for place, key in enumerate(keys)}


def test_rows_say_what_headers_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_tree(tmp_path / "data"), tmp_path / "lists" / "all.csv"
    table = index(folder, out)
    listed: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    rows = {(Path(row["path"]).name, row["frame"], row["label"], row["split"]): row for row in listed}
    assert len(rows) == len(table) == 4 + 1 + 3 + 2 + 1
    for row in rows.values():
        file = out.parent / row["path"]
        assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.resolve().relative_to(folder).parts[:2] == (row["split"], row["label"])

    def told(row: dict[str, Any]) -> list[str]:
        return [row[name] for name in ("images", "width", "height", "bits", "modality", "row_mm", "column_mm")]

    assert told(rows["1 ä.png", "", "a", "train"]) == ["1", "32", "16", "8", "", "", ""]
    assert told(rows["wide.png", "", "a", "train"]) == ["1", "16", "16", "16", "", "", ""]
    assert told(rows["ct1", "", "b", "test"]) == ["1", "16", "16", "12", "CT", "0.7", "0.5"]
    assert told(rows["mr.nii.gz", "", "a", "test"]) == ["5", "6", "8", "16", "", "3", "2"]
    frames = [rows["us.dcm", str(number), "a", "train"] for number in range(3)]
    assert told(frames[2]) == ["3", "16", "16", "8", "US", "", ""]

    salt = privacy.read_salt(None)
    ct = rows["ct0", "", "b", "test"]
    assert ct["patient_id"] == frames[0]["patient_id"] == privacy.hashed(salt, "patient", f"{NAME}1")
    assert ct["study_id"] == privacy.hashed(salt, "study", "1.2.3")
    assert ct["volume_id"] == rows["ct1", "", "b", "test"]["volume_id"] == privacy.hashed(salt, "series", "1.2.3.5")
    assert len({frame["volume_id"] for frame in frames}) == 1
    assert "" not in set(table["patient_id"])  # who has no id is a patient of their own
    assert len(set(table["patient_id"])) == 1 + 4 + 1 + 1

    unreadable = pd.read_csv(out.parent / "all_unreadable.csv")
    reasons = {Path(path).name: why for path, why in zip(unreadable["path"], unreadable["reason"], strict=True)}
    assert reasons.keys() == {"cut.dcm", "empty.png"}
    assert "cut off" in reasons["cut.dcm"]
    assert "empty" in reasons["empty.png"]
    assert all((out.parent / path).exists() for path in unreadable["path"])
    printed = capsys.readouterr().out
    assert "not listed: 1 other files (1 .txt)" in printed
    assert "warning: 1 path with a name or id of its header" in printed
    assert "lists 11 images of 9 files; " in printed
    assert "lists 2 that cannot be read" in printed


def test_the_manifest_is_read_as_the_folder_is(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data")
    _, expected = images_of(folder)
    assert len(expected) == 4 + 1 + 3 + 2 + 5
    for out in (tmp_path / "elsewhere" / "deep" / "all.csv", folder / "manifest.csv"):
        index(folder, out)
        records, found = images_of(out)
        assert found.keys() == expected.keys()
        for key, image in expected.items():
            np.testing.assert_array_equal(found[key], image)
        labelled = read_records(str(out), labelled=True)
        assert labelled.classes == ("a", "b")
        assert set(labelled.splits.tolist()) == {"train", "test"}  # type: ignore[union-attr]
        assert records.patient_source == "column patient_id"
    # The folder's own manifest is now what the folder is read by, and index does not read itself.
    first = (folder / "manifest.csv").read_text()
    assert len(images_of(folder)[1]) == len(expected)
    index(folder, folder / "manifest.csv")
    assert (folder / "manifest.csv").read_text() == first


def test_second_names_of_a_file_are_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "data", tmp_path / "all.csv"
    write_wide(folder / "a.png", ramp(0, 4095, dtype=np.uint16))
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "c.png").hardlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    for options in ((), ("--pseudonyms", "true")):
        assert len(index(folder, out, *options)) == 1
        assert len(images_of(out)[1]) == 1
        assert "not listed: 2 second names of the same file" in capsys.readouterr().out
        reasons = pd.read_csv(tmp_path / "all_unreadable.csv")["reason"]
        assert reasons.tolist() == ["No such file or directory"]


def count_reads(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> Counter[str]:
    """Counts which headers are read; after so many the user stops it."""
    read: Counter[str] = Counter()
    real, lock = indexing.read_header, threading.Lock()

    def counted(file: Path, *arguments: Any) -> Any:
        with lock:
            if stop_after is not None and len(read) == stop_after:
                raise KeyboardInterrupt
            read[file.name] += 1
        return real(file, *arguments)

    monkeypatch.setattr(indexing, "read_header", counted)
    return read


@pytest.mark.parametrize("options", [(), ("--pseudonyms", "true")], ids=["paths", "pseudonyms"])
def test_an_interrupted_index_goes_on(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path
) -> None:
    folder, out = tmp_path / "data", tmp_path / "out" / "all.csv"
    for number in range(8):
        write_wide(folder / f"{NAME} {number}.png", ramp(0, 4095 - number, dtype=np.uint16))
    expected = index(folder, tmp_path / "whole" / "all.csv", *options)
    one = (*options, "--threads", "1")
    before = count_reads(monkeypatch, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        index(folder, out, *one)
    parts = [*out.parent.glob("*.part"), *own.glob("*.part")]
    assert len(parts) == 1
    assert not out.exists()
    if options:
        assert parts[0].parent == own
        assert NAME not in "".join(path.name for path in out.parent.iterdir())
    with parts[0].open("a") as file:  # a line that was cut short
        file.write('{"path": "')
    changed = folder / f"{NAME} 0.png"
    write_wide(changed, ramp(0, 9, (4, 4), dtype=np.uint16))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own.parent))
    after = count_reads(monkeypatch)
    table = index(folder, out, *one)
    assert set(after) == {changed.name} | {path.name for path in folder.iterdir()} - set(before)
    assert set(after.values()) == {1}
    assert len(after) == 8 - 5 + 1
    assert not [*out.parent.glob("*.part"), *own.glob("*.part")]
    differing = (table.drop(columns="path", errors="ignore") != expected.drop(columns="path", errors="ignore")).any(
        axis=1
    )
    assert differing.tolist().count(True) == 1
    assert table[differing]["width"].tolist() == ["4"]


def test_what_was_read_in_another_way_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "data", tmp_path / "all.csv"
    for number in range(4):
        write_dicom(folder / f"{number}.dcm", np.tile(GREY, (4, 4)), PatientID="1")
    stopped = ("--threads", "1", "--max_megapixels", "0.001")
    for options in (("--max_megapixels", "1"), ("--max_megapixels", "0.001", "--salt_file", str(tmp_path / "salt"))):
        with monkeypatch.context() as context:
            count_reads(context, stop_after=2)
            with pytest.raises(KeyboardInterrupt):
                index(folder, out, *stopped)
        with monkeypatch.context() as context:
            read = count_reads(context)
            index(folder, out, "--threads", "1", *options)
        assert sum(read.values()) == 4


def test_pseudonyms_give_no_path_away_and_lead_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own: Path
) -> None:
    folder, out = tmp_path / "hospital", tmp_path / "out" / "all.csv"
    for label in ("a", "b"):
        for patient in range(3):
            below = folder / label / f"{NAME} {patient}"
            write_dicom(below / "x.dcm", np.roll(GREY, patient), PatientID=f"{NAME}{label}{patient}")
            write_nifti(below / "x.nii.gz", np.random.default_rng(patient).integers(9, 99, (8, 8, 3)).astype(np.int16))
    (folder / "a" / f"{NAME} 0" / f"{NAME}.tif").write_bytes(b"II*\0nothing")
    (folder / "a" / f"{NAME} 0_masks").mkdir()
    (folder / "a" / f"{NAME} 0_masks" / "x.png").touch()
    (folder / "b" / f".{NAME}").touch()
    _, expected = images_of(folder)
    table = index(folder, out, "--pseudonyms", "true")
    run_verb(["splits", str(out), "--folds", "3", "--out", str(out.parent / "folds")])
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, *(path.read_text() for path in out.parent.rglob("*") if path.is_file())):
        assert NAME not in text
        assert str(folder) not in text
    assert "path" not in table
    assert sorted(name.partition(".")[2] for name in table["pseudonym"]) == ["dcm"] * 6 + ["nii.gz"] * 6
    assert all(len(name.partition(".")[0]) == 16 for name in table["pseudonym"])
    unreadable = pd.read_csv(out.parent / "all_unreadable.csv")
    assert unreadable["path"].str.fullmatch(r"[0-9a-f]{16}\.tif").all()
    key = own / privacy.KEYS
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(privacy.read_keys(None)) == 6 + 6 + 1

    records, found = images_of(out)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], image) for name, image in expected.items())
    assert not any(NAME in records.describe(place) for place in range(len(records)))
    divided = read_records(str(out.parent / "folds"), labelled=True)
    assert len(divided.folds) == 3
    assert {*divided.paths.tolist()} == {*table["pseudonym"]}

    moved = folder / "b" / f"{NAME} 1" / "x.dcm"
    name = next(name for name, file in privacy.read_keys(None).items() if file == str(moved.resolve()))
    moved.rename(folder / "b" / "elsewhere.dcm")
    with pytest.raises(RunError, match=rf"the file of {name} is no longer where it was \(1 of 12\)") as caught:
        read_records(str(out), labelled=False)
    assert NAME not in str(caught.value)
    again = index(folder, out, "--pseudonyms", "true")  # finds it where it is now
    assert len(images_of(out)[1]) == len(expected)
    assert len({*again["pseudonym"]} - {*table["pseudonym"]}) == 1


def test_a_second_run_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "all.csv"
    write_wide(folder / "a.png", ramp(0, 4095, dtype=np.uint16))
    (folder / "b.png").touch()
    index(folder, out)
    assert (tmp_path / "all_unreadable.csv").exists()
    write_wide(folder / "b.png", ramp(0, 4095, dtype=np.uint16))
    (folder / "a.png").unlink()
    assert index(folder, out)["path"].tolist() == ["data/b.png"]
    assert not (tmp_path / "all_unreadable.csv").exists()


def test_what_cannot_be_indexed_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    for arguments, words in (
        ([tmp_path / "gone", "--out", "a.csv"], "no such folder"),
        ([tmp_path, "--out", "a.parquet"], r"let its name end in \.csv"),
        ([tmp_path / "data", "--out", tmp_path / "a.csv"], r"no images found .*there are 1 other files"),
    ):
        with pytest.raises(UsageError, match=words):
            run_verb(["index", *map(str, arguments)])
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("kind", ["dcm", "nii", "nii.gz"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_a_line_and_no_traceback(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "data"
    good, path = folder / "good.png", folder / f"x.{kind}"
    if kind == "dcm":
        write_dicom(
            path,
            np.stack([GREY] * 2),
            Modality="MR",
            PatientID=NAME,
            PixelSpacing=[1, 2],
            WindowCenter=50,
            WindowWidth=99,
        )
        places = st.integers(128, 900)
    else:
        write_nifti(path, np.arange(240, dtype=np.int16).reshape(8, 6, 5))
        places = st.integers(0, 400)
    write_wide(good, ramp(0, 4095, dtype=np.uint16))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(places, max_size=6)):
        content[place % len(content)] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: round(len(content) * data.draw(st.sampled_from([1, 1, 1, 0.9, 0.6, 0.3, 0])))])
    out = tmp_path / "all.csv"
    table = index(folder, out)
    bad = tmp_path / "all_unreadable.csv"
    listed = {Path(name).name for name in table["path"]} | (
        {Path(name).name for name in pd.read_csv(bad)["path"]} if bad.exists() else set()
    )
    assert listed == {good.name, path.name}
    if bad.exists():
        assert NAME not in bad.read_text()
    try:
        records, headers = open_images(read_records(str(folder), labelled=False), on_bad_file="skip")
        source = ImageSource(records, channels=headers.channels, on_bad_file="skip")
        used = {int(source[place]["index"]) for place in range(len(records))}
        assert len(used) + len(source.skipped) == len(records)
        lines = [why for _, why in (*headers.bad, *source.skipped)]
    except RunError as error:
        lines = [str(error)]
    assert not any("\n" in line or NAME in line for line in lines)
