"""What a pre-training run goes on from, the schedules that it follows, and its optimizer."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dinojax import schedules, tree
from dinojax.config.pretrain import OptimConfig, TeacherConfig
from dinojax.models import VisionTransformer
from dinojax.models.heads import DINOHead
from dinojax.optim import WEIGHT_DECAY, adamw, layer_decay, multipliers
from dinojax.tree import Params

BACKBONE = r"backbone\..*"
PROTOTYPES = r"(dino|ibot)_head\.last_layer\..*"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run goes on from; all of it float32 but for the counts."""

    step: jax.Array
    """int32 scalar: steps taken."""
    student: Params
    """Flat dict of `backbone.…`, `dino_head.…` and, where iBOT has a head of its own, `ibot_head.…`."""
    teacher: Params
    optimizer: optax.OptState
    centers: dict[str, jax.Array]
    """`dino` and `ibot`, [K] each: the running means of the softmax centering."""


class Graphs(NamedTuple):
    """The static halves of the modules. The teacher's backbone drops no paths: it is never called in training mode."""

    backbone: nnx.GraphDef
    heads: dict[str, nnx.GraphDef]
    """`dino_head`, and `ibot_head` where iBOT has its own."""

    @property
    def ibot_head(self) -> str:
        """Name of the head that iBOT's patches go through."""
        return "ibot_head" if "ibot_head" in self.heads else "dino_head"


class Schedules(NamedTuple):
    """One number a step, [steps] float64 each."""

    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temp: np.ndarray


def make_schedules(
    steps: int,
    epochs: float,
    batch_size: int,
    optim: OptimConfig,
    teacher: TeacherConfig,
    head_warmup_steps: int = 0,
) -> Schedules:
    """The published schedules, with warm-ups given in epochs, laid out over `steps` (DINOv2, appendix B).

    Args:
      steps: length of the run.
      epochs: of the run; the unit of the warm-ups.
      batch_size: of the whole batch, which scales the learning rate.
      optim: rates and decays.
      teacher: momentum and temperature.
      head_warmup_steps: so many steps come before the schedules, with the peak learning rate and all else at its start.
    """
    rest = steps - head_warmup_steps

    def warmup(length: float) -> int:
        return round(length * rest / epochs)

    lr = optim.lr * (batch_size / 1024) ** 0.5 if optim.lr_scaling == "sqrt_1024" else optim.lr
    made = Schedules(
        lr=schedules.cosine(lr, optim.min_lr, rest, warmup(optim.warmup_epochs)),
        weight_decay=schedules.cosine(optim.weight_decay, optim.weight_decay_end, rest),
        momentum=schedules.cosine(teacher.momentum, teacher.momentum_end, rest),
        teacher_temp=schedules.linear(
            teacher.temperature_start, teacher.temperature, rest, warmup(teacher.temperature_warmup_epochs)
        ),
    )
    before = (lr, optim.weight_decay, teacher.momentum, teacher.temperature_start)
    return Schedules(
        *(
            np.concatenate([np.full(head_warmup_steps, value), schedule])
            for value, schedule in zip(before, made, strict=True)
        )
    )


def make_optimizer(
    params: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    depth: int,
    schedules: Schedules,
    optim: OptimConfig,
    frozen_steps: int,
    head_warmup_steps: int = 0,
) -> optax.GradientTransformation:
    """AdamW with the published parameter groups: layer-wise decay in the backbone, none in the heads.

    Args:
      params: from `split_modules`; only their paths are read.
      depth: blocks of the backbone.
      schedules: of learning rate and weight decay.
      optim: decays, moments and clipping.
      frozen_steps: of the prototypes.
      head_warmup_steps: of the backbone.
    """
    table = layer_decay(depth, optim.layer_decay, optim.patch_embed_lr)
    rates = tree.prefixed("backbone", multipliers(tree.subtree("backbone", params), table))
    rates |= {path: 1.0 for path in params if path not in rates}
    return adamw(
        schedules.lr,
        schedules.weight_decay,
        learning_rates=rates,
        weight_decays=multipliers(params, WEIGHT_DECAY),
        beta1=optim.beta1,
        beta2=optim.beta2,
        clip=optim.clip,
        frozen=((PROTOTYPES, frozen_steps), (BACKBONE, head_warmup_steps)),
    )


def split_modules(backbone: VisionTransformer, heads: Mapping[str, DINOHead]) -> tuple[Graphs, Params]:
    """The modules' static halves and the parameters of all, under `backbone.` and the heads' names."""
    backbone_graph, backbone_params = tree.split(backbone)
    params = tree.prefixed("backbone", backbone_params)
    graphs = {}
    for name, head in heads.items():
        graphs[name], head_params = tree.split(head)
        params |= tree.prefixed(name, head_params)
    return Graphs(backbone_graph, graphs), params


def init_state(graphs: Graphs, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: student and teacher start equal, as published."""
    sizes = {
        name: params[f"{head}.last_layer.weight_g"].shape[0]
        for name, head in (("dino", "dino_head"), ("ibot", graphs.ibot_head))
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        centers={name: jnp.zeros((prototypes,)) for name, prototypes in sizes.items()},
    )
