"""One step of self-supervised pre-training: student and teacher forward, losses, AdamW, moving average.

Shapes: B images, V = 2 global and L local crops of each, N patches of a global crop, R packed masked patches, G groups,
K prototypes, E the head's bottleneck, D width. Batches are image-major, so that spreading them over devices keeps an
image's crops together; no loss depends on the order of images. The batch may be differentiated in A slices, one after
the other; what the losses need of the whole batch (the centering's bias, KoLeo's neighbours) is found before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from dinojax import tree
from dinojax.config.pretrain import LossConfig
from dinojax.dino import accumulation, health, losses
from dinojax.dino.masked_patches import Packed, pack, take_masked
from dinojax.dino.state import Graphs, Schedules, TrainState
from dinojax.models import VisionTransformer
from dinojax.models.heads import DINOHead, compare
from dinojax.optim import apply_updates, at, submodule_norms
from dinojax.tree import Params


class Batch(TypedDict):
    """What a step reads."""

    globals: jax.Array
    """float32 [B, 2, S, S, C], normalised."""
    locals: jax.Array
    """float32 [B, L, s, s, C], normalised."""
    masks: jax.Array | None
    """bool [B, 2, N]; patches of the global crops that the student does not see. None without the iBOT term."""


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
      masked_bound: the most masked patches that a group of the batch can have (`masking.bound`).
      groups: G, equal slices of the batch inside which masked patches are packed and drop path picks its subset: with a
        multiple of the number of devices times `accumulate` no gather crosses devices. Results depend on it.
      accumulate: A, a divisor of `groups`; results do not depend on it.
      seed: of drop path; a group's draws are a function of the seed, the step and its number.
      dtype: of the matrix products. Parameters, softmax, losses, centering and moving averages are float32.
      logged: bool [steps]; in the other steps the effective rank, which costs a decomposition, is left at 0.

    Returns:
      (state, batch) to (state, metrics), metrics being float32 scalars. Loss terms are weighted, so that their sum is
      `loss` and both DINO terms add up to log K when nothing is learned.
    """
    due = np.ones(len(schedules.lr), bool) if logged is None else logged

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = len(batch["globals"])
        run = _Run(graphs, loss, at(schedules.teacher_temp, state.step), images, dtype)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        slices = _slice(batch, key, masked_bound, groups, accumulate)

        teacher = _cast(state.teacher, dtype)
        prototypes = run.prototypes(teacher)
        seen = accumulation.map_slices(partial(_see, run, teacher), slices)
        biases, centers = _center(run, prototypes, seen, slices, state.centers)
        koleo, pull = _koleo_over_slices(run, state.student, slices, groups)
        differentiate = jax.grad(
            partial(_student_loss, run, prototypes=prototypes, biases=biases, groups=groups), has_aux=True
        )
        gradients, (terms, told) = accumulation.sum_slices(
            lambda one: differentiate(state.student, *one), (slices, seen, pull)
        )
        terms |= {} if koleo is None else {"koleo": koleo}

        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.student)
        student = apply_updates(state.student, updates)
        momentum = at(schedules.momentum, state.step)
        moved = {path: old + (1 - momentum) * (student[path] - old) for path, old in state.teacher.items()}

        tokens = rearrange(seen.tokens, "a n d -> (a n) d").astype(jnp.float32)
        metrics = {
            "loss": jnp.asarray(sum(terms.values())),
            **terms,
            **_describe(told, images, terms, loss),
            "feature_std": health.spread(tokens),
            "effective_rank": jax.lax.cond(
                jnp.asarray(due)[state.step], health.effective_rank, lambda _: jnp.zeros(()), tokens
            ),
            "teacher_temp": run.temperature,
            "momentum": momentum,
            "lr": at(schedules.lr, state.step),
            "weight_decay": at(schedules.weight_decay, state.step),
            **{f"grad_norm_{name}": norm for name, norm in submodule_norms(gradients).items()},
        }
        return TrainState(state.step + 1, student, moved, optimizer_state, centers), metrics

    return train_step


class _Run(NamedTuple):
    """What all parts of a step share."""

    graphs: Graphs
    loss: LossConfig
    temperature: jax.Array
    """Of the teacher, float32 scalar."""
    images: int
    """B, of the whole batch."""
    dtype: Any

    def backbone(self, params: Params) -> VisionTransformer:
        return tree.merge(self.graphs.backbone, tree.subtree("backbone", params))

    def head(self, name: str, params: Params) -> DINOHead:
        return tree.merge(self.graphs.heads[name], tree.subtree(name, params))

    def ibot_head(self, params: Params) -> DINOHead:
        return self.head(self.graphs.ibot_head, params)

    def prototypes(self, params: Params) -> dict[str, jax.Array]:
        """[E, K] of each term's head."""
        heads = {"dino": "dino_head", "ibot": self.graphs.ibot_head}
        columns = {head: self.head(head, params).last_layer.columns() for head in set(heads.values())}
        return {term: columns[head] for term, head in heads.items()}


