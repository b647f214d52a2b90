"""One step of self-supervised pre-training: student and teacher forward, losses, AdamW, moving average.

Shapes: B images, V = 2 global and L local crops of each, N patches of a global crop, M masked patches at most in each
of G groups, K prototypes, D width. Batches are image-major, so that spreading them over devices keeps an image's crops
together; no loss depends on the order of images.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from dinojax import schedules, tree
from dinojax.config import LossConfig, OptimConfig, TeacherConfig
from dinojax.dino import losses
from dinojax.models import VisionTransformer
from dinojax.models.heads import DINOHead
from dinojax.optim import WEIGHT_DECAY, adamw, apply_updates, at, layer_decay, multipliers, submodule_norms
from dinojax.tree import Params

PROTOTYPES = r"dino_head\.last_layer\..*"


class Batch(TypedDict):
    """What a step reads."""

    globals: jax.Array
    """float32 [B, 2, S, S, C], normalised."""
    locals: jax.Array
    """float32 [B, L, s, s, C], normalised."""
    masks: jax.Array | None
    """bool [B, 2, N]; patches of the global crops that the student does not see. None without the iBOT term."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run goes on from."""

    step: jax.Array
    """int32 scalar: steps taken."""
    student: Params
    """Flat dict of `backbone.…` and `dino_head.…`."""
    teacher: Params
    optimizer: optax.OptState
    centers: dict[str, jax.Array]
    """`dino` and `ibot`, [K] each: the running means of the softmax centering."""


class Graphs(NamedTuple):
    """The static halves of the modules. The teacher's backbone drops no paths: it is never called in training mode."""

    backbone: nnx.GraphDef
    head: nnx.GraphDef


class Schedules(NamedTuple):
    """One number a step, [steps] float64 each."""

    lr: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temp: np.ndarray


def make_schedules(steps: int, epochs: float, batch_size: int, optim: OptimConfig, teacher: TeacherConfig) -> Schedules:
    """The published schedules, with warm-ups given in epochs, laid out over `steps` (DINOv2, appendix B)."""

    def warmup(length: float) -> int:
        return round(length * steps / epochs)

    lr = optim.lr * (batch_size / 1024) ** 0.5 if optim.lr_scaling == "sqrt_1024" else optim.lr
    return Schedules(
        lr=schedules.cosine(lr, optim.min_lr, steps, warmup(optim.warmup_epochs)),
        weight_decay=schedules.cosine(optim.weight_decay, optim.weight_decay_end, steps),
        momentum=schedules.cosine(teacher.momentum, teacher.momentum_end, steps),
        teacher_temp=schedules.linear(
            teacher.temperature_start, teacher.temperature, steps, warmup(teacher.temperature_warmup_epochs)
        ),
    )


def make_optimizer(
    params: Params, depth: int, schedules: Schedules, optim: OptimConfig, frozen_steps: int
) -> optax.GradientTransformation:
    """AdamW with the published parameter groups: layer-wise decay in the backbone, none in the head."""
    table = layer_decay(depth, optim.layer_decay, optim.patch_embed_lr)
    rates = tree.prefixed("backbone", multipliers(tree.subtree("backbone", params), table))
    rates |= {path: 1.0 for path in params if path.startswith("dino_head.")}
    return adamw(
        schedules.lr,
        schedules.weight_decay,
        learning_rates=rates,
        weight_decays=multipliers(params, WEIGHT_DECAY),
        beta1=optim.beta1,
        beta2=optim.beta2,
        clip=optim.clip,
        frozen=PROTOTYPES,
        frozen_steps=frozen_steps,
    )


