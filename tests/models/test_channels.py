"""RGB checkpoints that read one channel, or N: the same features, to 1e-5, and everything that a model goes through."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import Backbone, Features, Preprocessing, ResNet, create_model, inflate_channels, to_one_channel
from dinojax.models.channels import check_readable, with_input_channels
from dinojax.models.description import describe_model
from dinojax.models.preprocessing import denormalise, model_input, to_channels
from dinojax.models.store import read_description

VIT = {"width": 32, "depth": 2, "heads": 2, "image_size": 42}
RESNET = {"blocks": (1, 1), "filters": (4, 4), "stem": 8}
UNEVEN = Preprocessing(42, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
EVEN = Preprocessing(42, (0.45, 0.45, 0.45), (0.2, 0.3, 0.4))


def trained(name: str, form: Preprocessing = UNEVEN, **overrides: object) -> Backbone:
    """A tiny model in which no number is a start's 0 or 1, neither a bias nor a running statistic."""
    model = create_model(name, nnx.Rngs(0), **{**(RESNET if name.startswith("resnet") else VIT), **overrides})
    graph, params = tree.split(model)
    rng = np.random.default_rng(0)
    moved = {path: value + rng.normal(0, 0.05, value.shape) for path, value in params.items()}
    model = tree.merge(graph, {path: jnp.asarray(value, jnp.float32) for path, value in moved.items()})
    model.preprocessing = form
    return model


def grey(size: int = 42, count: int = 3) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 1), np.uint8)


def features(model: Backbone, images: np.ndarray) -> Features:
    return model(dinojax.preprocess(images, model))


def assert_same(found: Features, expected: Features) -> None:
    assert float(jnp.std(expected.pooled, axis=0).max()) > 1e-3, "features of different images must differ"
    scale = max(float(jnp.abs(expected.patches).max()), 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0), found, expected)


def of(name: str, **overrides: object) -> dict[str, object]:
    return {"name": name, **overrides}


CASES = [
    *(pytest.param(of("vitt14", form=UNEVEN), size, id=f"vit {size}") for size in (42, 70)),
    pytest.param(of("vitt14_reg4", form=UNEVEN), 70, id="registers"),
    pytest.param(of("vitt14", form=Preprocessing(42, (0.4, 0.5, 0.6), (1 / 255,) * 3, order="BGR")), 42, id="BGR"),
    pytest.param(of("resnet50", form=EVEN), 45, id="resnet"),
    pytest.param(of("resnet50_keras", form=Preprocessing(45, (0.5,) * 3, (0.5, 0.25, 1), order="BGR")), 45, id="keras"),
    pytest.param(of("resnet50_keras", form=Preprocessing(45, (0.0,) * 3, (1.0,) * 3)), 45, id="not normalised"),
]


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_one_channel_gives_what_three_equal_ones_give(kind: dict, size: int) -> None:
    model = trained(**kind)
    one, images = to_one_channel(model), grey(size)
    expected = features(model, np.repeat(images, 3, axis=3))
    assert_same(features(model, images), expected)
    assert_same(features(one, images), expected)
    assert_same(features(one.for_inference(), images), expected)
    last = one.intermediate(dinojax.preprocess(images, one), 2)[0]
    assert_same(last, model.intermediate(dinojax.preprocess(images, model), 2)[0])
    assert type(one) is type(model)
    assert (one.channels, one.arguments.channels, one.width) == (1, 1, model.width)
    assert (one.preprocessing.std, one.preprocessing.order, one.preprocessing.size) == (
        (1.0,),
        "RGB",
        model.preprocessing.size,
    )
    assert one.preprocessing.mean == (model.preprocessing.mean[:1] if isinstance(model, ResNet) else (0.0,))
    assert (model.channels, model.preprocessing) == (3, kind["form"]), "the model itself stays"
    before, after = tree.split(model)[1], tree.split(one)[1]
    first = "conv1" if isinstance(model, ResNet) else "patch_embed.proj"
    assert before.keys() == after.keys()
    assert sum(before[path].size for path in before) - sum(after[path].size for path in after) == (
        before[f"{first}.kernel"].size * 2 // 3
    )
    for path in before.keys() - {f"{first}.kernel", f"{first}.bias"}:
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.parametrize(
    "kind", [of("vitt14"), of("vitt14_reg4"), of("resnet50", form=EVEN)], ids=lambda kind: kind["name"]
)
def test_n_equal_channels_give_what_three_equal_ones_give(kind: dict, channels: int) -> None:
    model, images = trained(**kind), grey()
    many = inflate_channels(model, channels)
    expected = features(model, np.repeat(images, 3, axis=3))
    assert_same(features(many, np.repeat(images, channels, axis=3)), expected)
    # Every image of a place counts, and as much as any other.
    other = np.concatenate([images, *[images[::-1]] * (channels - 1)], axis=3)
    assert_same(features(many, other), features(many, other[..., ::-1]))
    assert float(jnp.abs(features(many, other).pooled - expected.pooled).max()) > 1e-3
    assert_same(features(inflate_channels(to_one_channel(model), channels), other), features(many, other))


