"""Well-known files that are not read: each is called by its name, in a message of bounded length."""

import gzip
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dinojax.errors import RunError, first_of
from tests.weights_convert import published
from weights_convert import readers
from weights_convert.layouts import recognise

LONGEST = 700


def tensors(*names: str) -> dict[str, np.ndarray]:
    return {name: np.zeros((8, 8), np.float32) for name in names}


def blocks(*names: str, count: int = 24) -> tuple[str, ...]:
    """Each name with every number of a block."""
    return tuple(name.format(i=i) for i in range(count) for name in names)


def densenet() -> dict[str, np.ndarray]:
    """The 606 arrays of Keras' DenseNet121, whose names are in part those of its ResNet50."""
    names = ["conv1_conv/kernel", "conv5_block1_0_bn/gamma"]
    for stage, count in ((2, 6), (3, 12), (4, 24), (5, 16)):
        for k in range(1, count + 1):
            names += [f"conv{stage}_block{k}_{place}_conv/kernel" for place in (1, 2)]
            leaves = ("gamma", "beta", "moving_mean", "moving_variance")
            names += [f"conv{stage}_block{k}_{place}_bn/{leaf}" for place in (0, 1) for leaf in leaves]
        names += [f"pool{stage}_conv/kernel", f"pool{stage}_bn/gamma"]
    return tensors(*names)


def plain_vit(prefix: str = "") -> dict[str, np.ndarray]:
    shapes = published.backbone(32, 12, 5)
    return {prefix + name: np.zeros(of, np.float32) for name, of in shapes.items() if ".ls" not in name}


@pytest.mark.parametrize(
    ("given", "model"),
    [
        (densenet(), "a DenseNet"),
        (tensors(*blocks("features.denseblock1.denselayer{i}.conv1.weight")), "a DenseNet"),
        (tensors(*blocks("backbone.4.denseblock1.denselayer{i}.conv1.weight")) | densenet(), "a DenseNet"),
        (tensors(*blocks("conv2d_{i}/kernel", "batch_normalization_{i}/beta", count=94)), "an Inception V3"),
        (tensors(*blocks("Mixed_5b.branch{i}.conv.weight")), "an Inception V3"),
        (tensors("conv_7b/kernel", *blocks("block35_{i}_conv/kernel", "conv2d_{i}/kernel")), "an InceptionResNetV2"),
        (tensors(*blocks("features.{i}.weight", count=31)), "a VGG without its classifier"),
        (tensors("features.0.weight", "classifier.6.weight"), "a VGG"),
        (tensors("block1_conv1/kernel", "block5_conv3/kernel"), "a VGG"),
        (tensors(*blocks("blocks.{i}.ls1.gamma", "rope_embed.periods", "storage_tokens")), "DINOv3"),
        (tensors(*blocks("layer.{i}.layer_scale1.lambda1", "layer.{i}.attention.q_proj.weight")), "DINOv3"),
        (plain_vit() | tensors("decoder_pos_embed", *blocks("decoder_blocks.{i}.norm1.bias")), "MAE with its decoder"),
        (plain_vit(), "a ViT without LayerScale (MAE, DINO, iBOT, DeiT or ImageNet's)"),
        (plain_vit("teacher.backbone."), "a ViT without LayerScale (MAE, DINO, iBOT, DeiT or ImageNet's)"),
        (plain_vit("student.") | tensors("student.masked_embed", "student.head.last_layer.weight_v"), "iBOT"),
        (tensors("visual.conv1.weight", "text_projection", "logit_scale"), "CLIP or SigLIP"),
        (tensors("vision_model.embeddings.class_embedding", "logit_scale"), "CLIP or SigLIP"),
        (tensors("image_encoder.pos_embed", "mask_decoder.iou_token.weight"), "SAM (Segment Anything)"),
        (tensors("layers.0.blocks.0.attn.relative_position_bias_table"), "a Swin transformer"),
        (tensors("stages.0.0.dwconv.weight", "downsample_layers.0.0.weight"), "a ConvNeXt"),
        (tensors("stages.0.blocks.0.conv_dw.weight"), "a ConvNeXt"),
        (tensors("resnet.embedder.embedder.embedding.convolution.weight"), "Hugging Face's form of a ResNet"),
        (tensors("layer1.0.conv1.weight", "layer1.0.conv2.weight", "conv1.weight"), "a ResNet of basic blocks"),
        (tensors(*blocks("vit.encoder.layer.{i}.layernorm_before.bias")), "a ViT without LayerScale, as transformers"),
    ],
)
def test_another_model_is_called_by_its_name(given: dict[str, np.ndarray], model: str) -> None:
    with pytest.raises(RunError) as refusal:
        recognise(given)
    message = str(refusal.value)
    assert message.startswith(f"seems to be {model}")
    assert len(message) < LONGEST, message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("dinov3_vit", "DINOv3"),
        ("vit_mae", "MAE"),
        ("clip", "CLIP"),
        ("sam", "SAM"),
        ("swinv2", "a Swin transformer"),
        ("mamba", "a model of the type 'mamba' of transformers"),
    ],
)
def test_a_huggingface_folder_tells_its_model(kind: str, model: str) -> None:
    for given in (tensors("a.weight"), published.rebuilt(published.hf(32, 2, 5))):
        with pytest.raises(RunError, match=f"^seems to be {model}"):
            recognise(given, 2, {"model_type": kind})


