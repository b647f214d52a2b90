"""Small labelled data sets, and small finished runs of fine-tuning without any training."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dinojax.data.records import Records, read_records
from dinojax.data.splits import folds_table, grouped_folds
from dinojax.protocols import study as studies
from dinojax.protocols.finetuning import Setting
from dinojax.protocols.pixels import SIDE
from dinojax.protocols.study import Study
from dinojax.report import predictions as results

TINY = ["--model.name", "vitt14", "--model.width", "32", "--model.depth", "1", "--model.heads", "2"]
TINY += ["--model.image_size", "28", "--model.channels", "1", "--image_size", "28"]
TINY += ["--threads", "0", "--classifier.hidden", "8"]


def write_task(folder: Path, classes: tuple[str, ...] = ("benign", "malignant"), per_class: int = 6) -> Path:
    """Grey images of 28 px, brighter by class, of patients with two images each, and `manifest.csv`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for place, label in enumerate(classes):
        for number in range(per_class):
            pixels = rng.normal(90 + 25 * place, 40, (28, 28)).clip(0, 255).astype(np.uint8)
            name = f"images/{label}_{number}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append({"path": name, "label": label, "patient_id": f"{label}_{number // 2}"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def finished_run(
    out: Path,
    data: Path,
    starting_point: str = "random",
    seed: int = 0,
    task: str = "breast",
    protocol: results.Protocol = "nested",
    folds_seed: int = 0,
) -> Path:
    """A run's directory with made-up scores, two settings and three folds, written by the code that ends a run."""
    records = read_records(str(data), labelled=True)
    assert records.labels is not None
    rng = np.random.default_rng(seed + len(starting_point))
    folds = tuple(grouped_folds(records.labels, np.asarray(records.patients), 3, folds_seed))
    settings = (Setting(1e-3, 4), Setting(1e-4, 4))
    study = Study(out, task, starting_point, seed, protocol, records, folds, settings)
    (out / "units").mkdir(parents=True)
    (out / "config.yaml").write_text("{}\n")
    studies.pin_folds(out, folds_table(records, folds))
    for number, fold in study.numbered_folds():
        for setting in settings:
            unit = {"epoch": 2, "val_loss": rng.uniform(), "history": [[0.7, 0.6], [0.6, 0.5]]}
            unit |= {f"{split}_scores": _scores(rng, records, getattr(fold, split)) for split in ("val", "test")}
            results.write_json(study.scores(number, setting), unit)
    pixels = np.random.default_rng(1).uniform(size=(len(records), SIDE**2)).astype(np.float32)
    facts = {
        **{"image_size": 28, "normalisation": "none", "epochs": 2, "epoch_selection": "lowest_val_loss"},
        **{"classifier": {"hidden": 8, "renormalise": True}, "augment": {"rotation": 10.0}, "weight_decay": 0.0},
        "model": {"name": "vitt14", "width": 32, "depth": 1, "channels": 1},
    }
    studies.finish(study, pixels, facts)
    return out


def _scores(rng: np.random.Generator, records: Records, indices: np.ndarray) -> list[list[float]]:
    assert records.labels is not None
    classes = len(records.classes)
    logits = rng.normal(size=(len(indices), classes)) + np.eye(classes)[records.labels[indices]]
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).tolist()
