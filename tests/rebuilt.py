"""Models with the weights that the reference figures were made with."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinojax import tree
from tests import goldens_reader as goldens
from weights_convert import tables

M = TypeVar("M", bound=nnx.Module)
LINEAR = {"kernel": "weight", "bias": "bias"}


def backbone(model: M) -> M:
    """The model with rebuilt weights for its own."""
    graph, params = tree.split(model)
    return tree.merge(graph, as_arrays(tables.dinov2_backbone(published(params))))


def head(model: M) -> M:
    """The DINO head with rebuilt weights for its own."""
    graph, params = tree.split(model)
    return tree.merge(graph, as_arrays(tables.dino_head(published(params))))


def published(params: dict[str, jax.Array], prefix: str = "") -> dict[str, np.ndarray]:
    """Rebuilds the published tensors that correspond to our parameters, by their published names."""
    shapes = {tables.to_dinov2_name(path): published_shape(path, array.shape) for path, array in params.items()}
    return {name: goldens.rebuild(prefix + name, shape) for name, shape in shapes.items()}


def published_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if path.endswith(("kernel", "weight_v")):
        return shape[::-1]
    return (*shape, 1) if path.endswith("weight_g") else shape


def as_arrays(params: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {path: jnp.asarray(array) for path, array in params.items()}
