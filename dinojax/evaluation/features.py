"""Frozen features of many images, in batches spread over the devices."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from dinojax import sharding, tree
from dinojax.data.pipeline import Batch
from dinojax.models import VisionTransformer, preprocess


class Extracted(NamedTuple):
    """Features of N images, on the host."""

    pooled: np.ndarray
    """float32 [N, D]: the class token."""
    mean_patch: np.ndarray
    """float32 [N, D]: the mean of the patch tokens."""
    labels: np.ndarray
    """int32 [N]; -1 where there are none."""
    indices: np.ndarray
    """int32 [N]: places in the records."""


def extract(model: VisionTransformer, batches: Iterable[Batch]) -> Extracted:
    """Runs a backbone over batches of one shape, preprocessing on the device.

    Args:
      model: in inference mode; its own preprocessing is used.
      batches: `image` uint8 [B, H, W, C] with sides divisible by the patch size, `label`, `index` and `valid` [B], as
        `evaluation_batches` gives them. What is not valid is left out.

    Raises:
      ValueError: there are no batches.
    """
    graph, params = tree.split(model)

    @jax.jit
    def run(params: tree.Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        backbone = tree.merge(graph, params)
        features = backbone(preprocess(images, backbone))
        return features.pooled, features.patches.mean((1, 2))

    mesh, pieces = None, []
    for batch in batches:
        if mesh is None:
            mesh = sharding.widest_mesh(len(batch["image"]))
            params = jax.device_put(params, sharding.replicated(mesh))
        images = sharding.put_batch(mesh, {"image": batch["image"]})["image"]
        pooled, mean_patch = jax.device_get(run(params, images))
        columns = (pooled, mean_patch, batch["label"], batch["index"])
        pieces.append(tuple(column[batch["valid"]] for column in columns))
    if not pieces:
        raise ValueError("there are no batches to extract features from")
    return Extracted(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
