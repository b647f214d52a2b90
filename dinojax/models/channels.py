"""A checkpoint of RGB images made to read one grey channel, or the N images of a place that MR sequences are.

Exactly: its features are those that the checkpoint gives of an image with equal channels. The first layer is linear, so
the kernels of its channels, each divided by its standard deviation, add up to that of one; N channels share the sum.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dinojax.errors import UsageError
from dinojax.models.blocks import PatchEmbed
from dinojax.models.preprocessing import Backbone, Preprocessing
from dinojax.models.resnet import Conv, ResNet
from dinojax.models.vit import VisionTransformer


def to_one_channel(model: Backbone) -> Backbone:
    """A model of grey images [B, H, W, 1], in 0..1, with the features that `model` gives of three equal channels.

    They are the same to the rounding of the weights' dtype, from a third of the input. Mean and standard deviation are
    folded into the patch embedding: a preprocessing without them no longer takes them away, and in training the kernel
    is that of pixels in 0..1, several times as large as that of standardised ones. A ResNet pads its input with zeros,
    which stand for the mean: there the mean stays in the preprocessing, and the deviation alone is folded.

    Args:
      model: reads 1 or 3 channels; stays as it is.

    Raises:
      ValueError: it reads another number of channels, or it is a ResNet whose channels have different means: what its
        padding stands for differs between the channels, so that no kernel of one channel gives the same at the border.
    """
    return inflate_channels(model, 1)


def inflate_channels(model: Backbone, channels: int) -> Backbone:
    """A model of N images of a place, [B, H, W, N] in 0..1, such as MR sequences; it weighs all of them the same.

    N equal images give the features that `model` gives of three equal channels; of different ones, N = 1 apart, the
    first layer sees their mean, until training tells them apart. For N = 3 too: colours are not weighed as before.

    Args:
      model: reads 1 or 3 channels; stays as it is.
      channels: N, 1 or more.

    Raises:
      ValueError: as of `to_one_channel`, or N is below 1.
    """
    if model.channels not in (1, 3):
        raise ValueError(f"the model reads {model.channels} channels; only those of grey and RGB images can be folded")
    if channels < 1:
        raise ValueError(f"channels must be 1 or more, got {channels}")
    form = model.preprocessing
    if isinstance(model, VisionTransformer):
        made, mean = _inflated_transformer(model, channels), 0.0
    elif isinstance(model, ResNet):
        made, mean = _inflated_resnet(model, channels), form.mean[0]
    else:
        raise ValueError(f"a {type(model).__name__} has no first layer whose channels could be folded")
    made.channels = channels
    made.preprocessing = dataclasses.replace(form, mean=(mean,) * channels, std=(1.0,) * channels, order="RGB")
    return made


def _inflated_transformer(model: VisionTransformer, channels: int) -> VisionTransformer:
    made, old = nnx.clone(model), model.patch_embed
    new = PatchEmbed(old.size, channels, model.width, nnx.Rngs(0))
    kernel, offset = _folded(old.proj.kernel[...], model.preprocessing, channels)
    assert old.proj.bias is not None
    bias = old.proj.bias[...]
    new.proj.kernel, new.proj.bias = nnx.Param(kernel), nnx.Param((bias - offset).astype(bias.dtype))
    made.patch_embed, made.arguments = new, dataclasses.replace(model.arguments, channels=channels)
    return made


def _inflated_resnet(model: ResNet, channels: int) -> ResNet:
    made, old, means = nnx.clone(model), model.conv1, model.preprocessing.mean
    if len(set(means)) > 1:
        raise ValueError(
            f"a {model.name} pads with zeros, which stand for the mean, and its channels' means {means} differ: "
            "no kernel of one channel gives the same at the image's border"
        )
    size, _, _, outputs = old.kernel.shape
    new = Conv(channels, outputs, size, old.stride, old.bias is not None, nnx.Rngs(0))
    new.kernel = nnx.Param(_folded(old.kernel[...], model.preprocessing, channels)[0])
    if old.bias is not None:
        new.bias = nnx.Param(old.bias[...])
    made.conv1, made.arguments = new, dataclasses.replace(model.arguments, channels=channels)
    return made


def _folded(kernel: jax.Array, form: Preprocessing, channels: int) -> tuple[jax.Array, jax.Array]:
    """The kernel [h, w, C, D] with the deviation in it, for N channels, [h, w, N, D]; and what the means take away from
    each output, float32 [D]. Both have the model's order of channels, so that BGR needs no care."""
    scaled = kernel.astype(jnp.float32) / jnp.asarray(form.std, jnp.float32)[:, None]
    one = scaled.sum(2, keepdims=True) / channels
    offset = (scaled * jnp.asarray(form.mean, jnp.float32)[:, None]).sum((0, 1, 2))
    return jnp.repeat(one, channels, axis=2).astype(kernel.dtype), offset


def with_input_channels(model: Backbone, input_channels: int | None) -> Backbone:
    """The model of a run whose configuration says `input_channels`; null, or as many as it has, leave it as it is.

    Raises:
      UsageError: names the key; the model cannot be made to read so many.
    """
    if input_channels is None or input_channels == model.channels:
        return model
    try:
        return inflate_channels(model, input_channels)
    except ValueError as error:
        raise UsageError(f"input_channels {input_channels}: {error}; leave it out") from error


def check_readable(channels: int, found: int, stacked: bool = False) -> None:
    """Checks that a model of so many channels can read images in which so many were found.

    Args:
      channels: of the model.
      found: of the images: 1 and 3 are read by models of either, unless they are `stacked`.
      stacked: whether the images' channels are grey images of one place, such as MR sequences, and no colours.

    Raises:
      UsageError: it reads other numbers of channels; names the key where that helps.
    """
    if channels == found or (channels in (1, 3) and found in (1, 3) and not stacked):
        return
    advice = f"; set input_channels {found}" if channels in (1, 3) else ""
    raise UsageError(f"the model reads {channels} channel{'s' * (channels != 1)}, the images have {found}{advice}")
