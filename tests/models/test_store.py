"""Model directories, and images on their way into a model."""

import json
import re
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

import dinojax
from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import Preprocessing, ResNet, VisionTransformer, create_transformer
from dinojax.models.arrays import LazyArrays, map_arrays, write_arrays
from dinojax.models.store import load_linear_head, load_transformer, read_description, read_params, write_model

TINY = {"width": 32, "depth": 1, "heads": 2, "image_size": 28}
TINY_RESNET = {"blocks": (1, 2), "filters": (4, 8), "stem": 8}


def tiny(seed: int = 0, **overrides: object) -> VisionTransformer:
    return create_transformer("vitt14", rngs=nnx.Rngs(seed), **{**TINY, **overrides})


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


def test_a_model_that_is_being_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "model"
    dinojax.save_model(directory, tiny(0))
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dinojax.save_model(directory, tiny(1), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    np.testing.assert_array_equal(load_transformer(directory).pos_embed[...], tiny(0).pos_embed[...])


def test_a_link_to_a_model_stays_one(tmp_path: Path) -> None:
    link, disk = tmp_path / "model", tmp_path / "disk"
    dinojax.save_model(disk, tiny(0))
    link.symlink_to(disk)
    for seed in (1, 2):
        dinojax.save_model(link, tiny(seed), overwrite=True)
        np.testing.assert_array_equal(load_transformer(disk).pos_embed[...], tiny(seed).pos_embed[...])
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "disk"}


