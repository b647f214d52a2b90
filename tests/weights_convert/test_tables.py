"""Published names and layouts to ours."""

import numpy as np
import pytest

from dinojax.errors import RunError
from tests.weights_convert import published
from weights_convert import tables


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
    source["head.weight"] = source["norm.bias"]
    source["blocks.1.attn.qkv.weight"] = np.zeros((64, 32), np.float32)
    source["mask_token"] = np.zeros((32,), np.float32)
    with pytest.raises(RunError) as refusal:
        tables.dinov2_backbone(source)
    message = str(refusal.value)
    assert "\n" not in message
    assert "missing (2): cls_token, blocks.0.ls1.gamma" in message
    assert "unexpected (1): head.weight" in message
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
    with pytest.raises(RunError, match=r"not finite numbers \(1\): norm\.bias"):
        tables.dinov2_backbone(source)


def test_integers_are_refused() -> None:
    source = published.rebuilt(published.TINY)
    source["norm.bias"] = np.zeros(32, np.int8)
    with pytest.raises(RunError, match=r"norm\.bias"):
        tables.dinov2_backbone(source)
