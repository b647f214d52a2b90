"""One step of self-supervised pre-training: student and teacher forward, losses, AdamW, moving average.

Shapes: B images, V = 2 global and L local crops of each, N patches of a global crop, R packed masked patches, G groups,
K prototypes, E the head's bottleneck, D width. Batches are image-major, so that spreading them over devices keeps an
image's crops together; no loss depends on the order of images. The batch may be differentiated in A slices, one after
the other; what the losses need of the whole batch (the centering's bias, KoLeo's neighbours) is found before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from dinojax.config.pretrain import LossConfig
from dinojax.dino import accumulation, health, losses
from dinojax.dino.forward import Batch, BatchSlice, StepContext, split_batch
from dinojax.dino.masked_patches import take_masked
from dinojax.dino.state import Graphs, Schedules, TrainState
from dinojax.dino.teacher import TeacherOutputs, center, teacher_outputs
from dinojax.models.heads import prototype_logits
from dinojax.optim import apply_updates, at, submodule_norms
from dinojax.tree import Params

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    graphs: Graphs,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    loss: LossConfig,
    masked_bound: int,
    *,
    groups: int = 1,
    accumulate: int = 1,
    seed: int = 0,
    dtype: Any = jnp.float32,
    logged: np.ndarray | None = None,
) -> Step:
    """Builds the step, a pure function to be compiled with `jax.jit(step, donate_argnums=0)`.

    Args:
      graphs: from `split_modules`.
      optimizer: from `make_optimizer`.
      schedules: from `make_schedules`.
      loss: weights, temperatures and the kind of centering.
      masked_bound: the most masked patches that a group of the batch can have (`MaskPlan.bound`).
      groups: G, equal slices of the batch inside which masked patches are packed and drop path picks its subset: with a
        multiple of the number of devices times `accumulate` no gather crosses devices. Results depend on it.
      accumulate: A, a divisor of `groups`; results do not depend on it.
      seed: of drop path; a group's draws are a function of the seed, the step and its number.
      dtype: of the matrix products. Parameters, softmax, losses, centering and moving averages are float32.
      logged: bool [steps]; in the other steps the effective rank, which costs a decomposition, is left at 0.

    Returns:
      (state, batch) to (state, metrics), metrics being float32 scalars. Loss terms are weighted, so that their sum is
      `loss` and both DINO terms add up to `dino_weight` · log K when nothing is learned.
    """
    ranked = np.ones(len(schedules.lr), bool) if logged is None else logged

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = len(batch["globals"])
        context = StepContext(graphs, loss, groups, at(schedules.teacher_temp, state.step), images, dtype)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        slices = split_batch(batch, key, masked_bound, groups, accumulate)

        teacher = context.cast(state.teacher)
        prototypes = context.prototypes(teacher)
        outputs = accumulation.map_slices(partial(teacher_outputs, context, teacher), slices)
        biases, centers = center(context, prototypes, outputs, state.centers)

        def targets_of(term: str, one: TeacherOutputs) -> jax.Array:
            logits = prototype_logits(one.embedded[term][0], prototypes[term])
            return losses.targets(logits, context.temperature, biases[term])

        koleo, koleo_gradient = _koleo_over_slices(context, state.student, slices)
        differentiate = jax.grad(partial(_student_loss, context, targets_of), has_aux=True)
        gradients, (terms, target_sums) = accumulation.sum_slices(
            lambda one: differentiate(state.student, *one), (slices, outputs, koleo_gradient)
        )
        terms |= {} if koleo is None else {"koleo": koleo}

        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.student)
        student = apply_updates(state.student, updates)
        momentum = at(schedules.momentum, state.step)
        moved = {path: old + (1 - momentum) * (student[path] - old) for path, old in state.teacher.items()}

        tokens = rearrange(outputs.tokens, "a n d -> (a n) d").astype(jnp.float32)
        metrics = {
            "loss": jnp.asarray(sum(terms.values())),
            **terms,
            **_target_metrics(target_sums, images, terms, loss),
            "feature_std": health.spread(tokens),
            "effective_rank": jax.lax.cond(
                jnp.asarray(ranked)[state.step], health.effective_rank, lambda _: jnp.zeros(()), tokens
            ),
            "teacher_temp": context.temperature,
            "momentum": momentum,
            "lr": at(schedules.lr, state.step),
            "weight_decay": at(schedules.weight_decay, state.step),
            **{f"grad_norm_{name}": norm for name, norm in submodule_norms(gradients).items()},
        }
        return TrainState(state.step + 1, student, moved, optimizer_state, centers), metrics

    return train_step


def _koleo(context: StepContext, tokens: jax.Array) -> jax.Array:
    """The weighted term of class tokens [b, V, D]: the sum over the views, each with its own neighbours."""
    loss, groups = context.loss, context.groups if context.loss.koleo_per_group else 1
    views = rearrange(tokens, "(g b) v d -> (g v) b d", g=groups)
    return loss.koleo_weight * jax.vmap(partial(losses.koleo_loss, eps=loss.koleo_eps))(views).sum() / groups


def _koleo_over_slices(
    context: StepContext, student: Params, slices: BatchSlice
) -> tuple[jax.Array | None, jax.Array | None]:
    """With several slices: the whole batch's term, and its gradient with respect to the class tokens [A, b, V, D]."""
    if len(slices.globals) == 1 or context.loss.koleo_weight == 0:
        return None, None
    tokens = accumulation.map_slices(lambda one: _on_globals(context, context.cast(student), one)[0], slices)

    def term(tokens: jax.Array) -> jax.Array:
        return _koleo(context, accumulation.join(tokens, context.groups))

    return jax.value_and_grad(term)(tokens.astype(jnp.float32))