def test_a_known_model_that_is_damaged_is_not_called_another() -> None:
    for shapes, lost in [
        (published.backbone(32, 2, 5), "blocks.0.ls1.gamma"),
        (published.hf(32, 2, 5), "layernorm.bias"),
        (published.torchvision(**published.SMALL), "layer1.0.bn1.bias"),
        (published.keras(**published.SMALL), "conv1_bn/gamma"),
    ]:
        given = published.rebuilt({name: shape for name, shape in shapes.items() if name != lost})
        with pytest.raises(RunError, match=rf"^the tensors do not fit: missing \(1\): {lost}"):
            recognise(given, None if "conv1" in str(list(shapes)) else 2)


def test_lists_of_names_are_cut() -> None:
    teacher = {f"teacher.backbone.{name}": array for name, array in published.rebuilt(published.TINY).items()}
    extra = tensors(*blocks("teacher.some_quite_long_name_of_a_module.{i}.weight", count=300))
    renamed = {f"x.{name}": array for name, array in plain_vit().items()} | tensors("y.z")
    wide = {name: np.zeros((*of, 2), np.float32) for name, of in published.backbone(32, 24, 5).items()}
    for given in (teacher | extra, renamed | extra, wide, published.rebuilt(published.TINY) | extra):
        with pytest.raises(RunError, match=r"and [0-9]+ more") as refusal:
            recognise(given, 2)
        assert len(str(refusal.value)) < LONGEST


def test_the_first_of_a_list() -> None:
    assert first_of(["a", "b"]) == "a, b"
    assert first_of(["a", "b", "c"], 6) == "a, b and 1 more"
    assert first_of(["a" * 300, "b"], 10) == "a" * 10 + "... and 1 more"
    assert first_of([]) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer of 56 bytes.* git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"<HTML><head>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML page"),
        (b'{"error": "not found"}', r"is text \(JSON\)"),
        (gzip.compress(b"weights", mtime=0), "is compressed by gzip"),
        (b"", "the file is empty; download"),
        (b"weights", "neither a file that torch"),
    ],
)
def test_files_of_other_kinds_are_called_by_their_names(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"x\.pth: .*{said}"):
        readers.read(path)


def test_archives_are_called_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "inside.pth").write_bytes(b"weights")
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "inside.pth", "inside.pth")
    with pytest.raises(RunError, match="is a tar archive: unpack it"):
        readers.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(500):
            archive.writestr(f"slices/{number}.png", b"")
    with pytest.raises(RunError, match=r"not one that torch\.save wrote: it holds slices/0\.png, .* more") as refusal:
        readers.read(path)
    assert len(str(refusal.value)) < LONGEST


def test_a_folder_whose_weights_are_a_pointer_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(RunError, match="Git LFS pointer"):
        readers.read_file(tmp_path)
