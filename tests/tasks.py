"""Small labelled data sets, and small finished runs without any training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dinojax.reporting.predictions import case_rows, read_predictions, write_predictions
from dinojax.reporting.selection import Criterion, Selection, assemble
from dinojax.runs.files import write_json, write_text

SMALL = ["--image_size", "28", "--threads", "0", "--classifier.hidden", "8"]
TINY = ["--model.name", "vitt14", "--model.width", "32", "--model.depth", "1", "--model.heads", "2", *SMALL]
TINY += ["--model.image_size", "28", "--model.channels", "1"]


def write_task(folder: Path, classes: tuple[str, ...] = ("benign", "malignant"), per_class: int = 6) -> Path:
    """Grey images of 28 px, brighter by class, of patients with two images each, and `manifest.csv`."""
    rows = [
        {"path": f"images/{label}_{number}.png", "label": label, "patient_id": f"{label}_{number // 2}"}
        for label in classes
        for number in range(per_class)
    ]
    return _write(folder, rows, [90 + 25 * classes.index(row["label"]) for row in rows])


def write_multilabel_task(
    folder: Path, labels: tuple[str, ...] = ("edema", "effusion", "nodule", "rare"), cases: int = 36
) -> Path:
    """As `write_task`, with columns `label_<class>` of 1, 0 and gaps; brighter by the number of labels.

    The last label is known of the first sixth of the cases alone.
    """
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (cases, len(labels)))
    cells = np.where(rng.uniform(size=values.shape) < 0.2, "", values.astype(str))
    cells[cases // 6 :, -1] = ""
    rows = [
        {"path": f"images/{number}.png", "patient_id": f"p{number // 2}"}
        | {f"label_{name}": cell for name, cell in zip(labels, cells[number], strict=True)}
        for number in range(cases)
    ]
    return _write(folder, rows, [90 + 25 * int(row.sum()) for row in values])


def _write(folder: Path, rows: Sequence[dict[str, str]], grey: Sequence[int]) -> Path:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for row, mean in zip(rows, grey, strict=True):
        pixels = rng.normal(mean, 40, (28, 28)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / row["path"])
    pd.DataFrame(list(rows)).to_csv(folder / "manifest.csv", index=False)
    return folder


FINETUNE = {
    "init": "random weights",
    **{"image_size": 28, "normalisation": "none", "epochs": 2, "epoch_selection": "lowest_val_loss"},
    **{"head": "hidden 8, norm applied twice", "weight_decay": 0.0, "model": "vitt14, width 32, depth 1"},
}
KNN = {"image_size": 28, "votes": "softmax", "temperature": 0.07, "model": "vitt14, width 32, depth 1"}


DATA = {
    "read as": "manifest breast/manifest.csv",
    "patients": "24, from column patient_id",
    "duplicates": ["1 file equals another one byte for byte", "fold 1: 1 across its parts, a leak"],
    "model": "vits14",
}
"""Of the block of facts."""


def finished_run(
    out: Path,
    data: Path,
    starting_point: str = "random",
    seed: int = 0,
    task: str = "breast",
    selection: Selection = "nested",
    folds_seed: int = 0,
    protocol: str = "finetune",
    recipe: dict[str, Any] | None = None,
    folds: int = 3,
) -> Path:
    """A run's directory with made-up scores, two settings and three folds or fewer, as a protocol leaves it.

    `finetune` has epochs, a validation loss to select by and a history; `knn` has none of them.
    """
    manifest = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    facts = {"task": task, "starting_point": starting_point, "protocol": protocol, "seed": seed}
    epochs, rng = protocol == "finetune", np.random.default_rng([seed, *f"{starting_point} {protocol}".encode()])
    settings = [{"setting": f"lr{lr:g}_bs4", "lr": lr, "batch_size": 4} for lr in (1e-3, 1e-4)]
    if not epochs:
        settings = [{"setting": f"k{k}", "k": k} for k in (5, 10)]
    recipe = recipe or (FINETUNE if epochs else KNN)
    criterion: Criterion = "val_loss" if epochs else "val_auc"
    _write_run(out, manifest, range(1, folds + 1), folds_seed, facts, settings, recipe, selection, criterion, rng)
    if epochs:
        rows = [
            {"setting": setting["setting"], "fold": fold, "epoch": epoch, "train_loss": 0.8 - epoch / 10}
            | {"val_loss": 0.7 - epoch / 10}
            for setting in settings
            for fold in range(1, folds + 1)
            for epoch in (1, 2)
        ]
        pd.DataFrame(rows).to_csv(out / "history.csv", index=False)
    facts |= {"starting_point": "pixels", "protocol": "pixels"}
    setting, recipe = {"setting": "logistic_pixels_32"}, {"classifier": "logistic regression", "image_size": 32}
    rng = np.random.default_rng(1)
    _write_run(
        out / "pixels", manifest, range(1, folds + 1), folds_seed, facts, [setting], recipe, "nested", "val_auc", rng
    )
    return out


def _write_run(
    out: Path,
    manifest: pd.DataFrame,
    folds: Sequence[int],
    folds_seed: int,
    facts: dict[str, Any],
    settings: Sequence[dict[str, Any]],
    recipe: dict[str, Any],
    selection: Selection,
    criterion: Criterion,
    rng: np.random.Generator,
) -> None:
    out.mkdir(parents=True)
    if "label" in manifest:
        classes = sorted(set(manifest["label"]))
        labels = np.asarray([classes.index(name) for name in manifest["label"]])
        truth = np.eye(len(classes))[labels]
    else:
        names = [name for name in manifest if str(name).startswith("label_")]
        classes = [str(name).removeprefix("label_") for name in names]
        labels = manifest[names].apply(pd.to_numeric).to_numpy(np.float64)
        truth = np.nan_to_num(labels, nan=0.5)
    cases = manifest[["path", "patient_id"]].assign(frame="")
    # Every patient is in one of three slices, each class in all of them; fold k tests slice k, validates the next.
    patients = pd.Series(manifest["patient_id"].unique()).sample(frac=1, random_state=folds_seed)
    ranks = {name: place for place, name in enumerate(sorted(patients, key=lambda name: name.split("_")[0]))}
    if "label" not in manifest:
        ranks = {name: place for place, name in enumerate(patients)}
    slices = manifest["patient_id"].map(ranks.get).to_numpy() % 3
    rows, kept = [], {}
    for setting in settings:
        for fold in folds:
            kept[fold, setting["setting"]] = {"epoch": 2, "val_loss": rng.uniform()} if criterion == "val_loss" else {}
            for split, part in (("val", fold % 3), ("test", fold - 1)):
                chosen = np.flatnonzero(slices == part)
                logits = rng.normal(size=(len(chosen), len(classes))) + truth[chosen]
                scores = 1 / (1 + np.exp(-logits))
                if labels.ndim == 1:
                    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                place = {**facts, "setting": setting["setting"], "fold": fold, "split": split}
                rows.append(case_rows(cases.iloc[chosen], labels[chosen], scores, classes, place))
    table = pd.concat(rows, ignore_index=True)
    table[["fold", "split", "path"]].to_csv(out / "folds.csv", index=False)
    write_text(out / "config.yaml", "{}\n")
    write_predictions(out / "predictions.csv", table)
    table = read_predictions(out / "predictions.csv", classes)
    described = assemble(table, classes, settings, kept, selection, criterion)
    write_json(
        out / "results.json",
        {**facts, "classes": classes, "multilabel": labels.ndim == 2, "recipe": recipe, "data": DATA, **described},
    )
