"""Well-known files that are not read here, as data: what tells them, and what to call them in a message."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class _Known(NamedTuple):
    """A model, and regular expressions that are each found in some name of its tensors, or in none."""

    model: str
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()


# The first that fits is named. Names may stand behind any prefix.
_MODELS = (
    _Known("SAM (Segment Anything)", (r"\bmask_decoder\.", r"\b(image|vision)_encoder\.")),
    _Known("CLIP or SigLIP", (r"\bvisual\.(conv1|transformer|trunk|blocks)\b|\bvision_model\.(embeddings|encoder)\.",)),
    _Known("MAE with its decoder", (r"\bdecoder_(pos_embed|embed|blocks)\b|\bdecoder\.decoder_",)),
    _Known("DINOv3", (r"\brope_embed\.periods$|\bstorage_tokens$|^(model\.)?layer\.[0-9]+\.layer_scale1\.",)),
    _Known("EVA, BEiT or DINOv3, as timm keeps them", (r"\bblocks\.[0-9]+\.gamma_1$",)),
    _Known("iBOT", (r"\bmasked_embed$|\bhead\.last_layer2\.",)),
    _Known("DINO (the first version) or another ViT with its head", (r"\bhead\.last_layer\.", r"\bpatch_embed\.")),
    _Known("a Swin transformer", (r"\blayers?\.[0-9]+\.blocks\..*relative_position|\bswin(v2)?\.",)),
    _Known("a ConvNeXt", (r"\b(conv_dw|dwconv)\.weight$", r"\bstages\.[0-9]+\.")),
    _Known("a ConvNeXt of torchvision", (r"\bfeatures\.[0-9]+\.[0-9]+\.layer_scale$",)),
    _Known("a DenseNet", (r"\bdenseblock1\.denselayer1\.|^pool[234]_(bn|conv)/",)),
    _Known("an InceptionResNetV2", (r"\bblock35_[0-9]+_conv/|\bconv_7b/|\bconv2d_7b\.",)),
    _Known("an Inception V3", (r"\bMixed_[567][a-e]\.",)),
    _Known(
        "an Inception V3",
        (r"^conv2d(_[0-9]+)?/kernel$", r"^batch_normalization(_[0-9]+)?/beta$"),
        (r"^batch_normalization.*/gamma$",),
    ),
    _Known("a VGG", (r"^block1_conv1/kernel$|^block1_conv1/block1_conv1|\bclassifier\.6\.weight$",)),
    _Known("a VGG without its classifier", (r"\bfeatures\.0\.weight$", r"\bfeatures\.2[0-9]\.weight$"), (r"layer",)),
    _Known("Hugging Face's form of a ResNet; torchvision's and timm's are read", (r"\bembedder\.embedding\.conv",)),
    _Known("a ResNet of basic blocks (18 or 34 layers)", (r"\blayer1\.0\.conv2\.",), (r"\blayer1\.0\.conv3\.",)),
    _Known(
        "a ViT without LayerScale, as transformers keeps them (ImageNet's, MAE's)",
        (r"\bencoder\.layer\.[0-9]+\.layernorm_before\.",),
    ),
    _Known(
        "a ViT without LayerScale (MAE, DINO, iBOT, DeiT or ImageNet's)",
        (r"\bpatch_embed\.proj\.weight$", r"\bblocks\.[0-9]+\.attn\.qkv\.weight$"),
        (r"\bls1\.gamma$",),
    ),
)

# `model_type` in config.json of transformers.
_TYPES = {
    **{"dinov3_vit": "DINOv3", "dinov3_convnext": "DINOv3 (ConvNeXt)", "vit_mae": "MAE", "ijepa": "I-JEPA"},
    **{"clip": "CLIP", "clip_vision_model": "CLIP", "siglip": "SigLIP", "siglip_vision_model": "SigLIP"},
    **{"sam": "SAM (Segment Anything)", "sam2": "SAM 2", "vit": "a ViT without LayerScale", "beit": "BEiT"},
    **{"swin": "a Swin transformer", "swinv2": "a Swin transformer", "convnext": "a ConvNeXt"},
    **{"convnextv2": "a ConvNeXt", "resnet": "Hugging Face's form of a ResNet; torchvision's and timm's are read"},
}
_READ = ("dinov2", "dinov2_with_registers")


def known_model(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """What a file that is not read seems to be, by the names of its tensors or transformers' `config.json`."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in _READ:
        return _TYPES.get(kind, f"a model of the type {kind[:50]!r} of transformers")
    text = list(names)

    def found(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in text)

    fitting = (known.model for known in _MODELS if all(map(found, known.present)) and not any(map(found, known.absent)))
    return next(fitting, None)


# What a file that is none of the readable kinds begins with, after white space and in lower case; and what it is.
_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer of {size} bytes, not the file itself: run git lfs pull"),
    (b"<!doctype html", "is a web page: the download was answered by a page; download the file anew"),
    (b"<html", "is a web page: the download was answered by a page; download the file anew"),
    (b"<?xml", "is an XML page: the download was answered by a message; download the file anew"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it, and name the file inside"),
    (b"bzh", "is compressed by bzip2: unpack it, and name the file inside"),
    (b"\xfd7zxz", "is compressed by xz: unpack it, and name the file inside"),
    (b"{", "is text (JSON), no weights; name the file of the weights, or their folder"),
)


def known_file(start: bytes, size: int) -> str | None:
    """What a file of no readable kind is, and what to do.

    Args:
      start: its first 512 bytes or more.
      size: of the whole file, in bytes.
    """
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it, and name the file inside"
    beginning = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what.format(size=size) for mark, what in _STARTS if beginning.startswith(mark)), None)
