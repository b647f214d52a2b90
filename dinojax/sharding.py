"""One mesh of devices with named axes. Batches are spread over all of it; the state over its axis `fsdp`.

With `fsdp` 1 every device holds the whole state (data parallelism); with as many as there are devices each holds a
share (ZeRO stage 3, Rajbhandari et al. 2020, arXiv 1910.02054). One rule by shape serves every array of a state.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax.errors import UsageError

T = TypeVar("T")
_AXES = ("data", "fsdp")
_SMALLEST = 4096
"""Arrays of fewer numbers are not spread: that saves too little memory to be worth the communication."""


def make_mesh(batch_size: int, fsdp: int = 1, devices: int | None = None) -> Mesh:
    """A mesh of the axes `data` and `fsdp` over the devices of all processes, each process' devices side by side.

    Args:
      batch_size: must be a multiple of the number of devices.
      fsdp: devices over which the state is spread; 0: all of them.
      devices: how many of the devices; by default all of them.

    Raises:
      UsageError: the batch cannot be spread evenly, or `fsdp` does not divide the number of devices.
    """
    devices = devices or jax.device_count()
    if batch_size % devices:
        raise UsageError(f"batch_size {batch_size} is not a multiple of the {devices} devices; change it")
    fsdp = fsdp or devices
    if devices % fsdp:
        raise UsageError(f"fsdp {fsdp} does not divide the {devices} devices; change it, or 0 takes all of them")
    # `jax.make_mesh` may reorder devices; a process' rows of a batch have to be consecutive.
    places = np.array(jax.devices()[:devices]).reshape(-1, fsdp)
    return Mesh(places, _AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def widest_mesh(batch_size: int, fsdp: int = 1) -> Mesh:
    """A mesh of as many of this process' devices as divide the batch evenly and are a multiple of `fsdp`."""
    fitting = [n for n in range(1, jax.local_device_count() + 1) if batch_size % n == 0 and n % (fsdp or n) == 0]
    if not fitting:
        raise UsageError(f"fsdp {fsdp}: no number of devices is a multiple of it and divides batches of {batch_size}")
    places = np.array(jax.local_devices()[: max(fitting)]).reshape(-1, fsdp or max(fitting))
    return Mesh(places, _AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec(_AXES))


def state_sharding(mesh: Mesh, state: T) -> T:
    """For each array of a state, its sharding: the longest axis that `fsdp` divides is spread over it.

    Args:
      mesh: from `make_mesh`.
      state: a pytree of arrays, or of their shapes and dtypes.
    """
    size = mesh.shape["fsdp"]

    def rule(array: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(array.shape) if length % size == 0]
        if size == 1 or not axes or math.prod(array.shape) < _SMALLEST:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(rule, state)


def put_state(mesh: Mesh, state: T) -> T:
    """Spreads a state, which every process holds whole, over the devices."""
    return jax.device_put(state, state_sharding(mesh, state))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Sends a batch, of which each process holds its own rows, to the devices, its leading axis spread over them."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def gather(mesh: Mesh, arrays: T) -> T:
    """The arrays whole, on one of this process' devices; all processes call it together."""
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(arrays)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)
