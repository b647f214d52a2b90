"""k-NN on frozen features, several labels an image and a frozen backbone, from the command line to one report."""

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from dinojax import create_model, load_model, preprocess, save_model
from dinojax.errors import RunError, UsageError
from dinojax.models.store import read_params
from dinojax.verbs import run as run_verb
from tests.tasks import SMALL, write_multilabel_task, write_task

LABELS = ("edema", "effusion", "nodule", "rare")
KNN = ["--image_size", "28", "--threads", "0", "--folds", "3"]
FINETUNE = [*SMALL, "--folds", "3", "--epochs", "1", "--lrs", "[1e-3]", "--batch_sizes", "[4]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1))
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labels with gaps; of the last one, half of the entries are unknown."""
    data = write_multilabel_task(tmp_path_factory.mktemp("data") / "chest", LABELS, cases=48)
    manifest = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    manifest["label_rare"] = [str(number // 2 % 2) if number % 4 < 2 else "" for number in range(48)]
    manifest["label_rare"] = np.where(np.arange(48) % 8 < 4, manifest["label_rare"], "1")
    manifest.to_csv(data / "manifest.csv", index=False)
    return data


def run_knn(data: Path, model: Path, out: Path, *more: str) -> Path:
    run_verb(["evaluate", "knn", "--data", str(data), "--init", str(model), "--out", str(out), *KNN, *more])
    return out


def read(out: Path, split: str = "test") -> pd.DataFrame:
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    return pd.DataFrame(table[table["split"] == split])


def test_scores_are_those_of_a_loop_over_features(model: Path, tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast")
    out = run_knn(data, model, tmp_path / "knn", "--ks", "[1,4]", "--temperature", "null")
    backbone = load_model(model)
    images = {
        str(row["path"]): np.asarray(Image.open(data / str(row["path"])))[None, :, :, None]
        for _, row in pd.read_csv(data / "manifest.csv").iterrows()
    }
    features = {path: np.asarray(backbone(preprocess(image, backbone)).pooled[0]) for path, image in images.items()}
    folds = pd.read_csv(out / "folds.csv")
    for fold in (1, 2, 3):
        train = folds[(folds["fold"] == fold) & (folds["split"] == "train")]
        reference = KNeighborsClassifier(4, metric="cosine", algorithm="brute")
        reference.fit([features[path] for path in train["path"]], train["label"])
        for split in ("val", "test"):
            rows = read(out, split).query(f"fold == {fold} and setting == 'k4'")
            expected = reference.predict_proba([features[path] for path in rows["path"]])
            np.testing.assert_allclose(rows[["score_benign", "score_malignant"]], expected, atol=1e-9)
    results = json.loads((out / "results.json").read_text())
    assert results["selections"]["nested"]["criterion"] == "val_auc"
    assert not (out / "models").exists()


def test_all_protocols_stand_in_one_report(model: Path, tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast")
    knn = run_knn(data, model, tmp_path / "knn", "--ks", "[3]", "--starting_point", "tiny")
    command = [*FINETUNE, "--data", str(data), "--init", str(model), "--starting_point", "tiny"]
    run_verb(["finetune", *command, "--mode", "frozen", "--out", str(tmp_path / "frozen")])
    run_verb(["report", str(knn), str(tmp_path / "frozen"), "--out", str(tmp_path / "report")])
    table = pd.read_csv(tmp_path / "report" / "table.csv")
    rows = set(zip(table["starting_point"], table["protocol"], strict=True))
    assert rows == {("tiny", "knn"), ("tiny", "finetune"), ("pixels", "pixels")}
    assert all((tmp_path / "report" / name).stat().st_size for name in ("report.md", "report.html"))

    start, trained = read_params(model), read_params(tmp_path / "frozen" / "models" / "fold_1")
    for path, value in start.items():
        np.testing.assert_array_equal(trained[f"backbone.{path}"], value)
    recipe = json.loads((tmp_path / "frozen" / "results.json").read_text())["recipe"]
    head = {path: value.size for path, value in trained.items() if path.startswith("head.")}
    assert (recipe["mode"], recipe["trained_parameters"]) == ("frozen", sum(head.values()))


def label_aucs(rows: pd.DataFrame) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in LABELS:
        known = rows.loc[rows[f"label_{name}"] != ""]
        truth = known[f"label_{name}"].to_numpy(float)
        found[name] = float(roc_auc_score(truth, known[f"score_{name}"])) if len(set(truth)) == 2 else None
    return found


def test_four_labels_with_gaps(several: Path, model: Path, tmp_path: Path) -> None:
    knn = run_knn(several, model, tmp_path / "knn", "--ks", "[5]")
    run_verb(["finetune", *FINETUNE, "--data", str(several), "--out", str(tmp_path / "tuned")])
    for out in (knn, tmp_path / "tuned"):
        results, test = json.loads((out / "results.json").read_text()), read(out)
        assert results["classes"] == list(LABELS)
        for entry in results["selection"]["folds"]:
            expected = label_aucs(test.loc[(test["fold"] == entry["fold"]) & (test["setting"] == entry["setting"])])
            assert entry["label_auc"] == pytest.approx(expected, abs=1e-12)
            defined = [value for value in expected.values() if value is not None]
            assert entry["auc"] == pytest.approx(np.mean(defined), abs=1e-12)
        assert set(test["label_rare"]) == {"", "0", "1"}
    run_verb(["report", str(knn), str(tmp_path / "tuned"), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "report.md").read_text()
    assert all(f"| {name} |" in page for name in LABELS)


def test_an_uncertain_entry_means_what_is_said(several: Path, model: Path, tmp_path: Path) -> None:
    manifest = pd.read_csv(several / "manifest.csv", dtype=str, keep_default_na=False)
    manifest.loc[0, "label_edema"] = "-1"
    manifest.to_csv(several / "uncertain.csv", index=False)
    with pytest.raises(RunError, match=r"uncertain\.csv, row 2: .*-1.*--uncertain"):
        run_knn(several / "uncertain.csv", model, tmp_path / "refused", "--ks", "[1]")
    meant = {}
    for choice in ("ignore", "zero", "one"):
        out = run_knn(several / "uncertain.csv", model, tmp_path / choice, "--ks", "[1]", "--uncertain", choice)
        folds = pd.read_csv(out / "folds.csv", dtype=str, keep_default_na=False)
        meant[choice] = folds.query(f"path == '{manifest['path'][0]}'")["label_edema"].iloc[0]
    assert meant == {"ignore": "", "zero": "0", "one": "1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "evaluate needs its protocol: evaluate knn"),
        (["svm"], "there is no verb 'evaluate svm'; choose from evaluate knn"),
        (["knn", "--ks", "[0]"], r"ks is \[0\]; it must be above 0"),
        (["knn", "--ks", "[3,3]"], r"ks \[3, 3\]: must be different numbers"),
        (["knn", "--ks", "[50]"], "50 neighbours, but a training part has 4 cases only"),
        (["knn", "--image_size", "30"], "image_size 30: .*multiples of 14"),
        (["knn", "--temperature", "0"], "temperature is 0.0; it must be above 0"),
    ],
)
def test_refusals(arguments: list[str], message: str, model: Path, tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast")
    given = (
        ["--data", str(data), "--init", str(model), "--out", str(tmp_path / "out"), *KNN]
        if arguments[:1] == ["knn"]
        else []
    )
    with pytest.raises(UsageError, match=message):
        run_verb(["evaluate", *arguments[:1], *given, *arguments[1:]])
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_left_out_and_listed(model: Path, tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast")
    broken = data / "images" / "benign_1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(RunError, match=r"benign_1\.png"):
        run_knn(data, model, tmp_path / "out", "--ks", "[1]")
    out = run_knn(data, model, tmp_path / "out", "--ks", "[1]", "--on_bad_file", "skip")
    assert "benign_1.png" in (out / "skipped_files.csv").read_text()
    assert "benign_1.png" not in (out / "predictions.csv").read_text()
    assert jax.device_count() == 8  # the batch of 11 images is spread over as many as divide it


def test_check_says_what_would_be_done_and_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_task(tmp_path / "breast"), tmp_path / "out"
    given = ["--data", str(data), "--out", str(out), "--check", "true"]
    run_verb(["evaluate", "knn", *given, "--init", str(model), *KNN, "--ks", "1"])
    run_verb(["finetune", *given, *FINETUNE])
    shown = capsys.readouterr().out
    assert shown.count("classes:    'benign' × 6, 'malignant' × 6 (positive: 'malignant')") == 2
    assert "trained:" in shown
    assert not out.exists()


def test_folds_have_a_seed_of_their_own(model: Path, tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast", per_class=12)
    folds = {}
    for name, seeds in {"a": ["--seed", "0"], "b": ["--seed", "1"], "c": ["--fold_seed", "1"]}.items():
        out = tmp_path / name
        run_knn(data, model, out, "--ks", "1", *seeds)
        folds[name] = (out / "folds.csv").read_text()
        assert json.loads((out / "facts.json").read_text())["patients"].startswith("12, from")
    assert folds["a"] == folds["b"] != folds["c"]