def test_what_cannot_be_folded_exactly_is_refused() -> None:
    for name in ("resnet50", "resnet50_keras"):
        with pytest.raises(ValueError, match=rf"a {name} pads with zeros.*\(0.4, 0.5, 0.6\) differ"):
            to_one_channel(trained(name))
    with pytest.raises(ValueError, match="the model reads 4 channels; only those of grey and RGB"):
        to_one_channel(trained("vitt14", Preprocessing(42, (0.4,) * 4, (0.2,) * 4), channels=4))
    with pytest.raises(ValueError, match="channels must be 1 or more, got 0"):
        inflate_channels(trained("vitt14"), 0)
    with pytest.raises(UsageError, match=r"^input_channels 1: a resnet50 pads .*; leave it out$"):
        with_input_channels(trained("resnet50"), 1)


def test_input_channels_of_a_configuration() -> None:
    model = trained("vitt14")
    assert with_input_channels(model, None) is model
    assert with_input_channels(model, 3) is model, "an RGB model keeps its colours"
    assert with_input_channels(model, 4).channels == 4
    one = with_input_channels(model, 1)
    assert one.channels == 1
    assert with_input_channels(one, 1) is one
    for channels, found in ((1, 1), (1, 3), (3, 1), (3, 3), (4, 4)):
        check_readable(channels, found)
    with pytest.raises(UsageError, match=r"^the model reads 4 channels, the images have 1$"):
        check_readable(4, 1)
    with pytest.raises(UsageError, match=r"^the model reads 5 channels, the images have 3$"):
        check_readable(5, 3)
    check_readable(3, 3, stacked=True)
    check_readable(4, 4, stacked=True)
    with pytest.raises(UsageError, match=r"^the model reads 3 channels, the images have 4; set input_channels 4$"):
        check_readable(3, 4, stacked=True)
    with pytest.raises(UsageError, match=r"^the model reads 1 channel, the images have 3; set input_channels 3$"):
        check_readable(1, 3, stacked=True)