def split_modules(backbone: VisionTransformer, head: DINOHead) -> tuple[Graphs, Params]:
    """The modules' static halves and the parameters of both, under `backbone.` and `dino_head.`."""
    backbone_graph, backbone_params = tree.split(backbone)
    head_graph, head_params = tree.split(head)
    params = tree.prefixed("backbone", backbone_params) | tree.prefixed("dino_head", head_params)
    return Graphs(backbone_graph, head_graph), params


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: student and teacher start equal, as published."""
    prototypes = params["dino_head.last_layer.weight_g"].shape[0]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=params,
        teacher=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        centers={name: jnp.zeros((prototypes,)) for name in ("dino", "ibot")},
    )


def make_train_step(
    graphs: Graphs,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    loss: LossConfig,
    masked_bound: int,
    groups: int = 1,
    seed: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step, a pure function to be compiled with `jax.jit(step, donate_argnums=0)`.

    Args:
      graphs: from `split_modules`.
      optimizer: from `make_optimizer`.
      schedules: from `make_schedules`.
      loss: weights, temperatures and the kind of centering.
      masked_bound: the most masked patches that a group of the batch can have (`masking.bound`).
      groups: equal slices of the batch inside which masked patches are packed: with a multiple of the number of devices
        no gather crosses them.
      seed: of drop path; its draws are a function of the seed and the step.

    Returns:
      (state, batch) to (state, metrics), metrics being float32 scalars. Loss terms are weighted, so that their sum is
      `loss` and both DINO terms add up to log K when nothing is learned.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        temperature = at(schedules.teacher_temp, state.step)
        masks = batch["masks"]
        packed = None if masks is None else _pack(masks, masked_bound, groups)
        targets = _teacher_targets(graphs, state, batch, packed, temperature, loss)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        gradients, terms = jax.grad(
            lambda student: _student_loss(graphs, student, batch, packed, targets, key, loss), has_aux=True
        )(state.student)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.student)
        student = apply_updates(state.student, updates)
        momentum = at(schedules.momentum, state.step)
        teacher = {path: momentum * value + (1 - momentum) * student[path] for path, value in state.teacher.items()}

        metrics = {
            "loss": jnp.asarray(sum(terms.values())),
            **{name: jnp.zeros(()) for name in ("dino_local", "ibot") if name not in terms},
            **terms,
            "target_entropy": losses.entropy(targets.dino).mean(),
            "mean_target_entropy": losses.entropy(targets.dino.mean((0, 1))),
            "teacher_temp": temperature,
            "momentum": momentum,
            "lr": at(schedules.lr, state.step),
            "weight_decay": at(schedules.weight_decay, state.step),
            **{f"grad_norm_{name}": norm for name, norm in submodule_norms(gradients).items()},
        }
        return TrainState(state.step + 1, student, teacher, optimizer_state, targets.centers), metrics

    return train_step


class _Packed(NamedTuple):
    """Masked patches of a batch, packed inside each group; R = G·M rows, padded."""

    indices: jax.Array
    """int32 [G, M] into the group's B/G·2·N patches."""
    valid: jax.Array
    """bool [R]."""
    weights: jax.Array
    """float32 [R]: 1 / (masked patches of the same crop), 0 where not valid."""


def _pack(masks: jax.Array, bound: int, groups: int) -> _Packed:
    per_crop = jnp.broadcast_to(masks.sum(-1, keepdims=True), masks.shape)
    masks = rearrange(masks, "(g b) v n -> g (b v n)", g=groups)
    indices = jax.vmap(lambda mask: jnp.nonzero(mask, size=bound, fill_value=0)[0])(masks)
    valid = jnp.arange(bound) < masks.sum(1, keepdims=True)
    counts = jnp.take_along_axis(rearrange(per_crop, "(g b) v n -> g (b v n)", g=groups), indices, axis=1)
    return _Packed(indices, valid.ravel(), (valid / jnp.maximum(counts, 1)).ravel())


def _masked_patches(patches: jax.Array, packed: _Packed) -> jax.Array:
    """[B·V, h, w, D] to [R, D]."""
    grouped = rearrange(patches, "(g b) h w d -> g (b h w) d", g=len(packed.indices))
    return rearrange(jnp.take_along_axis(grouped, packed.indices[:, :, None], axis=1), "g m d -> (g m) d")


