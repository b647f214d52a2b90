"""The vision transformer and the DINO head against the published code's outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import VisionTransformer, create_transformer
from dinojax.models.heads import DINOHead, LinearHead
from tests import goldens_reader as goldens
from tests import rebuilt

SIZES = {
    "vits14": ["224x224", "98x98", "224x308", "518x518", "602x532"],
    "vits14_reg4": ["224x224", "98x98", "224x308", "602x532"],
    "tiny_swiglu": ["70x70", "98x98", "42x56"],
}
TOLERANCE = {"vits14": 1e-5, "vits14_reg4": 1e-5, "tiny_swiglu": 5e-6}


@functools.cache
def model_of(name: str) -> VisionTransformer:
    if name == "tiny_swiglu":
        size = {"width": 32, "depth": 2, "heads": 2, "image_size": 70, "mlp": "swiglu"}
        return rebuilt.backbone(create_transformer("vitg14", rngs=nnx.Rngs(0), **size))
    return rebuilt.backbone(create_transformer(name, rngs=nnx.Rngs(0)))


def image(name: str, size: str, batch: int) -> jax.Array:
    height, width = map(int, size.split("x"))
    return jnp.asarray(goldens.rebuild(f"input.{name}.{size}", (batch, 3, height, width)).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_golden_features(name: str, size: str) -> None:
    golden = goldens.load(f"{name}.npz")
    expected = golden[f"{size}.patch"]
    features = jax.jit(lambda m, x: m(x))(model_of(name), image(name, size, len(expected)))
    patches = np.asarray(features.patches).reshape(len(expected), -1, expected.shape[-1])
    every = 1 if patches.shape[1] == expected.shape[1] else 32
    goldens.assert_close(features.pooled, golden[f"{size}.cls"], TOLERANCE[name])
    goldens.assert_close(patches[:, ::every], expected, TOLERANCE[name])
    if f"{size}.reg" in golden:
        goldens.assert_close(features.registers, golden[f"{size}.reg"], TOLERANCE[name])


@pytest.mark.parametrize("name", list(SIZES))
def test_golden_masked_and_intermediate(name: str) -> None:
    golden = goldens.load(f"{name}.npz")
    model, x = model_of(name), image(name, SIZES[name][0], 2)
    masked = jax.jit(lambda m, x, masks: m(x, masks))(model, x, golden["masked.mask"])
    expected = golden["masked.patch"]
    patches = np.asarray(masked.patches).reshape(2, -1, expected.shape[-1])
    goldens.assert_close(masked.pooled, golden["masked.cls"], TOLERANCE[name])
    goldens.assert_close(patches[::1, :: 1 if len(patches[0]) == len(expected[0]) else 32], expected, TOLERANCE[name])
    expected = golden["intermediate.cls"]
    features = jax.jit(lambda m, x: m.intermediate(x, blocks=len(expected)))(model, x)
    goldens.assert_close(np.stack([f.pooled for f in features]), expected, TOLERANCE[name])


def test_golden_dino_head() -> None:
    golden = goldens.load("dino_head.npz")
    prototypes = golden["out"].shape[1]
    head = rebuilt.head(DINOHead(384, prototypes, hidden=512, bottleneck=64, layers=3, rngs=nnx.Rngs(0)))
    x = jnp.asarray(goldens.rebuild("input.head", (8, 384)))
    goldens.assert_close(head(x), golden["out"], 1e-5)
    by_head, by_input = nnx.grad(lambda head, x: jnp.mean(head(x) ** 2), argnums=(0, 1))(head, x)
    goldens.assert_close(by_input, golden["grad_in"], 1e-5)
    goldens.assert_close(by_head.last_layer.weight_v[...].T[: len(golden["grad_v"])], golden["grad_v"], 1e-5)


TINY = {"width": 32, "depth": 3, "heads": 2, "image_size": 28}


def test_drop_path_runs_branches_on_a_subset_scaled_to_the_batch() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, drop_path=0.5, drop_path_uniform=True)
    block, x = model.blocks[0], jax.random.normal(jax.random.key(1), (8, 5, 32))
    k1, k2 = keys = jax.random.split(jax.random.key(2))

    def residual(branch, x: jax.Array, key: jax.Array) -> jax.Array:  # one image at a time, from the definition
        chosen = np.argsort(np.asarray(jax.random.uniform(key, (8,))))[4:]
        out = [x[i] + (2 * branch(x[i : i + 1])[0] if i in chosen else 0) for i in range(8)]
        return jnp.stack(out)

    attended = residual(lambda x: block.ls1(block.attn(block.norm1(x))), x, k1)
    expected = residual(lambda x: block.ls2(block.mlp(block.norm2(x))), attended, k2)
    np.testing.assert_allclose(block(x, keys[:, None]), expected, atol=1e-5)


def test_drop_path_in_groups_picks_as_many_of_each() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, drop_path=0.75, drop_path_uniform=True)
    x = jax.random.normal(jax.random.key(1), (8, 5, 32))
    keys = jax.random.split(jax.random.key(2), (2, 2))
    changed = np.abs(np.asarray(model.blocks[0](x, keys) - x)).max((1, 2)) > 0
    # One image of four in each half, for each of the block's two branches.
    assert 1 <= changed[:4].sum() <= 2
    assert 1 <= changed[4:].sum() <= 2
    halves = [np.asarray(model.blocks[0](x[i : i + 4], keys[:, i // 4, None])) for i in (0, 4)]
    np.testing.assert_allclose(model.blocks[0](x, keys), np.concatenate(halves), atol=1e-6)


@pytest.mark.parametrize(("rate", "subset"), [(0.3, True), (0.3, False), (0.1, True)])
def test_blocks_in_a_loop_give_what_they_give_one_by_one(rate: float, subset: bool) -> None:
    given = {**TINY, "drop_path": rate, "drop_path_uniform": True, "drop_path_subset": subset, "loop_blocks": True}
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **given)
    x, keys = jax.random.normal(jax.random.key(1), (8, 28, 28, 3)), jax.random.split(jax.random.key(2), 2)
    tokens, drop_keys = model._tokens(x, None), model._drop_keys(True, keys)
    assert drop_keys is not None
    for block, block_keys in zip(model.blocks, drop_keys, strict=True):
        tokens = block(tokens, block_keys)
    np.testing.assert_allclose(model(x, train=True, key=keys).pooled, model.norm(tokens)[:, 0], atol=1e-5)


def test_small_drop_path_masks_single_images_and_keeps_the_mean() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, drop_path=0.1, drop_path_uniform=True)
    block, x = model.blocks[0], jnp.repeat(jax.random.normal(jax.random.key(1), (1, 5, 32)), 4096, axis=0)
    attended = x + block.ls1(block.attn(block.norm1(x)))
    full = attended + block.ls2(block.mlp(block.norm2(attended)))
    dropped = block(x, jax.random.split(jax.random.key(3), (2, 1)))
    untouched = np.mean(np.abs(np.asarray(dropped - x)).max((1, 2)) == 0)
    assert abs(untouched - 0.01) < 0.006
    assert float(jnp.abs(dropped.mean(0) - full[0]).max()) < 0.05 * float(jnp.abs(full[0] - x[0]).max())


def test_drop_path_acts_only_in_training() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, drop_path=0.5)
    x = jax.random.normal(jax.random.key(1), (4, 28, 28, 3))
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == [0.0, 0.25, 0.5]
    np.testing.assert_array_equal(model(x).pooled, model(x, key=jax.random.key(0)).pooled)
    assert not np.allclose(model(x).pooled, model(x, train=True, key=jax.random.key(0)).pooled)
    with pytest.raises(ValueError, match="key"):
        model(x, train=True)


def test_bfloat16_stays_bfloat16_at_every_size() -> None:
    """Positional embeddings are interpolated in float32, which must not make the blocks float32 too."""
    graph, params = tree.split(create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY))
    model = tree.merge(graph, {path: value.astype(jnp.bfloat16) for path, value in params.items()})
    for size in (28, 42):
        assert model(jnp.ones((1, size, size, 3), jnp.bfloat16)).pooled.dtype == jnp.bfloat16


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY)
    with pytest.raises(ValueError, match="multiples of 14, got 28×30"):
        model(jnp.zeros((1, 28, 30, 3)))
    with pytest.raises(ValueError, match=r"\(1, 28, 28, 1\)"):
        model(jnp.zeros((1, 28, 28, 1)))
    with pytest.raises(UsageError, match="vits16"):
        dinojax.create_model("vits16", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="multiples of 14, got 0×28"):
        model(jnp.zeros((1, 0, 28, 3)))
    with pytest.raises(ValueError, match="blocks must be 0 to 3, got 4"):
        model.stream(jnp.zeros((1, 28, 28, 3)), 4)
    for wrong in ({"heads": 0}, {"depth": -1}, {"width": 0}, {"patch_size": 0}, {"registers": -1}, {"mlp": "relu"}):
        with pytest.raises(UsageError, match=f"model vits14: .*{next(iter(wrong))}"):
            dinojax.create_model("vits14", nnx.Rngs(0), **wrong)
    with pytest.raises(UsageError, match="widht"):
        dinojax.create_model("vits14", rngs=nnx.Rngs(0), widht=3)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("block", [0, 1, -1])
def test_attention_weights_reproduce_the_blocks_result(registers: int, block: int) -> None:
    """Softmax and values by hand, from the block's own weights, after the blocks before it."""
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, registers=registers)
    x = jax.random.normal(jax.random.key(1), (2, 42, 28, 3))
    weights = np.asarray(model.attention(x, block))
    assert weights.shape == (2, 2, 7 + registers, 7 + registers)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)

    number = block % 3
    chosen = model.blocks[number]
    normed = chosen.norm1(model.stream(x, number))
    params = {path: np.asarray(array) for path, array in tree.split(chosen.attn)[1].items()}
    qkv = np.asarray(normed) @ params["qkv.kernel"] + params["qkv.bias"]
    q, k, v = (part.reshape(2, -1, 2, 16).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1))
    exponentials = np.exp(q @ k.swapaxes(-1, -2) / 4)
    np.testing.assert_allclose(weights, exponentials / exponentials.sum(-1, keepdims=True), atol=1e-6)
    joined = (weights @ v).transpose(0, 2, 1, 3).reshape(2, -1, 32)
    out = joined @ params["proj.kernel"] + params["proj.bias"]
    np.testing.assert_allclose(out[:, 0], chosen.attn(normed)[:, 0], atol=1e-6)  # the class token's row
    np.testing.assert_allclose(out, chosen.attn(normed), atol=1e-6)


