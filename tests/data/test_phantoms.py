"""Phantoms: what is on disk, the physics of the images, and how hard they are."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_fill_holes
from scipy.spatial import ConvexHull
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dinojax.data.phantoms.bmode import Scene, draw_image, receive
from dinojax.data.phantoms.dataset import draw_scenes, write_phantoms
from dinojax.errors import UsageError
from dinojax.verbs import run as run_verb


@pytest.fixture(scope="module")
def default_set(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "set"
    write_phantoms(out)
    return out


def read_fold(folder: Path, split: str, fold: int) -> pd.DataFrame:
    return pd.read_csv(folder / "dataframe" / f"phantom_{split}_fold{fold}.csv")


def make_scenes(label: str, count: int) -> list[Scene]:
    return [view for views in draw_scenes(np.random.default_rng(5), label, count, 1) for view in views]


def test_pixels_tell_something_but_not_much(default_set):
    def load(table: pd.DataFrame) -> np.ndarray:
        small = [Image.open(default_set / name).resize((32, 32), Image.Resampling.BILINEAR) for name in table.filename]
        return np.stack([np.asarray(image, np.float64).ravel() for image in small])

    aucs = []
    for fold in range(1, 6):
        train, test = read_fold(default_set, "train", fold), read_fold(default_set, "test", fold)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(load(train), train.label)
        assert list(classifier.classes_) == ["benign", "malignant"]
        aucs.append(roc_auc_score(test.label == "malignant", classifier.predict_proba(load(test))[:, 1]))
    assert 0.60 <= np.mean(aucs) <= 0.80


def test_manifest_lists_grey_images_and_masks_of_the_same_name(default_set):
    table = pd.read_csv(default_set / "manifest.csv")
    assert list(table.columns) == ["path", "patient_id", "label", "mask"]
    assert len(table) == 240
    assert set(table.groupby("patient_id")["label"].nunique()) == {1}
    assert table["label"].value_counts().to_dict() == {"benign": 120, "malignant": 120}
    assert {f"images/{file.name}" for file in (default_set / "images").iterdir()} == set(table["path"])
    for image_name, mask_name in zip(table["path"][::10], table["mask"][::10], strict=True):
        image, mask = Image.open(default_set / image_name), Image.open(default_set / mask_name)
        assert image.mode == mask.mode == "L"
        assert image.size == mask.size == (128, 128)
        assert Path(image_name).name == Path(mask_name).name
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_fold_files_keep_patients_together_and_test_each_image_once(default_set):
    manifest = pd.read_csv(default_set / "manifest.csv")
    patient = dict(zip(manifest["path"], manifest["patient_id"], strict=True))
    tested = []
    for fold in range(1, 6):
        parts = [read_fold(default_set, split, fold) for split in ("train", "val", "test")]
        train, val, test = ({patient[name] for name in part["filename"]} for part in parts)
        assert not train & val
        assert not train & test
        assert not val & test
        assert sum(len(part) for part in parts) == 240
        tested += list(parts[2]["filename"])
    assert sorted(tested) == sorted(manifest["path"])
    assert not (default_set / "dataframe" / "phantom_test_fold6.csv").exists()


def test_the_seed_decides_every_file(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantoms(tmp_path / name, patients=6, images_per_patient=1, size=64, folds=3, seed=seed)
    files = {
        name: {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.*")} for name in "abc"
    }
    assert files["a"] == files["b"]
    pictures = [name for name in files["a"] if name.suffix == ".png"]
    assert len(pictures) == 12
    assert all(files["a"][name] != files["c"][name] for name in pictures)


def make_uniform(size: int = 400) -> tuple[np.ndarray, Scene]:
    """The level received from tissue that is the same everywhere."""
    scene = dataclasses.replace(make_scenes("benign", 1)[0], tilt=0.0)
    level = receive(np.random.default_rng(0), scene, np.full((size, size), -20.0), np.zeros((size, size)))
    return level, scene


def test_speckle_is_rayleigh_distributed():
    level, _ = make_uniform()
    # The logarithm of a Rayleigh amplitude has a standard deviation of pi / sqrt(24) whatever its level. Within a beam
    # the level is the same all along.
    expected = 20 * np.log10(np.e) * np.pi / np.sqrt(24)
    np.testing.assert_allclose(level.std(axis=0).mean(), expected, rtol=0.03)
    power = 10 ** (level / 10)
    amplitude = np.sqrt(power / power.mean(axis=0))
    np.testing.assert_allclose(amplitude.mean(), np.sqrt(np.pi) / 2, rtol=0.02)


def test_speckle_widens_with_depth():
    level, scene = make_uniform()
    fan, rows = scene.fan, len(level)

    def alike(depth: float, distance: float = 0.008) -> float:
        """Correlation of what lies side by side at a distance in sides of the image."""
        radius = fan.near + depth * (fan.far - fan.near)
        beams = round(distance / (radius * 2 * fan.half_angle) * rows)
        band = level[int((depth - 0.05) * rows) : int((depth + 0.05) * rows)]
        band = band - band.mean(axis=0)
        return float(np.corrcoef(band[:, beams:].ravel(), band[:, :-beams].ravel())[0, 1])

    assert alike(0.4) + 0.1 < alike(0.65) < alike(0.9) - 0.1


@pytest.mark.parametrize(("attenuation", "sign"), [(-40.0, 1), (40.0, -1)])
def test_attenuation_of_the_lesion_shows_behind_it_alone(attenuation, sign):
    scene = dataclasses.replace(make_scenes("malignant", 1)[0], lesion_side=0.0, spicules=0.0, rim=0.0)

    def draw(value: float) -> tuple[np.ndarray, np.ndarray]:
        image, mask = draw_image(np.random.default_rng(3), dataclasses.replace(scene, attenuation=value), 96)
        return image.astype(float), mask > 0

    (neutral, mask), (image, _) = draw(0.0), draw(attenuation)
    bottom, top = np.flatnonzero(mask.any(axis=1))[[-1, 0]]
    behind = np.s_[bottom + 4 : bottom + 20, 44:52]
    assert sign * (image - neutral)[behind].mean() > 15
    assert np.abs(image - neutral)[: top - 4].max() <= 5
    assert np.abs(image - neutral)[:, :10].max() <= 5


def shape_of(mask: np.ndarray) -> tuple[float, float]:
    """Width by height, and area by that of the convex hull."""
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([rows + a, columns + b], axis=1) for a in (0, 1) for b in (0, 1)])
    return (np.ptp(columns) + 1) / (np.ptp(rows) + 1), len(rows) / ConvexHull(corners).volume


def test_lesions_differ_in_shape_as_the_classes_do():
    shapes = {
        label: np.array([shape_of(draw_image(np.random.default_rng(i), s, 96)[1]) for i, s in enumerate(scenes)])
        for label, scenes in ((label, make_scenes(label, 16)) for label in ("benign", "malignant"))
    }
    (benign_aspect, benign_solid), (malignant_aspect, malignant_solid) = (shapes[k].mean(axis=0) for k in shapes)
    assert benign_aspect > 1.2
    assert malignant_aspect < 1.05
    assert benign_solid > 0.93
    assert malignant_solid < 0.88


def test_the_image_is_a_fan_on_black():
    for scene in make_scenes("benign", 4):
        image, mask = draw_image(np.random.default_rng(0), scene, 96)
        fan = np.asarray(binary_fill_holes(image > 0), bool)
        assert image.dtype == mask.dtype == np.uint8
        assert not image[:, 0].any()
        assert not image[[0, -1]].any()
        widths = fan.sum(axis=1)[10:60]
        assert (np.diff(widths) >= -2).all()
        assert widths[-1] > 1.5 * widths[0]
        assert 0.3 < fan.mean() < 0.7
        assert not (mask.astype(bool) & ~fan).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 9}, "patients is 9; at least 10"),
        ({"folds": 2}, "folds is 2; at least 3"),
        ({"size": 32}, "size is 32; at least 64"),
        ({"images_per_patient": 0}, "images_per_patient is 0; at least 1"),
        ({"seed": -1}, "seed is -1; at least 0"),
    ],
)
def test_numbers_too_small_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        write_phantoms(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match=f"{place}: not an empty directory"):
            write_phantoms(place)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_verb_draws_a_sheet_and_says_where_to_look(tmp_path, capsys):
    out = tmp_path / "set"
    run_verb(
        [
            "phantoms",
            str(out),
            "--patients",
            "7",
            "--images_per_patient",
            "2",
            "--size",
            "64",
            "--folds",
            "3",
            "--seed",
            "4",
        ]
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("14 images of 7 patients (8 benign, 6 malignant)")
    assert last.endswith(str(out / "phantoms.png"))
    pixels = np.asarray(Image.open(out / "phantoms.png").convert("RGB")).astype(int)
    golden = (pixels[..., 0] > 180) & (pixels[..., 2] < 80)  # the outlines
    assert golden.sum() > 100
    with pytest.raises(UsageError, match="colour"):
        run_verb(["phantoms", str(tmp_path / "other"), "--colour", "3"])
