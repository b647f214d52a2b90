"""The two ResNet50s against the published code's outputs; BatchNorm in training, by hand."""

import functools
import json
import re
from collections.abc import Mapping

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import ARGUMENTS, ResNet, ResNetArguments
from dinojax.models.heads import Classifier
from dinojax.models.resnet import BatchNorm, Conv, freeze_batchnorm, running_statistics
from dinojax.protocols import features
from tests import goldens_reader as goldens

TINY = {"blocks": (2, 1), "filters": (4, 8), "stem": 8}


def resnet(name: str = "resnet50", **overrides: object) -> ResNet:
    made = dinojax.create_model(name, nnx.Rngs(0), **(overrides or TINY))
    assert isinstance(made, ResNet)
    return made


TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
KERAS = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}


def torch_name(path: str) -> str:
    layer, leaf = path.rsplit(".", 1)
    layer = re.sub(r"^layers\.(\d)", lambda stage: f"layer{int(stage[1]) + 1}", layer)
    layer = layer.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")
    return f"{layer}.{TORCH[leaf]}"


def keras_name(path: str) -> str:
    layer, leaf = path.rsplit(".", 1)
    kind = "conv" if re.search(r"conv\d?$", layer) else "bn"
    leaf = KERAS.get(leaf, "beta" if (kind, leaf) == ("bn", "bias") else leaf)
    found = re.match(r"layers\.(\d)\.(\d)\.(?:shortcut\.)?[a-z]+(\d?)", layer)
    block = f"{int(found[1]) + 2}_block{int(found[2]) + 1}_{found[3] or 0}" if found else "1"
    return f"conv{block}_{kind}/{leaf}"


def arguments(name: str) -> ResNetArguments:
    found = ARGUMENTS[name]
    assert isinstance(found, ResNetArguments)
    return found


def filled(model: ResNet, tensors: Mapping[str, np.ndarray]) -> ResNet:
    graph, params = tree.split(model)
    assert params.keys() == tensors.keys()
    return tree.merge(graph, {path: jnp.asarray(tensors[path]) for path in params})


@functools.cache
def published(name: str) -> ResNet:
    """The whole model with rebuilt weights."""
    model = nnx.eval_shape(lambda: ResNet(name, arguments(name), nnx.Rngs(0)))
    tensors = {}
    for path, array in tree.split(model)[1].items():
        if name == "resnet50_keras":
            tensors[path] = goldens.rebuild(keras_name(path), array.shape)
        elif array.ndim == 1:
            tensors[path] = goldens.rebuild(torch_name(path), array.shape)
        else:
            height, width, inputs, outputs = array.shape
            rebuilt = goldens.rebuild(torch_name(path), (outputs, inputs, height, width))
            tensors[path] = rebuilt.transpose(2, 3, 1, 0)
    return filled(model, tensors)


