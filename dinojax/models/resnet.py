"""ResNet50 (He et al. 2015, arXiv 1512.03385) in its two published forms: torchvision's V1.5, and that of Keras."""

import dataclasses
from collections import deque
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from dinojax.models.preprocessing import Features, imagenet_preprocessing

SMALLEST = 32
"""Side in pixels of the smallest image: one number is left of it in each channel of the last feature map."""
_init_conv = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, arXiv 1502.01852


@dataclasses.dataclass(frozen=True)
class ResNetArguments:
    """Size and form of a bottleneck ResNet; the defaults are torchvision's ResNet50."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Of each stage."""
    filters: tuple[int, ...] = (64, 128, 256, 512)
    """Inner width of each stage; its output is four times as wide."""
    stem: int = 64
    """Width of the first convolution."""
    conv_bias: bool = False
    stride_first: bool = False
    """From the second stage on, stride 2 on the first 1×1 convolution (Keras, the paper) or on the 3×3 (V1.5)."""
    bn_eps: float = 1e-5
    channels: int = 3
    bn_momentum: float = 0.1
    """Share of a batch's statistics in the new running ones; Keras states the share of the old ones."""

    @property
    def width(self) -> int:
        """Of the features."""
        return 4 * self.filters[-1]


class Conv(nnx.Module):
    """A convolution, its kernel [h, w, in, out], with zero padding of (size − 1) / 2 on each side."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, bias: bool, rngs: nnx.Rngs) -> None:
        self.stride = stride
        self.kernel = nnx.Param(_init_conv(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.data(nnx.Param(jnp.zeros((outputs,))) if bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, in] to [B, ⌈H / stride⌉, ⌈W / stride⌉, out]."""
        kernel, stride = self.kernel[...], self.stride
        size, dtype = kernel.shape[0], jnp.promote_types(kernel.dtype, x.dtype)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if size == 1:
            x = x[:, ::stride, ::stride]
            batch, height, width, _ = x.shape
            # A matrix product: faster than the convolution that it is.
            y = rearrange(x, "b h w c -> (b h w) c") @ kernel[0, 0]
            y = rearrange(y, "(b h w) c -> b h w c", b=batch, h=height, w=width)
        else:
            padding = [((size - 1) // 2, (size - 1) // 2)] * 2
            axes = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)
        return y if self.bias is None else y + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167) over batch, height and width.

    `mean` and `var` are running statistics, no weights: their type is `nnx.BatchStat`, by which they can be told apart.
    Running variances are estimates with n − 1 in the denominator, in PyTorch as in the fused operation of tf.keras 2,
    with which RadImageNet was trained (Keras 3 has n).
    """

    def __init__(self, width: int, arguments: ResNetArguments) -> None:
        self.eps, self.momentum = arguments.bn_eps, arguments.bn_momentum
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.mean = nnx.BatchStat(jnp.zeros((width,)))
        self.var = nnx.BatchStat(jnp.ones((width,)))

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises [B, H, W, C], in training by the batch, whose statistics move the running ones in place."""
        if not train:
            scale, shift = self.affine()
            return x * scale.astype(x.dtype) + shift.astype(x.dtype)
        count = x.size // x.shape[-1]
        if count == 1:
            raise ValueError("a batch with one value in each channel has no variance; take larger batches or images")
        wide = x.astype(jnp.float32)
        mean = wide.mean((0, 1, 2))
        centred = wide - mean
        var = jnp.square(centred).mean((0, 1, 2))
        for running, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
            running[...] += self.momentum * (jax.lax.stop_gradient(new).astype(running.dtype) - running[...])
        return (centred * (self.scale[...] * jax.lax.rsqrt(var + self.eps)) + self.bias[...]).astype(x.dtype)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """What it does in inference, as a factor and a summand for each channel, float32 [C]."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...].astype(jnp.float32) + self.eps)
        return scale, self.bias[...] - self.mean[...] * scale


class Shortcut(nnx.Module):
    """What a stage's first block adds instead of its input."""

    def __init__(self, inputs: int, outputs: int, stride: int, arguments: ResNetArguments, rngs: nnx.Rngs) -> None:
        self.conv = Conv(inputs, outputs, 1, stride, arguments.conv_bias, rngs)
        self.bn: BatchNorm | None = BatchNorm(outputs, arguments)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _normalised(self.conv(x), self.bn, train)


class Bottleneck(nnx.Module):
    """A 1×1, a 3×3 and a 1×1 convolution beside a shortcut."""

    def __init__(
        self, inputs: int, filters: int, stride: int, first: bool, arguments: ResNetArguments, rngs: nnx.Rngs
    ) -> None:
        bias = arguments.conv_bias
        before, within = (stride, 1) if arguments.stride_first else (1, stride)
        self.conv1 = Conv(inputs, filters, 1, before, bias, rngs)
        self.bn1: BatchNorm | None = BatchNorm(filters, arguments)
        self.conv2 = Conv(filters, filters, 3, within, bias, rngs)
        self.bn2: BatchNorm | None = BatchNorm(filters, arguments)
        self.conv3 = Conv(filters, 4 * filters, 1, 1, bias, rngs)
        self.bn3: BatchNorm | None = BatchNorm(4 * filters, arguments)
        self.shortcut = Shortcut(inputs, 4 * filters, stride, arguments, rngs) if first else None

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        added = x if self.shortcut is None else self.shortcut(x, train)
        y = jax.nn.relu(_normalised(self.conv1(x), self.bn1, train))
        y = jax.nn.relu(_normalised(self.conv2(y), self.bn2, train))
        return jax.nn.relu(added + _normalised(self.conv3(y), self.bn3, train))