def _on_globals(context: StepContext, student: Params, one: BatchSlice) -> tuple[jax.Array, jax.Array]:
    """The student's features of the global crops: class tokens [b, V, D] and patches [b·V, h, w, D]."""
    masks = None if one.masks is None else rearrange(one.masks, "b v n -> (b v) n")
    crops = context.images_of(one.globals)
    features = context.backbone(student)(crops, masks, train=True, key=one.keys[:, 0])
    return rearrange(features.pooled, "(b v) d -> b v d", b=len(one.globals)), features.patches


def _student_loss(
    context: StepContext,
    targets_of: Callable[[str, TeacherOutputs], jax.Array],
    student: Params,
    one: BatchSlice,
    outputs: TeacherOutputs,
    koleo_gradient: jax.Array | None,
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """A slice's share of the loss and of its terms, and sums over its targets of the DINO term."""
    student = context.cast(student)
    loss, (size, views), locals_ = context.loss, one.globals.shape[:2], one.locals.shape[1]
    heads, prototypes, share = context.heads(student), context.prototypes(student), size / context.images

    def logits(term: str, features: jax.Array) -> jax.Array:
        return prototype_logits(heads[term].embed(features), prototypes[term])

    targets = targets_of("dino", outputs)
    largest = jnp.zeros(targets.shape[1]).at[targets.argmax(1)].add(1.0)  # how often each prototype is
    target_sums = {"entropy": losses.entropy(targets).sum(), "target": targets.sum(0), "largest": largest}
    # Each crop's targets come from the other one.
    targets = rearrange(targets, "(b v) k -> b v k", v=views)[:, ::-1]
    tokens, patches = _on_globals(context, student, one)

    # Every ordered pair of a student's and a teacher's view is one term, but for those of a global crop with itself.
    pairs = views * (views - 1) + views * locals_
    global_loss = losses.cross_entropy(logits("dino", tokens), targets, loss.student_temperature).mean() * share
    terms = {"dino_global": loss.dino_weight * global_loss * views * (views - 1) / pairs}
    terms |= {"dino_local": jnp.zeros(()), "ibot": jnp.zeros(()), "koleo": jnp.zeros(())}
    if locals_:
        pooled = context.backbone(student)(context.images_of(one.locals), train=True, key=one.keys[:, 1]).pooled
        local_logits = logits("dino", rearrange(pooled, "(b l) d -> b l d", b=size))
        local_loss = losses.dino_loss(local_logits, targets, loss.student_temperature)
        terms["dino_local"] = loss.dino_weight * local_loss * share / pairs
    if one.packed is not None:
        given = logits("ibot", take_masked(patches, one.packed)), targets_of("ibot", outputs), one.packed.weights
        terms["ibot"] = loss.ibot_weight * losses.ibot_loss(*given, context.images * views, loss.student_temperature)
    tokens = tokens.astype(jnp.float32)
    if koleo_gradient is None and loss.koleo_weight:
        terms["koleo"] = _koleo(context, tokens)
    total = jnp.asarray(sum(terms.values()))
    if koleo_gradient is not None:
        # A sum whose gradient with respect to the tokens is that of the whole batch's term.
        total += (koleo_gradient * tokens).sum()
    return total, (terms, target_sums)


def _target_metrics(sums: Metrics, images: int, terms: Metrics, loss: LossConfig) -> Metrics:
    """Health of the targets. KL is what the cross-entropy of the DINO terms has above the targets' own entropy."""
    count = 2 * images
    entropy = sums["entropy"] / count
    metrics = {
        "target_entropy": entropy,
        "mean_target_entropy": losses.entropy(sums["target"] / count),
        "prototypes_used": (sums["largest"] > 0).mean(),
    }
    if loss.dino_weight:
        metrics["kl"] = (terms["dino_global"] + terms["dino_local"]) / loss.dino_weight - entropy
    return metrics
