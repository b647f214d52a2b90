"""One mesh of devices with named axes; batches are spread over it, the state is the same everywhere."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax.errors import UsageError


def make_mesh(batch_size: int, devices: int | None = None) -> Mesh:
    """A mesh of local devices with the axis `data`.

    Args:
      batch_size: must be a multiple of the number of devices.
      devices: how many of the devices; by default all of them.

    Raises:
      UsageError: the batch cannot be spread evenly.
    """
    devices = devices or jax.device_count()
    if batch_size % devices:
        raise UsageError(f"batch_size {batch_size} is not a multiple of the {devices} devices; change it")
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def widest_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices as divide the batch evenly."""
    return make_mesh(batch_size, max(n for n in range(1, jax.device_count() + 1) if batch_size % n == 0))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sends a batch to the devices, its leading axis spread over them."""
    return jax.device_put(dict(batch), batch_sharding(mesh))
