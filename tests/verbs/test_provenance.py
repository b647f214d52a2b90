"""Test images that the model of `--init` has been trained on are counted, wherever a run says how it was done."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dinojax.config.pretrain import PretrainConfig
from dinojax.data.reading import read_records
from dinojax.dino.outputs import leave_corpus
from dinojax.errors import RunError
from dinojax.models import create_model
from dinojax.models.provenance import read_corpus
from dinojax.models.store import save_model
from dinojax.runs.files import read_json
from dinojax.verbs import run as run_verb
from tests.tasks import SMALL, write_task

KNN = ["--image_size", "28", "--threads", "1", "--folds", "3", "--ks", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "breast")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    save_model(folder, create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1))
    return folder


def corpus_of(data: Path, folder: Path) -> Path:
    """Five of the task's images, saved in another format, a stranger and a file that is no image."""
    folder.mkdir()
    for number, path in enumerate(sorted((data / "images").iterdir())[:5]):
        Image.open(path).convert("RGB").save(folder / f"{number}.bmp")
    Image.new("L", (9, 9), 3).save(folder / "stranger.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_test_images_in_the_corpus_of_a_pretraining_are_counted(data: Path, model: Path, tmp_path: Path) -> None:
    out, records = model.parent, read_records(str(corpus_of(data, tmp_path / "corpus")), labelled=False)
    leave_corpus(out, records, PretrainConfig(data="d", out="o", corpus_hashes=False))
    assert read_corpus(model) == {}
    leave_corpus(out, records, PretrainConfig(data="d", out="o"))
    assert {name: len(hashes) for name, hashes in read_corpus(model).items()} == {"pretraining": 6}
    run = run_verb(["evaluate", "knn", "--data", str(data), "--init", str(model), *KNN, "--out", str(tmp_path / "knn")])
    told = f"5 of 12 test images were in the pre-training corpus of {model} (transductive)"
    assert read_json(run / "results.json")["data"]["corpus"] == told
    report = run_verb(["report", str(run), "--out", str(tmp_path / "report")])
    assert told in (report / "report.md").read_text()


def test_a_fine_tuned_model_keeps_its_training_images_and_those_of_its_start(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_corpus(
        model.parent,
        read_records(str(corpus_of(data, tmp_path / "c")), labelled=False),
        PretrainConfig(data="d", out="o"),
    )
    tiny = [*SMALL, "--folds", "3", "--epochs", "1", "--lrs", "[1e-3]"]
    tuned = ["finetune", "--data", str(data), *tiny, "--batch_sizes", "[4]", "--init", str(model)]
    fold = run_verb([*tuned, "--out", str(tmp_path / "tuned")]) / "models" / "fold_1"
    assert {name: len(hashes) for name, hashes in read_corpus(fold).items()} == {"pretraining": 6, "training": 8}
    capsys.readouterr()
    run_verb(["evaluate", "knn", "--data", str(data), "--init", str(fold), *KNN, "--out", "o", "--check", "true"])
    shown = capsys.readouterr().out
    assert "corpus:     5 of 12 test images were in the pre-training corpus of" in shown
    assert f"            8 of 12 test images were in the training images of {fold} (a leak)" in shown
    # A run that pre-trains from it hands both on.
    config = PretrainConfig(data="d", out="o", init=str(fold))
    leave_corpus(model.parent, read_records(str(data), labelled=False), config)
    assert {name: len(hashes) for name, hashes in read_corpus(model).items()} == {"pretraining": 13, "training": 8}


def test_a_model_that_says_nothing_and_one_whose_hashes_are_damaged(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "knn", "--data", str(data), "--init", str(model), *KNN, "--out", "o", "--check", "true"]
    run_verb(given)
    assert f"{model} does not say which images it was trained on" in capsys.readouterr().out
    np.savez(model / "corpus.npz", pretraining=np.arange(3))
    (model / "corpus.npz").write_bytes((model / "corpus.npz").read_bytes()[:40])
    with pytest.raises(RunError, match=r"corpus.npz cannot be read: .*remove it"):
        run_verb(given)