class _Targets(NamedTuple):
    dino: jax.Array
    """[B, V, K]: each crop's targets come from the other one."""
    ibot: jax.Array | None
    """[R, K]"""
    centers: dict[str, jax.Array]


def _teacher_targets(
    graphs: Graphs, state: TrainState, batch: Batch, packed: _Packed | None, temperature: jax.Array, loss: LossConfig
) -> _Targets:
    backbone = tree.merge(graphs.backbone, tree.subtree("backbone", state.teacher))
    head = tree.merge(graphs.head, tree.subtree("dino_head", state.teacher))
    features = backbone(rearrange(batch["globals"], "b v h w c -> (b v) h w c"))
    images = len(batch["globals"])
    dino, center = _centered(head(features.pooled), state.centers["dino"], temperature, loss, None)
    dino = rearrange(dino, "(b v) k -> b v k", b=images)[:, ::-1]
    if packed is None:
        return _Targets(dino, None, {"dino": center, "ibot": state.centers["ibot"]})
    patches = head(_masked_patches(features.patches, packed))
    ibot, ibot_center = _centered(patches, state.centers["ibot"], temperature, loss, packed.valid)
    return _Targets(dino, ibot, {"dino": center, "ibot": ibot_center})


def _centered(
    logits: jax.Array, center: jax.Array, temperature: jax.Array, loss: LossConfig, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Targets, and the centre for the next step: it is updated after its use, as published."""
    if loss.centering == "sinkhorn_knopp":
        return losses.sinkhorn_knopp(logits, temperature, valid), center
    targets = losses.softmax_centering(logits, center, temperature)
    return targets, losses.update_center(center, logits, loss.center_momentum, valid)


def _student_loss(
    graphs: Graphs,
    student: Params,
    batch: Batch,
    packed: _Packed | None,
    targets: _Targets,
    key: jax.Array,
    loss: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    backbone = tree.merge(graphs.backbone, tree.subtree("backbone", student))
    head = tree.merge(graphs.head, tree.subtree("dino_head", student))
    images, views, locals_ = len(batch["globals"]), batch["globals"].shape[1], batch["locals"].shape[1]
    global_key, local_key = jax.random.split(key)
    masks = None if batch["masks"] is None else rearrange(batch["masks"], "b v n -> (b v) n")
    global_crops = rearrange(batch["globals"], "b v h w c -> (b v) h w c")
    features = backbone(global_crops, masks, train=True, key=global_key)

    # Every ordered pair of a student's and a teacher's view is one term, but for those of a global crop with itself.
    pairs = views * (views - 1) + views * locals_
    logits = rearrange(head(features.pooled), "(b v) k -> b v k", b=images)
    global_loss = losses.cross_entropy(logits, targets.dino, loss.student_temperature).mean()
    terms = {"dino_global": loss.dino_weight * global_loss * views * (views - 1) / pairs}
    if locals_:
        local_crops = rearrange(batch["locals"], "b l h w c -> (b l) h w c")
        local_features = backbone(local_crops, train=True, key=local_key)
        logits = rearrange(head(local_features.pooled), "(b l) k -> b l k", b=images)
        local_loss = losses.dino_loss(logits, targets.dino, loss.student_temperature)
        terms["dino_local"] = loss.dino_weight * local_loss / pairs
    tokens = rearrange(features.pooled, "(b v) d -> b v d", b=images)
    koleo = jnp.stack([losses.koleo_loss(tokens[:, view]) for view in range(views)]).sum()
    terms["koleo"] = loss.koleo_weight * koleo
    if packed is not None and targets.ibot is not None:
        patches = head(_masked_patches(features.patches, packed))
        ibot = losses.ibot_loss(patches, targets.ibot, packed.weights, images * views, loss.student_temperature)
        terms["ibot"] = loss.ibot_weight * ibot
    return jnp.asarray(sum(terms.values())), terms
