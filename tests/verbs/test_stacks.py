"""Images of several channels go through pre-training, fine-tuning, k-NN and the verbs that look at data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dinojax.data.decode import decode
from dinojax.data.reading import read_records
from dinojax.errors import UsageError
from dinojax.models.store import load_model
from dinojax.verbs import run as run_verb
from tests.data.medical import write_wide
from tests.tasks import SMALL
from tests.verbs.test_pretrain import TINY

CASES = [(label, number) for label in ("a", "b") for number in range(6)]


def write_columns(folder: Path) -> list[str]:
    """Pictures of 8 and of 12 bits: the classes differ in the second channel alone."""
    rng, rows = np.random.default_rng(0), []
    for label, number in CASES:
        row = {"label": label, "patient_id": f"{label}{number}"}
        for name, mean, most in (("t1", 120, 255), ("t2", 1500 if label == "a" else 2500, 4095)):
            values = rng.normal(mean, mean / 5, (28, 28)).clip(0, most)
            write_wide(folder / name / f"{label}{number}.png", values.astype(np.uint16 if most > 255 else np.uint8))
            row[f"path_{name}"] = f"{name}/{label}{number}.png"
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return ["--data", str(folder)]


def test_images_of_several_channels_run(tmp_path: Path) -> None:
    data = write_columns(tmp_path / "data")
    with pytest.raises(UsageError, match=r"reads 3 channels, the images have 2; set input_channels 2"):
        run_verb(["pretrain", *TINY, *data, "--out", str(tmp_path / "ssl"), "--steps", "2"])
    more = ["--input_channels", "2", "--steps", "2", "--window_jitter.probability", "0.5"]
    run_verb(["pretrain", *TINY, *data, *more, "--out", str(tmp_path / "ssl")])
    assert (tmp_path / "ssl" / "figures" / "crops.png").exists()
    assert load_model(tmp_path / "ssl" / "model").channels == 2
    init = [*data, "--init", str(tmp_path / "ssl" / "model"), "--folds", "3", *SMALL[:4]]
    run_verb(["evaluate", "knn", *init, "--ks", "[3]", "--out", str(tmp_path / "knn")])
    results = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert "images of 2 channels" in results["data"]["images"]
    baseline = json.loads((tmp_path / "knn" / "pixels" / "results.json").read_text())
    assert baseline["selection"]["pooled_auc"] > 0.9
    run_verb(["splits", data[1], "--folds", "3", "--out", str(tmp_path / "folds")])
    listed, given = (read_records(str(tmp_path / name), labelled=True) for name in ("folds", "data"))
    assert (len(listed.folds), listed.channel_columns) == (3, ("path_t1", "path_t2"))
    np.testing.assert_array_equal(decode(listed, 0), decode(given, 0))
    run_verb(["audit", str(tmp_path / "data"), str(tmp_path / "folds"), "--out", str(tmp_path / "audit")])
    one = ["--epochs", "1", "--lrs", "[1e-3]", "--batch_sizes", "[4]", "--data", str(tmp_path / "folds")]
    run_verb(["finetune", *init[2:4], *SMALL, *one, "--out", str(tmp_path / "cv")])
    assert load_model(tmp_path / "cv" / "models" / "fold_1").channels == 2
