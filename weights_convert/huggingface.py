"""`config.json` and `preprocessor_config.json` of a Hugging Face folder, read and written.

Also the `pretrained_cfg` of timm's `config.json`. A setting that our models do not support is refused.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from dinojax.errors import RunError, first_of
from dinojax.models import Preprocessing, ViTArguments

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_MODEL_TYPES = {False: "dinov2", True: "dinov2_with_registers"}


def heads_of(config: Mapping[str, Any], key: str = "num_attention_heads") -> int | None:
    """The number of attention heads, where the configuration gives one.

    Raises:
      RunError: it gives anything but a number above 0.
    """
    heads = config.get(key)
    if heads is not None and (type(heads) is not int or heads < 1):
        raise RunError(f"{_CONFIG} says {key} {heads!r}, expected a number above 0")
    return heads


def timm_heads_of(config: Mapping[str, Any]) -> int | None:
    """The number of attention heads in `config.json` of a timm model, where one is given.

    Raises:
      RunError: it is no number above 0, or the model was made with arguments that change what it computes.
    """
    return heads_of(_timm_arguments(config), "num_heads")


def check_timm_resnet(config: Mapping[str, Any]) -> None:
    """Checks that timm's `config.json` is of a plain ResNet: others of the same shapes compute something else.

    Raises:
      RunError: it is not, or the model was made with arguments that change what it computes.
    """
    architecture = config.get("architecture", "resnet")
    if not isinstance(architecture, str) or not re.fullmatch(r"(gluon_|tv_)?resnet[0-9v_b]*", architecture):
        raise RunError(f"{_CONFIG} describes a {architecture!r}, which is no plain ResNet")
    _timm_arguments(config)  # which refuses those it does not know


def _timm_arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = config.get("model_args")
    if not isinstance(arguments, dict):
        return {}
    if unknown := sorted(arguments.keys() - _TIMM_ARGUMENTS):
        raise RunError(f"{_CONFIG} gives model_args {first_of(unknown)}, which may change what the model computes")
    return arguments


# Arguments of timm's `create_model` that follow from the shapes or change no feature.
_TIMM_ARGUMENTS = {
    *("num_classes", "global_pool", "img_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "no_embed_class"),
    *("reg_tokens", "init_values", "dynamic_img_size", "drop_rate", "drop_path_rate", "pos_drop_rate", "layers"),
}


def check(config: Mapping[str, Any], arguments: ViTArguments) -> None:
    """Checks that transformers' `config.json` describes the model of the arguments, and as ours computes it.

    Raises:
      RunError: it is not; the message lists every key that differs.
    """
    expected = config_of(arguments)
    if arguments.mlp == "swiglu":
        del expected["hidden_act"]  # SwiGLU's is SiLU, whatever the file says
    given = {key: _first_side(value) if key.endswith("_size") else value for key, value in config.items()}
    wrong = [key for key in expected if key not in _UNCHECKED and key in given and given[key] != expected[key]]
    if wrong:
        lines = [f"{key} {given[key]!r}, expected {expected[key]!r}" for key in wrong]
        raise RunError(f"{_CONFIG} describes another model ({len(wrong)} differences): {first_of(lines, 450, '; ')}")


# Irrelevant to what a trained model computes.
_UNCHECKED = {
    *("architectures", "dtype", "mlp_ratio", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("layerscale_value", "initializer_range", "use_mask_token"),
}


def _first_side(value: object) -> object:
    """`image_size` and `patch_size` may be written as two equal sides."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def config_of(arguments: ViTArguments) -> dict[str, Any]:
    """The `config.json` with which transformers builds the model of the arguments."""
    registers = arguments.registers > 0
    return {
        "model_type": _MODEL_TYPES[registers],
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "hidden_size": arguments.width,
        "num_hidden_layers": arguments.depth,
        "num_attention_heads": arguments.heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "use_swiglu_ffn": arguments.mlp == "swiglu",
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "num_channels": arguments.channels,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
        **({"num_register_tokens": arguments.registers} if registers else {"use_mask_token": True}),
    }


def preprocessing_of(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """The preprocessing that a folder gives; `default` where it gives none.

    Args:
      config: `config.json`, with `preprocessor_config.json` under `preprocessor`; or timm's `config.json`.
      default: of the layout; its number of channels is the model's.

    Raises:
      RunError: values of the wrong type, or images scaled to anything but 0..1.
    """
    if isinstance(config.get("pretrained_cfg"), dict):
        given, where, names = config["pretrained_cfg"], f"{_CONFIG}, pretrained_cfg", ("mean", "std")
        input_size = given.get("input_size")
        size = input_size[-1] if isinstance(input_size, list) and input_size else default.size
    elif isinstance(config.get("preprocessor"), dict):
        given, where, names = config["preprocessor"], _PREPROCESSOR, ("image_mean", "image_std")
        _check_scale(given)
        size = _size(given, default.size)
    else:
        return default
    mean, std = (_numbers(given, name, len(default.mean), where) for name in names)
    if given.get("do_normalize") is False:
        mean, std = (0.0,) * len(default.mean), (1.0,) * len(default.std)
    if type(size) is not int or not 0 < size < 1e6 or (std and min(std) <= 0):
        raise RunError(f"{where}: a size or a standard deviation is not above 0")
    return dataclasses.replace(default, size=size, mean=mean or default.mean, std=std or default.std)


def _check_scale(given: Mapping[str, Any]) -> None:
    factor = given.get("rescale_factor", 1 / 255)
    scaled = given.get("do_rescale", True) is True and type(factor) is float
    if not scaled or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise RunError(f"{_PREPROCESSOR}: images are not scaled by 1/255; the model's input must come from 0..1")


def _size(given: Mapping[str, Any], default: object) -> object:
    """The side of the preprocessed images: of the crop, else of the resized image."""
    for key in ("crop_size", "size"):
        value = given.get(key)
        if key == "crop_size" and given.get("do_center_crop") is False:
            continue
        if isinstance(value, dict):
            return value.get("height", value.get("shortest_edge", default))
        if value is not None:
            return value
    return default


def _numbers(given: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    """A list of as many numbers as there are channels; empty where there is none."""
    values = given.get(key)
    if values is None:
        return ()
    # Bounds that exclude NaN, infinity and integers that are no floating-point numbers.
    sound = isinstance(values, list) and all(type(v) in (int, float) and -1e6 < v < 1e6 for v in values)
    if not sound or len(values) != count:
        raise RunError(f"{where}: {key} is {values!r}, expected {count} numbers")
    return tuple(map(float, values))


def preprocessor_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """The `preprocessor_config.json` of a preprocessing, as far as transformers supports it."""
    side = preprocessing.size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(preprocessing.mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
