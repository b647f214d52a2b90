"""Which model the tensors are, recognised by names, shapes and what lies beside them."""

import hashlib
import re
import tracemalloc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import Preprocessing, ResNetArguments, ViTArguments, build
from dinojax.models.arrays import write_arrays
from dinojax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests import goldens_reader as goldens
from tests.weights_convert import published
from weights_convert import layouts, readers
from weights_convert.backbones import Converted, check_model, vit
from weights_convert.layouts import linear_head_fits, recognise, recognise_source

CAFFE_MEAN = tuple(value / 255 for value in (103.939, 116.779, 123.68))


def read(name: str) -> dict[str, np.ndarray]:
    return readers.read(goldens.goldens_dir() / "files" / name)


def model_of(converted: Converted) -> Any:
    assert converted.arguments is not None
    arguments = converted.arguments
    graph, _ = tree.split(nnx.eval_shape(lambda: build(converted.name, arguments, nnx.Rngs(0))))
    return tree.merge(graph, {path: jnp.asarray(array) for path, array in converted.params.items()})


def images(name: str, shape: tuple[int, ...]) -> jnp.ndarray:
    """NHWC of an input that is NCHW."""
    return jnp.asarray(goldens.rebuild(name, shape).transpose(0, 2, 3, 1))


def tiny(prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": tensor for name, tensor in published.rebuilt(published.TINY).items()}


def head(prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": tensor for name, tensor in published.rebuilt(published.TINY_HEAD).items()}


@pytest.mark.parametrize(
    ("file", "layout", "tolerance"),
    [
        ("dinov2_tiny_pretrain.pth", "dinov2", 5e-6),
        ("dinov2_tiny_legacy_format.pth", "dinov2", 5e-6),
        ("dinov2_tiny.safetensors", "dinov2", 5e-6),
        ("dinov2_tiny_fp16.pth", "dinov2", 2e-3),
        ("teacher_checkpoint.pth", "dinov2_teacher", 5e-6),
        ("teacher_checkpoint_chunked.pth", "dinov2_teacher", 5e-6),
    ],
)
def test_golden_dinov2_files(file: str, layout: str, tolerance: float) -> None:
    converted = recognise(read(file), heads=2)
    assert converted.layout == layout
    features = model_of(converted)(images("input.tiny", (2, 3, 70, 70)))
    golden = goldens.load("tiny.npz")
    goldens.assert_close(features.pooled, golden["cls"], tolerance)
    goldens.assert_close(features.patches.reshape(2, 25, 32), golden["patch"], tolerance)


def test_golden_huggingface_folder() -> None:
    source = readers.read_file(goldens.goldens_dir() / "files" / "hf_dinov2_tiny")
    converted = recognise(source.tensors, config=source.config)  # which tells the heads
    assert converted.layout == "hf"
    assert converted.arguments == ViTArguments(width=32, depth=2, heads=2, image_size=70)
    features = model_of(converted)(images("input.hf", (2, 3, 70, 70)))
    golden = goldens.load("tiny_hf.npz")["last_hidden_state"]
    goldens.assert_close(features.pooled, golden[:, 0], 5e-6)
    goldens.assert_close(features.patches.reshape(2, 25, 32), golden[:, 1:], 5e-6)


@pytest.mark.parametrize("gated", [None, 512])
def test_names_that_transformers_has_in_memory_are_read(gated: int | None) -> None:
    """As of transformers 5, which writes the older names unless the state dict itself is saved."""
    older = published.rebuilt(published.hf(192, 2, 3, 4, gated))
    newer = {}
    for name, tensor in older.items():
        plain = re.sub(r"attention\.attention\.([qkv])(uery|ey|alue)", r"attention.\1_proj", name)
        plain = plain.replace("attention.output.dense", "attention.o_proj").replace("weights_out", "down_proj")
        if "weights_in" in plain:
            newer[plain.replace("weights_in", "gate_proj")], newer[plain.replace("weights_in", "up_proj")] = np.split(
                tensor, 2
            )
        else:
            newer[plain] = tensor
    expected, found = recognise(older), recognise(newer)
    assert (found.layout, found.arguments) == ("hf", expected.arguments)
    assert found.params.keys() == expected.params.keys()
    assert all(np.array_equal(found.params[path], expected.params[path]) for path in expected.params)


def test_golden_timm_file() -> None:
    converted = recognise(read("timm_reg4_tiny.safetensors"), heads=2)
    assert (converted.layout, converted.name) == ("timm", "vitt14_reg4")
    features = model_of(converted)(images("input.timm", (2, 3, 70, 70)))
    golden = goldens.load("tiny_timm_reg4.npz")["tokens"]
    goldens.assert_close(features.pooled, golden[:, 0], 5e-6)
    goldens.assert_close(features.registers, golden[:, 1:5], 5e-6)
    goldens.assert_close(features.patches.reshape(2, 25, 32), golden[:, 5:], 5e-6)


@pytest.mark.parametrize("form", ["weights", "model", "bytes"])
def test_golden_keras_files(form: str) -> None:
    converted = recognise(read(f"resnet50_tiny_notop_{form}.h5"))
    assert (converted.layout, converted.name) == ("keras", "resnet50_keras")
    assert isinstance(converted.arguments, ResNetArguments)
    assert converted.arguments.filters == (8, 8, 16, 16)
    assert converted.arguments.blocks == (3, 4, 6, 3)
    pooled = model_of(converted)(jnp.asarray(goldens.rebuild("input.resnet50_tiny", (2, 96, 96, 3)))).pooled
    goldens.assert_close(pooled, goldens.load("resnet50_tiny_keras.npz")["pooled"], 1e-5)


@pytest.mark.parametrize("layout", ["torchvision", "radimagenet", "keras"])
def test_golden_resnet50_of_full_size(layout: str) -> None:
    tensors = published.rebuilt(published.keras() if layout == "keras" else published.torchvision())
    if layout == "radimagenet":  # the same numbers under its names
        tensors = dict(zip(published.radimagenet(), tensors.values(), strict=True))
    converted = recognise(tensors)
    assert converted.layout == layout
    name = "resnet50_keras" if layout == "keras" else "resnet50"
    x = goldens.rebuild(f"input.{name}.96", (2, 96, 96, 3) if layout == "keras" else (2, 3, 96, 96))
    pooled = model_of(converted)(jnp.asarray(x if layout == "keras" else x.transpose(0, 2, 3, 1))).pooled
    file = "resnet50_keras.npz" if layout == "keras" else "resnet50_torchvision.npz"
    goldens.assert_close(pooled, goldens.load(file)["96.pooled"], 1e-5)


def test_preprocessing_belongs_to_the_checkpoint() -> None:
    small = published.SMALL
    top = {"predictions/kernel": np.zeros((20, 1000), np.float32), "predictions/bias": np.zeros(1000, np.float32)}
    keras = published.rebuilt(published.keras(**small))
    for tensors, expected in [
        (published.rebuilt(published.backbone(192, 1, 37)), Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)),
        (published.rebuilt(published.backbone(192, 1, 5)), Preprocessing(70, IMAGENET_MEAN, IMAGENET_STD)),
        (published.rebuilt(published.torchvision(**small)), Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)),
        (published.rebuilt(published.radimagenet(**small)), Preprocessing(224, (0.5,) * 3, (0.5,) * 3)),
        (keras, Preprocessing(256, CAFFE_MEAN, (1.0,) * 3, order="BGR")),
        (keras | top, Preprocessing(224, CAFFE_MEAN, (1 / 255,) * 3, order="BGR")),  # Keras' own ImageNet weights
    ]:
        assert recognise(tensors).preprocessing == expected


