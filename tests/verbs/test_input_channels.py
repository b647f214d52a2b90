"""`input_channels`: an RGB checkpoint that a run makes read one channel, or several, from the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from PIL import Image

import dinojax
from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import create_model
from dinojax.models.store import load_classifier
from dinojax.verbs import run as run_verb
from tests.tasks import SMALL, write_task
from tests.verbs.test_pretrain import FORMLESS

STUDY = ["--image_size", "28", "--threads", "0", "--folds", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads RGB images, normalised as DINOv2 is."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    dinojax.save_model(folder, create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=56))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "breast")


def scores(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv").sort_values(["setting", "fold", "path"]).reset_index(drop=True)


def assert_same_scores(first: Path, second: Path) -> None:
    a, b = scores(first), scores(second)
    assert a["path"].tolist() == b["path"].tolist()
    first_scores, second_scores = (table["score_malignant"].to_numpy() for table in (a, b))
    assert np.std(first_scores) > 1e-4
    np.testing.assert_allclose(first_scores, second_scores, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["checkpoint", "none"])
def test_one_channel_scores_grey_images_as_three_do(
    model: Path, data: Path, tmp_path: Path, normalisation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "knn", "--data", str(data), "--init", str(model), *STUDY, "--ks", "[4]"]
    given += ["--normalisation", normalisation]
    run_verb([*given, "--out", str(tmp_path / "three")])
    run_verb([*given, "--out", str(tmp_path / "one"), "--input_channels", "1"])
    assert_same_scores(tmp_path / "one", tmp_path / "three")
    shown = capsys.readouterr().out
    assert "reads RGB images of 28 pixels, normalisation" in shown
    assert f"reads grey images of 28 pixels (colour becomes luminance), normalisation {normalisation}" in shown
    recipe = json.loads((tmp_path / "one" / "results.json").read_text())["recipe"]
    assert recipe["model"] == "vitt14 (width 32, depth 1, heads 2, image_size 56, channels 1)"
    with pytest.raises(UsageError, match=r"input_channels was 1, is None; choose another --out"):
        run_verb([*given, "--out", str(tmp_path / "one")])


def test_a_head_on_one_channel_learns_what_one_on_three_does(model: Path, data: Path, tmp_path: Path) -> None:
    given = ["finetune", "--data", str(data), "--init", str(model), *SMALL, "--folds", "3", "--mode", "frozen"]
    given += ["--epochs", "1", "--lrs", "[1e-3]", "--batch_sizes", "[4]", "--normalisation", "checkpoint"]
    run_verb([*given, "--out", str(tmp_path / "three")])
    run_verb([*given, "--out", str(tmp_path / "one"), "--input_channels", "1"])
    assert_same_scores(tmp_path / "one", tmp_path / "three")
    kept = load_classifier(tmp_path / "one" / "models" / "fold_1").backbone
    assert (kept.channels, kept.preprocessing.mean, kept.preprocessing.std) == (1, (0.0,), (1.0,))


def test_pretraining_continues_in_one_channel(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of grey and coloured images; the published colour jitter, hue and grayscale are on."""
    rng, images, out = np.random.default_rng(0), tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for number in range(8):
        shape = (60, 70) if number % 2 else (64, 64, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(images / f"{number}.png")
    given = ["pretrain", *FORMLESS, "--init", str(model), "--data", str(images), "--steps", "1"]
    given += ["--loss.ibot_weight", "0", "--crops.locals", "1", "--drop_path", "0"]
    given += ["--photometry.blur_global2", "0", "--photometry.blur_local", "0"]
    run_verb([*given, "--out", str(out), "--input_channels", "1"])
    assert "reads grey images of 56 pixels (colour becomes luminance)" in capsys.readouterr().out
    (line,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(line["loss"])
    kept, began = dinojax.load_model(out / "model"), dinojax.load_model(model)
    assert (kept.channels, kept.preprocessing.mean, kept.preprocessing.std) == (1, (0.0,), (1.0,))
    start = tree.split(dinojax.models.to_one_channel(began))[1]["patch_embed.proj.kernel"]
    trained = tree.split(kept)[1]["patch_embed.proj.kernel"]
    np.testing.assert_allclose(trained, start, atol=1e-3)  # a teacher after one step
    with Image.open(out / "figures" / "crops.png") as sheet:
        assert min(sheet.size) > 200
    with pytest.raises(UsageError, match=r"input_channels was 1, is 3"):
        run_verb([*given, "--out", str(out), "--input_channels", "3"])
    with pytest.raises(UsageError, match=r"^the model reads 4 channels, the images have 3$"):
        run_verb([*given, "--out", str(tmp_path / "four"), "--input_channels", "4"])
    assert not (tmp_path / "four").exists()


def test_a_study_of_images_that_do_not_have_the_models_channels_is_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    given = ["--data", str(data), "--init", str(model), *STUDY, "--out", str(tmp_path / "run"), "--input_channels", "4"]
    for verb in (["evaluate", "knn", "--ks", "[4]"], ["finetune", "--batch_sizes", "[4]"]):
        with pytest.raises(UsageError, match=r"^the model reads 4 channels, the images have 1$"):
            run_verb([*verb, *given])
    cnn = create_model("resnet50", nnx.Rngs(0), blocks=(1,), filters=(4,), stem=4)
    dinojax.save_model(tmp_path / "cnn", cnn)
    given = ["--data", str(data), "--init", str(tmp_path / "cnn"), *STUDY[2:], "--input_channels", "1"]
    with pytest.raises(UsageError, match=r"^input_channels 1: a resnet50 pads with zeros.*; leave it out$"):
        run_verb(["evaluate", "knn", *given, "--out", str(tmp_path / "run")])
