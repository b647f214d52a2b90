"""DICOM, NIfTI and pictures of 12 bits go through every verb; nothing of a patient's name comes out."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom._dicom_dict import DicomDictionary

from dinojax.errors import RunError
from dinojax.models.store import load_model
from dinojax.verbs import run as run_verb
from tests.data.medical import ramp, write_dicom, write_nifti, write_wide
from tests.tasks import SMALL
from tests.verbs.test_pretrain import TINY as TINY_PRETRAINING

SECRETS = ("Wolkenstein", "Zacharias", "4711-0815", "19631122", "Kreiskrankenhaus", "1.2.826.0.1.77.4242")
NAME, FIRST, NUMBER, DATE, PLACE, UID = SECRETS


def identifying() -> dict[str, object]:
    """A value that tells in every element of a header that can hold one, by keyword."""
    texts = {"LO", "SH", "ST", "LT", "UT", "UC"}
    left = {"SpecificCharacterSet", "Modality", "PatientID", "TimezoneOffsetFromUTC"}
    found: dict[str, object] = {}
    for tag, (kind, multiplicity, _, retired, keyword) in DicomDictionary.items():
        # Groups 0 and 2 are of the network and of the file.
        if retired or not keyword or keyword in left or multiplicity not in ("1", "1-n") or tag >> 16 < 8:
            continue
        if kind == "PN":
            found[keyword] = f"{NAME}^{FIRST}"
        elif kind in texts:
            found[keyword] = f"{PLACE[:10]} {NUMBER}"[:16] if kind == "SH" else f"{PLACE} {NUMBER}"
        elif kind in ("DA", "DT"):
            found[keyword] = DATE
    return found


def write_patients(folder: Path) -> Path:
    """CT, MR and ultrasound of several frames of six patients a class, whose names are all over headers and folders."""
    rng, told = np.random.default_rng(0), identifying()
    assert len(told) > 500
    for label, mean in (("benign", 200), ("malignant", 900)):
        for patient in range(6):
            own = {
                "PatientID": f"{NUMBER}-{label}{patient}",
                "StudyInstanceUID": f"{UID}.{patient}.{mean}",
                "SeriesInstanceUID": f"{UID}.{patient}.{mean}.1",
            }
            below = folder / label / f"{NAME}_{FIRST}_{patient}"
            values = rng.normal(mean / 8, 40, (28, 28)).astype(np.int16)  # soft tissue in Hounsfield units
            write_dicom(below / f"ct_{NUMBER}", values, **told | own | {"Modality": "CT"})
            write_dicom(below / "mr.dcm", values + 500, **told | own | {"Modality": "MR"})
            frames = rng.normal(mean / 8, 10, (3, 28, 28)).clip(0, 255).astype(np.uint8)
            write_dicom(below / "us.dcm", frames, **told | own | {"Modality": "US"})
    (folder / "benign" / f"{NAME}.dcm").write_bytes(b"\0" * 128 + b"DICM" + NAME.encode())
    return folder


def check_silent(folder: Path, *more: str) -> None:
    """Looks through every byte below a folder, and what was printed."""
    looked = 0
    for path in folder.rglob("*"):
        assert not any(secret in str(path.relative_to(folder)) for secret in SECRETS)
        if path.is_file():
            looked += 1
            content = path.read_bytes()
            for secret in SECRETS:
                assert secret.encode() not in content, path
                assert secret.casefold().encode() not in content.lower(), path
    for text in more:
        assert not any(secret.casefold() in text.casefold() for secret in SECRETS), text
    assert looked


def test_no_name_reaches_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    data, out = write_patients(tmp_path / "hospital"), tmp_path / "out"
    manifest = out / "manifest.csv"
    run_verb(["index", str(data), "--out", str(manifest), "--pseudonyms", "true"])
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    assert len(table) == 2 * 6 * (1 + 1 + 3)
    assert set(table["label"]) == {"benign", "malignant"}
    assert table.groupby("label")["patient_id"].nunique().tolist() == [6, 6]
    with (out / "manifest_unreadable.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    key = tmp_path / "own" / "dinojax" / "pseudonyms.csv"
    assert NAME in key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600

    run_verb(["splits", str(manifest), "--folds", "3", "--out", str(out / "folds")])
    pretrain = [*TINY_PRETRAINING, "--data", str(manifest), "--out", str(out / "ssl")]
    run_verb(["pretrain", *pretrain, "--steps", "2", "--window_jitter.probability", "1"])
    own = ["--data", str(out / "folds"), "--init", str(out / "ssl" / "model"), *SMALL[:4]]
    one = ["--epochs", "1", "--lrs", "[1e-3]", "--batch_sizes", "[4]"]
    run_verb(["finetune", *own, *SMALL[4:], *one, "--out", str(out / "cv")])
    run_verb(["report", str(out / "cv"), "--out", str(out / "report")])
    printed = capsys.readouterr()
    assert "12, from column patient_id" in printed.out
    check_silent(out, printed.out, printed.err)
    facts = json.loads((out / "cv" / "facts.json").read_text())
    assert [line.split(":")[0] for line in facts["intensity"]] == ["8 bits", "CT", "MR"]
    assert facts["patients"].startswith("12, from")
    rules = load_model(out / "cv" / "models" / "fold_1").preprocessing.intensity
    assert [(rule.group, rule.name) for rule in rules] == [("8 bits", "full"), ("CT", "range"), ("MR", "percentiles")]
    # Five images a patient, in three volumes: scores are pooled.
    results = json.loads((out / "cv" / "results.json").read_text())
    assert results["selection"]["units"].keys() == {"volume", "patient"}
    pooled = pd.read_csv(out / "cv" / "predictions_patient.csv")
    assert len(pooled) == 2 * 12
    (key.parent / "pseudonyms.csv").unlink()
    with pytest.raises(RunError, match="listed by pseudonyms, whose key") as caught:
        run_verb(["evaluate", "knn", *own, "--out", str(out / "again")])
    check_silent(out, str(caught.value))


def test_an_unreadable_file_is_named_by_its_pseudonym(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    for number in range(9):
        write_dicom(tmp_path / "data" / NAME / f"{number}.dcm", ramp(0, 255, dtype=np.uint8), PatientName=NAME)
    manifest = tmp_path / "out" / "manifest.csv"
    run_verb(["index", str(tmp_path / "data"), "--out", str(manifest), "--pseudonyms", "true"])
    broken = tmp_path / "data" / NAME / "2.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    command = ["pretrain", *TINY_PRETRAINING, "--data", str(manifest), "--out", str(tmp_path / "out" / "run")]
    with pytest.raises(RunError, match="cannot be read") as caught:
        run_verb(command)
    check_silent(tmp_path / "out", str(caught.value), capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["nifti", "png"])
def test_volumes_and_pictures_of_twelve_bits_run(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, mean in (("a", 1500), ("b", 2500)):
        for number in range(6):
            if kind == "nifti":
                values = rng.normal(mean, 300, (28, 28, 3)).astype(np.int16)
                write_nifti(tmp_path / "data" / label / f"{number}.nii.gz", values)
            else:
                values = rng.normal(mean, 300, (28, 28)).clip(0, 4095).astype(np.uint16)
                write_wide(tmp_path / "data" / label / f"{number}.png", values)
    data = ["--data", str(tmp_path / "data")]
    run_verb(["pretrain", *TINY_PRETRAINING, *data, "--out", str(tmp_path / "ssl"), "--steps", "2"])
    assert (tmp_path / "ssl" / "figures" / "crops.png").exists()
    init = ["--init", str(tmp_path / "ssl" / "model"), "--folds", "3", "--ks", "[3]", *SMALL[:4]]
    run_verb(["evaluate", "knn", *data, *init, "--out", str(tmp_path / "knn")])
    results = json.loads((tmp_path / "knn" / "results.json").read_text())
    why = "as the checkpoint was trained"
    assert all(line.endswith(f"({why})") for line in results["data"]["intensity"])
    if kind == "png":  # nothing but the level tells the classes apart: /257 would leave 10 levels
        assert results["selection"]["pooled_auc"] > 0.9
    else:  # percentiles of each volume take the level away, and say so
        assert "units" in results["selection"]
        rows = pd.read_csv(tmp_path / "knn" / "predictions.csv")
        assert (
            max(len(set(folds)) for _, folds in rows.groupby("volume_id")["fold"]) <= 2
        )  # validation in one, test in another