def test_the_digest_tells_keras_own_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    path = goldens.goldens_dir() / "files" / "resnet50_tiny_notop_weights.h5"
    source = readers.read_file(path)
    radimagenet = Preprocessing(256, CAFFE_MEAN, (1.0,) * 3, order="BGR")
    assert recognise_source(source).preprocessing == radimagenet
    monkeypatch.setattr(layouts, "_IMAGENET_KERAS_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    imagenet = Preprocessing(224, CAFFE_MEAN, (1 / 255,) * 3, order="BGR")
    assert recognise_source(source).preprocessing == imagenet


def test_sizes_are_read_off() -> None:
    for width, heads, name in [(384, 6, "vits14"), (768, 12, "vitb14"), (192, 3, "vitt14")]:
        converted = recognise(published.rebuilt(published.backbone(width, 12, 3)))
        assert (converted.name, converted.arguments) == (name, ViTArguments(width, 12, heads, image_size=42))
    gated = recognise(published.rebuilt(published.timm(192, 1, 3, registers=5, gated=512)))
    assert gated.arguments == ViTArguments(192, 1, 3, image_size=42, registers=5, mlp="swiglu")
    plain = recognise(published.rebuilt(published.timm(192, 1, 3)))
    assert (plain.layout, plain.arguments) == ("timm", ViTArguments(192, 1, 3, image_size=42))


@pytest.mark.parametrize(
    ("shapes", "embed"),
    [
        (published.backbone(192, 1, 3), "patch_embed.proj.weight"),
        (published.timm(192, 1, 3), "patch_embed.proj.weight"),
        (published.hf(192, 1, 3), "embeddings.patch_embeddings.projection.weight"),
    ],
)
def test_the_patch_size_is_read_off(shapes: published.Shapes, embed: str) -> None:
    tensors = published.rebuilt(shapes | {embed: (192, 3, 8, 8)})
    assert recognise(tensors).arguments == ViTArguments(192, 1, 3, image_size=24, patch_size=8)
    with pytest.raises(RunError, match=r"has \(192, 3, 8, 7\), expected \(192, 3, 8, 8\)"):
        recognise(published.rebuilt(shapes | {embed: (192, 3, 8, 7)}))


def test_other_channels_than_colours_share_a_mean() -> None:
    grey = recognise(published.rebuilt(published.torchvision(**published.SMALL) | {"conv1.weight": (6, 1, 7, 7)}))
    assert grey.arguments == ResNetArguments((1, 2, 1, 2), (2, 3, 4, 5), 6, channels=1)
    assert (grey.preprocessing.size, grey.preprocessing.order) == (224, "RGB")
    assert grey.preprocessing.mean == pytest.approx((0.449,))
    assert grey.preprocessing.std == pytest.approx((0.226,))
    four = recognise(published.rebuilt(published.keras(**published.SMALL) | {"conv1_conv/kernel": (7, 7, 4, 6)}))
    assert (four.preprocessing.size, four.preprocessing.order) == (256, "RGB")
    assert four.preprocessing.mean == pytest.approx((344.398 / 765,) * 4)
    assert four.preprocessing.std == (1.0,) * 4


def test_dinobloom_is_a_teacher_at_224_pixels() -> None:
    tensors = published.rebuilt(published.backbone(192, 1, 16))
    converted = recognise({f"teacher.backbone.{name}": tensor for name, tensor in tensors.items()})
    assert converted.arguments == ViTArguments(192, 1, 3, image_size=224)
    assert converted.layout == "dinov2_teacher"


def test_a_training_checkpoint_gives_either_model() -> None:
    student = {name: 2 * tensor for name, tensor in tiny("model.student.backbone.").items()}
    tensors = {
        **student,
        **tiny("model.teacher.backbone."),
        **head("model.student.dino_head."),
        **{name: 3 * tensor for name, tensor in head("model.teacher.dino_head.").items()},
        **head("model.teacher.ibot_head."),
        "model.dino_loss.center": np.zeros((1, 128), np.float32),
        "model.ibot_patch_loss.center": np.zeros((1, 1, 128), np.float32),
        "scaler.scale": np.ones((), np.float32),
        **{f"optimizer.state.{i}.exp_avg": np.zeros(3, np.float32) for i in range(4)},
    }
    teacher, taken = recognise(tensors, heads=2), recognise(tensors, heads=2, part="student")
    assert (teacher.layout, taken.layout) == ("dinov2_training_teacher", "dinov2_training_student")
    norm = published.rebuilt(published.TINY)["norm.weight"]
    np.testing.assert_array_equal(teacher.params["norm.scale"], norm)
    np.testing.assert_array_equal(taken.params["norm.scale"], 2 * norm)
    assert (list(teacher.heads), list(taken.heads)) == (["dino_head", "ibot_head"], ["dino_head"])
    weight = published.rebuilt(published.TINY_HEAD)["mlp.4.weight"].T
    np.testing.assert_array_equal(teacher.heads["dino_head"]["mlp.2.kernel"], 3 * weight)
    np.testing.assert_array_equal(taken.heads["dino_head"]["mlp.2.kernel"], weight)
    assert "optimizer.* (4 tensors)" in teacher.ignored
    assert {"model.dino_loss.* (1 tensors)", "scaler.* (1 tensors)"} < {*teacher.ignored}
    assert f"model.student.* ({len(published.TINY) + len(published.TINY_HEAD)} tensors)" in teacher.ignored
    with pytest.raises(RunError, match=r"unexpected tensors \(1\): model\.teacher\.centre"):
        recognise(tensors | {"model.teacher.centre": norm}, heads=2)
    with pytest.raises(UsageError, match="no student"):
        recognise(tiny(), heads=2, part="student")


@pytest.mark.parametrize(("prefix", "registers"), [("dinov2.", 0), ("dinov2_with_registers.", 4)])
def test_the_classifier_of_a_huggingface_model_is_left_out(prefix: str, registers: int) -> None:
    backbone = published.rebuilt(published.hf(192, 1, 3, registers))
    tensors = {prefix + name: tensor for name, tensor in backbone.items()}
    classifier = {"classifier.weight": np.zeros((10, 384), np.float32), "classifier.bias": np.zeros(10, np.float32)}
    converted = recognise(tensors | classifier)
    assert converted.ignored == ("classifier.weight", "classifier.bias")
    assert converted.params.keys() == recognise(backbone).params.keys()
    with pytest.raises(RunError, match=r"unexpected \(1\): pooler\.weight"):
        recognise(tensors | {"pooler.weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("shapes", "classifier"),
    [
        (published.timm(192, 1, 3), ["head.weight", "head.bias"]),
        (published.backbone(192, 1, 3), ["head.weight", "head.bias"]),
        (published.backbone(192, 1, 3, registers=4, gated=512), ["head.bias"]),
        (published.timm(192, 1, 3, registers=4, gated=512), ["head.weight"]),
        (published.torchvision(**published.SMALL), ["fc.weight", "fc.bias"]),
        (published.radimagenet(**published.SMALL), ["fc.weight", "fc.bias"]),
        (published.radimagenet(**published.SMALL), ["classifier.weight", "head.1.weight", "head.1.bias"]),
        (published.keras(**published.SMALL), ["dense/kernel", "dense_1/kernel", "dense_1/bias"]),
        (published.keras(**published.SMALL), ["predictions/kernel", "probs/bias", "fc1000/kernel", "fc/bias"]),
    ],
)
def test_other_classifiers_are_left_out(shapes: published.Shapes, classifier: list[str]) -> None:
    tensors = published.rebuilt(shapes)
    whole = recognise(tensors | {name: np.zeros((20, 7), np.float32) for name in classifier})
    assert whole.ignored == tuple(classifier)
    assert whole.params.keys() == recognise(tensors).params.keys()


def test_a_huggingface_configuration_tells_and_is_believed() -> None:
    tensors = published.rebuilt(published.hf(32, 2, 5))
    # As RAD-DINO's preprocessor_config.json has it.
    preprocessor = {
        "crop_size": {"height": 518, "width": 518},
        "do_center_crop": True,
        "image_mean": [0.5307] * 3,
        "image_std": [0.2583] * 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 518},
    }
    config: dict[str, Any] = {"num_attention_heads": 4, "image_size": [70, 70], "layer_norm_eps": 1e-06}
    converted = recognise(tensors, config=config | {"preprocessor": preprocessor})
    assert isinstance(converted.arguments, ViTArguments)
    assert converted.arguments.heads == 4
    assert converted.preprocessing == Preprocessing(518, (0.5307,) * 3, (0.2583,) * 3)
    without = {name: tensor for name, tensor in tensors.items() if name != "embeddings.mask_token"}
    assert not recognise(without, config=config | {"use_mask_token": False}).params["mask_token"].any()
    with pytest.raises(RunError, match=r"missing \(1\): embeddings\.mask_token"):
        recognise(without, config=config)


COLOURS: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (COLOURS, Preprocessing(70, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        (COLOURS | {"do_normalize": False}, Preprocessing(70, (0.0,) * 3, (1.0,) * 3)),
        ({"do_normalize": True}, Preprocessing(70, IMAGENET_MEAN, IMAGENET_STD)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, Preprocessing(224)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, Preprocessing(256)),
    ],
)
def test_a_preprocessor_says_what_it_does(preprocessor: dict[str, Any], expected: Preprocessing) -> None:
    tensors = published.rebuilt(published.hf(32, 2, 5))
    assert recognise(tensors, 2, {"preprocessor": preprocessor}).preprocessing == expected


@pytest.mark.parametrize(
    "shapes", [published.timm(192, 1, 3), published.torchvision(**published.SMALL)], ids=["vit", "resnet"]
)
def test_timm_tells_the_preprocessing(shapes: published.Shapes) -> None:
    told = {"input_size": [3, 518, 518], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 1.0}
    converted = recognise(published.rebuilt(shapes), config={"pretrained_cfg": told})
    assert converted.preprocessing == Preprocessing(518, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_timm_tells_the_heads() -> None:
    tensors = published.rebuilt(published.timm(32, 1, 3))
    config: dict[str, Any] = {"model_args": {"num_heads": 4, "img_size": 518, "init_values": 1e-5}}
    for heads in (None, 4):
        assert recognise(tensors, heads, config).arguments == ViTArguments(32, 1, 4, image_size=42)
    with pytest.raises(UsageError, match="leave out --heads"):
        recognise(tensors, 2, config)
    with pytest.raises(RunError, match="expected a number above 0"):
        recognise(tensors, config={"model_args": {"num_heads": "4"}})
    with pytest.raises(RunError, match="model_args act_layer, qk_norm,"):
        recognise(tensors, config={"model_args": {"qk_norm": True, "num_heads": 4, "act_layer": "relu"}})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "resnet50"}, None),
        ({"architecture": "gluon_resnet50_v1b"}, None),
        ({"architecture": "tv_resnet50"}, None),
        ({"architecture": "resnet50", "model_args": {"num_classes": 10}}, None),
        ({"architecture": "resnetaa50"}, "'resnetaa50', which is no plain ResNet"),
        ({"architecture": "resnetblur50"}, "'resnetblur50', which is no plain ResNet"),
        ({"architecture": 50}, "50, which is no plain ResNet"),
        ({"architecture": "resnet50", "model_args": {"act_layer": "silu"}}, "gives model_args act_layer,"),
    ],
)
def test_timm_says_which_resnet_it_is(config: dict[str, Any], said: str | None) -> None:
    tensors = published.rebuilt(published.torchvision(**published.SMALL))
    if said is None:
        assert recognise(tensors, config=config).layout == "torchvision"
    else:
        with pytest.raises(RunError, match=said):
            recognise(tensors, config=config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05, expected 1e-06"),
        ({"image_size": 224}, "image_size 224, expected 70"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn True, expected False"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new', expected 'gelu'"),
        ({"model_type": "vit"}, "model_type 'vit', expected 'dinov2'"),
        ({"num_attention_heads": "2"}, "num_attention_heads '2'"),
        ({"preprocessor": {"rescale_factor": 1.0}}, "not scaled by 1/255"),
        ({"preprocessor": {"image_mean": [0.5]}}, "image_mean is [0.5], expected 3 numbers"),
        ({"preprocessor": {"image_mean": [0, 0, 10**400]}}, "expected 3 numbers"),
        ({"preprocessor": {"rescale_factor": 10**400}}, "not scaled by 1/255"),
        ({"preprocessor": {"image_std": [0.5, 0.5, 0]}}, "is not above 0"),
        ({"preprocessor": {"crop_size": {"height": "224"}}}, "is not above 0"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "config.json, pretrained_cfg: mean is [0.5], expected 3 numbers"),
    ],
)
def test_a_huggingface_configuration_of_another_model_is_refused(config: dict[str, Any], said: str) -> None:
    tensors = published.rebuilt(published.hf(32, 2, 5))
    with pytest.raises(RunError) as refusal:
        recognise(tensors, None if "num_attention_heads" in config else 2, config)
    assert said in str(refusal.value)


