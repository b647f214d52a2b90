"""Does the laptop recipe learn? Pre-trains with several seeds and compares frozen features with trivial methods.

    python scripts/bench_learning.py --data BRAIN_TUMOR_MRI --out RUNS

BRAIN_TUMOR_MRI holds `Training/` and `Testing/` of class folders. Each seed's run goes to RUNS/seed<k> (one that is
there already is used as it is). Test images that equal a training image pixel by pixel are left out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from flax import nnx

import dinojax
from dinojax.augment import geometry
from dinojax.data import pipeline
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.models import Backbone
from dinojax.protocols.features import extract
from dinojax.protocols.knn import nearest, vote
from dinojax.protocols.pixels import grey_pixels, logistic_scores

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "laptop.yaml"
SIZE = 84


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        pretrain(arguments.data / "Training", arguments.out / f"seed{seed}", seed)

    records = read_records(str(arguments.data), labelled=True)
    train, test, duplicates = split(records)
    print(f"{len(train)} training images, {len(test)} test images ({duplicates} equal to a training image left out)\n")
    assert records.labels is not None
    labels = records.labels[train], records.labels[test]
    source = ImageSource(records, channels=1)
    pixels = np.stack([grey_pixels(source[i]["image"]) for i in range(len(records))])
    print("accuracy in % on the test images | 20-NN | 20-NN, weighted | 1-NN | logistic\n---|---|---|---|---")
    row("32×32 grey pixels", [scores(pixels[train], pixels[test], *labels)])

    random = [create(seed) for seed in range(5)]
    trained = [dinojax.load_model(arguments.out / f"seed{seed}" / "model") for seed in range(arguments.seeds)]
    for name, models in (("random weights, LayerScale 1.0", random), ("pre-trained", trained)):
        both = [features(model, records, train, test) for model in models]
        for kind in ("class token", "mean patch"):
            row(f"{name}, {kind} (seeds {len(models)})", [scores(*found[kind], *labels) for found in both])
    print()
    for seed in range(arguments.seeds):
        learned(arguments.out / f"seed{seed}")


def pretrain(data: Path, out: Path, seed: int) -> None:
    if not (out / "model").exists():
        command = ["pretrain", "--config", str(CONFIG), "--data", str(data), "--out", str(out), "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "dinojax", *command], check=True)


def split(records: Records) -> tuple[np.ndarray, np.ndarray, int]:
    """Places of the training images, of the test images that equal none of them, and how many do."""
    assert records.splits is not None
    source = ImageSource(records, channels=1)
    pixels = [source[i]["image"].tobytes() for i in range(len(records))]
    train = [i for i, part in enumerate(records.splits) if part == "train"]
    test = [i for i, part in enumerate(records.splits) if part == "test"]
    known = {pixels[i] for i in train}
    kept = [i for i in test if pixels[i] not in known]
    return np.array(train), np.array(kept), len(test) - len(kept)


def create(seed: int) -> Backbone:
    return dinojax.create_model("vitt14", rngs=nnx.Rngs(seed), depth=6, image_size=SIZE, channels=1)


def features(
    model: Backbone, records: Records, train: np.ndarray, test: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    source = ImageSource(records, channels=1)
    batches = pipeline.evaluation_batches(
        source, lambda element: {**element, "image": geometry.square(element["image"], SIZE)}, batch_size=50
    )
    found = extract(model, batches)
    return {
        "class token": (found["class_token"][train], found["class_token"][test]),
        "mean patch": (found["mean_patch"][train], found["mean_patch"][test]),
    }


def scores(train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray) -> list[float]:
    """Accuracies in %, in the order of the table's columns."""
    classes = np.eye(train_labels.max() + 1)[train_labels]
    neighbours = nearest(test, train, 20)
    found = (
        vote(neighbours, classes, temperature=None),
        vote(neighbours, classes),
        vote(nearest(test, train, 1), classes),
        logistic_scores(train, train_labels, test),
    )
    return [100 * float((each.argmax(axis=1) == test_labels).mean()) for each in found]


def row(name: str, accuracies: list[list[float]]) -> None:
    cells = [
        f"{np.mean(column):.1f}" + (f" ± {np.std(column, ddof=1):.1f}" if len(column) > 1 else "")
        for column in zip(*accuracies, strict=True)
    ]
    each = f" <!-- 20-NN of each: {', '.join(f'{a[0]:.1f}' for a in accuracies)} -->" if len(accuracies) > 1 else ""
    print(f"{name} | {' | '.join(cells)}{each}")


def learned(run: Path) -> None:
    """Mean of the last epoch's losses, beside what they are when nothing is learned."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epoch = lines[-31:]
    dino = np.mean([line["dino_local"] + line["dino_global"] for line in epoch])
    entropy = np.mean([line["target_entropy"] for line in epoch])
    seconds = sum(line["time"]["seconds"] for line in lines)
    print(
        f"{run.name}: last epoch's DINO loss {dino:.3f}, target entropy {entropy:.3f}, log K {np.log(1024):.3f}; "
        f"{len(lines)} steps in {seconds / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
