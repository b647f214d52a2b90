"""Every model of the zoo is a backbone: to the type checker, and member by member."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import ARGUMENTS, Backbone, ResNet, VisionTransformer, as_transformer, build, create_transformer

TINY = {
    VisionTransformer: {"width": 16, "depth": 2, "heads": 2, "image_size": 28},
    ResNet: {"blocks": (1, 1), "filters": (4, 4), "stem": 4},
}
NAMES = dinojax.model_names()


# pyright checks these; nobody calls them.
def _(model: VisionTransformer) -> Backbone:
    return model


def _(model: ResNet) -> Backbone:
    return model


def tiny(name: str) -> Backbone:
    kind = ResNet if name.startswith("resnet") else VisionTransformer
    return dinojax.create_model(name, nnx.Rngs(0), **TINY[kind])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_every_member_of_the_protocol(name: str) -> None:
    model = nnx.eval_shape(lambda: dinojax.create_model(name, nnx.Rngs(0)))
    attributes = set(Backbone.__annotations__)
    assert attributes == {"name", "width", "channels", "preprocessing"}
    methods = {member for member, value in vars(Backbone).items() if inspect.isfunction(value)} - {"__init__"}
    assert {"__call__", "intermediate", "check_size", "check_batch", "for_inference"} <= methods
    properties = {member for member, value in vars(Backbone).items() if isinstance(value, property)}
    assert properties == {"arguments", "final_norm"}
    assert all(hasattr(model, member) for member in attributes | methods | properties)
    for method in methods - {"__subclasshook__"}:
        wanted, found = (inspect.signature(getattr(cls, method)).parameters for cls in (Backbone, type(model)))
        assert list(wanted) == list(found), method
        assert [one.default for one in wanted.values()] == [one.default for one in found.values()], method
    assert (model.name, model.arguments) == (name, ARGUMENTS[name])
    assert model.width == model.arguments.width
    assert dataclasses.asdict(model.arguments)["channels"] == model.channels == 3


@pytest.mark.parametrize("name", ["vitt14", "vitt14_reg4", "resnet50", "resnet50_keras"])
def test_a_model_is_what_the_protocol_says(name: str) -> None:
    model = tiny(name)
    x = jax.random.normal(jax.random.key(0), (2, 42, 56, 3))
    features = model(x)
    assert features.pooled.shape == (2, model.width)
    assert features.patches.shape[0::3] == (2, model.width)
    np.testing.assert_allclose(model.intermediate(x, 1)[-1].pooled, features.pooled, atol=1e-6)
    np.testing.assert_allclose(model.for_inference()(x).pooled, features.pooled, atol=1e-5)
    assert model.images_per_chunk(42, 56) >= model.images_per_chunk(420, 560) >= 1
    model.check_size(42, 56)
    model.check_batch(2, 42, 56)
    for height, width in ((31, 42), (0, 42), (42, -14)):
        with pytest.raises(ValueError, match=f"height and width must be .*got {height}×{width}"):
            model.check_size(height, width)
    with pytest.raises(ValueError, match="got 31×42"):
        model(x[:, :31, :42])
    again = build(model.name, model.arguments, nnx.Rngs(0))
    assert (type(again), again.arguments) == (type(model), model.arguments)


def test_a_final_norm_is_what_made_the_features() -> None:
    model = create_transformer("vitt14", nnx.Rngs(0), **TINY[VisionTransformer])
    x = jax.random.normal(jax.random.key(0), (2, 28, 28, 3))
    np.testing.assert_allclose(model.final_norm(model.stream(x, 2))[:, 0], model(x).pooled, atol=1e-6)
    assert tiny("resnet50").final_norm is None


def test_where_only_a_transformer_will_do() -> None:
    model = tiny("vitt14")
    assert as_transformer(model, "attention maps") is model
    with pytest.raises(ValueError, match="a ResNet has no attention maps: only a vision transformer"):
        as_transformer(tiny("resnet50"), "attention maps")
    with pytest.raises(UsageError, match=r"^model resnet50 is not a vision transformer; choose from vitt14, .*_reg4$"):
        create_transformer("resnet50", nnx.Rngs(0), heads=2)
    with pytest.raises(UsageError, match="there is no model 'vits16'"):
        create_transformer("vits16", nnx.Rngs(0))
    same = create_transformer("vitt14", nnx.Rngs(0), **TINY[VisionTransformer])
    np.testing.assert_array_equal(tree.split(same)[1]["pos_embed"], tree.split(model)[1]["pos_embed"])
