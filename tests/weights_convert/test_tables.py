"""Published names and layouts to ours."""

import itertools
from typing import Any

import numpy as np
import pytest
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError
from dinojax.models import create_model
from tests.weights_convert import published
from weights_convert import tables
from weights_convert.mapping import Row, to_ours, to_theirs


def shapes_of(name: str, **overrides: Any) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the model's parameters."""
    _, params = tree.split(nnx.eval_shape(lambda: create_model(name, nnx.Rngs(0), **overrides)))
    return {path: leaf.shape for path, leaf in params.items()}


def test_backbone_is_moved_whole() -> None:
    source = published.rebuilt(published.backbone(32, 2, 5, registers=4, gated=88))
    params = tables.dinov2_backbone(source)
    assert len(params) == len(source)
    assert sum(array.size for array in params.values()) == sum(array.size for array in source.values())
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in params.values())
    np.testing.assert_array_equal(params["register_tokens"], source["register_tokens"])
    np.testing.assert_array_equal(params["blocks.1.norm2.scale"], source["blocks.1.norm2.weight"])
    np.testing.assert_array_equal(params["blocks.1.mlp.w12.kernel"], source["blocks.1.mlp.w12.weight"].T)
    kernel, weight = params["patch_embed.proj.kernel"], source["patch_embed.proj.weight"]
    assert kernel.shape == (14, 14, 3, 32)
    for row, column, channel, out in [(0, 13, 2, 31), (7, 2, 1, 5)]:
        assert kernel[row, column, channel, out] == weight[out, channel, row, column]


def test_head_is_moved_whole() -> None:
    source = published.rebuilt(published.TINY_HEAD)
    source["last_layer.weight_g"] = np.arange(128, dtype=np.float32)[:, None]
    params = tables.dino_head(source)
    assert list(params) == [
        *[f"mlp.{i}.{leaf}" for i in range(3) for leaf in ("kernel", "bias")],
        "last_layer.weight_g",
        "last_layer.weight_v",
    ]
    np.testing.assert_array_equal(params["mlp.2.kernel"], source["mlp.4.weight"].T)
    np.testing.assert_array_equal(params["last_layer.weight_g"], np.arange(128))
    np.testing.assert_array_equal(params["last_layer.weight_v"], source["last_layer.weight_v"].T)


def test_only_a_mask_token_may_be_zero() -> None:
    Row((), "mask_token", "1 D")
    for path in ("blocks.{i}.ls1.gamma", "pos_embed", "norm.scale"):
        with pytest.raises(ValueError, match="has no source and would be zero"):
            Row((), path, "D")


@pytest.mark.parametrize("gated", [None, 88])
def test_names_lead_back(gated: int | None) -> None:
    source = published.rebuilt(published.backbone(32, 12, 5, registers=4, gated=gated))
    assert {tables.to_dinov2_name(path) for path in tables.dinov2_backbone(source)} == source.keys()
    head = published.rebuilt(published.TINY_HEAD)
    assert [tables.to_dinov2_name(path) for path in tables.dino_head(head)] == list(head)
    with pytest.raises(KeyError):
        tables.to_dinov2_name("blocks.0.attn.query.kernel")


def test_the_whole_difference_is_listed() -> None:
    source = published.rebuilt(published.TINY)
    del source["cls_token"], source["blocks.0.ls1.gamma"]
    source["pooler.weight"] = source["norm.bias"]
    source["blocks.1.attn.qkv.weight"] = np.zeros((64, 32), np.float32)
    source["mask_token"] = np.zeros((32,), np.float32)
    with pytest.raises(RunError) as refusal:
        tables.dinov2_backbone(source)
    message = str(refusal.value)
    assert "\n" not in message
    assert "missing (2): cls_token, blocks.0.ls1.gamma" in message
    assert "unexpected (1): pooler.weight" in message
    assert "mask_token has (32), expected (1, 32)" in message
    assert "blocks.1.attn.qkv.weight has (64, 32), expected (96, 32)" in message
    assert "wrong shape (2)" in message


