"""Model directories, and images on their way into a model."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax.errors import RunError, UsageError
from dinojax.models import VisionTransformer
from dinojax.models.store import read_params

TINY = {"width": 32, "depth": 1, "heads": 2, "image_size": 28}


def tiny(seed: int = 0, **overrides: object) -> VisionTransformer:
    return dinojax.create_model("vitt14", rngs=nnx.Rngs(seed), **{**TINY, **overrides})


def test_a_saved_model_loads_to_the_same_outputs(tmp_path: Path) -> None:
    model = tiny(channels=1, registers=2)
    dinojax.save_model(tmp_path / "model", model, source={"run": "test"})
    loaded = dinojax.load_model(tmp_path / "model")
    x = jax.random.normal(jax.random.key(0), (2, 28, 42, 1))
    before, after = model(x), loaded(x)
    np.testing.assert_array_equal(before.pooled, after.pooled)
    np.testing.assert_array_equal(before.patches, after.patches)
    assert after.registers is not None
    assert after.registers.shape == (2, 2, 32)
    assert loaded.preprocessing == model.preprocessing
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["source"] == {"run": "test"}


def test_a_model_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    dinojax.save_model(tmp_path / "model", tiny(0))
    with pytest.raises(UsageError, match="exists already"):
        dinojax.save_model(tmp_path / "model", tiny(1))
    dinojax.save_model(tmp_path / "model", tiny(1), overwrite=True)
    stored = read_params(tmp_path / "model")["blocks.0.attn.qkv.kernel"]
    np.testing.assert_array_equal(stored, tiny(1).blocks[0].attn.qkv.kernel[...])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_ends_in_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a model directory"):
        dinojax.load_model(tmp_path / "nowhere")
    dinojax.save_model(tmp_path / "model", tiny())
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    described["arguments"]["depth"] = 2
    (tmp_path / "model" / "model.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match=r"14 differences\): missing blocks\.1\.attn\.proj\.bias 32"):
        dinojax.load_model(tmp_path / "model")
    (tmp_path / "model" / "params.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(RunError, match="holds another model"):
        dinojax.load_model(tmp_path / "model")
    (tmp_path / "model" / "params.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        dinojax.load_model(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(RunError, match=r"model\.json cannot be read"):
        dinojax.load_model(tmp_path / "model")


def test_preprocess_scales_and_normalises_as_torchvision_does() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = tiny()
    np.testing.assert_allclose(dinojax.preprocess(images, model), expected, atol=1e-5)
    np.testing.assert_allclose(dinojax.preprocess(images / np.float32(255), model), expected, atol=1e-5)
    assert dinojax.preprocess(images, model, size=56).shape == (2, 56, 56, 3)


def test_preprocess_fits_channels_to_the_model() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 14, 14, 1), np.uint8)
    rgb = dinojax.preprocess(grey, tiny())
    expected = (grey / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(rgb, expected, atol=1e-5)
    coloured = np.zeros((1, 14, 14, 3), np.uint8)
    coloured[..., 1] = 255
    one = dinojax.preprocess(coloured, tiny(channels=1))
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    np.testing.assert_allclose(one, np.full((1, 14, 14, 1), (0.587 - mean) / std), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((14, 14, 3), np.uint8), r"\[B, H, W, C\]"),
        (np.zeros((1, 14, 14, 4), np.uint8), "4 channels"),
        (np.zeros((1, 14, 14, 3), np.uint16), "window"),
        (np.zeros((1, 14, 14, 3), np.int32), "int32"),
        (np.full((1, 14, 14, 3), 255.0), r"0\.\.1"),
        (np.full((1, 14, 14, 3), np.nan, np.float32), r"0\.\.1"),
    ],
)
def test_preprocess_refuses_what_it_cannot_know(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dinojax.preprocess(images, tiny())


def test_features_are_a_pytree() -> None:
    features = jax.jit(lambda m, x: m(x))(tiny(), jnp.zeros((1, 28, 28, 3)))
    assert features.pooled.shape == (1, 32)
    assert features.patches.shape == (1, 2, 2, 32)
    assert len(jax.tree.leaves(features)) == 2