def test_the_stream_and_the_final_norm_give_the_features() -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY, registers=2)
    x = jax.random.normal(jax.random.key(1), (2, 28, 28, 3))
    for blocks, features in zip((2, 3), model.intermediate(x, 2), strict=True):
        tokens = model.norm(model.stream(x, blocks))
        np.testing.assert_allclose(tokens[:, 0], features.pooled, atol=1e-6)
        np.testing.assert_allclose(tokens[:, 3:].reshape(2, 2, 2, 32), features.patches, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_linear_head_reads_class_tokens_in_order_and_then_the_mean_patch(blocks: int) -> None:
    model = create_transformer("vitt14", rngs=nnx.Rngs(0), **{**TINY, "depth": 5}, registers=2)
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal(((blocks + 1) * 32, 7)), rng.standard_normal(7)
    x = jax.random.normal(jax.random.key(1), (2, 28, 42, 3))
    tokens = [np.asarray(model.norm(model.stream(x, number))) for number in range(6 - blocks, 6)]
    inputs = np.concatenate([*(of[:, 0] for of in tokens), tokens[-1][:, 3:].mean(1)], axis=1)
    logits = LinearHead(jnp.asarray(kernel), jnp.asarray(bias), blocks)(model, x)
    np.testing.assert_allclose(logits, inputs @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_attention_of_bfloat16_is_float32_and_of_no_block_refused() -> None:
    graph, params = tree.split(create_transformer("vitt14", rngs=nnx.Rngs(0), **TINY))
    model = tree.merge(graph, {path: value.astype(jnp.bfloat16) for path, value in params.items()})
    weights = model.attention(jnp.ones((1, 28, 28, 3), jnp.bfloat16))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    for block in (3, -4):
        with pytest.raises(ValueError, match="the model has 3"):
            model.attention(jnp.ones((1, 28, 28, 3)), block)
