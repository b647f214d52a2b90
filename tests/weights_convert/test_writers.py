"""Model directories in the layouts of other libraries, and what these lose."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import Preprocessing, ViTArguments, arguments_of, build, to_one_channel
from dinojax.models.arrays import map_arrays
from dinojax.models.store import save_model, write_model
from tests import goldens_reader as goldens
from tests.weights_convert import published
from weights_convert import huggingface, readers, writers
from weights_convert.backbones import Converted
from weights_convert.layouts import recognise

VIT: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "image_size": 70}
POSITIONS = (
    "positions: at other sizes than 70 pixels {} interpolates them in another way than DINOv2 where there are no "
    "registers, and its features differ"
)
HEADS = "heads: 2 is not kept; readers must ask for it, so say --heads 2 on the way in"


def stored(directory: Path, name: str, **overrides: Any) -> Path:
    """A model directory in which every number is random, and the norms' variances are positive."""
    arguments = arguments_of(name, **overrides)
    _, params = tree.split(nnx.eval_shape(lambda: build(name, arguments, nnx.Rngs(0))))
    random = np.random.RandomState(0)
    arrays = {path: np.abs(random.standard_normal(p.shape)).astype(np.float32) for path, p in params.items()}
    write_model(directory, name, arguments, arrays, Preprocessing(overrides.get("image_size", 224)))
    return directory


def converted_again(path: Path, heads: int | None = None) -> Converted:
    source = readers.read_file(path)
    return recognise(source.tensors, heads, source.config)


def assert_same(given: Converted, directory: Path, but: tuple[str, ...] = ()) -> None:
    """Every parameter bit for bit, except those named."""
    expected = map_arrays(directory / "params.safetensors")
    assert given.params.keys() == expected.keys()
    for path, array in expected.items():
        if path not in but:
            np.testing.assert_array_equal(given.params[path], array, strict=True)