def test_of_two_writers_one_wins_with_all_its_files(tmp_path: Path) -> None:
    """The second one writes, from beginning to end, while the first one is at its first array."""
    _, params = tree.split(tiny(0))
    arguments, directory = tiny().arguments, tmp_path / "model"

    def slowly(path: str) -> np.ndarray:
        if not directory.exists():
            dinojax.save_model(directory, tiny(1), source={"file": "second"})
        return np.asarray(params[path])

    lazy = LazyArrays({path: (value.shape, value.dtype, partial(slowly, path)) for path, value in params.items()})
    write_model(directory, "vitt14", arguments, lazy, Preprocessing(), {"file": "first"}, overwrite=True)
    assert read_description(directory)["source"] == {"file": "first"}
    np.testing.assert_array_equal(read_params(directory)["pos_embed"], params["pos_embed"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_ends_in_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a model directory: there is nothing of this name"):
        dinojax.load_model(tmp_path / "nowhere")
    dinojax.save_model(tmp_path / "model", tiny())
    with pytest.raises(UsageError, match=r"has no model\.json; take .*model"):
        dinojax.load_model(tmp_path)
    with pytest.raises(UsageError, match="holds no linear head"):
        load_linear_head(tmp_path / "model")
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
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "model" / "model.json").write_text(text)
        with pytest.raises(RunError, match=r"model\.json cannot be read"):
            dinojax.load_model(tmp_path / "model")
    for key, value in {"heads": 0, "depth": -1, "width": "wide", "mlp": "relu"}.items():
        wrong = {**described, "arguments": {**described["arguments"], key: value}}
        (tmp_path / "model" / "model.json").write_text(json.dumps(wrong))
        with pytest.raises(RunError):
            dinojax.load_model(tmp_path / "model")


def write_weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_weights_that_are_not_converted_are_answered_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(Path("rad-dino/config.json"))
    for given, name in [
        (write_weights(Path("dinov2_vits14_pretrain.pth")), "dinov2_vits14"),
        (write_weights(Path("Some Where/RadImageNet.h5")), "RadImageNet"),
        (write_weights(Path("timm_vits14/model.safetensors")), "timm_vits14"),
        (write_weights(Path("rad-dino/model.safetensors")), "rad-dino"),
        (Path("rad-dino"), "rad-dino"),
    ]:
        quoted = f"'{given}'" if " " in str(given) else given
        command = f"python -m weights_convert {quoted} weights/{name}"
        for load in (dinojax.load_model, load_transformer, load_linear_head):
            with pytest.raises(UsageError, match=rf"to convert first: {re.escape(command)}$"):
                load(given)
    dinojax.save_model("model", tiny())
    for part in ("params.safetensors", "model.json"):
        with pytest.raises(UsageError, match=r"is a file of one; take model$"):
            dinojax.load_model(Path("model") / part)


def test_a_resnet_loads_to_the_same_outputs(tmp_path: Path) -> None:
    graph, params = tree.split(dinojax.create_model("resnet50_keras", nnx.Rngs(0), **TINY_RESNET))
    drawn = np.random.default_rng(0)
    params = {path: value + jnp.asarray(drawn.uniform(size=value.shape), "float32") for path, value in params.items()}
    model: ResNet = tree.merge(graph, params)
    model.preprocessing = Preprocessing(64, (0.4, 0.5, 0.6), (1.0, 1.0, 1.0), order="BGR")
    dinojax.save_model(tmp_path / "model", model)
    loaded = dinojax.load_model(tmp_path / "model")
    assert isinstance(loaded, ResNet)
    assert (loaded.arguments, loaded.preprocessing) == (model.arguments, model.preprocessing)
    x = jax.random.normal(jax.random.key(0), (2, 32, 40, 3))
    np.testing.assert_array_equal(model(x).patches, loaded(x).patches)
    with pytest.raises(UsageError, match="model resnet50_keras has no argument drop_path, loop_blocks; it has"):
        dinojax.load_model(tmp_path / "model", drop_path=0.1, loop_blocks=True)
    with pytest.raises(UsageError, match="holds a resnet50_keras; a vision transformer is needed"):
        load_transformer(tmp_path / "model", drop_path=0.1)


def test_a_directory_from_before_the_order_of_channels_was_stored(tmp_path: Path) -> None:
    dinojax.save_model(tmp_path / "model", tiny())
    described = read_description(tmp_path / "model")
    assert described["preprocessing"].pop("order") == "RGB"
    (tmp_path / "model" / "model.json").write_text(json.dumps(described))
    assert dinojax.load_model(tmp_path / "model").preprocessing == tiny().preprocessing
    described["preprocessing"]["order"] = "RBG"
    (tmp_path / "model" / "model.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match=r"model\.json is not one of this version.*RBG"):
        dinojax.load_model(tmp_path / "model")


INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES = ["float64", "float32", "float16", "bool", *INTEGERS]


def some_arrays() -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(0)
    arrays = {f"a.{dtype}": (3 * drawn.standard_normal((3, 5))).astype(dtype) for dtype in DTYPES}
    arrays["bits.ü"] = drawn.integers(0, 2**16, (7,), np.uint16).view(ml_dtypes.bfloat16)  # NaN with their bits, too
    arrays["strided"] = arrays["a.float32"].T[::2]
    return arrays | {"scalar": np.array(2.5, np.float32), "none": np.zeros((0, 4), np.float32)}


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


def test_written_arrays_are_read_by_safetensors_and_mapped_bit_for_bit(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.safetensors", some_arrays()
    write_arrays(path, arrays)
    assert_same_bits(safetensors.numpy.load_file(path), arrays)
    mapped = map_arrays(path)
    assert_same_bits(mapped, arrays)
    assert all(array.flags.aligned and not array.flags.writeable for array in mapped.values())
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    write_arrays(path, {"x": jnp.arange(3, dtype=jnp.bfloat16)})
    np.testing.assert_array_equal(map_arrays(path)["x"], np.arange(3).astype(ml_dtypes.bfloat16))
    assert_same_bits(mapped, arrays)  # the file that they are views of lives on


def test_files_that_safetensors_writes_are_mapped_bit_for_bit(tmp_path: Path) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in some_arrays().items() if array.ndim}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_same_bits(map_arrays(tmp_path / "a.safetensors"), arrays)


def test_lazy_arrays_are_made_once_and_one_at_a_time(tmp_path: Path) -> None:
    made: list[str] = []
    last: list[weakref.ref[np.ndarray]] = []

    def make(name: str) -> np.ndarray:
        assert not last or last[-1]() is None, f"the array before {name} is still held"
        made.append(name)
        array = np.full((2, 3), len(made), np.float32)
        last.append(weakref.ref(array))
        return array

    lazy = LazyArrays({name: ((2, 3), np.float32, partial(make, name)) for name in "abc"})
    assert lazy.shapes == dict.fromkeys("abc", (2, 3))
    assert lazy.dtypes == dict.fromkeys("abc", np.dtype("float32"))
    assert list(lazy) == ["a", "b", "c"]
    write_arrays(tmp_path / "a.safetensors", lazy)
    assert made == ["a", "b", "c"]
    assert [array[0, 0] for array in map_arrays(tmp_path / "a.safetensors").values()] == [1, 2, 3]


def test_a_failing_array_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_arrays(path, LazyArrays({"x": ((1,), np.float32, lambda: np.array([1 // 0]))}))
    with pytest.raises(ValueError, match=r"x is float32 \(2,\), announced as float32 \(1,\)"):
        write_arrays(path, LazyArrays({"x": ((1,), np.float32, lambda: np.zeros(2, np.float32))}))
    with pytest.raises(RunError, match="no arrays of complex128"):
        write_arrays(path, {"x": np.zeros(3, complex)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.zeros(3)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"a\.safetensors cannot be read"):
        map_arrays(path)


def test_preprocess_scales_and_normalises_as_torchvision_does() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    model = tiny()
    np.testing.assert_allclose(dinojax.preprocess(images, model), expected, atol=1e-5)
    np.testing.assert_allclose(dinojax.preprocess(images / np.float32(255), model), expected, atol=1e-5)
    assert dinojax.preprocess(images, model, size=56).shape == (2, 56, 56, 3)


def test_preprocess_puts_the_channels_in_the_models_order() -> None:
    """RadImageNet's Keras scripts: BGR, minus the ImageNet mean in 0..255, then / 255."""
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    mean = np.array([103.939, 116.779, 123.68])
    model = tiny()
    model.preprocessing = Preprocessing(256, tuple(mean / 255), (1.0, 1.0, 1.0), order="BGR")
    expected = (images[..., ::-1].astype(np.float64) - mean) / 255
    np.testing.assert_allclose(dinojax.preprocess(images, model), expected, atol=1e-6)
    grey = images[..., :1]
    expected = (np.repeat(grey, 3, -1).astype(np.float64) - mean) / 255
    np.testing.assert_allclose(dinojax.preprocess(grey, model), expected, atol=1e-6)
    one = tiny(channels=1)
    one.preprocessing = Preprocessing(256, (0.0,), (1.0,), order="BGR")
    luminance = images.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(dinojax.preprocess(images, one)[..., 0], luminance, atol=1e-6)


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
        (np.zeros((1, 14, 14, 3), np.uint16), "uint16 images need a range"),
        (np.zeros((1, 14, 14, 3), np.int32), "int32"),
        (np.full((1, 14, 14, 3), 255.0), r"0\.\.1"),
        (np.full((1, 14, 14, 3), np.nan, np.float32), r"0\.\.1"),
    ],
)
def test_preprocess_refuses_what_it_cannot_know(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dinojax.preprocess(images, tiny())


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        ("scan.png", TypeError, "a path; pass np.asarray(PIL.Image.open(path).convert('RGB'))[None]"),
        (Path("scan.png"), TypeError, "a path; pass np.asarray(PIL.Image.open(path)"),
        (Image.new("L", (14, 14)), TypeError, "mode L; pass np.asarray(image)[None, ..., None]"),
        (Image.new("RGB", (14, 14)), TypeError, "mode RGB; pass np.asarray(image)[None]"),
        (Image.new("RGBA", (14, 14)), TypeError, "mode RGBA; pass np.asarray(image.convert('RGB'))[None]"),
        ([np.zeros((14, 14, 3), np.uint8)], TypeError, "a list; pass np.stack(images)"),
        (7, TypeError, "a int; pass a NumPy or JAX array"),
        (np.zeros((14, 14), np.uint8), ValueError, "for one grey image [H, W] pass images[None, ..., None]"),
        (np.zeros((14, 14, 3), np.uint8), ValueError, "for one image [H, W, C] pass images[None]"),
        (np.zeros((3, 14, 14), np.uint8), ValueError, "[C, H, W] pass np.moveaxis(images, 0, -1)[None]"),
        (np.zeros((8, 14, 14), np.uint8), ValueError, "for a batch of grey images [B, H, W] pass images[..., None]"),
        (np.zeros((1, 1, 14, 14, 3), np.uint8), ValueError, "pass a batch of images, channels last"),
        (np.zeros((1, 3, 14, 14), np.uint8), ValueError, "channels first; pass np.moveaxis(images, 1, -1)"),
    ],
)
def test_preprocess_says_what_to_pass(images: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        dinojax.preprocess(images, tiny())


def test_what_preprocess_says_to_pass_is_right() -> None:
    grey = Image.fromarray(np.arange(14 * 28, dtype=np.uint16).astype(np.uint8).reshape(14, 28))
    assert dinojax.preprocess(np.asarray(grey)[None, ..., None], tiny()).shape == (1, 14, 28, 3)
    assert dinojax.preprocess(np.asarray(grey.convert("RGB"))[None], tiny()).shape == (1, 14, 28, 3)


def test_features_are_a_pytree() -> None:
    features = jax.jit(lambda m, x: m(x))(tiny(), jnp.zeros((1, 28, 28, 3)))
    assert features.pooled.shape == (1, 32)
    assert features.patches.shape == (1, 2, 2, 32)
    assert len(jax.tree.leaves(features)) == 2
