"""ResNet50 (He et al. 2015, arXiv 1512.03385) in its two published forms: torchvision's V1.5, and that of Keras."""

import dataclasses
from collections import deque
from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from dinojax.models.preprocessing import Features, imagenet_preprocessing

_SMALLEST = 32  # side in pixels of an image of which a ResNet50's last feature map has one place
_MAP_NUMBERS = 3_211_264  # in the largest feature maps of a chunk: four images of 224 pixels in a ResNet50
_init_conv = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, arXiv 1502.01852


@dataclasses.dataclass(frozen=True)
class ResNetArguments:
    """Size and form of a bottleneck ResNet; the defaults are torchvision's ResNet50."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Number of blocks in each stage."""
    filters: tuple[int, ...] = (64, 128, 256, 512)
    """Inner width of each stage; its output is four times as wide."""
    stem: int = 64
    """Width of the first convolution."""
    conv_bias: bool = False
    stride_first: bool = False
    """From the second stage on, stride 2 is on the first 1×1 convolution (Keras, the paper), not on the 3×3 (V1.5)."""
    bn_eps: float = 1e-5
    channels: int = 3
    bn_momentum: float = 0.1
    """Weight of a batch's statistics in the running ones, as in PyTorch; Keras' momentum is 1 minus this."""

    @property
    def width(self) -> int:
        """Width of the features."""
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
            # The same as a convolution, but faster.
            y = (rearrange(x, "b h w c -> (b h w) c") @ kernel[0, 0]).reshape(*x.shape[:3], -1)
        else:
            padding = [((size - 1) // 2, (size - 1) // 2)] * 2
            axes = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)
        return y if self.bias is None else y + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167) over batch, height and width.

    `mean` and `var` are running statistics, not weights; their type, `nnx.BatchStat`, distinguishes them.
    Running variances have n − 1 in the denominator, in PyTorch as in the fused operation of tf.keras 2, with which
    RadImageNet was trained (Keras 3 has n). A `frozen` one is in inference mode in training too; `freeze_batchnorm`.
    """

    def __init__(self, width: int, arguments: ResNetArguments) -> None:
        self.frozen = False
        self.eps, self.momentum = arguments.bn_eps, arguments.bn_momentum
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.mean = nnx.BatchStat(jnp.zeros((width,)))
        self.var = nnx.BatchStat(jnp.ones((width,)))

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises [B, H, W, C]: in training by the batch's statistics, which update the running ones in place.

        Raises:
          ValueError: the statistics of one value a channel are asked for.
        """
        if not train or self.frozen:
            scale, shift = self.affine()
            return x * scale.astype(x.dtype) + shift.astype(x.dtype)
        count = x.size // x.shape[-1]
        if count == 1:
            raise ValueError("a batch with one value a channel has no variance; take larger batches or images")
        wide = x.astype(jnp.float32)
        mean = wide.mean((0, 1, 2))
        centred = wide - mean
        var = jnp.square(centred).mean((0, 1, 2))
        for running, new in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
            running[...] += self.momentum * (jax.lax.stop_gradient(new).astype(running.dtype) - running[...])
        return (centred * (self.scale[...] * jax.lax.rsqrt(var + self.eps)) + self.bias[...]).astype(x.dtype)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """Factor and offset of each channel in inference, float32 [C]."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...].astype(jnp.float32) + self.eps)
        return scale, self.bias[...] - self.mean[...] * scale


class Shortcut(nnx.Module):
    """The projection that replaces the identity in a stage's first block."""

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
          masks: must be None; a ResNet has no mask token.
          train: BatchNorms that are not frozen normalise by the batch's statistics and update the running ones in
            place; where the call is traced, read them from the module that was called (`running_statistics`).
          key: unused; a ResNet draws nothing.

        Raises:
          ValueError: a size, a number of channels or a training batch that does not fit, masks, or training of a model
            that `for_inference` returned.
        """
        del key
        if masks is not None:
            raise ValueError("a ResNet has no mask token: it reads whole images")
        (last,) = deque(self._maps(x, train), maxlen=1)
        return _features(last)

    def intermediate(self, x: jax.Array, blocks: int = 4) -> tuple[Features, ...]:
        """Features after each of the last `blocks` blocks, counted over all stages; the last block last.

        Raises:
          ValueError: as of a call, or the model has fewer blocks.
        """
        if not 1 <= blocks <= sum(self.arguments.blocks):
            raise ValueError(f"blocks must be 1 to {sum(self.arguments.blocks)}, got {blocks}")
        return tuple(map(_features, list(self._maps(x, False))[-blocks:]))

    final_norm = None

    def check_size(self, height: int, width: int) -> None:
        """See `Backbone`: sides of 32 pixels or more, whatever the number of stages."""
        if min(height, width) < _SMALLEST:
            raise ValueError(f"height and width must be {_SMALLEST} or more, got {height}×{width}")

    def check_batch(self, batch_size: int, height: int, width: int) -> None:
        """See `Backbone`: BatchNorm, unless all are frozen, needs more than one value a channel in the last map."""
        stride = 2 ** (len(self.arguments.blocks) + 1)
        if batch_size * -(-height // stride) * -(-width // stride) == 1 and running_statistics(self):
            raise ValueError("BatchNorm has one value a channel, and so no variance; take larger batches or images")

    def for_inference(self) -> "ResNet":
        """A copy whose BatchNorms are absorbed by the convolutions before them; see `Backbone`."""
        model = nnx.clone(self)
        for owner in [node for _, node in nnx.iter_graph(model) if isinstance(node, ResNet | Bottleneck | Shortcut)]:
            for name in [name for name, part in vars(owner).items() if isinstance(part, BatchNorm)]:
                conv, (scale, shift) = getattr(owner, name.replace("bn", "conv")), getattr(owner, name).affine()
                if conv.bias is not None:
                    shift = shift + conv.bias[...] * scale
                dtype = conv.kernel.dtype
                conv.kernel = nnx.Param((conv.kernel[...] * scale).astype(dtype))
                conv.bias = nnx.Param(shift.astype(dtype))
                setattr(owner, name, None)
        return model

    def images_per_chunk(self, height: int, width: int) -> int:
        """See `Backbone`; measured by the numbers in the largest feature maps."""
        return max(_MAP_NUMBERS // (height * width * self.arguments.stem // 4), 1)

    def _maps(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        """The feature map [B, h, w, D] after each block."""
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"the model reads [B, H, W, {self.channels}], got shape {x.shape}")
        self.check_size(x.shape[1], x.shape[2])
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


def freeze_batchnorm(module: nnx.Module, trained: Collection[str]) -> None:
    """Freezes, in place, every BatchNorm of a module whose scale is not trained, and unfreezes all others.

    A frozen one normalises by its running statistics with `train=True` too, and leaves them as they are, as Keras does
    since TensorFlow 2 for a layer with `trainable=False` (keras.io/api/layers/normalization_layers/batch_normalization,
    "About setting layer.trainable = False"). PyTorch scripts that set `requires_grad = False` and then call
    `model.train()` keep batch statistics, and update the running ones, even of frozen layers: to reproduce these, do
    not call this function. `frozen` is part of the module's graph, so call it before `tree.split`.

    Args:
      module: a ResNet or what contains one, such as a `Classifier`; in a ViT there is nothing to freeze.
      trained: the paths of the parameters that are trained, below `module`.
    """
    for path, bn in _batchnorms(module).items():
        bn.frozen = f"{path}scale" not in trained


def running_statistics(module: object) -> dict[str, jax.Array]:
    """Running means and variances, by path, of all BatchNorms in a module that are not frozen; of a ViT, none."""
    trained = {path: bn for path, bn in _batchnorms(module).items() if not bn.frozen}
    return {f"{path}{name}": getattr(bn, name).get_value() for path, bn in trained.items() for name in ("mean", "var")}


def _batchnorms(module: object) -> dict[str, BatchNorm]:
    """All BatchNorms in a module, by the prefix of their parameters' paths, such as `layers.0.1.bn2.`."""
    found = ((path, node) for path, node in nnx.iter_graph(module) if isinstance(node, BatchNorm))
    return {"".join(f"{part}." for part in path): bn for path, bn in found}


def _normalised(x: jax.Array, bn: BatchNorm | None, train: bool) -> jax.Array:
    """Without a BatchNorm, which `for_inference` removes, the convolution's output as it is."""
    if bn is not None:
        return bn(x, train)
    if train:
        raise ValueError("this ResNet is for inference: its BatchNorms are absorbed; train the model that it came from")
    return x
