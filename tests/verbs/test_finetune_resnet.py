"""Fine-tuning of ResNets: statistics of the whole batch in training, running ones elsewhere."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from dinojax import create_model, load_model, preprocess, save_model, sharding, tree
from dinojax.augment.geometry import square
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.model import ModelConfig
from dinojax.data.memory import decode_all
from dinojax.data.reading import read_records
from dinojax.errors import UsageError
from dinojax.levels import Rule
from dinojax.models import Preprocessing, ResNet
from dinojax.models.heads import Classifier
from dinojax.models.resnet import running_statistics
from dinojax.models.store import load_classifier
from dinojax.protocols import assembly
from dinojax.protocols.finetuning import Setting, make_steps, predict
from dinojax.verbs import run as run_verb
from tests.fitting import BINARY, FOLD, LABELS, fit, make_images, steps_of
from tests.tasks import SMALL, TINY, write_task

IMAGES = make_images(32)


def tiny(name: str = "resnet50") -> ResNet:
    model = create_model(name, nnx.Rngs(0), blocks=(1, 1), filters=(4, 8), stem=8)
    assert isinstance(model, ResNet)
    return model


def classifier() -> Classifier:
    return Classifier(tiny(), 1, 0, False, nnx.Rngs(1))


def is_running(path: str) -> bool:
    return path.endswith((".mean", ".var"))


def test_a_step_moves_weights_by_gradients_and_running_statistics_by_the_batch() -> None:
    model = classifier()
    graph, start = tree.split(model)
    steps = steps_of(model, sharding.make_mesh(4, devices=1), weight_decay=0.1)
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
    model = classifier()
    start = tree.split(model)[1]
    one, eight = (
        fit(steps_of(model, sharding.make_mesh(8, 1, devices)), start, IMAGES, Setting(1e-4, 8), 2, "last")
        for devices in (1, 8)
    )
    for before, after in zip(one.scored.history, eight.scored.history, strict=True):
        np.testing.assert_allclose(list(before.values()), list(after.values()), rtol=1e-4)
    np.testing.assert_allclose(one.scored.test, eight.scored.test, atol=1e-4)
    for path, value in one.params.items():
        if is_running(path):
            np.testing.assert_allclose(value, eight.params[path], rtol=1e-3, atol=1e-5)
            assert np.abs(np.asarray(value - start[path])).max() > 1e-3


def test_the_best_epoch_is_kept_with_its_own_running_statistics() -> None:
    """At a learning rate that spoils the later epochs, what was kept must predict what it predicted then."""
    model = classifier()
    steps = steps_of(model, sharding.make_mesh(4, devices=1))
    kept = fit(steps, tree.split(model)[1], IMAGES, Setting(0.03, 4), 6)
    assert kept.scored.facts["epoch"] < 6
    assert kept.scored.facts["val_loss"] == min(epoch["val_loss"] for epoch in kept.scored.history)
    found = BINARY.probabilities(predict(steps, kept.params, IMAGES, FOLD.val))
    np.testing.assert_allclose(found, kept.scored.val, atol=1e-6)


@pytest.mark.parametrize("frozen_batchnorm", ["inference", "train"])
def test_batchnorm_of_a_frozen_backbone(frozen_batchnorm: Literal["inference", "train"]) -> None:
    """As Keras, running statistics are used and stay; as PyTorch scripts, the batch's, and the running ones move."""
    config = FinetuneConfig(data="data", out="out", mode="frozen", frozen_batchnorm=frozen_batchnorm, batch_sizes=(4,))
    backbone = tiny()
    backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=32)
    model, rates = assembly.make_classifier(config, backbone, BINARY)
    assert rates.keys() == {path for path in tree.split(model)[1] if path.startswith("head.")}
    graph, start = tree.split(model)
    steps = make_steps(graph, start, BINARY.loss, rates, dict.fromkeys(rates, 0.0), sharding.make_mesh(4, devices=1))
    batch = sharding.put_batch(steps.mesh, {"image": IMAGES[:4], "label": LABELS[:4]})
    state, loss = steps.train(steps.init(jax.tree.map(jnp.copy, start)), batch, 1e-3)
    moved = {path for path, value in start.items() if np.abs(np.asarray(state.params[path]) - value).max() > 0}
    assert {path for path in moved if not is_running(path)} == rates.keys()
    assert any(map(is_running, moved)) == (frozen_batchnorm == "train")
    inference = BINARY.validation_loss(predict(steps, start, IMAGES, np.arange(4)), LABELS[:4])
    assert (float(loss) == pytest.approx(inference, rel=1e-5)) == (frozen_batchnorm == "inference")


@pytest.mark.parametrize(("name", "normalisation"), [("resnet50", "none"), ("resnet50_keras", "checkpoint")])
def test_from_a_model_directory_to_models_that_predict_the_same(tmp_path: Path, name: str, normalisation: str) -> None:
    """With the published study's second norm, its default, which a ResNet does not have."""
    data, model, out = write_task(tmp_path / "breast"), tiny(name), tmp_path / "run"
    model.preprocessing = Preprocessing(256, (0.4, 0.5, 0.6), (1.0, 0.5, 1.0), order="BGR")
    save_model(tmp_path / "init", model)
    command = [*SMALL, "--data", str(data), "--out", str(out), "--init", str(tmp_path / "init"), "--image_size", "32"]
    command += ["--normalisation", normalisation, "--lrs", "[1e-3]", "--batch_sizes", "[4]", "--epochs", "1"]
    run_verb(["finetune", *command, "--folds", "3"])
    results = json.loads((out / "results.json").read_text())
    assert results["recipe"]["head"] == "hidden 8"
    rules = (Rule("8 bits", "full"),)
    used = dataclasses.replace(model.preprocessing, size=32, intensity=rules)
    if normalisation == "none":
        used = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), intensity=rules)

    run_verb(["report", str(out), "--out", str(tmp_path / "report")])
    assert f"{name} (blocks 1–1, filters 4–8, stem 8)" in (tmp_path / "report" / "report.md").read_text()

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
    config = partial(FinetuneConfig, data=str(tmp_path), out=str(tmp_path / "run"), model=model)
    made = nnx.eval_shape(lambda: assembly.make_backbone(config(image_size=100)))
    assert (made.name, made.width, made.preprocessing.size) == ("resnet50", 2048, 100)
    with pytest.raises(UsageError, match="image_size 28: height and width must be 32 or more, got 28×28"):
        nnx.eval_shape(lambda: assembly.make_backbone(config(image_size=28)))
    small = config(image_size=32, batch_sizes=(1, 8))
    with pytest.raises(UsageError, match="batch_sizes 1 at image_size 32: BatchNorm has one value a channel"):
        nnx.eval_shape(lambda: assembly.make_classifier(small, assembly.make_backbone(small), BINARY)[0])
    command = [*TINY, "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--model.name", "resnet50"]
    with pytest.raises(UsageError, match="model resnet50 has no argument depth, heads, image_size, width"):
        run_verb(["finetune", *command])
