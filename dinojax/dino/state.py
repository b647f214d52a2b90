"""The state of a pre-training run, the timeline and schedules that it follows, and its optimizer."""

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
from dinojax.optim import WEIGHT_DECAY, adamw, layer_decay, multipliers
from dinojax.tree import Params

Graphs = dict[str, nnx.GraphDef]
"""The static halves of `backbone`, `dino_head` and, where iBOT has a head of its own, `ibot_head`. The teacher's
backbone drops no paths: it is never called in training mode."""
BACKBONE = r"backbone\..*"
PROTOTYPES = r"(dino|ibot)_head\.last_layer\..*"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run resumes from; all of it float32 but for the counts."""

    step: jax.Array
    """int32 scalar: steps taken."""
    student: Params
    """Flat dict of `backbone.…`, `dino_head.…` and, where iBOT has a head of its own, `ibot_head.…`."""
    teacher: Params
    optimizer: optax.OptState
    centers: dict[str, jax.Array]
    """`dino` and `ibot`, [K] each: the running means of the softmax centering."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The length of a run and of its phases, in steps.

    The backbone is frozen for the first `head_warmup` steps, which the schedules, and so `lr_warmup` and
    `temperature_warmup`, come after.
    """

    steps: int
    steps_per_epoch: int = 1
    head_warmup: int = 0
    lr_warmup: int = 0
    temperature_warmup: int = 0
    frozen_prototypes: int = 0
    """Counted from the first step of the run."""

    @property
    def warmup(self) -> int:
        """Steps until backbone and heads are trained at the peak learning rate."""
        return self.head_warmup + self.lr_warmup


class Schedules(NamedTuple):
    """One number a step, [steps] float64 each."""

    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temp: np.ndarray


def make_schedules(timeline: Timeline, batch_size: int, optim: OptimConfig, teacher: TeacherConfig) -> Schedules:
    """The published schedules (DINOv2, appendix B), after the head's warm-up, which has the peak learning rate and all
    else at its start.

    Args:
      timeline: lengths of the run and of the warm-ups.
      batch_size: of the whole batch, which scales the learning rate.
      optim: rates and decays.
      teacher: momentum and temperature.
    """
    rest = timeline.steps - timeline.head_warmup
    lr = optim.lr * (batch_size / 1024) ** 0.5 if optim.lr_scaling == "sqrt_1024" else optim.lr
    temperatures = (teacher.temperature_start, teacher.temperature)
    made = Schedules(
        lr=schedules.cosine(lr, optim.min_lr, rest, timeline.lr_warmup),
        weight_decay=schedules.cosine(optim.weight_decay, optim.weight_decay_end, rest),
        momentum=schedules.cosine(teacher.momentum, teacher.momentum_end, rest),
        teacher_temp=schedules.linear(*temperatures, rest, timeline.temperature_warmup),
    )
    before = (lr, optim.weight_decay, teacher.momentum, teacher.temperature_start)
    pairs = zip(before, made, strict=True)
    return Schedules(*(np.concatenate([np.full(timeline.head_warmup, value), after]) for value, after in pairs))


def make_optimizer(
    params: Mapping[str, jax.Array | jax.ShapeDtypeStruct],
    depth: int,
    schedules: Schedules,
    timeline: Timeline,
    optim: OptimConfig,
) -> optax.GradientTransformation:
    """AdamW with the published parameter groups: layer-wise decay in the backbone, none in the projection heads.

    Args:
      params: from `split_modules`; only their paths are read.
      depth: blocks of the backbone.
      schedules: of learning rate and weight decay.
      timeline: for how long backbone and prototypes are frozen.
      optim: decays, moments and clipping.
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
        frozen=((PROTOTYPES, timeline.frozen_prototypes), (BACKBONE, timeline.head_warmup)),
    )


def split_modules(modules: Mapping[str, nnx.Module]) -> tuple[Graphs, Params]:
    """The static halves of `backbone` and projection heads by name, and all parameters with the name before them."""
    graphs, params = {}, {}
    for name, module in modules.items():
        graphs[name], own = tree.split(module)
        params |= tree.prefixed(name, own)
    return graphs, params


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: student and teacher start equal, as published."""
    shared = params["dino_head.last_layer.weight_g"]
    sizes = {term: params.get(f"{term}_head.last_layer.weight_g", shared).shape for term in ("dino", "ibot")}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        centers={term: jnp.zeros(size) for term, size in sizes.items()},
    )
