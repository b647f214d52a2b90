"""The audit of data sets: what it finds, where, and what it writes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinojax.errors import RunError
from dinojax.runs.files import read_json
from dinojax.verbs import run as run_verb
from tests.data.test_duplicates import picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A table with parts: train and test share an image as a file, one as pixels and one nearly, and a patient."""
    folder, rows = tmp_path / "scans", []
    folder.mkdir()
    for number in range(12):
        part = ("train", "val", "test")[number % 3]
        picture(number).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": "ill" if number % 2 else "well", "split": part})
    shutil.copy(folder / "0.png", folder / "5.png")  # train and test, of two labels
    picture(3).convert("RGB").save(folder / "8.bmp")
    rows[8]["path"] = "8.bmp"
    picture(9).resize((50, 50)).save(folder / "11.png")
    for number, row in enumerate(rows):
        row["patient_id"] = f"p{7 if number == 6 else number}"  # 6 is in train, 7 in val
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def found(out: Path) -> list[tuple[str, ...]]:
    table = pd.read_csv(out / "audit.csv", dtype=str, keep_default_na=False)
    return [tuple(row) for row in table[["kind", "where", "path_a", "path_b", "labels_differ"]].to_numpy().tolist()]


def test_pairs_across_parts_are_found(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "notes.txt").touch()
    (data / "10.png").write_bytes(b"no image")
    out = run_verb(["audit", str(data), "--out", str(tmp_path / "audit"), "--pictures", "2"])
    assert found(out) == [
        ("file", "across parts", "0.png", "5.png", "true"),
        ("pixels", "across parts", "3.png", "8.bmp", "true"),
        ("near", "across parts", "9.png", "11.png", "false"),
        ("patient", "across parts", "6.png", "7.png", "true"),
    ]
    told = read_json(out / "audit.json")
    assert told["leaks"] == [{"data": str(data), "fold": 1, "test": 4, "identical": 2, "near": 1}]
    assert told["data"][0]["unreadable"] == 1
    assert "10.png" in (out / "skipped_files.csv").read_text()
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        *("file_1.png", "near_1.png", "patient_1.png", "pixels_1.png")
    ]
    assert "2 of 4 test images of fold 1 of" in capsys.readouterr().out.splitlines()[-1]
    page = (out / "audit.html").read_text()
    assert page.count("<img") == 4
    assert "p7" in page
    assert "across parts" in (out / "audit.md").read_text()


def test_a_corpus_is_compared_with_what_is_tested(data: Path, tmp_path: Path) -> None:
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    for folder in (corpus, other):
        folder.mkdir()
    for name, seed in (("twice", 1), ("again", 1), ("of_test", 2), ("new", 40)):
        picture(seed).save(corpus / f"{name}.png")
    picture(4).save(other / "of_val.png")
    given = ["audit", str(data), str(other), "--corpus", str(corpus), "--near", "false", "--out", str(tmp_path / "out")]
    out = run_verb(given)
    rows = found(out)
    assert [row[2:4] for row in rows if row[1] == "corpus and test"] == [("2.png", "of_test.png")]
    wheres = [row[1] for row in rows]
    assert wheres.count("corpus") == 2  # the training or validation image, that the corpus has twice
    assert wheres.count("between data sets") == 1
    assert not any({"twice.png", "again.png"} == set(row[2:4]) for row in rows)
    told = read_json(out / "audit.json")["corpus"]
    assert [(one["test"], one["identical"]) for one in told] == [(4, 1), (1, 0)]


def test_patients_of_two_data_sets_are_the_same_only_if_that_is_said(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 10)):
        for number in range(2):
            path = tmp_path / name / ("ill", "well")[number] / f"p{number}.png"
            path.parent.mkdir(parents=True)
            picture(seed + number).save(path)
    given = ["audit", str(tmp_path / "a"), str(tmp_path / "b"), "--group_regex", "(p[0-9])", "--out"]
    assert found(run_verb([*given, str(tmp_path / "apart")])) == []
    same = run_verb([*given, str(tmp_path / "same"), "--same_patients", "true"])
    assert [row[:2] for row in found(same)] == [("patient", "between data sets")] * 2


def test_unlabelled_images_are_audited_too_and_unreadable_sets_refused(tmp_path: Path) -> None:
    for number in range(40):  # more than are paired each with each
        path = tmp_path / "plain" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(picture(0))).save(path)
    rows = found(run_verb(["audit", str(tmp_path / "plain"), "--out", str(tmp_path / "out")]))
    assert [row[2:4] for row in rows] == [("00.png", f"{number:02}.png") for number in range(1, 40)]
    for path in (tmp_path / "plain").iterdir():
        path.write_bytes(b"none")
    with pytest.raises(RunError, match=r"40 of 40 files checked cannot be read .*none is left"):
        run_verb(["audit", str(tmp_path / "plain"), "--out", str(tmp_path / "none")])


def test_a_run_drops_duplicates_and_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["evaluate", "knn", "--data", str(data), "--ks", "1", "--positive_class", "ill"]
    given += ["--model.name", "vitt14", "--model.width", "32", "--model.depth", "1", "--model.heads", "2"]
    given += ["--image_size", "28", "--allow_shared_patients", "true", "--drop_duplicates", "true"]
    out = run_verb([*given, "--out", str(tmp_path / "run")])
    dropped = pd.read_csv(out / "dropped_duplicates.csv")
    assert dropped["path"].tolist() == ["0.png", "5.png", "3.png", "8.bmp"]
    assert dropped["why"].str.startswith("labels differ").all()
    facts = read_json(out / "results.json")["data"]
    assert "4 duplicates (dropped_duplicates.csv), of which 4 with differing labels" in facts["not read"]
    assert "no two images are equal pixel by pixel" in facts["duplicates"]
    assert "fold 1: 1 such pair across its parts" in facts["duplicates"]
    assert "fold 1: 1 patients are in both train and val, such as p7, a leak" in facts["patients"]
    assert "warning: the folds of" in capsys.readouterr().out