def test_a_missing_block_is_missed() -> None:
    source = {k: v for k, v in published.rebuilt(published.backbone(32, 3, 5)).items() if "blocks.1." not in k}
    with pytest.raises(RunError, match=r"missing \(14\): blocks\.1\.norm1\.weight.*unexpected \(14\): blocks\.2\."):
        tables.dinov2_backbone(source)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    source = published.rebuilt(published.TINY)
    source["norm.bias"][3] = value
    with pytest.raises(RunError, match=r"not finite floating-point numbers \(1\): norm\.bias"):
        tables.dinov2_backbone(source)


def test_integers_are_refused() -> None:
    source = published.rebuilt(published.TINY)
    source["norm.bias"] = np.zeros(32, np.int8)
    with pytest.raises(RunError, match=r"norm\.bias"):
        tables.dinov2_backbone(source)


def numbered(shapes: published.Shapes) -> dict[str, np.ndarray]:
    """Tensors in which every number occurs once, so that none can stand for another; counters are zeros."""
    first, tensors = 1, {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.zeros(shape, np.int64)
        else:
            tensors[name] = np.arange(first, first + size, dtype=np.float32).reshape(shape)
            first += size
    assert first < 2**24  # float32 holds these exactly
    return tensors


VITS = {"depth": 2, "side": 3}
LAYOUTS = {
    "dinov2": (tables.dinov2_table(False, False), published.backbone(8, **VITS)),
    "dinov2_g": (tables.dinov2_table(True, True), published.backbone(6, registers=2, gated=16, **VITS)),
    "hf": (tables.hf_table(False, False), published.hf(8, **VITS)),
    "hf_g": (tables.hf_table(True, True), published.hf(6, registers=2, gated=16, **VITS)),
    "timm": (tables.timm_table(False, False), published.timm(8, **VITS)),
    "timm_g": (tables.timm_table(True, True), published.timm(6, registers=2, gated=16, **VITS)),
    "dino_head": (tables.dino_head_table(3), published.TINY_HEAD),
    "linear_head": (tables.LINEAR_HEAD, {"weight": (10, 16), "bias": (10,)}),
    "torchvision": (tables.torchvision_table(published.SMALL["blocks"]), published.torchvision(**published.SMALL)),
    "radimagenet": (tables.radimagenet_table(published.SMALL["blocks"]), published.radimagenet(**published.SMALL)),
    "keras": (tables.keras_table(published.SMALL["blocks"]), published.keras(**published.SMALL)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_table_fills_everything_once_in_both_directions(layout: str) -> None:
    table, shapes = LAYOUTS[layout]
    source = numbered(shapes)
    params = to_ours(source, table)
    arrays = dict(params)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())
    assert {path: array.shape for path, array in arrays.items()} == dict(params.shapes)
    # Each number of the source is found once, apart from zeros where the layout has no place for a parameter.
    found = np.concatenate([array.ravel() for array in arrays.values()])
    given = np.concatenate([tensor.ravel() for tensor in source.values()])
    np.testing.assert_array_equal(np.sort(found[found != 0]), np.sort(given[given != 0]))
    back = to_theirs(arrays, params.shapes, table)
    assert back.keys() == source.keys()
    for name, tensor in source.items():
        assert (back.shapes[name], back.dtypes[name]) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(back[name], tensor, strict=True)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if not layout.endswith("head")])
def test_tables_have_the_paths_and_shapes_of_the_model(layout: str) -> None:
    table, shapes = LAYOUTS[layout]
    if layout in ("torchvision", "radimagenet", "keras"):
        expected = shapes_of("resnet50_keras" if layout == "keras" else "resnet50", **published.SMALL)
    elif layout.endswith("_g"):
        expected = shapes_of("vitg14", width=6, depth=2, heads=2, image_size=42, registers=2)
    else:
        expected = shapes_of("vits14", width=8, depth=2, heads=2, image_size=42)
    assert dict(to_ours(numbered(shapes), table).shapes) == expected


