"""Frozen features of many images, in batches spread over the devices."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinojax import sharding, tree
from dinojax.data.pipeline import Batch, prefetch
from dinojax.models import Backbone, preprocess

T = TypeVar("T")


def pooled(backbone: Backbone, x: jax.Array) -> jax.Array:
    """float32 [B, D]: the class token; of a CNN, the global average."""
    return backbone(x).pooled.astype(jnp.float32)


def _class_token_and_mean_patch(backbone: Backbone, x: jax.Array) -> dict[str, jax.Array]:
    features = backbone(x)
    found = {"class_token": features.pooled, "mean_patch": features.patches.mean((1, 2))}
    return {name: values.astype(jnp.float32) for name, values in found.items()}


class FeatureRunner(Generic[T]):
    """A function of a backbone and its input, compiled once and run over any number of images.

    Preprocessing is the model's own, on the device.
    """

    def __init__(self, model: Backbone, function: Callable[[Any, jax.Array], T], batch_size: int) -> None:
        """Compiles nothing yet.

        Args:
          model: used in inference mode.
          function: takes a backbone and its normalised input [B, H, W, C] to arrays [B, ...], a row of which depends on
            its image alone.
          batch_size: images at a time; as many of this process' devices as divide it take part.
        """
        graph, params = tree.split(model.for_inference())
        self.batch_size = batch_size
        self._mesh = sharding.widest_mesh(batch_size)
        self._own = params

        def forward(params: tree.Params, images: jax.Array) -> T:
            backbone = tree.merge(graph, params)
            return function(backbone, preprocess(images, backbone))

        self._run = jax.jit(chunked(forward, self._mesh, model.images_per_chunk))

    def __call__(self, images: np.ndarray, params: tree.Params | None = None) -> Any:
        """The function's results for images in memory.

        Args:
          images: uint8 [N, H, W, C] of a size that the model reads.
          params: in place of the model's own, the same on all devices; of a vision transformer, whose inference form
            has the same parameters.

        Returns:
          NumPy arrays [N, ...].

        Raises:
          ValueError: there are no images.
        """
        params = self._params if params is None else self._everywhere(params)
        places = (np.arange(first, first + self.batch_size) for first in range(0, len(images), self.batch_size))
        batches = prefetch((images[np.minimum(chosen, len(images) - 1)] for chosen in places), self._put)
        return stacked((jax.device_get(self._run(params, batch)) for batch in batches), len(images))

    def run(self, batch: Batch) -> T:
        """The function's results for `image` of one batch of `batch_size`, on the host."""
        return jax.device_get(self._run(self._params, self._put(batch["image"])))

    @functools.cached_property
    def _params(self) -> tree.Params:
        return self._everywhere(self._own)

    def _put(self, images: np.ndarray) -> jax.Array:
        return sharding.put_batch(self._mesh, {"image": images})["image"]

    def _everywhere(self, params: tree.Params) -> tree.Params:
        # Of what is the same on the devices of several processes, the copy of this one.
        local = {
            path: value.addressable_data(0) if value.is_fully_replicated else value for path, value in params.items()
        }
        return jax.device_put(local, sharding.replicated(self._mesh))


def extract(model: Backbone, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Features of N images, on the host, by running a backbone over batches of one shape without holding the images.

    Args:
      model: its own preprocessing is used.
      batches: `image` uint8 [B, H, W, C] with sides that the model reads, and `valid` [B], as `evaluation_batches`
        gives them; any further columns. What is not valid is left out.

    Returns:
      `class_token`, float32 [N, D], of a CNN the global average; `mean_patch`, float32 [N, D], the mean of the patch
      tokens, of a CNN the same; and the batches' further columns [N, ...], such as `index`, the place in the records.

    Raises:
      ValueError: there are no batches.
    """
    runner, pieces = None, []
    for batch in batches:
        runner = runner or FeatureRunner(model, _class_token_and_mean_patch, len(batch["image"]))
        further = {name: column for name, column in batch.items() if name not in ("image", "valid")}
        columns = runner.run(batch) | further
        pieces.append({name: column[batch["valid"]] for name, column in columns.items()})
    return stacked(pieces)


def stacked(pieces: Iterable[Any], count: int | None = None) -> Any:
    """One pytree of arrays out of several, joined along the leading axis and cut off after `count` rows."""
    held = list(pieces)
    if not held:
        raise ValueError("there are no images to extract features from")
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *held)


def chunked(
    forward: Callable[[tree.Params, jax.Array], T], mesh: Mesh, images_per_chunk: Callable[[int, int], int]
) -> Callable[[tree.Params, jax.Array], T]:
    """A function of large batches that runs a few images at a time inside the program, to be compiled.

    On a CPU the activations of a large batch leave the cache, which halves the speed. Elsewhere a large batch is what
    is wanted, and `forward` is returned as it is. Images stay on their device.

    Args:
      forward: gets parameters and images [B, ...], and gives arrays [B, ...], a row of which depends on its image only.
      mesh: the images are spread over it as `sharding.put_batch` does it.
      images_per_chunk: how many images of this height and width a device runs at a time, at most.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return forward

    def on_device(params: tree.Params, images: jax.Array) -> T:
        count, chunk = len(images), images_per_chunk(*images.shape[1:3])
        if count <= chunk:
            return forward(params, images)
        chunks = -(-count // chunk)
        size = -(-count // chunks)
        padding = [(0, chunks * size - count)] + [(0, 0)] * (images.ndim - 1)
        pieces = jnp.pad(images, padding).reshape(chunks, size, *images.shape[1:])
        found = jax.lax.map(lambda piece: forward(params, piece), pieces)
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], found)

    spread = sharding.batch_sharding(mesh).spec
    return jax.shard_map(on_device, mesh=mesh, in_specs=(PartitionSpec(), spread), out_specs=spread)
