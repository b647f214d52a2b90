"""The probe against a loop over images, one at a time; and the curves that show it."""

import logging
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from PIL import Image

from dinojax import preprocess, tree
from dinojax.augment import geometry
from dinojax.config.pretrain import ProbeConfig
from dinojax.data.decode import decode
from dinojax.data.reading import read_records
from dinojax.errors import RunError, UsageError
from dinojax.models import VisionTransformer, create_transformer
from dinojax.protocols.pixels import grey_pixels
from dinojax.protocols.probe import Probe
from dinojax.reporting.plots import metrics_panels, plot_metrics
from dinojax.sharding import replicated, widest_mesh

RNG = np.random.default_rng(0)


def tiny(seed: int = 0, channels: int = 1) -> VisionTransformer:
    return create_transformer("vitt14", nnx.Rngs(seed), width=32, depth=1, heads=2, image_size=28, channels=channels)


def write_images(folder: Path, classes: str, patients: str | None = None, splits: list[str] | None = None) -> Path:
    """An image a letter of `classes`, of patients' letters, brighter by class, and `manifest.csv`."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    rows = {"path": [f"{number:03}.png" for number in range(len(classes))], "label": list(classes)}
    for name, label in zip(rows["path"], classes, strict=True):
        pixels = rng.normal(60 + 30 * (ord(label) - ord("a")), 50, (40, 34)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    rows |= {"patient_id": list(patients)} if patients else {}
    rows |= {"split": splits} if splits else {}
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def loop(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Shares of the votes, neighbour by neighbour."""
    votes = np.zeros((len(labels), labels.max() + 1))
    for image in range(len(labels)):
        others = [other for other in range(len(labels)) if groups[other] != groups[image]]
        lengths = np.linalg.norm(features[image]) * np.linalg.norm(features[others], axis=1)
        similarity = features[others] @ features[image] / lengths
        for place in np.argsort(-similarity)[:k]:
            votes[image, labels[others[place]]] += np.exp(similarity[place] / 0.07)
    return votes / votes.sum(1, keepdims=True)


def test_constant_features_give_chance(tmp_path: Path) -> None:
    probe = Probe(
        tiny(),
        ProbeConfig(data=str(write_images(tmp_path / "data", "".join(name * 25 for name in "abcd"))), k=5),
        size=28,
    )
    constant = {path: jax.numpy.zeros_like(value) for path, value in tree.split(tiny())[1].items()}
    assert probe.measure(constant)["probe"] == 0.25


def test_the_probe_equals_a_loop_over_images(tmp_path: Path) -> None:
    classes, patients = "aabbccabcabcaabbcc", "112233445566778899"
    data, model = write_images(tmp_path / "data", classes, patients), tiny()
    probe = Probe(model, ProbeConfig(data=str(data), k=5), size=28)
    records = read_records(str(data), labelled=True)
    resized = [geometry.square(decode(records, place), 28) for place in range(18)]
    token = jax.jit(lambda image: model(preprocess(image[None], model)).pooled[0])
    tokens = np.stack([token(image) for image in resized])
    np.testing.assert_allclose(probe.features(tree.split(model)[1]), tokens, atol=1e-5)
    labels, groups = np.asarray([ord(c) - ord("a") for c in classes]), np.asarray(list(patients))
    right = loop(tokens, labels, groups, 5).argmax(1) == labels
    found = probe.measure(tree.split(model)[1])
    assert found["probe"] == right.mean()
    assert found["probe_balanced"] == pytest.approx(np.mean([right[labels == c].mean() for c in range(3)]))
    pixels = (
        loop(
            np.stack([grey_pixels(image) for image in (decode(records, place) for place in range(18))]),
            labels,
            groups,
            5,
        ).argmax(1)
        == labels
    )
    expected = {"probe_pixels": pixels.mean(), "probe_majority": pytest.approx(6 / 18), "probe_images": 18}
    assert probe.baselines() == expected
    assert probe.summary.endswith("18 of 18 images of a data set without parts; 6 a, 6 b, 6 c; 9 patients")


