"""What is shown of a model against computations by hand, scikit-learn's PCA and brute force."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.decomposition import PCA

from dinojax import preprocess, tree
from dinojax.data.reading import read_records
from dinojax.look import figures, numbers
from dinojax.models import Backbone, VisionTransformer, create_model, create_transformer
from dinojax.protocols.knn import Neighbours

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 42, 28, 1), dtype=np.uint8)


def vit(**overrides: object) -> VisionTransformer:
    size = {"width": 32, "depth": 2, "heads": 2, "image_size": 28, "registers": 3}
    return create_transformer("vitt14", nnx.Rngs(0), **{**size, **overrides})


def resnet() -> Backbone:
    return create_model("resnet50", nnx.Rngs(0), blocks=(1, 1, 1, 1), filters=(8, 8, 16, 16), stem=8)


def test_parameters_by_part_add_up_to_the_model() -> None:
    model = vit(depth=11)
    table = numbers.parameters_by_part(model)
    blocks = [f"block {number}" for number in range(11)]  # in the order of their numbers, 10 after 9
    assert list(table.index) == ["patch embedding", "positional embeddings", "tokens", *blocks, "final norm"]
    params = tree.split(model)[1]
    count = sum(array.size for array in params.values())
    squares = sum(float(np.square(array).sum()) for array in params.values())
    columns = ["parameters", "statistics", "bytes"]
    np.testing.assert_array_equal(table[columns].to_numpy().sum(0), [count, 0, 4 * count])
    np.testing.assert_allclose(np.square(table["norm"].to_numpy()).sum(), squares, rtol=1e-5)
    # Twelve times the square of the width, biases of 9 widths, two LayerScales, two norms.
    assert table.loc["block 3", "parameters"] == 12 * 32**2 + (9 + 2 + 4) * 32
    bias = params["norm.bias"] + 2.0
    changed = numbers.parameters_by_part(tree.merge(tree.split(model)[0], {**params, "norm.bias": bias}))
    np.testing.assert_allclose(changed.loc["final norm"], [64, 0, 256, np.sqrt(32 * 5), np.sqrt(2.5)], rtol=1e-6)


def test_running_statistics_are_no_parameters() -> None:
    table = numbers.parameters_by_part(resnet())
    assert list(table.index) == ["stem", "stage 0", "stage 1", "stage 2", "stage 3"]
    assert list(table.loc["stem"][:3]) == [7 * 7 * 3 * 8 + 2 * 8, 2 * 8, 4 * (7 * 7 * 3 * 8 + 4 * 8)]


def test_half_precision_counts_its_own_bytes() -> None:
    graph, params = tree.split(vit())
    table = numbers.parameters_by_part(tree.merge(graph, {k: v.astype(jnp.bfloat16) for k, v in params.items()}))
    np.testing.assert_array_equal(table["bytes"], 2 * table["parameters"])


@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize("make", [vit, resnet])
def test_features_in_batches_equal_those_at_once(make, batch_size: int) -> None:
    model, images = make(), IMAGES if make is vit else np.repeat(IMAGES, 2, axis=2)
    expected = model(preprocess(images, model))
    np.testing.assert_allclose(
        numbers.pooled_features(model, images, batch_size), expected.pooled, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        numbers.patch_features(model, images, batch_size), expected.patches, rtol=1e-4, atol=1e-5
    )


def test_class_attention_is_the_first_row_of_the_weights() -> None:
    model = vit()
    weights = np.asarray(model.attention(preprocess(IMAGES, model), 0))[:, :, 0]
    found = numbers.class_attention(model, IMAGES, block=0, batch_size=2)
    assert found.patches.shape == (5, 2, 3, 2)
    np.testing.assert_allclose(found.itself, weights[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(found.registers, weights[:, :, 1:4], atol=1e-6)
    np.testing.assert_allclose(found.patches[:, :, 2, 0], weights[:, :, 4 + 2 * 2], atol=1e-6)
    total = found.itself + found.registers.sum(-1) + found.patches.sum((2, 3))
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_attention_mass_by_kind_of_token() -> None:
    patches = np.array([[[[0.1, 0.2], [0.3, 0.0]]], [[[0.0, 0.0], [0.2, 0.4]]]], np.float32)
    attention = numbers.ClassAttention(patches, np.full((2, 1, 2), 0.1, np.float32), np.full((2, 1), 0.2, np.float32))
    outliers = np.array([[[False, True], [False, False]], [[False, False], [False, True]]])
    table = numbers.attention_mass(attention, outliers)
    assert list(table.columns) == ["class token", "registers", "outlier patches", "other patches"]
    np.testing.assert_allclose(table.loc[0], [0.2, 0.2, (0.2 + 0.4) / 2, (0.4 + 0.2) / 2], atol=1e-6)
    without = numbers.attention_mass(attention._replace(registers=np.zeros((2, 1, 0), np.float32)), outliers)
    assert list(without.columns) == ["class token", "outlier patches", "other patches"]


def test_token_norms_are_those_before_the_final_norm() -> None:
    model = vit()
    norms = numbers.token_norms(model, IMAGES, batch_size=2)
    stream = np.asarray(model.stream(preprocess(IMAGES, model), 2))
    expected = np.sqrt(np.square(stream).sum(-1))
    np.testing.assert_allclose(norms.registers, expected[:, 1:4], rtol=1e-5)
    np.testing.assert_allclose(norms.patches, expected[:, 4:].reshape(5, 3, 2), rtol=1e-5)
    np.testing.assert_array_equal(norms.outliers, norms.patches > norms.cutoff)
    cutoff = float(np.sort(norms.patches.ravel())[-4])
    assert numbers.token_norms(model, IMAGES, cutoff).outliers.sum() == 3


def test_the_cutoff_finds_a_second_hump_and_nothing_in_one_hump() -> None:
    """Two in a hundred, four to ten times as long as others; black background beside tissue is none, nor is tissue."""
    rng = np.random.default_rng(1)
    plain = rng.normal(40, 4, (4, 16, 16))
    assert not (plain > numbers.robust_cutoff(plain)).any()
    with_outliers = plain.copy()
    with_outliers[:, 3, :5] *= 10
    found = with_outliers > numbers.robust_cutoff(with_outliers)
    assert found.sum() == 20
    assert found[:, 3, :5].all()
    for share in (0.0, 0.3, 0.48, 0.5, 0.6, 0.85):
        for black, tissue in ((18, 45), (45, 18), (4, 16)):
            is_black = rng.random((4, 16, 16)) < share
            norms = np.where(is_black, rng.normal(black, 1, (4, 16, 16)), rng.normal(tissue, 2, (4, 16, 16)))
            assert not (norms > numbers.robust_cutoff(norms)).any()
            norms[:, 3, :5] = 4 * max(black, tissue)
            found = norms > numbers.robust_cutoff(norms)
            assert found.sum() == 20
            assert found[:, 3, :5].all()


def structured_patches() -> np.ndarray:
    """[4, 5, 6, 20] whose variances along directions differ clearly."""
    rng = np.random.default_rng(2)
    mixing = np.linalg.qr(rng.standard_normal((20, 20)))[0] * np.linspace(9, 0.5, 20)
    return (rng.standard_normal((4, 5, 6, 20)) @ mixing.T + 3).astype(np.float32)


def test_components_are_those_of_scikit_learn_up_to_sign() -> None:
    patches = structured_patches()
    found = numbers.principal_components(patches)
    pca = PCA(3, svd_solver="full").fit(patches.reshape(-1, 20).astype(np.float64))
    signs = np.sign((found.directions * pca.components_).sum(1))
    np.testing.assert_allclose(found.directions, pca.components_ * signs[:, None], atol=1e-5)
    np.testing.assert_allclose(found.variance, pca.explained_variance_ratio_, atol=1e-6)
    scores = pca.transform(patches.reshape(-1, 20).astype(np.float64)) * signs
    np.testing.assert_allclose(found.scores.reshape(-1, 3), scores, atol=1e-4)
    largest = np.abs(found.directions).argmax(1)
    assert (found.directions[np.arange(3), largest] > 0).all()


def test_colours_stay_whatever_the_order_of_the_images() -> None:
    patches = structured_patches()
    found = numbers.as_colours(numbers.principal_components(patches).scores)
    assert found.min() == 0
    assert found.max() == 1
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(4)
        again = numbers.as_colours(numbers.principal_components(patches[order]).scores)
        np.testing.assert_allclose(again, found[order], atol=1e-5)
    # Features turned round give the same maps turned round, not the sign of chance.
    mirrored = numbers.principal_components(patches[:, :, ::-1])
    np.testing.assert_allclose(mirrored.scores[:, :, ::-1], numbers.principal_components(patches).scores, atol=1e-4)


def test_components_of_fewer_patches_than_features() -> None:
    patches = np.random.default_rng(3).standard_normal((2, 2, 2, 64)).astype(np.float32)
    found = numbers.principal_components(patches)
    pca = PCA(3, svd_solver="full").fit(patches.reshape(-1, 64))
    np.testing.assert_allclose(np.abs((found.directions * pca.components_).sum(1)), 1, atol=1e-4)


def test_similarity_map_is_1_at_the_patch_chosen() -> None:
    patches = np.random.default_rng(5).standard_normal((3, 4, 6)).astype(np.float32)
    patches[2, 3] = -2 * patches[1, 2]
    patches[0, 0] = 0
    found = numbers.similarity_map(patches, 1, 2)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found[1, 2], 1, atol=1e-6)
    np.testing.assert_allclose(found[2, 3], -1, atol=1e-6)
    assert found[0, 0] == 0
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)


def test_position_similarity_leaves_the_class_tokens_out() -> None:
    model = vit()
    table = np.asarray(tree.split(model)[1]["pos_embed"])[0, 1:]
    found = numbers.position_similarity(model)
    assert found.shape == (2, 2, 2, 2)
    expected = table[1] @ table[2] / np.linalg.norm(table[1]) / np.linalg.norm(table[2])
    np.testing.assert_allclose(found[0, 1, 1, 0], expected, atol=1e-6)


def test_what_a_resnet_does_not_have_is_said() -> None:
    model = resnet()
    with pytest.raises(ValueError, match="a ResNet has no attention maps"):
        numbers.class_attention(model, IMAGES)
    with pytest.raises(ValueError, match="a ResNet has no outlier tokens"):
        numbers.token_norms(model, IMAGES)
    with pytest.raises(ValueError, match="a ResNet has no positional embeddings"):
        numbers.position_similarity(model)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_squares_of_the_models_size_and_channels(tmp_path: Path, channels: int) -> None:
    for place, value in enumerate((40, 200)):
        Image.fromarray(np.full((30, 50 + place), value, np.uint8)).save(tmp_path / f"{place}.png")
    records = read_records(str(tmp_path), labelled=False)
    model = vit(channels=channels)
    images = numbers.read_images(records, np.array([1, 0]), model, 28)
    assert images.shape == (2, 28, 28, channels)
    assert (images[0] == 200).all()
    assert (images[1] == 40).all()
    assert numbers.read_images(records, np.array([0]), model).shape[1] == model.preprocessing.size
    with pytest.raises(ValueError, match="multiples of 14, got 100×100"):
        numbers.read_images(records, np.array([0]), model, 100)


def drawn(axis: Axes) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def outlined(axis: Axes) -> list[tuple[float, float]]:
    """The corners (x, y) of the squares on an axis."""
    return [square.get_xy() for square in axis.patches if isinstance(square, Rectangle)]


def test_figures_show_the_numbers() -> None:
    """Map for map: what an axis holds is what was computed, on the scale of its colour bar."""
    model, images = vit(), IMAGES
    attention = numbers.class_attention(model, images)
    figure = figures.plot_attention(images, attention, "attention", columns=3)
    panels = [axis for axis in figure.axes if axis.images and not axis.get_title().startswith("image")]
    assert [axis.get_title() for axis in panels[:3]] == [
        f"{name}, max {6 * values.max():.3g}"
        for name, values in (
            ("mean of heads", attention.patches[0].mean(0)),
            ("head 0", attention.patches[0, 0]),
            ("head 1", attention.patches[0, 1]),
        )
    ]
    np.testing.assert_allclose(drawn(panels[1]), attention.patches[0, 0] * 6, rtol=1e-6)
    assert "number of patches" in figure.axes[-1].get_ylabel()

    norms = numbers.token_norms(model, images, cutoff=0.0)
    figure = figures.plot_norms(images, norms, "norms", shown=2)
    maps = [axis for axis in figure.axes if axis.get_title() == "outliers: 6"]
    assert len(maps) == 2
    assert len(maps[0].patches) == 6
    (legend,) = figure.subfigs[0].legends
    assert any("100.00%" in text.get_text() for text in legend.get_texts())

    patches = numbers.patch_features(model, images)
    components = numbers.principal_components(patches)
    figure = figures.plot_components(images, components, "components", columns=3)
    coloured = [drawn(axis) for axis in figure.axes if axis.images and drawn(axis).shape == (3, 2, 3)]
    np.testing.assert_allclose(coloured, numbers.as_colours(components.scores), atol=1e-6)

    places = [(2, 1), (1, 0)]
    maps = [numbers.similarity_map(of_image, *place) for of_image, place in zip(patches, places, strict=False)]
    figure = figures.plot_similarity(images[:2], maps, places, "similarity")
    for column, (row, place) in enumerate(places):
        above, below = figure.axes[column], figure.axes[2 + column]
        np.testing.assert_array_equal(drawn(above), images[column].squeeze())
        np.testing.assert_allclose(drawn(below), maps[column])
        assert outlined(above) == outlined(below) == [(place * 14, row * 14)]

    similarity = numbers.position_similarity(model)
    figure = figures.plot_positions(similarity, "positions", places=2)
    side = len(similarity) - 1
    for axis, (row, column) in zip(figure.axes, [(0, 0), (0, side), (side, 0), (side, side)], strict=False):
        np.testing.assert_allclose(drawn(axis), similarity[row, column])
        assert outlined(axis) == [(column, row)]

    table = pd.DataFrame({"class token": [0.1, 0.2], "outlier patches": [0.3, 0.0], "other patches": [0.6, 0.8]})
    (axis,) = figures.plot_attention_mass(table, "mass").axes
    bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches if isinstance(bar, Rectangle)]
    expected = [(0, 0.1), (0, 0.2), (0.1, 0.3), (0.2, 0.0), (0.4, 0.6), (0.2, 0.8)]
    np.testing.assert_allclose(bars, expected, atol=1e-12)


def test_frames_of_neighbours_tell_whether_labels_agree() -> None:
    found = Neighbours(np.array([[1, 2]]), np.array([[0.9, 0.8]], np.float32))
    figure = figures.plot_neighbours((IMAGES[:1], ["a"]), (IMAGES, ["a", "a", "b", "", ""]), found, "neighbours")
    query, same, other = figure.axes
    assert not query.patches
    assert query.get_title() == "query 0\na"
    assert same.get_title() == "image 1: 0.900\na"
    assert same.patches[0].get_edgecolor() != other.patches[0].get_edgecolor()
