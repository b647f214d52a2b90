"""Frozen features of many images, in batches spread over the devices."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinojax import sharding, tree
from dinojax.data.pipeline import Batch
from dinojax.models import Backbone, preprocess

T = TypeVar("T")


class Extracted(NamedTuple):
    """Features of N images, on the host."""

    pooled: np.ndarray
    """float32 [N, D]: the class token; of a ResNet, the global average."""
    mean_patch: np.ndarray
    """float32 [N, D]: the mean of the patch tokens; of a ResNet, the same."""
    labels: np.ndarray
    """int32 [N]; -1 where there are none."""
    indices: np.ndarray
    """int32 [N]: places in the records."""


def extract(model: Backbone, batches: Iterable[Batch]) -> Extracted:
    """Runs a backbone over batches of one shape, preprocessing on the device.

    Args:
      model: in inference mode; its own preprocessing is used.
      batches: `image` uint8 [B, H, W, C] with sides that the model reads, `label`, `index` and `valid` [B], as
        `evaluation_batches` gives them. What is not valid is left out.

    Raises:
      ValueError: there are no batches.
    """
    graph, params = tree.split(model.for_inference())

    def forward(params: tree.Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        backbone = tree.merge(graph, params)
        features = backbone(preprocess(images, backbone))
        return features.pooled, features.patches.mean((1, 2))

    mesh, run, pieces = None, None, []
    for batch in batches:
        if mesh is None or run is None:
            mesh = sharding.widest_mesh(len(batch["image"]))
            params = jax.device_put(params, sharding.replicated(mesh))
            run = jax.jit(chunked(forward, mesh, model.images_per_chunk(*batch["image"].shape[1:3])))
        images = sharding.put_batch(mesh, {"image": batch["image"]})["image"]
        pooled, mean_patch = jax.device_get(run(params, images))
        columns = (pooled, mean_patch, batch["label"], batch["index"])
        pieces.append(tuple(column[batch["valid"]] for column in columns))
    if not pieces:
        raise ValueError("there are no batches to extract features from")
    return Extracted(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def chunked(
    forward: Callable[[tree.Params, jax.Array], T], mesh: Mesh, chunk: int
) -> Callable[[tree.Params, jax.Array], T]:
    """A function of large batches that runs a few images at a time inside the program, to be compiled.

    On a CPU the activations of a large batch leave the cache, which halves the speed. Elsewhere a large batch is what
    is wanted, and `forward` is returned as it is. Images stay on their device.

    Args:
      forward: gets parameters and images [B, ...], and gives arrays [B, ...], a row of which depends on its image only.
      mesh: the images are spread over it as `sharding.put_batch` does it.
      chunk: images of a device to run at a time, at most.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return forward

    def on_device(params: tree.Params, images: jax.Array) -> T:
        count = len(images)
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