def test_gradients_flow_as_in_the_model_that_was_folded() -> None:
    model, images = trained("vitt14"), grey()
    one = to_one_channel(model)

    def gradients(model: Backbone) -> dict[str, jax.Array]:
        graph, params = tree.split(model)
        x = dinojax.preprocess(images, model)
        return jax.grad(lambda params: jnp.sum(tree.merge(graph, params)(x).patches ** 3))(params)

    of_one, of_three = gradients(one), gradients(model)
    for path, gradient in of_one.items():
        if path != "mask_token":
            assert float(jnp.abs(gradient).max()) > 0, path
        if path != "patch_embed.proj.kernel":
            np.testing.assert_allclose(gradient, of_three[path], rtol=1e-3, atol=1e-3 * float(jnp.abs(gradient).max()))
    # With x = mean + std · (normalised x), by the chain rule.
    kernels, bias = of_three["patch_embed.proj.kernel"], of_three["patch_embed.proj.bias"]
    expected = UNEVEN.mean[0] * bias + UNEVEN.std[0] * kernels[:, :, :1]
    found = of_one["patch_embed.proj.kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(jnp.abs(found).max()))


@pytest.mark.parametrize(("name", "form"), [("vitt14_reg4", UNEVEN), ("resnet50_keras", EVEN)])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_folded_model_is_stored_and_read_again(tmp_path: Path, name: str, form: Preprocessing, channels: int) -> None:
    made = inflate_channels(trained(name, form), channels)
    dinojax.save_model(tmp_path / "model", made)
    assert read_description(tmp_path / "model")["arguments"]["channels"] == channels
    again = dinojax.load_model(tmp_path / "model")
    assert (again.arguments, again.preprocessing) == (made.arguments, made.preprocessing)
    images = np.random.default_rng(0).integers(0, 256, (2, 42, 42, channels), np.uint8)
    jax.tree.map(np.testing.assert_array_equal, features(again, images), features(made, images))
    again.check_size(42, 56)
    with pytest.raises(ValueError, match=rf"the model reads \[B, H, W, {channels}\], got shape"):
        again(jnp.zeros((1, 42, 42, channels + 1)))


def test_weights_of_bfloat16_stay_so() -> None:
    graph, params = tree.split(trained("vitt14"))
    half = tree.merge(graph, {path: value.astype(jnp.bfloat16) for path, value in params.items()})
    folded = tree.split(to_one_channel(half))[1]
    assert {value.dtype for value in folded.values()} == {jnp.dtype(jnp.bfloat16)}


def test_images_of_n_channels_are_taken_as_they_are_and_nothing_else_is() -> None:
    model = create_model("vitt14", nnx.Rngs(0), **VIT, channels=5)
    images = np.random.default_rng(0).integers(0, 256, (2, 42, 42, 5), np.uint8)
    x = dinojax.preprocess(images, model)
    np.testing.assert_allclose(x, (images / 255 - np.mean([0.485, 0.456, 0.406])) / 0.226, atol=1e-5, rtol=1e-3)
    assert model(x).pooled.shape == (2, 32)
    np.testing.assert_allclose(denormalise(np.asarray(x), model.preprocessing), images / 255, atol=1e-6)
    assert dinojax.preprocess(images, model, size=28).shape == (2, 28, 28, 5)
    np.testing.assert_allclose(model_input(jnp.asarray(images / 255, jnp.float32), model), x, atol=1e-5)
    assert to_channels(jnp.asarray(images), 5).shape == images.shape
    for given, message in (
        (images[..., :1], r"^images have 1 channel, the model reads 5; pass the 5 images of a place.* last axis$"),
        (images[..., :3], r"^images have 3 channels, the model reads 5$"),
        (images[..., :4], r"^images have 4 channels, the model reads 5$"),
        (
            np.moveaxis(images, -1, 1),
            r"the model reads 5; they seem to stand channels first; pass np.moveaxis\(images, 1",
        ),
        (images[0], r"for one image \[H, W, C\] pass images\[None\]$"),
        (np.moveaxis(images[0], -1, 0), r"for one image \[C, H, W\] pass np.moveaxis\(images, 0, -1\)\[None\]$"),
    ):
        with pytest.raises(ValueError, match=message):
            dinojax.preprocess(given, model)
    for channels in (1, 3):
        other = create_model("vitt14", nnx.Rngs(0), **VIT, channels=channels)
        with pytest.raises(ValueError, match=f"^images have 5 channels, the model reads {channels}$"):
            dinojax.preprocess(images, other)
        with pytest.raises(ValueError, match=r"without alpha pass images\[..., :3\]$"):
            dinojax.preprocess(images[..., :4], other)


def test_a_folded_model_reads_colour_as_luminance_and_says_so() -> None:
    one = to_one_channel(trained("vitt14"))
    coloured = np.random.default_rng(0).integers(0, 256, (1, 42, 42, 3), np.uint8)
    luminance = coloured.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(dinojax.preprocess(coloured, one)[..., 0], luminance, atol=1e-6)
    described = {channels: describe_model(inflate_channels(one, channels), "weights", 42) for channels in (1, 3, 5)}
    assert described[1].endswith("reads grey images of 42 pixels (colour becomes luminance)")
    assert "image_size 42, channels 1) of weights" in described[1]
    assert described[3].endswith("reads RGB images of 42 pixels")
    assert described[5].endswith("reads images of 5 channels of 42 pixels")