def test_heads_are_asked_for_by_name() -> None:
    with pytest.raises(UsageError, match="--heads N"):
        recognise(tiny())
    with pytest.raises(UsageError, match="not a multiple of its 3 heads"):
        recognise(tiny(), heads=3)
    with pytest.raises(UsageError, match="leave out --heads"):
        recognise(published.rebuilt(published.hf(32, 2, 5)), 4, {"num_attention_heads": 2})
    with pytest.raises(UsageError, match="leave out --heads"):
        recognise(published.rebuilt(published.torchvision(**published.SMALL)), heads=2)


def test_a_linear_head_says_what_it_fits() -> None:
    for inputs, blocks in ((768, 1), (1920, 4)):
        weight = np.arange(1000 * inputs, dtype=np.float32).reshape(1000, inputs)
        converted = recognise({"weight": weight, "bias": np.zeros(1000, np.float32)})
        assert (converted.layout, converted.arguments) == ("dinov2_linear_head", None)
        np.testing.assert_array_equal(converted.heads["linear_head"]["kernel"], weight.T)
        assert linear_head_fits(converted, 384, 4) == blocks
        with pytest.raises(RunError, match=rf"reads {inputs} features.*width 1024 with 4 blocks reads 2048, or 5120"):
            linear_head_fits(converted, 1024, 4)
        if blocks == 4:
            with pytest.raises(RunError, match="3 blocks reads 768, or 1920 where there are 4 blocks or more"):
                linear_head_fits(converted, 384, 3)
    with pytest.raises(RunError, match="no linear head"):
        linear_head_fits(recognise(tiny(), heads=2), 32, 2)