@pytest.mark.parametrize("to", ["dinov2", "hf"])
@pytest.mark.parametrize(("name", "registers"), [("vits14", 0), ("vitg14", 4)])
def test_round_trips_are_exact(tmp_path: Path, to: writers.Layout, name: str, registers: int) -> None:
    directory = stored(tmp_path / "model", name, registers=registers, **VIT)
    target = tmp_path / ("hf" if to == "hf" else "x.safetensors")
    lost = [] if registers else [POSITIONS.format("transformers")]
    assert writers.write(directory, to, target) == (lost if to == "hf" else [HEADS])
    again = converted_again(target, None if to == "hf" else 2)
    assert again.layout == to
    assert again.arguments == arguments_of(name, registers=registers, **VIT)
    assert_same(again, directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model", target.name])


@pytest.mark.parametrize("name", ["vits14", "vitg14"])
def test_timm_loses_the_mask_token(tmp_path: Path, name: str) -> None:
    directory = stored(tmp_path / "model", name, **VIT)
    lost = writers.write(directory, "timm", tmp_path / "x.safetensors")
    assert lost == ["mask_token: timm has no place for it", HEADS, POSITIONS.format("timm")]
    again = converted_again(tmp_path / "x.safetensors", 2)
    assert_same(again, directory, but=("mask_token",))
    assert not again.params["mask_token"].any()


def test_timm_adds_the_position_of_the_class_token_where_there_are_registers(tmp_path: Path) -> None:
    directory = stored(tmp_path / "model", "vits14_reg4", **VIT)
    lost = writers.write(directory, "timm", tmp_path / "x.safetensors")
    titles = [line.split(":")[0] for line in lost]
    assert titles == ["mask_token", "pos_embed[0], the position of the class token", "heads"]
    before, after = map_arrays(directory / "params.safetensors"), map_arrays(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(after["cls_token"], before["cls_token"] + before["pos_embed"][:, :1])
    np.testing.assert_array_equal(after["pos_embed"], before["pos_embed"][:, 1:])
    np.testing.assert_array_equal(after["reg_token"], before["register_tokens"])
    again = converted_again(tmp_path / "x.safetensors", 2)
    assert_same(again, directory, but=("mask_token", "cls_token", "pos_embed"))


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_resnet50_goes_to_torchvision_and_timm(tmp_path: Path, to: writers.Layout) -> None:
    directory = stored(tmp_path / "model", "resnet50", **published.SMALL)
    lost = writers.write(directory, to, tmp_path / "x.safetensors")
    assert [line.split(":")[0] for line in lost] == ["fc, a classifier", "num_batches_tracked"]
    tensors = map_arrays(tmp_path / "x.safetensors")
    assert {name: array.shape for name, array in tensors.items()} == published.torchvision(**published.SMALL)
    counter = tensors["layer2.1.bn3.num_batches_tracked"]
    assert (counter.dtype, counter.item()) == (np.int64, 0)
    assert_same(converted_again(tmp_path / "x.safetensors"), directory)


@pytest.mark.parametrize(
    ("file", "to"),
    [
        ("dinov2_tiny_pretrain.pth", "dinov2"),
        ("dinov2_tiny.safetensors", "dinov2"),
        ("hf_dinov2_tiny", "hf"),
        ("timm_reg4_tiny.safetensors", "timm"),
    ],
)
def test_golden_files_come_back_to_the_bit(tmp_path: Path, file: str, to: writers.Layout) -> None:
    source = readers.read_file(goldens.goldens_dir() / "files" / file)
    converted = recognise(source.tensors, None if to == "hf" else 2, source.config)
    assert converted.arguments is not None
    write_model(tmp_path / "model", converted.name, converted.arguments, converted.params, converted.preprocessing)
    target = tmp_path / ("hf" if to == "hf" else "x.safetensors")
    writers.write(tmp_path / "model", to, target)
    back = readers.read(target)
    assert back.keys() == source.tensors.keys()
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


RULE = {"group": "CT", "name": "range", "low": -160.0, "high": 240.0, "over": "image", "number": 1}


def test_a_huggingface_folder_says_what_it_is(tmp_path: Path) -> None:
    directory = stored(tmp_path / "model", "vits14_reg4", **VIT)
    description = json.loads((directory / "model.json").read_text())
    description["preprocessing"] |= {"size": 42, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "intensity": [RULE]}
    (directory / "model.json").write_text(json.dumps(description))
    assert writers.write(directory, "hf", tmp_path / "hf") == [
        "preprocessing: intensity CT -160 to 240 is not kept; readers take none"
    ]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (
        config.items()
        >= {
            "model_type": "dinov2_with_registers",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_register_tokens": 4,
            "image_size": 70,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
            "use_swiglu_ffn": False,
        }.items()
    )
    assert converted_again(tmp_path / "hf").preprocessing == Preprocessing(42, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    tiny = json.loads((goldens.goldens_dir() / "files" / "hf_dinov2_tiny" / "config.json").read_text())
    ours = huggingface.config_of(ViTArguments(**VIT))
    assert {key: tiny[key] for key in ours} == ours  # as transformers itself writes it


def test_what_stands_beside_the_backbone_is_listed(tmp_path: Path) -> None:
    directory = stored(tmp_path / "model", "vits14", **VIT)
    safetensors.numpy.save_file({"kernel": np.zeros((2, 3), np.float32)}, directory / "dino_head.safetensors")
    assert writers.write(directory, "dinov2", tmp_path / "x.safetensors") == [
        "dino_head: left out, the backbone alone is written",
        HEADS,
    ]
    classifier = tmp_path / "classifier"
    params = {f"backbone.{path}": array for path, array in map_arrays(directory / "params.safetensors").items()}
    params["head.0.kernel"] = np.zeros((32, 1), np.float32)
    told = {"classifier": {"outputs": 1, "hidden": 0, "renormalise": False}}
    bgr = Preprocessing(70, order="BGR")
    write_model(classifier, "vits14", ViTArguments(**VIT), params, bgr, details=told)
    assert writers.write(classifier, "dinov2", tmp_path / "y.safetensors") == [
        "the classifier: left out, the backbone alone is written",
        HEADS,
        "preprocessing: order BGR is not kept; readers take RGB",
    ]
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "overrides", "preprocessing", "lost"),
    [
        ("vits14", {"depth": 1}, Preprocessing(), []),
        ("vits14", {"depth": 1}, Preprocessing(518), ["preprocessing: size 518 is not kept; readers take 224"]),
        ("vits14", {"depth": 1, "channels": 1}, Preprocessing(224, (0.449,), (0.226,)), []),
        (
            "vitb14",
            {"depth": 1, "heads": 6},
            Preprocessing(),
            ["heads: 6 is not kept; readers take 12, so say --heads 6 on the way in"],
        ),
    ],
)
def test_what_is_listed_is_what_the_way_back_loses(
    tmp_path: Path, name: str, overrides: dict[str, Any], preprocessing: Preprocessing, lost: list[str]
) -> None:
    directory = stored(tmp_path / "model", name, **overrides)
    arguments, params = arguments_of(name, **overrides), map_arrays(directory / "params.safetensors")
    write_model(directory, name, arguments, params, preprocessing, overwrite=True)
    assert writers.write(directory, "dinov2", tmp_path / "x.safetensors") == lost
    again = converted_again(tmp_path / "x.safetensors")
    assert (again.arguments == arguments) == (not any("heads" in line for line in lost))
    close = again.preprocessing.size == preprocessing.size and np.allclose(again.preprocessing.mean, preprocessing.mean)
    assert close == (not any("preprocessing" in line for line in lost))


def test_a_model_folded_into_one_channel_is_written_with_its_normalisation_or_says_that_it_is_not(
    tmp_path: Path,
) -> None:
    folded = to_one_channel(build("vits14", arguments_of("vits14", **VIT), nnx.Rngs(0)))
    save_model(tmp_path / "model", folded)
    lost = writers.write(tmp_path / "model", "dinov2", tmp_path / "x.safetensors")
    mean, std = (f"preprocessing: {name} is not kept; readers take" for name in ("mean (0.0,)", "std (1.0,)"))
    assert [line for line in lost if line.startswith("preprocessing: ")][-2:] == [f"{mean} (0.449,)", f"{std} (0.226,)"]
    lost = writers.write(tmp_path / "model", "hf", tmp_path / "hf")
    assert not any("preprocessing" in line for line in lost)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_channels"] == 1
    for file in ("x.safetensors", "hf"):
        again = converted_again(tmp_path / file, heads=2)
        assert again.arguments == folded.arguments
        assert_same(again, tmp_path / "model")
    assert (again.preprocessing.mean, again.preprocessing.std) == ((0.0,), (1.0,))


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    directory = stored(tmp_path / "model", "vits14_reg4", **VIT)
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in map_arrays(directory / "params.safetensors").items()}
    safetensors.numpy.save_file(half, directory / "params.safetensors")
    writers.write(directory, "timm", tmp_path / "x.safetensors")
    tensors = map_arrays(tmp_path / "x.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tensors["norm.weight"], half["norm.scale"].astype(np.float32))
    expected = half["cls_token"].astype(np.float32) + half["pos_embed"][:, :1].astype(np.float32)
    np.testing.assert_array_equal(tensors["cls_token"], expected)


def test_models_that_a_library_does_not_have_are_refused(tmp_path: Path) -> None:
    vit = stored(tmp_path / "vit", "vits14", **VIT)
    resnet = stored(tmp_path / "resnet", "resnet50", **published.SMALL)
    keras = stored(tmp_path / "keras", "resnet50_keras", **published.SMALL)
    cases: list[tuple[Path, writers.Layout, str, str]] = [
        (vit, "torchvision", "x.safetensors", "torchvision has no vits14; take --to dinov2, --to hf or --to timm"),
        (resnet, "hf", "x", "the layout hf has no ResNet; take --to torchvision or --to timm"),
        (resnet, "dinov2", "x.safetensors", "take --to torchvision or --to timm"),
        (keras, "torchvision", "x.safetensors", "biases, strides and epsilon of Keras"),
        (keras, "timm", "x.safetensors", "biases, strides and epsilon of Keras"),
        (vit, "dinov2", "x.pth", "let its name end in .safetensors"),
        (vit, "hf", "resnet", "exists already"),
        (tmp_path, "hf", "x", "is not a model directory"),
    ]
    for directory, to, target, said in cases:
        with pytest.raises(UsageError) as refusal:
            writers.write(directory, to, tmp_path / target)
        assert said in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keras", "resnet", "vit"]


def test_a_model_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    directory = stored(tmp_path / "model", "vits14", **VIT)
    params = dict(map_arrays(directory / "params.safetensors"))
    params["norm.scale"] = np.ones(16, np.float32)
    safetensors.numpy.save_file(params, directory / "params.safetensors")
    with pytest.raises(RunError, match=r"wrong shape norm\.scale: 16, expected 32"):
        writers.write(directory, "dinov2", tmp_path / "x.safetensors")
    (directory / "model.json").write_text('{"name": "vits14"}')
    with pytest.raises(RunError, match=r"model\.json is not one of this version"):
        writers.write(directory, "dinov2", tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("to", ["dinov2", "hf"])
def test_a_failure_leaves_nothing(tmp_path: Path, to: writers.Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stored(tmp_path / "model", "vits14", **VIT)
    target = "hf" if to == "hf" else "x.safetensors"
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(RunError, match="cannot write"):
        writers.write(directory, to, tmp_path / "file" / target)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", full)
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device"):
        writers.write(directory, to, tmp_path / "deep" / target)
    assert not list(tmp_path.glob("deep/*")) + list(tmp_path.glob("deep/.*"))