def test_other_parameters_and_devices_need_no_other_program(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = Probe(tiny(), ProbeConfig(data=str(write_images(tmp_path / "data", "ab" * 40))), size=28)
    params = [tree.split(tiny(seed))[1] for seed in (0, 1)]
    first = probe.features(params[0])
    assert first.shape == (80, 32)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = probe.features(params[1])
        spread = probe.features(jax.device_put(params[0], replicated(widest_mesh(8))))
    assert not [record.message for record in caplog.records if "Compiling" in record.message]
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(spread, first)


def test_a_choice_of_images_keeps_the_classes_shares(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", "a" * 30 + "b" * 20 + "c" * 10)
    probe = Probe(tiny(), ProbeConfig(data=str(data), k=3, images=12), size=28)
    np.testing.assert_array_equal(np.bincount(probe.labels), [6, 4, 2])
    assert len(Probe(tiny(), ProbeConfig(data=str(data), k=3, images=60), size=28).labels) == 60


def test_only_the_training_part_is_looked_at(tmp_path: Path) -> None:
    splits = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    data = write_images(tmp_path / "data", "ab" * 8, splits=splits)
    for number in range(8, 16):
        (data / f"{number:03}.png").write_bytes(b"no image")
    probe = Probe(tiny(), ProbeConfig(data=str(data), k=3), size=28)
    assert len(probe.labels) == 8
    assert "8 of 8 images of the training part; 4 a, 4 b; no patients known" in probe.summary


def test_the_patient_may_stand_in_the_path(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", "ab" * 8)
    probe = Probe(tiny(), ProbeConfig(data=str(data), k=3, group_regex=r"\d(\d)\d\.png"), size=28)
    np.testing.assert_array_equal(probe.groups, [0] * 10 + [1] * 6)


def test_unreadable_images_may_be_left_out(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", "ab" * 8)
    (data / "003.png").write_bytes(b"no image")
    whole = (data / "004.png").read_bytes()
    (data / "004.png").write_bytes(whole[: len(whole) // 2])
    probe = Probe(tiny(channels=3), ProbeConfig(data=str(data), k=3), size=28, on_bad_file="skip")
    np.testing.assert_array_equal(probe.labels, [0, 1, 0] + [1, 0] * 5 + [1])
    with pytest.raises(RunError, match=r"003\.png"):
        Probe(tiny(), ProbeConfig(data=str(data), k=3), size=28)


@pytest.mark.parametrize(
    ("classes", "patients", "splits", "message"),
    [
        ("ab" * 4, None, None, "8 images are too few for probe.k 8"),
        ("ab" * 10, "1" * 20, None, "all 20 images are of one patient"),
        ("a" * 10 + "b" * 10, None, ["train"] * 10 + ["test"] * 10, "all 10 images are of one class"),
        ("ab" * 10, None, ["test"] * 20, "none of its 20 images is of the training part"),
        ("a" * 20, None, None, "all 20 images are of one class"),
    ],
)
def test_data_that_cannot_be_probed(
    tmp_path: Path, classes: str, patients: str | None, splits: list[str] | None, message: str
) -> None:
    data = write_images(tmp_path / "data", classes, patients, splits)
    with pytest.raises(UsageError, match=rf"^probe\.data.*{message}[^\n]*$"):
        Probe(tiny(), ProbeConfig(data=str(data), k=8), size=28)


def test_options_are_named_as_the_configuration_names_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^probe\.data nowhere: no such file or folder$"):
        Probe(tiny(), ProbeConfig(data="nowhere"), size=28)
    data = write_images(tmp_path / "data", "ab")
    with pytest.raises(UsageError, match=r"^probe\.group_regex x: has no group"):
        Probe(tiny(), ProbeConfig(data=str(data), group_regex="x"), size=28)


def run_of(steps: int) -> list[dict]:
    lines: list[dict] = [{"step": 0, "probe": 0.6, "probe_pixels": 0.7, "probe_majority": 0.3}]
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 6.0, "dino_local": 4.0, "dino_global": 2.0, "ibot": 0.0, "kl": 0.1}
        line |= {"probe": 0.8 if step == 4 else 0.5} if step % 2 == 0 else {}
        lines.append({**line, "time": {"images_per_s": 50.0, "seconds": 2.0, "data_wait": 0.5}})
    return lines


def test_curves_are_of_what_a_run_has(tmp_path: Path) -> None:
    table = pd.json_normalize(run_of(7)).set_index("step")
    panels = {panel.title.split(":")[0]: panel for panel in metrics_panels(table, prototypes=1024)}
    assert "iBOT loss" not in panels
    assert "Learning rate" not in panels
    probe = panels["k-NN probe"]
    assert probe.title == "k-NN probe: best 0.800 at step 4"
    assert probe.curves["probe"].to_dict() == {0: 0.6, 2: 0.5, 4: 0.8, 6: 0.5}
    assert probe.best == 2
    assert list(probe.references.values()) == [0.7, 0.3]
    assert panels["DINO loss"].curves["local + global"].to_dict() == dict.fromkeys(range(1, 8), 6.0)
    weighted = {panel.title: panel for panel in metrics_panels(table, prototypes=1024, dino_weight=0.5)}
    assert weighted["DINO loss"].curves["local + global"].to_dict() == dict.fromkeys(range(1, 8), 12.0)
    table = table.assign(prototypes_used=0.05)
    panels = {panel.title: panel for panel in metrics_panels(table, 1024, targets=64)} | panels
    assert list(panels["Share of the prototypes used"].references.values()) == [64 / 1024]
    assert panels["Share of the time waiting for data"].curves["data_wait / seconds"].to_dict()[3] == 0.25


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 2), slice(1, 8), slice(0, 8)])
def test_figures_of_any_part_of_a_run(tmp_path: Path, kept: slice) -> None:
    metrics = tmp_path / "metrics.jsonl"
    pd.DataFrame(run_of(7)[kept]).to_json(metrics, orient="records", lines=True)
    plot_metrics(metrics, tmp_path / "curves.png", prototypes=1024)
    with Image.open(tmp_path / "curves.png") as image:
        assert len(set(image.convert("L").resize((50, 50)).tobytes())) > 2