@pytest.mark.parametrize("wrapper", ["state_dict.", "module.", "model.state_dict.module."])
def test_what_wraps_all_names_is_looked_through(wrapper: str) -> None:
    for tensors, heads in (
        (tiny(), 2),
        (tiny("teacher.backbone."), 2),
        (published.rebuilt(published.torchvision(**published.SMALL)), None),
    ):
        plain = recognise(tensors, heads)
        wrapped = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
        again = recognise(wrapped | {"optimizer.state.0.exp_avg": np.zeros(2)}, heads)
        assert (again.layout, again.arguments) == (plain.layout, plain.arguments)
        assert again.ignored == (*plain.ignored, "optimizer.* (1 tensors)")
        assert all(np.array_equal(again.params[path], plain.params[path]) for path in plain.params)
    head = {"weight": np.zeros((2, 64), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(RunError, match="no DINOv2"):  # any linear layer has these names
        recognise({f"{wrapper}{name}": tensor for name, tensor in head.items()})
    with pytest.raises(RunError, match=r"x\.backbone\.patch_embed\.proj\.weight is part of a known model"):
        recognise(tiny("x.backbone.") | {"head.weight": np.zeros((2, 32), np.float32)}, 2)


@pytest.mark.parametrize(
    ("pattern", "wrapped"),
    [
        (r"^", r"_orig_mod."),
        (r"^blocks\.([01])\.", r"blocks.\1._orig_mod."),
        (r"^blocks\.([01])\.", r"blocks.0._orig_mod.\1."),
        (r"^blocks\.([01])\.", r"blocks.0.\1._fsdp_wrapped_module._checkpoint_wrapped_module."),
    ],
    ids=["whole model", "block", "chunk", "block in a chunk"],
)
@pytest.mark.parametrize("prefix", ["", "teacher.backbone.", "model.teacher.backbone."])
def test_compiled_and_wrapped_blocks_are_read(pattern: str, wrapped: str, prefix: str) -> None:
    plain = recognise(tiny(prefix), 2)
    names = {f"{prefix}{re.sub(pattern, wrapped, name)}": tensor for name, tensor in tiny().items()}
    assert names.keys() != tiny(prefix).keys()
    found = recognise(names, 2)
    assert (found.layout, found.arguments) == (plain.layout, plain.arguments)
    assert all(np.array_equal(found.params[path], plain.params[path]) for path in plain.params)
    with pytest.raises(RunError, match=r"holds? the same (tensor|block) twice"):
        recognise(names | tiny(prefix), 2)


def test_a_teachers_classifier_is_left_out_and_named() -> None:
    classifier = {"teacher.backbone.head.weight": np.zeros((10, 32), np.float32)}
    assert recognise(tiny("teacher.backbone.") | classifier, 2).ignored == ("teacher.backbone.head.weight",)


def test_a_layout_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table for the layout 'dino'"):
        vit("dino", tiny(), 2, {})


def without(shapes: published.Shapes, name: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in published.rebuilt(shapes).items() if not key.startswith(name)}


def resnet_without(name: str) -> dict[str, np.ndarray]:
    return without(published.torchvision(**published.SMALL), name)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "it holds 1 tensors: conv1.weight"),
        (resnet_without("layer3"), "missing (20): layer3.0.conv1.weight"),
        (resnet_without("layer2.1.bn2.bias"), "missing (1): layer2.1.bn2.bias"),
        (resnet_without("x") | {"layer1.0.conv2.weight": np.zeros((2, 1, 3, 3), np.float32)}, "expected (2, 2, 3, 3)"),
        (tiny() | {"blocks.0.ls1.gamma": np.zeros((), np.float32)}, "blocks.0.ls1.gamma has (), expected (32)"),
        (tiny() | {"pos_embed": np.zeros((1, 27, 32), np.float32)}, "pos_embed has 27 positions"),
        # Not timm's, which has no mask token but keeps SwiGLU under other names.
        (without(published.backbone(32, 1, 3, gated=88), "mask_token"), "missing (1): mask_token"),
        ({"blocks.7.0.ls1.gamma": np.ones(32)} | tiny(), "its chunks hold the same block twice"),
        (
            tiny("teacher.backbone.") | {"teacher.backbone.blocks.1.0.ls1.gamma": np.ones(32)},
            "the backbone: its chunks hold the same block twice",
        ),
    ],
)
def test_other_tensors_are_refused_with_the_difference(tensors: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(RunError) as refusal:
        recognise(tensors, None if "conv1.weight" in tensors else 2)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_deep_models_are_checked_without_building_every_block() -> None:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in published.backbone(4, 300, 1).items()}
    converted = recognise(tensors, heads=1)  # would take minutes
    assert converted.arguments == ViTArguments(4, 300, 1, image_size=14)
    with pytest.raises(RunError, match=r"blocks\.250\.mlp\.fc1\.bias has \(15\), expected \(16\)"):
        recognise(tensors | {"blocks.250.mlp.fc1.bias": np.zeros(15, np.float32)}, heads=1)


