"""Fine-tuning of ResNets: statistics of the whole batch in training, running ones elsewhere."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from dinojax import create_model, load_model, preprocess, save_model, sharding, tree
from dinojax.augment.geometry import square
from dinojax.config.finetune import AugmentConfig, FinetuneConfig
from dinojax.config.model import ModelConfig
from dinojax.data.memory import decode_all
from dinojax.data.records import read_records
from dinojax.data.splits import Fold
from dinojax.errors import UsageError
from dinojax.models import Preprocessing, ResNet
from dinojax.models.heads import Classifier
from dinojax.models.resnet import running_statistics
from dinojax.models.store import load_classifier
from dinojax.protocols.finetuning import Recipe, Setting, fit, make_steps, predict, probabilities
from dinojax.tree import Params
from dinojax.verbs import finetune, report
from tests.tasks import TINY, write_task

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1), dtype=np.uint8)
LABELS = (np.arange(24) % 2).astype(np.int32)
FOLD = Fold(train=np.arange(12), val=np.arange(12, 18), test=np.arange(18, 24))


def tiny(name: str = "resnet50") -> ResNet:
    model = create_model(name, nnx.Rngs(0), blocks=(1, 1), filters=(4, 8), stem=8)
    assert isinstance(model, ResNet)
    return model


def classifier() -> tuple[nnx.GraphDef, Params]:
    return tree.split(Classifier(tiny(), 1, 0, False, nnx.Rngs(1)))


def is_running(path: str) -> bool:
    return path.endswith((".mean", ".var"))


def test_a_step_moves_weights_by_gradients_and_running_statistics_by_the_batch() -> None:
    graph, start = classifier()
    steps = make_steps(graph, start, 0.1, sharding.make_mesh(4, devices=1))
    batch = sharding.put_batch(steps.mesh, {"image": IMAGES[:4], "label": LABELS[:4]})
    state = steps.init(jax.tree.map(jnp.copy, start))
    moments = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * sum(not is_running(path) for path in start)
    assert not any(path in moment for moment in moments for path in start if is_running(path))
    state, _ = steps.train(state, batch, 1e-3)
    after = {path: np.asarray(value) for path, value in state.params.items()}
    # What the first BatchNorm reads needs no network to be known.
    backbone = tree.merge(graph, start).backbone
    stem = np.asarray(backbone.conv1(preprocess(IMAGES[:4], backbone)), np.float64).reshape(-1, 8)
    np.testing.assert_allclose(after["backbone.bn1.mean"], 0.1 * stem.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["backbone.bn1.var"], 0.9 + 0.1 * stem.var(0, ddof=1), rtol=1e-4)
    # Adam's first update has the learning rate's size, to which the decay would add a tenth.
    change = np.abs(after["backbone.layers.0.0.bn2.scale"] - 1)
    np.testing.assert_allclose(change, 1e-3, rtol=1e-2)
    # Predictions follow the running statistics.
    moved = {path: jnp.asarray(after[path]) if is_running(path) else value for path, value in start.items()}
    before, now = (predict(steps, params, IMAGES, np.arange(4)) for params in (start, moved))
    assert np.abs(now - before).max() > 1e-3


def test_devices_change_no_statistics_of_a_batch() -> None:
    """Each of eight devices has one image: normalised by those of a device alone, it would be another model."""
    graph, start = classifier()
    recipe = Recipe(2, "last", 32, AugmentConfig(), threads=0)
    one, eight = (
        fit(
            make_steps(graph, start, 0.0, sharding.make_mesh(8, 1, devices)),
            *(start, IMAGES, LABELS, FOLD, Setting(1e-4, 8), recipe, 0, lambda: None, lambda epoch, loss: None),
        )
        for devices in (1, 8)
    )
    np.testing.assert_allclose(one.history, eight.history, rtol=1e-4)
    np.testing.assert_allclose(one.test_scores, eight.test_scores, atol=1e-4)
    for path, value in one.params.items():
        if is_running(path):
            np.testing.assert_allclose(value, eight.params[path], rtol=1e-3, atol=1e-5)
            assert np.abs(np.asarray(value - start[path])).max() > 1e-3


def test_the_best_epoch_is_kept_with_its_own_running_statistics() -> None:
    """At a learning rate that spoils the later epochs, what was kept must predict what it predicted then."""
    graph, start = classifier()
    steps = make_steps(graph, start, 0.0, sharding.make_mesh(4, devices=1))
    recipe = Recipe(6, "lowest_val_loss", 32, AugmentConfig(), threads=0)
    kept = fit(steps, start, IMAGES, LABELS, FOLD, Setting(0.02, 4), recipe, 0, lambda: None, lambda epoch, loss: None)
    assert kept.epoch < recipe.epochs
    assert kept.val_loss == min(loss for _, loss in kept.history)
    found = probabilities(predict(steps, kept.params, IMAGES, FOLD.val))
    np.testing.assert_allclose(found, kept.val_scores, atol=1e-6)


@pytest.mark.parametrize(("name", "normalisation"), [("resnet50", "none"), ("resnet50_keras", "checkpoint")])
def test_from_a_model_directory_to_models_that_predict_the_same(tmp_path: Path, name: str, normalisation: str) -> None:
    """With the published study's second norm, its default, which a ResNet does not have."""
    data, model, out = write_task(tmp_path / "breast"), tiny(name), tmp_path / "run"
    model.preprocessing = Preprocessing(256, (0.4, 0.5, 0.6), (1.0, 0.5, 1.0), order="BGR")
    save_model(tmp_path / "init", model)
    command = [*TINY, "--data", str(data), "--out", str(out), "--init", str(tmp_path / "init"), "--image_size", "32"]
    command += ["--normalisation", normalisation, "--lrs", "[1e-3]", "--batch_sizes", "[4]", "--epochs", "1"]
    finetune.main([*command, "--folds", "3"])
    results = json.loads((out / "results.json").read_text())
    assert results["classifier"] == {"hidden": 8, "renormalise": False}
    used = dataclasses.replace(model.preprocessing, size=32)
    if normalisation == "none":
        used = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert results["preprocessing"] == json.loads(json.dumps(dataclasses.asdict(used)))

    report.main([str(out), "--out", str(tmp_path / "report")])
    assert f"{name}, width 32, blocks 1-1, channels 3" in (tmp_path / "report" / "report.md").read_text()

    fitted, backbone = load_classifier(out / "models" / "fold_1"), load_model(out / "models" / "fold_1")
    assert backbone.preprocessing == fitted.backbone.preprocessing == used
    before, after = running_statistics(model), running_statistics(backbone)
    assert all(np.abs(np.asarray(after[path] - before[path])).max() > 0 for path in before)
    records, views, _ = decode_all(
        read_records(str(data), labelled=True),
        {"image": partial(square, size=32)},
        channels=3,
        threads=0,
        on_bad_file="stop",
    )
    x = preprocess(views["image"], backbone)
    np.testing.assert_array_equal(backbone(x).pooled, fitted.backbone(x).pooled)
    scores = dict(zip(records.paths, np.asarray(jax.nn.sigmoid(fitted(x)[:, 0])), strict=True))
    rows = pd.read_csv(out / "predictions.csv").query("fold == 1")
    assert len(rows) > 4
    np.testing.assert_allclose(rows["score_malignant"], [scores[path] for path in rows["path"]], atol=1e-5)


def test_a_resnet_by_name_and_images_too_small_for_it(tmp_path: Path) -> None:
    model = ModelConfig("resnet50", layer_scale=None)
    config = partial(FinetuneConfig, str(tmp_path), str(tmp_path / "run"), model=model)
    made = nnx.eval_shape(lambda: finetune.make_backbone(config(image_size=100)))
    assert (made.name, made.width, made.preprocessing.size) == ("resnet50", 2048, 100)
    with pytest.raises(UsageError, match="image_size 28: height and width must be 32 or more, got 28×28"):
        nnx.eval_shape(lambda: finetune.make_backbone(config(image_size=28)))
    with pytest.raises(UsageError, match="batch_sizes 1 at image_size 32: BatchNorm has one value a channel"):
        nnx.eval_shape(lambda: finetune.make_backbone(config(image_size=32, batch_sizes=(1, 8))))
    command = [*TINY, "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--model.name", "resnet50"]
    with pytest.raises(UsageError, match="model resnet50 has no argument depth, heads, image_size, width"):
        finetune.main(command)
