"""What FSDP saves: memory a device of a pre-training step of ViT-g/14, with 1 and with 8 devices.

    python scripts/bench_sharding.py

Compiled ahead from shapes alone, for the same batch of 8 images, on simulated devices of the CPU: no array of the model
is ever made. Fails where a device of eight needs more than a quarter of what a single one does.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinojax import sharding
from dinojax.config.pretrain import HeadConfig, LossConfig, OptimConfig, TeacherConfig
from dinojax.dino import state as states
from dinojax.dino.masking import MaskPlan
from dinojax.dino.step import make_train_step
from dinojax.models import create_transformer
from dinojax.models.heads import DINOHead

TARGET = 1 / 4


def main() -> None:
    single, eight = (compiled_memory(devices) for devices in (1, 8))
    print(f"{eight / single:.2f} of the memory a device (target {TARGET:g} at most)")
    if eight > TARGET * single:
        sys.exit("the state is not spread as it should be")


def compiled_memory(devices: int) -> int:
    """Bytes a device that the compiler reports."""
    head = HeadConfig()
    backbone, made = nnx.eval_shape(
        lambda: (
            create_transformer("vitg14", nnx.Rngs(0), image_size=224, loop_blocks=True),
            DINOHead(1536, head.prototypes, head.hidden, head.bottleneck, head.layers, nnx.Rngs(1)),
        )
    )
    graphs, params = states.split_modules({"backbone": backbone, "dino_head": made})
    timeline, optim = states.Timeline(10), OptimConfig()
    schedules = states.make_schedules(timeline, 8, optim, TeacherConfig())
    optimizer = states.make_optimizer(params, backbone.arguments.depth, schedules, timeline, optim)
    state = jax.eval_shape(lambda params: states.init_state(params, optimizer), params)
    mesh = sharding.make_mesh(8, fsdp=0, devices=devices)
    placed = sharding.state_sharding(mesh, state)

    def shaped(array: jax.ShapeDtypeStruct, at: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=at)

    spread = sharding.batch_sharding(mesh)
    shapes = {"globals": (8, 2, 224, 224, 3), "locals": (8, 8, 98, 98, 3)}
    inputs = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread) for name, shape in shapes.items()}
    inputs["masks"] = jax.ShapeDtypeStruct((8, 2, 256), jnp.bool, sharding=spread)
    bound = MaskPlan(16, (16, 16), 0.5, (0.1, 0.5), groups=8).bound
    step = make_train_step(graphs, optimizer, schedules, LossConfig(), bound, groups=8, logged=np.zeros(10, bool))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    memory = jitted.lower(jax.tree.map(shaped, state, placed), inputs).compile().memory_analysis()
    assert memory is not None
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs
    print(f"ViT-g/14 on {devices} device(s): {total / 2**30:.1f} GiB each", flush=True)
    return total


if __name__ == "__main__":
    main()