def test_parts_of_a_parameter_are_stacked_in_order() -> None:
    source = published.rebuilt(published.hf(8, 1, 2))
    params = to_ours(source, tables.hf_table(False, False))
    name = "encoder.layer.0.attention.attention"
    for place, part in enumerate(("query", "key", "value")):
        columns = slice(8 * place, 8 * place + 8)
        np.testing.assert_array_equal(params["blocks.0.attn.qkv.kernel"][:, columns], source[f"{name}.{part}.weight"].T)
        np.testing.assert_array_equal(params["blocks.0.attn.qkv.bias"][columns], source[f"{name}.{part}.bias"])


def test_what_a_layout_has_no_place_for_becomes_zero() -> None:
    source = published.rebuilt(published.timm(8, 1, 2, registers=4))
    params = to_ours(source, tables.timm_table(True, False))
    np.testing.assert_array_equal(params["mask_token"], np.zeros((1, 8)))
    np.testing.assert_array_equal(params["pos_embed"][:, :1], np.zeros((1, 1, 8)))
    np.testing.assert_array_equal(params["pos_embed"][:, 1:], source["pos_embed"])
    np.testing.assert_array_equal(params["cls_token"], source["cls_token"])
    assert tables.timm_table(True, False).lost == ("mask_token",)


def test_what_is_ignored_may_be_there_or_not() -> None:
    source = published.rebuilt(published.torchvision(**published.SMALL))
    table = tables.torchvision_table(published.SMALL["blocks"])
    old = {name: tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")}
    with_classifier = source | {"fc.weight": np.zeros((10, 20), np.float32), "fc.bias": np.zeros(10, np.float32)}
    assert to_ours(old, table).keys() == to_ours(with_classifier, table).keys() == to_ours(source, table).keys()
    with pytest.raises(RunError, match=r"unexpected \(1\): fc\.scale"):
        to_ours(source | {"fc.scale": np.zeros(10, np.float32)}, table)


def test_the_whole_difference_is_listed_on_the_way_out() -> None:
    params = dict(to_ours(numbered(published.hf(8, 2, 3)), tables.hf_table(False, False)))
    params["head.kernel"] = params.pop("cls_token")
    params["blocks.1.attn.qkv.kernel"] = np.zeros((8, 16), np.float32)
    with pytest.raises(RunError) as refusal:
        to_theirs(params, {path: array.shape for path, array in params.items()}, tables.hf_table(False, False))
    message = str(refusal.value)
    assert "missing (1): cls_token" in message
    assert "unexpected (1): head.kernel" in message
    assert "blocks.1.attn.qkv.kernel has (8, 16), expected (8, 24)" in message


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_heads_of_other_depths(layers: int) -> None:
    widths = [8, *[6, 5, 7][: layers - 1], 3]
    source = {}
    for i in range(layers):
        name = f"mlp.{2 * i}" if layers > 1 else "mlp"
        source |= {f"{name}.weight": np.ones((widths[i + 1], widths[i])), f"{name}.bias": np.ones(widths[i + 1])}
    source |= {"last_layer.weight_g": np.ones((11, 1)), "last_layer.weight_v": np.ones((11, 3))}
    shapes = tables.dino_head(source).shapes
    assert [shapes[f"mlp.{i}.kernel"] for i in range(layers)] == list(itertools.pairwise(widths))
    assert (shapes["last_layer.weight_g"], shapes["last_layer.weight_v"]) == ((11,), (3, 11))


def test_numbers_beyond_float32_are_refused() -> None:
    source: dict[str, np.ndarray] = dict(published.rebuilt(published.TINY))
    source["norm.bias"] = np.full(32, 1e300)
    with pytest.raises(RunError, match=r"not finite floating-point numbers \(1\): norm\.bias"):
        tables.dinov2_backbone(source)
