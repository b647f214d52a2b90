"""Fine-tuning as a command: its tables, its selection, going on, and the copy of the best weights."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from dinojax import create_model, load_model, save_model, sharding, tree
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.parser import parse
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.models.heads import Classifier
from dinojax.models.store import load_classifier, read_params
from dinojax.protocols.finetuning import Setting, Steps, make_grid, predict
from dinojax.protocols.study import Scored, Study, Unit
from dinojax.protocols.task import Task
from dinojax.sharding import widest_mesh
from dinojax.tree import Params
from dinojax.verbs import run as run_verb
from tests.fitting import BINARY, FOLD, LABELS, Fitted, fit, make_images, steps_of
from tests.tasks import SMALL, TINY, write_task

GRID = ["--folds", "3", "--epochs", "2", "--lrs", "[1e-3,1e-4]", "--batch_sizes", "[4]"]


def run(data: Path, out: Path, *more: str) -> dict[str, Any]:
    form = SMALL if "--init" in more else TINY
    run_verb(["finetune", *form, *GRID, "--data", str(data), "--out", str(out), *more])
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "breast")


@pytest.fixture(scope="module")
def finished(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    run(task, out)
    return out


Row = dict[str, Any]


def read(path: Path, split: str = "test") -> list[Row]:
    """Predictions as a user reads them."""
    return [row for row in pd.read_csv(path).to_dict("records") if row["split"] == split]  # type: ignore[return-value]


def auc(rows: list[Row], classes: list[str]) -> float:
    """By scikit-learn; with several classes each against the rest."""
    positive = classes[1:] if len(classes) == 2 else classes
    each = [
        roc_auc_score([row["label"] == name for row in rows], [row[f"score_{name}"] for row in rows])
        for name in positive
    ]
    return float(np.mean(each))


def check_aucs(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    test, classes = read(out / "predictions.csv"), results["classes"]
    for setting in results["settings"]:
        check_spread([row for row in test if row["setting"] == setting["setting"]], setting, classes)
    chosen = {entry["fold"]: entry["setting"] for entry in results["selection"]["folds"]}
    check_spread([row for row in test if row["setting"] == chosen[row["fold"]]], results["selection"], classes)
    pixels = json.loads((out / "pixels" / "results.json").read_text())
    assert (pixels["protocol"], pixels["starting_point"]) == ("pixels", "pixels")
    check_spread(read(out / "pixels" / "predictions.csv"), pixels["selection"], classes)


def check_spread(rows: list[Row], stated: dict[str, Any], classes: list[str]) -> None:
    aucs = [auc([row for row in rows if row["fold"] == entry["fold"]], classes) for entry in stated["folds"]]
    assert [entry["auc"] for entry in stated["folds"]] == aucs
    assert stated["mean_auc"] == pytest.approx(np.mean(aucs), abs=1e-12)
    assert stated["sd_auc"] == pytest.approx(np.std(aucs, ddof=1), abs=1e-12)
    assert stated["pooled_auc"] == pytest.approx(auc(rows, classes), abs=1e-12)


def test_aucs_are_those_of_the_predictions(finished: Path) -> None:
    check_aucs(finished)


def test_every_validation_and_test_case_of_every_setting_and_fold_has_its_row(finished: Path) -> None:
    rows = [row for split in ("val", "test") for row in read(finished / "predictions.csv", split)]
    folds = [row for split in ("val", "test") for row in read(finished / "folds.csv", split)]
    keys = ("fold", "split", "path", "patient_id", "label")
    for setting in ("lr0.001_bs4", "lr0.0001_bs4"):
        given = [tuple(row[key] for key in keys) for row in rows if row["setting"] == setting]
        assert sorted(given) == sorted(tuple(row[key] for key in keys) for row in folds)
    for row in rows:
        assert row["score_benign"] + row["score_malignant"] == pytest.approx(1, abs=1e-12)
        identity = [row[name] for name in ("task", "starting_point", "protocol", "seed")]
        assert identity == ["breast", "random", "finetune", 0]


def test_selected_models_and_figures_are_kept(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert not (finished / "units").exists()
    for entry in results["selection"]["folds"]:
        folder = finished / "models" / f"fold_{entry['fold']}"
        description = json.loads((folder / "model.json").read_text())
        assert [description[name] for name in ("setting", "epoch")] == [entry["setting"], entry["epoch"]]
        assert description["classes"] == ["benign", "malignant"]
        assert description["preprocessing"]["mean"] == [0.0]
        assert {path.split(".")[0] for path in read_params(folder)} == {"backbone", "head"}
    assert all((finished / "figures" / name).stat().st_size for name in ("roc.png", "losses.png"))


def test_the_same_seed_gives_the_same_predictions(finished: Path, task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "again", "--threads", "2")
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_three_classes(tmp_path: Path) -> None:
    data = write_task(tmp_path / "brain", ("a", "b", "c"))
    results = run(data, tmp_path / "run", "--lrs", "[1e-3]", "--epochs", "1", "--selection", "published")
    check_aucs(tmp_path / "run")
    assert results["classes"] == ["a", "b", "c"]
    assert all(entry["threshold"] is None for entry in results["selection"]["folds"])
    description = json.loads((tmp_path / "run" / "models" / "fold_1" / "model.json").read_text())
    assert description["classifier"]["outputs"] == 3


def test_nested_selection_does_not_look_at_the_test_part(tmp_path: Path) -> None:
    selections = []
    for name in ("a", "b"):
        data = write_task(tmp_path / name / "breast")
        manifest = pd.read_csv(data / "manifest.csv")
        manifest["split"] = ["train", "train", "val", "val", "test", "test"] * 2
        if name == "b":
            tested = manifest["split"] == "test"
            manifest.loc[tested, "label"] = manifest.loc[tested, "label"].map(
                {"benign": "malignant", "malignant": "benign"}
            )
        manifest.to_csv(data / "manifest.csv", index=False)
        selections.append(run(data, tmp_path / name / "run")["selection"])
    a, b = (selection["folds"][0] for selection in selections)
    assert {**a, "auc": None} == {**b, "auc": None}
    assert a["auc"] == pytest.approx(1 - b["auc"])


def test_a_stopped_run_resumes_after_its_finished_units(
    finished: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = Study._store, tmp_path / "stopped"

    def store_and_signal(study: Study, unit: Unit, scored: Scored) -> None:
        store(study, unit, scored)
        if study.protocol == "finetune":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Study, "_store", store_and_signal)
    with pytest.raises(Stopped, match="SIGTERM"):
        run(task, out)
    assert len(list((out / "units").glob("*.json"))) == 1

    stored: list[tuple[int, str]] = []

    def store_and_count(study: Study, unit: Unit, scored: Scored) -> None:
        stored.append(unit.key)
        store(study, unit, scored)

    monkeypatch.setattr(Study, "_store", store_and_count)
    run(task, out)
    assert len(stored) == 5
    assert (out / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()


def test_a_finished_run_is_left_alone(finished: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "results.json").stat().st_mtime_ns
    (finished / "units").mkdir()  # as a run leaves it that is killed in its last moment
    run(task, finished)
    assert not (finished / "units").exists()
    assert "is finished" in capsys.readouterr().out
    assert (finished / "results.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="epochs was 2, is 3"):
        run(task, finished, "--epochs", "3")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image_size", "30"], "image_size 30: .*multiples of 14"),
        (["--epochs", "0"], "epochs is 0"),
        (["--lrs", "[1e-3,1e-3]"], "each must list different numbers"),
        (["--batch_sizes", "[0]"], "must be above 0"),
        (
            ["--accept_changes", "epochs"],
            "--accept_changes epochs: choose another --out; only data, data_root may change",
        ),
        (["--init", "nowhere"], "nowhere is not a model directory"),
        (["--init", "x", "--model.width", "64"], r"--init x brings its own model, which --model\.width cannot change"),
    ],
)
def test_refusals(task: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(task, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_changed_data_is_refused(tmp_path: Path) -> None:
    data, out = write_task(tmp_path / "breast"), tmp_path / "run"
    out.mkdir()
    (out / "folds.csv").write_text("fold,split,path\n1,train,other.png\n")
    with pytest.raises(RunError, match=r"no longer those of .*folds\.csv"):
        run(data, out)


def test_unreadable_images_stop_the_run_or_are_listed(tmp_path: Path) -> None:
    data = write_task(tmp_path / "breast")
    broken = data / "images" / "benign_1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(RunError, match=r"benign_1\.png"):
        run(data, tmp_path / "run")
    run(data, tmp_path / "run", "--on_bad_file", "skip", "--epochs", "1", "--lrs", "[1e-3]")
    assert "benign_1.png" in (tmp_path / "run" / "skipped_files.csv").read_text()
    assert "benign_1.png" not in (tmp_path / "run" / "predictions.csv").read_text()


# The training core, without files.

IMAGES = make_images(28)
KEPT: tuple[Literal["lowest_val_loss", "last"], ...] = ("lowest_val_loss", "last")


def classifier(outputs: int = 1) -> Classifier:
    backbone = create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1)
    return Classifier(backbone, outputs, 8, True, nnx.Rngs(1))


def fitted(
    steps: Steps, start: Params, lr: float, epochs: int, keep: Literal["lowest_val_loss", "last"] = "lowest_val_loss"
) -> Fitted:
    return fit(steps, start, IMAGES, Setting(lr, 4), epochs, keep)


def test_the_weights_of_the_best_epoch_are_a_copy_of_their_own() -> None:
    model = classifier()
    steps, start = steps_of(model, widest_mesh(4)), tree.split(model)[1]
    best, last = (fitted(steps, start, 0.03, 6, keep) for keep in KEPT)
    losses = [epoch["val_loss"] for epoch in best.scored.history]
    assert best.scored.history == last.scored.history
    assert best.scored.facts["epoch"] == 1 + int(np.argmin(losses)) < 6 == last.scored.facts["epoch"]
    for kept in (best, last):
        logits = predict(steps, kept.params, IMAGES, FOLD.val)
        stated = kept.scored.facts["val_loss"]
        assert BINARY.validation_loss(logits, LABELS[FOLD.val]) == stated == losses[int(kept.scored.facts["epoch"]) - 1]
        positive = predict(steps, kept.params, IMAGES, FOLD.test)[:, 0]
        np.testing.assert_allclose(kept.scored.test[:, 1], 1 / (1 + np.exp(-positive)), atol=1e-6)
    assert np.abs(best.scored.test - last.scored.test).max() > 1e-3


def test_the_initial_weights_stay_for_the_next_setting() -> None:
    model = classifier()
    start = tree.split(model)[1]
    before = {path: np.array(value) for path, value in start.items()}
    fitted(steps_of(model, widest_mesh(4)), start, 1e-2, 1)
    for path, value in start.items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize("task", [BINARY, Task("multi-class", ("a", "b"))], ids=lambda task: task.kind)
def test_the_loss_of_a_step_is_the_cross_entropy_of_its_logits(task: Task) -> None:
    model = classifier(task.outputs)
    steps, start = steps_of(model, widest_mesh(4), task), tree.split(model)[1]
    logits = predict(steps, start, IMAGES, np.arange(4))
    expected = -np.log(task.probabilities(logits)[np.arange(4), LABELS[:4]]).mean()
    batch = sharding.put_batch(steps.mesh, {"image": IMAGES[:4], "label": LABELS[:4]})
    state, loss = steps.train(steps.init(jax.tree.map(jnp.copy, start)), batch, 1e-3)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # Adam's first update has the learning rate's size, whatever the gradient's.
    change = np.abs(state.params["head.1.kernel"] - np.asarray(start["head.1.kernel"]))
    np.testing.assert_allclose(change[change > 1e-6], 1e-3, rtol=1e-2)
    assert change.max() > 0


def test_a_frozen_backbone_trains_its_head_alone() -> None:
    model = classifier()
    steps, start = steps_of(model, widest_mesh(4), mode="frozen"), tree.split(model)[1]
    state = steps.init({path: jnp.copy(value) for path, value in start.items()})
    moments = [leaf.size for leaf in jax.tree.leaves(state.optimizer)]
    assert sum(moments) == 2 + 2 * sum(value.size for path, value in start.items() if path.startswith("head."))
    batch = sharding.put_batch(steps.mesh, {"image": IMAGES[:4], "label": LABELS[:4]})
    state, _ = steps.train(state, batch, 1e-2)
    for path, value in start.items():
        moved = float(np.abs(np.asarray(state.params[path]) - np.asarray(value)).max())
        assert (moved > 1e-3) == path.startswith("head."), path


def test_devices_change_nothing_but_rounding() -> None:
    model = classifier()
    start = tree.split(model)[1]
    one, *others = (
        fitted(steps_of(model, sharding.make_mesh(4, fsdp, devices)), start, 1e-3, 2).scored
        for devices, fsdp in ((1, 1), (4, 1), (4, 4))
    )
    for other in others:
        for before, after in zip(one.history, other.history, strict=True):
            np.testing.assert_allclose(list(before.values()), list(after.values()), rtol=1e-4)
        np.testing.assert_allclose(one.test, other.test, atol=1e-4)


def test_a_fine_tuned_model_loads_as_a_classifier_or_as_its_backbone(finished: Path, tmp_path: Path) -> None:
    folder = finished / "models" / "fold_1"
    origin = f"{folder} is a classifier fine-tuned on breast, fold 1, of {finished.name}"
    with pytest.warns(UserWarning, match=re.escape(f"{origin}: its backbone is taken, its head is left out")):
        backbone = load_model(folder)
    classifier = load_classifier(folder)
    assert classifier.renormalise
    x = jnp.ones((1, 28, 28, 1))
    np.testing.assert_array_equal(classifier.backbone(x).pooled, backbone(x).pooled)
    save_model(tmp_path / "model", backbone)
    with pytest.raises(UsageError, match="model holds a backbone without a classifier"):
        load_classifier(tmp_path / "model")


def test_the_grid_is_every_rate_with_every_batch_size() -> None:
    names = [setting.name for setting in make_grid([1e-5, 1e-6], [8, 16, 32])]
    assert names == [f"lr1e-0{rate}_bs{size}" for rate in (5, 6) for size in (8, 16, 32)]


def test_presets_are_read(task: Path, tmp_path: Path) -> None:
    presets = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("*.yaml"))
    assert {path.stem for path in presets} >= {"laptop", "medidino_code", "medidino_paper"}
    read = partial(parse, FinetuneConfig, verb="finetune")
    for preset in presets:
        config = read(arguments=["--config", str(preset), "--data", str(task), "--out", str(tmp_path)])
        assert make_grid(config.lrs, config.batch_sizes)
        assert config.classifier.renormalise == (preset.stem == "medidino_code")