@pytest.mark.parametrize(
    ("shapes", "path", "shape"),
    [
        (published.backbone(4, 300, 1), "blocks.250.mlp.fc1.kernel", (5, 16)),
        (published.torchvision((1, 40, 1, 1), (2, 3, 4, 5), 6), "layers.1.30.conv2.kernel", (3, 3, 4, 3)),
    ],
    ids=["vit", "resnet"],
)
def test_every_block_of_a_deep_model_is_checked(shapes: published.Shapes, path: str, shape: tuple[int, ...]) -> None:
    tensors = {name: np.zeros(of, np.float32) for name, of in shapes.items()}
    converted = recognise(tensors, None if "conv1.weight" in tensors else 1)
    assert converted.arguments is not None
    check_model(converted.name, converted.arguments, converted.params.shapes, "the backbone")
    with pytest.raises(RunError, match=rf"\(1 differences\): .*{path}"):
        check_model(converted.name, converted.arguments, {**converted.params.shapes, path: shape}, "the backbone")


def test_one_array_is_made_at_a_time(tmp_path: Path) -> None:
    converted = recognise(published.rebuilt(published.backbone(192, 12, 5)))
    total = 4 * sum(np.prod(shape) for shape in converted.params.shapes.values())
    tracemalloc.start()
    try:
        write_arrays(tmp_path / "x.safetensors", converted.params)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.safetensors").stat().st_size > total > 20e6
    assert peak < total / 10