def images(name: str, pixels: int) -> jax.Array:
    if name == "resnet50_keras":
        return jnp.asarray(goldens.rebuild(f"input.{name}.{pixels}", (2, pixels, pixels, 3)))
    return jnp.asarray(goldens.rebuild(f"input.{name}.{pixels}", (2, 3, pixels, pixels)).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("pixels", [224, 96])
@pytest.mark.parametrize(("name", "file"), [("resnet50", "torchvision"), ("resnet50_keras", "keras")])
def test_golden_pooled_features(name: str, file: str, pixels: int) -> None:
    model, x = published(name), images(name, pixels)
    expected = goldens.load(f"resnet50_{file}.npz")[f"{pixels}.pooled"]
    run = jax.jit(lambda model, x: model(x))
    found = run(model, x)
    goldens.assert_close(found.pooled, expected, 1e-5)
    assert found.patches.shape == (2, pixels // 32, pixels // 32, 2048)
    np.testing.assert_allclose(found.patches.mean((1, 2)), found.pooled, atol=1e-5)
    goldens.assert_close(run(model.for_inference(), x).pooled, expected, 1e-5)


def test_golden_names_of_keras_are_all_there() -> None:
    names = json.loads((goldens.goldens_dir() / "resnet50_keras_names.json").read_text())
    _, params = tree.split(nnx.eval_shape(lambda: dinojax.create_model("resnet50_keras", nnx.Rngs(0))))
    assert sorted(map(keras_name, params)) == sorted(names)


def test_golden_tiny_keras() -> None:
    """With the weights of the file; other widths than those of ResNet50, and a stem as wide as its own."""
    model = nnx.eval_shape(lambda: resnet("resnet50_keras", filters=(8, 8, 16, 16)))
    with h5py.File(goldens.goldens_dir() / "files" / "resnet50_tiny_notop_weights.h5") as file:
        tensors = {}
        for path in tree.split(model)[1]:
            layer, leaf = keras_name(path).split("/")
            tensors[path] = np.asarray(file[f"{layer}/{layer}/{leaf}:0"])
    x = jnp.asarray(goldens.rebuild("input.resnet50_tiny", (2, 96, 96, 3)))
    found = jax.jit(lambda model, x: model(x))(filled(model, tensors), x)
    goldens.assert_close(found.pooled, goldens.load("resnet50_tiny_keras.npz")["pooled"], 1e-5)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("pixels", [7, 8])
def test_a_convolution_is_the_sum_over_its_window(size: int, stride: int, pixels: int) -> None:
    conv = Conv(2, 3, size, stride, True, nnx.Rngs(0))
    assert conv.bias is not None
    conv.bias[...] = jnp.array([1.0, 2.0, 3.0])
    x = np.random.default_rng(0).standard_normal((1, pixels, pixels, 2)).astype(np.float32)
    padded = np.pad(x, [(0, 0), *[((size - 1) // 2,) * 2] * 2, (0, 0)])
    places = range(0, padded.shape[1] - size + 1, stride)
    windows = np.array([[padded[0, i : i + size, j : j + size] for j in places] for i in places])
    expected = np.einsum("hwijc,ijcd->hwd", windows, conv.kernel[...]) + np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(conv(jnp.asarray(x))[0], expected, atol=1e-5)


# PyTorch keeps 0.9 of the old statistics, Keras 0.99.
@pytest.mark.parametrize(("name", "eps", "kept"), [("resnet50", 1e-5, 0.9), ("resnet50_keras", 1.001e-5, 0.99)])
def test_batchnorm_uses_the_batch_in_training_and_moves_the_running_statistics(
    name: str, eps: float, kept: float
) -> None:
    """On numbers so small that eps counts."""
    norm = BatchNorm(3, arguments(name))
    x = np.random.default_rng(0).normal(2e-3, 3e-3, (4, 2, 2, 3)).astype(np.float32)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 2.0])
    norm.mean[...] = old = jnp.array([5.0, 6.0, 7.0]) / 1000
    norm.var[...] = old_var = jnp.array([1.0, 2.0, 3.0]) / 1e5
    flat = x.reshape(-1, 3).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + eps) * [1.0, 2.0, 3.0] + [0.0, 1.0, 2.0]
    np.testing.assert_allclose(norm(jnp.asarray(x), train=True), expected, atol=1e-5)
    mean, var = kept * old + (1 - kept) * flat.mean(0), kept * old_var + (1 - kept) * flat.var(0, ddof=1)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)
    expected = (x - mean) / np.sqrt(var + eps) * np.array([1.0, 2.0, 3.0]) + np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(norm(jnp.asarray(x), train=False), expected, atol=1e-5)


def test_inference_moves_nothing_and_sees_every_image_alone() -> None:
    model = resnet()
    x = jax.random.normal(jax.random.key(0), (3, 32, 40, 3))
    before = running_statistics(model)
    assert set(before) == {path for path in tree.split(model)[1] if path.endswith((".mean", ".var"))}
    run = jax.jit(lambda model, x: model(x).pooled)
    together = run(model, x)
    np.testing.assert_allclose(run(model, x[1:2]), together[1:2], atol=1e-5)

    @jax.jit
    def train(params: tree.Params) -> tuple[jax.Array, tree.Params]:
        called = tree.merge(graph, params)
        return called(x, train=True).pooled, running_statistics(called)

    graph, params = tree.split(model)
    for path, value in before.items():
        np.testing.assert_array_equal(value, params[path])
    pooled, after = train(params)
    assert np.abs(np.asarray(pooled - together)).max() > 1e-2
    assert after.keys() == before.keys()
    assert all(np.abs(value - before[path]).max() > 1e-4 for path, value in after.items())


def pretrained() -> ResNet:
    """Running statistics and affine parameters that are neither 0 nor 1."""
    graph, params = tree.split(resnet())
    drawn = np.random.default_rng(0)
    return tree.merge(
        graph,
        {p: v + jnp.asarray(drawn.uniform(0.1, 0.9, v.shape), "float32") * (v.ndim == 1) for p, v in params.items()},
    )


def trained_once(module: nnx.Module, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pooled features or logits in training, and what the call leaves of all arrays; compiled as a step would be."""
    graph, params = tree.split(module)

    @jax.jit
    def call(params: tree.Params) -> tuple[jax.Array, tree.Params]:
        called = tree.merge(graph, params)
        found = called(x, train=True)
        return getattr(found, "pooled", found), tree.split(called)[1]

    return call(params)


def test_frozen_batchnorms_infer_in_training_and_keep_their_statistics() -> None:
    """A ResNet all of whose layers are frozen below a head that is trained, as Keras does it."""
    classifier = Classifier(pretrained(), 2, 0, False, nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (3, 32, 40, 3))
    expected, before = jax.jit(lambda called, x: called(x))(classifier, x), tree.split(classifier)[1]
    moving, after = trained_once(classifier, x)
    assert np.abs(np.asarray(moving - expected)).max() > 1e-2
    statistics = {path for path in before if path.endswith((".mean", ".var"))}
    assert {path for path in before if not np.array_equal(before[path], after[path])} == statistics
    assert running_statistics(classifier).keys() == statistics

    freeze_batchnorm(classifier, {"head.0.kernel", "head.0.bias"})
    assert not running_statistics(classifier)
    found, after = trained_once(classifier, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)
    classifier.backbone.check_batch(1, 1, 1)  # no statistics are needed
    freeze_batchnorm(classifier, before)
    assert running_statistics(classifier).keys() == statistics


def test_batchnorms_that_are_trained_move_beside_frozen_ones() -> None:
    """By hand: frozen, the stem gives what it gives in inference, whose statistics the first block then sees."""
    model = pretrained()
    before = tree.split(model)[1]
    freeze_batchnorm(model, [path for path in before if path.startswith("layers.")])
    x = jax.random.normal(jax.random.key(0), (3, 32, 40, 3))
    _, after = trained_once(model, x)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert (
        moved
        == running_statistics(model).keys()
        == {path for path in before if path.startswith("layers.") and path.endswith((".mean", ".var"))}
    )
    assert model.bn1 is not None
    stem = np.maximum(np.asarray(model.bn1(model.conv1(x), train=False)), 0)
    padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(3) for j in range(3)]
    pooled = np.max([padded[:, i : i + 16 : 2, j : j + 20 : 2] for i, j in places], axis=0)
    seen = np.asarray(model.layers[0][0].conv1(jnp.asarray(pooled)), np.float64)
    expected = 0.9 * np.asarray(before["layers.0.0.bn1.mean"]) + 0.1 * seen.mean((0, 1, 2))
    np.testing.assert_allclose(after["layers.0.0.bn1.mean"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("stages", "largest"), [(2, 8), (4, 32), (5, 64)])
def test_a_training_batch_needs_more_than_one_value_a_channel(stages: int, largest: int) -> None:
    """The largest side of which one image leaves a single place in the last feature map."""
    model = resnet(blocks=(1,) * stages, filters=(4,) * stages, stem=4)
    with pytest.raises(ValueError, match="one value a channel"):
        model.check_batch(1, largest, largest)
    model.check_batch(2, largest, largest)
    model.check_batch(1, largest, largest + 1)
    if largest >= 32:
        maps = model(jnp.zeros((1, largest, largest + 1, 3)), train=True).patches
        assert maps.shape == (1, 1, 2, 16)
        with pytest.raises(ValueError, match="no variance"):
            model(jnp.zeros((1, largest, largest, 3)), train=True)


def test_gradients_of_training_are_those_of_finite_differences() -> None:
    graph, params = tree.split(resnet("resnet50_keras"))
    x = jax.random.normal(jax.random.key(0), (4, 48, 48, 3))
    weights = jax.random.normal(jax.random.key(1), (32,))

    @jax.jit
    def loss(params: tree.Params) -> jax.Array:
        return jnp.mean(tree.merge(graph, params)(x, train=True).pooled @ weights)

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert not any(np.any(gradients[path]) for path in gradients if path.endswith((".mean", ".var")))
    for path in ("bn1.scale", "layers.0.1.bn2.bias", "layers.1.0.shortcut.bn.scale"):
        norm = float(jnp.linalg.norm(gradients[path]))
        step = (
            4e-4 / norm * gradients[path]
        )  # shorter, rounding would drown it; longer, it would cross kinks of the ReLUs
        moved = [loss(params | {path: params[path] + sign * step}) for sign in (1, -1)]
        assert float(moved[0] - moved[1]) / 8e-4 == pytest.approx(norm, rel=0.05)


def test_absorbing_batchnorm_leaves_the_model_as_it_is_and_serves_extraction() -> None:
    model = resnet("resnet50_keras")
    x = jax.random.normal(jax.random.key(0), (6, 32, 32, 3))
    model(5 * x, train=True)
    absorbed = model.for_inference()
    assert not running_statistics(absorbed)
    assert running_statistics(model)
    np.testing.assert_allclose(absorbed(x).patches, model(x).patches, atol=1e-5)
    with pytest.raises(ValueError, match="BatchNorms are absorbed"):
        absorbed(x, train=True)
    grey = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 1), np.uint8)
    batch = {"image": grey, "label": np.arange(6), "index": np.arange(6), "valid": np.arange(6) < 5}
    found = features.extract(model, [batch])
    expected = model(dinojax.preprocess(grey, model)).pooled[:5]
    np.testing.assert_allclose(found["class_token"], expected, atol=1e-5)
    np.testing.assert_allclose(found["mean_patch"], expected, atol=1e-5)


def test_a_chunk_of_feature_maps_holds_four_images_of_224_pixels() -> None:
    model = nnx.eval_shape(lambda: dinojax.create_model("resnet50", nnx.Rngs(0)))
    assert [model.images_per_chunk(size, size) for size in (224, 112, 1120)] == [4, 16, 1]


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = resnet()
    assert model(jnp.zeros((1, 32, 33, 3))).patches.shape == (1, 4, 5, 32)
    with pytest.raises(ValueError, match="32 or more, got 31×64"):
        model(jnp.zeros((1, 31, 64, 3)))
    with pytest.raises(ValueError, match=r"\(1, 32, 32, 1\)"):
        model(jnp.zeros((1, 32, 32, 1)))
    with pytest.raises(ValueError, match="no mask token"):
        model(jnp.zeros((1, 32, 32, 3)), masks=jnp.zeros((1, 1), bool))
    with pytest.raises(ValueError, match="no variance"):
        BatchNorm(3, arguments("resnet50"))(jnp.zeros((1, 1, 1, 3)), train=True)


def test_intermediate_features_are_those_after_each_block() -> None:
    model = resnet(blocks=(1, 2), filters=(4, 8), stem=8)
    x = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
    last = model(x)
    first, second, third = model.intermediate(x, 3)
    assert (first.patches.shape, second.patches.shape) == ((2, 8, 16, 16), (2, 4, 8, 32))
    np.testing.assert_allclose(model.layers[1][1](second.patches, False), third.patches, atol=1e-6)
    np.testing.assert_allclose(second.patches.mean((1, 2)), second.pooled, atol=1e-6)
    np.testing.assert_array_equal(third.pooled, last.pooled)
    with pytest.raises(ValueError, match="blocks must be 1 to 3, got 4"):
        model.intermediate(x)


def test_bfloat16_stays_bfloat16_and_its_statistics_are_float32() -> None:
    model = resnet()
    x = 3 + jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    model(x, train=True)
    graph, params = tree.split(model)
    half = tree.merge(graph, {path: value.astype(jnp.bfloat16) for path, value in params.items()})
    for run in (half, half.for_inference()):
        found = run(x.astype(jnp.bfloat16)).pooled
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), model(x).pooled, rtol=0.1, atol=0.05)
        assert run(x).pooled.dtype == jnp.float32  # of wider images, as of a ViT's
    norm, thirds = BatchNorm(1, arguments("resnet50")), jnp.full((3, 64, 64, 1), 3.0, jnp.bfloat16).at[0].set(1.0)
    norm(thirds, train=True)
    np.testing.assert_allclose(norm.mean[...], 0.1 * 7 / 3, rtol=1e-5)  # which bfloat16 does not have
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 8 / 9, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 6, "heads": 3}, "model resnet50 has no argument depth, heads; it has blocks, bn_eps"),
        ({"drop_path": 0.1}, "no argument drop_path"),
        ({"filters": (8, 8)}, r"blocks \[3, 4, 6, 3\] and filters \[8, 8\] must be equally long"),
        ({"stem": 0}, "stem is 0; it must be above 0"),
        ({"filters": (8, 8, 0, 8)}, "filters is 0"),
        ({"channels": 0}, "channels is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dinojax.create_model("resnet50", nnx.Rngs(0), **overrides)