class _Slice(NamedTuple):
    """A slice of a batch, b images in g groups."""

    globals: jax.Array
    """[b, V, S, S, C]"""
    locals: jax.Array
    """[b, L, s, s, C]"""
    masks: jax.Array | None
    packed: Packed | None
    keys: jax.Array
    """[g, 2]: keys of drop path, for global and for local crops."""


class _Seen(NamedTuple):
    """What the teacher makes of a slice."""

    tokens: jax.Array
    """[b·V, D]: class tokens."""
    dino: jax.Array
    """[b·V, E]"""
    ibot: jax.Array | None
    """[R, E]"""


class _Told(NamedTuple):
    """Sums over a slice's targets of the DINO term."""

    entropy: jax.Array
    target: jax.Array
    """[K]"""
    largest: jax.Array
    """[K]: how often each prototype is a target's largest."""


def _slice(batch: Batch, key: jax.Array, bound: int, groups: int, accumulate: int) -> _Slice:
    keys = jax.vmap(lambda group: jax.random.split(jax.random.fold_in(key, group)))(jnp.arange(groups))
    masks = batch["masks"]
    whole = (batch["globals"], batch["locals"], masks, keys)
    globals_, locals_, masks, keys = accumulation.split(whole, accumulate, groups)
    packed = None if masks is None else jax.vmap(lambda one: pack(one, bound, groups // accumulate))(masks)
    return _Slice(globals_, locals_, masks, packed, keys)


def _cast(params: Params, dtype: Any) -> Params:
    return {path: value.astype(dtype) for path, value in params.items()}


def _crops(crops: jax.Array, dtype: Any) -> jax.Array:
    return rearrange(crops, "b v h w c -> (b v) h w c").astype(dtype)


def _see(run: _Run, teacher: Params, one: _Slice) -> _Seen:
    features = run.backbone(teacher)(_crops(one.globals, run.dtype))
    dino = run.head("dino_head", teacher).embed(features.pooled)
    if one.packed is None:
        return _Seen(features.pooled, dino, None)
    patches = take_masked(features.patches, one.packed)
    return _Seen(features.pooled, dino, run.ibot_head(teacher).embed(patches))


def _center(
    run: _Run, prototypes: dict[str, jax.Array], seen: _Seen, slices: _Slice, centers: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The bias of each kind of target, and the centres for the next step: they are updated after their use."""
    given: dict[str, Any] = {"dino": (seen.dino, None)}
    if slices.packed is not None:
        given["ibot"] = (seen.ibot, slices.packed.valid)
    biases, updated = {}, dict(centers)
    for name, embedded in given.items():

        def logits(one: Any, name: str = name) -> tuple[jax.Array, jax.Array | None]:
            return compare(one[0], prototypes[name]), one[1]

        if run.loss.centering == "sinkhorn_knopp":
            biases[name] = losses.sinkhorn_bias(embedded, logits, run.temperature)
            continue

        def total(one: Any, logits: Callable[..., Any] = logits) -> tuple[jax.Array, jax.Array]:
            scores, valid = logits(one)
            weights = jnp.ones(len(scores)) if valid is None else valid.astype(scores.dtype)
            return jnp.matmul(weights, scores, precision=jax.lax.Precision.HIGHEST), weights.sum()

        biases[name] = losses.softmax_bias(centers[name], run.temperature)
        updated[name] = losses.update_center(
            centers[name], *accumulation.sum_slices(total, embedded), run.loss.center_momentum
        )
    return biases, updated


def _koleo(loss: LossConfig, tokens: jax.Array, groups: int) -> jax.Array:
    """The weighted term of class tokens [b, V, D]: the sum over the views, each with its own neighbours."""
    groups = groups if loss.koleo_per_group else 1
    views = rearrange(tokens, "(g b) v d -> (g v) b d", g=groups)
    return loss.koleo_weight * jax.vmap(partial(losses.koleo_loss, eps=loss.koleo_eps))(views).sum() / groups


def _koleo_over_slices(
    run: _Run, student: Params, slices: _Slice, groups: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """With several slices: the term of the whole batch, and its gradient by every class token [A, b, V, D]."""
    if len(slices.globals) == 1 or run.loss.koleo_weight == 0:
        return None, None
    tokens = accumulation.map_slices(lambda one: _student_features(run, _cast(student, run.dtype), one)[0], slices)

    def term(tokens: jax.Array) -> jax.Array:
        return _koleo(run.loss, accumulation.join(tokens, groups), groups)

    return jax.value_and_grad(term)(tokens.astype(jnp.float32))


def _student_features(run: _Run, student: Params, one: _Slice) -> tuple[jax.Array, jax.Array]:
    """Of the global crops: class tokens [b, V, D] and patches [b·V, h, w, D]."""
    masks = None if one.masks is None else rearrange(one.masks, "b v n -> (b v) n")
    crops = _crops(one.globals, run.dtype)
    features = run.backbone(student)(crops, masks, train=True, key=one.keys[:, 0])
    return rearrange(features.pooled, "(b v) d -> b v d", b=len(one.globals)), features.patches


def _student_loss(
    run: _Run,
    student: Params,
    one: _Slice,
    seen: _Seen,
    pull: jax.Array | None,
    *,
    prototypes: dict[str, jax.Array],
    biases: dict[str, jax.Array],
    groups: int,
) -> tuple[jax.Array, tuple[Metrics, _Told]]:
    """A slice's share of the loss, of its terms, and of what the targets tell."""
    student = _cast(student, run.dtype)
    loss, (size, views), locals_ = run.loss, one.globals.shape[:2], one.locals.shape[1]
    head, own, share = run.head("dino_head", student), run.prototypes(student), size / run.images
    targets = losses.targets(compare(seen.dino, prototypes["dino"]), run.temperature, biases["dino"])
    told = _Told(losses.entropy(targets).sum(), targets.sum(0), _count_largest(targets))
    # Each crop's targets come from the other one.
    targets = rearrange(targets, "(b v) k -> b v k", v=views)[:, ::-1]
    tokens, patches = _student_features(run, student, one)

    # Every ordered pair of a student's and a teacher's view is one term, but for those of a global crop with itself.
    pairs = views * (views - 1) + views * locals_
    global_loss = (
        losses.cross_entropy(compare(head.embed(tokens), own["dino"]), targets, loss.student_temperature).mean() * share
    )
    terms = {"dino_global": loss.dino_weight * global_loss * views * (views - 1) / pairs}
    terms |= {"dino_local": jnp.zeros(()), "ibot": jnp.zeros(())}
    if locals_:
        crops = _crops(one.locals, run.dtype)
        pooled = run.backbone(student)(crops, train=True, key=one.keys[:, 1]).pooled
        logits = compare(head.embed(rearrange(pooled, "(b l) d -> b l d", b=size)), own["dino"])
        terms["dino_local"] = (
            loss.dino_weight * losses.dino_loss(logits, targets, loss.student_temperature) * share / pairs
        )
    if one.packed is not None and seen.ibot is not None:
        targets = losses.targets(compare(seen.ibot, prototypes["ibot"]), run.temperature, biases["ibot"])
        logits = compare(run.ibot_head(student).embed(take_masked(patches, one.packed)), own["ibot"])
        weights = one.packed.weights
        ibot = losses.ibot_loss(logits, targets, weights, run.images * views, loss.student_temperature)
        terms["ibot"] = loss.ibot_weight * ibot
    tokens = tokens.astype(jnp.float32)
    if pull is not None:
        return jnp.asarray(sum(terms.values())) + (pull * tokens).sum(), (terms | {"koleo": jnp.zeros(())}, told)
    terms["koleo"] = _koleo(loss, tokens, groups) if loss.koleo_weight else jnp.zeros(())
    return jnp.asarray(sum(terms.values())), (terms, told)


def _count_largest(targets: jax.Array) -> jax.Array:
    """How often each prototype is the largest of a row: [N, K] to [K]."""
    return jnp.zeros(targets.shape[1]).at[targets.argmax(1)].add(1.0)


def _describe(told: _Told, images: int, terms: Metrics, loss: LossConfig) -> Metrics:
    """Health of the targets. KL is what the cross-entropy of the DINO terms has above the targets' own entropy."""
    count = 2 * images
    entropy = told.entropy / count
    described = {
        "target_entropy": entropy,
        "mean_target_entropy": losses.entropy(told.target / count),
        "prototypes_used": (told.largest > 0).mean(),
    }
    if loss.dino_weight:
        described["kl"] = (terms["dino_global"] + terms["dino_local"]) / loss.dino_weight - entropy
    return described