class ResNet(nnx.Module):
    """A bottleneck ResNet without its classifier."""

    def __init__(self, name: str, arguments: ResNetArguments, rngs: nnx.Rngs) -> None:
        self.name = name
        self.arguments = arguments
        self.width, self.channels = arguments.width, arguments.channels
        self.preprocessing = imagenet_preprocessing(arguments.channels)
        self.conv1 = Conv(arguments.channels, arguments.stem, 7, 2, arguments.conv_bias, rngs)
        self.bn1: BatchNorm | None = BatchNorm(arguments.stem, arguments)
        stages, inputs = [], arguments.stem
        for number, (blocks, filters) in enumerate(zip(arguments.blocks, arguments.filters, strict=True)):
            stage = []
            for k in range(blocks):
                stride = 2 if number > 0 and k == 0 else 1
                stage.append(Bottleneck(inputs, filters, stride, k == 0, arguments, rngs))
                inputs = 4 * filters
            stages.append(nnx.List(stage))
        self.layers = nnx.List(stages)

    def __call__(
        self, x: jax.Array, masks: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> Features:
        """Features of normalised images.

        Args:
          x: float [B, H, W, C]; height and width 32 or more, in pixels.
          masks: none; a ResNet has no mask token.
          train: normalises by the batch's own statistics and moves the running ones, in place: where the call is
            traced, read them back from the module that was called (`running_statistics`).
          key: not used; nothing is drawn.

        Raises:
          ValueError: a size or a number of channels that does not fit, masks, training of a folded model, or on a batch
            that leaves one value in each channel.
        """
        del key
        if masks is not None:
            raise ValueError("a ResNet has no mask token: it reads whole images")
        (last,) = deque(self._maps(x, train), maxlen=1)
        return _features(last)

    def intermediate(self, x: jax.Array, blocks: int = 4) -> tuple[Features, ...]:
        """Features after each of the last `blocks` blocks, all stages counted together, last block last.

        Raises:
          ValueError: as a call does, or there are not so many blocks.
        """
        if not 1 <= blocks <= sum(self.arguments.blocks):
            raise ValueError(f"blocks must be 1 to {sum(self.arguments.blocks)}, got {blocks}")
        return tuple(map(_features, list(self._maps(x, False))[-blocks:]))

    def _maps(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        """The feature map [B, h, w, D] after each block."""
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"the model reads [B, H, W, {self.channels}], got shape {x.shape}")
        if min(x.shape[1:3]) < SMALLEST:
            raise ValueError(f"height and width must be {SMALLEST} or more, got {x.shape[1]}×{x.shape[2]}")
        x = jax.nn.relu(_normalised(self.conv1(x), self.bn1, train))
        # Values are 0 or more: padding by 0, as in Keras, and by the lowest value, as in PyTorch, are the same here.
        window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
        for stage in self.layers:
            for block in stage:
                x = block(x, train)
                yield x


def _features(x: jax.Array) -> Features:
    return Features(x.mean((1, 2)), x)


def fold(model: ResNet) -> ResNet:
    """A copy for inference alone, its BatchNorms part of the convolutions before them; not one to save or train."""
    folded = nnx.clone(model)
    _fold(folded, ("conv1", "bn1"))
    for stage in folded.layers:
        for block in stage:
            for number in (1, 2, 3):
                _fold(block, (f"conv{number}", f"bn{number}"))
            if block.shortcut is not None:
                _fold(block.shortcut, ("conv", "bn"))
    return folded


def running_statistics(module: nnx.Module) -> dict[str, jax.Array]:
    """The running means and variances of all BatchNorms inside a module, by path; none of a ViT."""
    found = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in found}


def _normalised(x: jax.Array, bn: BatchNorm | None, train: bool) -> jax.Array:
    """Without a BatchNorm, which is that of a folded model, nothing is to be done."""
    if bn is not None:
        return bn(x, train)
    if train:
        raise ValueError("a folded ResNet has no BatchNorm to train; use the model that it was folded from")
    return x


def _fold(owner: nnx.Module, names: tuple[str, str]) -> None:
    conv, bn = (getattr(owner, name) for name in names)
    scale, shift = bn.affine()
    if conv.bias is not None:
        shift = shift + conv.bias[...] * scale
    dtype = conv.kernel.dtype
    conv.kernel = nnx.Param((conv.kernel[...] * scale).astype(dtype))
    conv.bias = nnx.Param(shift.astype(dtype))
    setattr(owner, names[1], None)
