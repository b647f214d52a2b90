"""The teacher's half of a step: its outputs, and the bias that centers them into targets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dinojax.dino import accumulation, losses
from dinojax.dino.forward import BatchSlice, StepContext
from dinojax.dino.masked_patches import take_masked
from dinojax.models.heads import compare
from dinojax.tree import Params


class TeacherOutputs(NamedTuple):
    """Of a slice's global crops."""

    tokens: jax.Array
    """[b·V, D]: class tokens."""
    dino: jax.Array
    """[b·V, E]: their embeddings."""
    ibot: jax.Array | None
    """[R, E]: the masked patches' embeddings."""


def teacher_outputs(context: StepContext, params: Params, one: BatchSlice) -> TeacherOutputs:
    """Runs the teacher on a slice."""
    features = context.backbone(params)(context.images_of(one.globals))
    dino = context.dino_head(params).embed(features.pooled)
    if one.packed is None:
        return TeacherOutputs(features.pooled, dino, None)
    patches = take_masked(features.patches, one.packed)
    return TeacherOutputs(features.pooled, dino, context.ibot_head(params).embed(patches))


def center(
    context: StepContext,
    prototypes: dict[str, jax.Array],
    outputs: TeacherOutputs,
    slices: BatchSlice,
    centers: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The bias of each term's targets, and the centers for the next step: they are updated after their use.

    Args:
      context: of the step.
      prototypes: the teacher's.
      outputs: of all slices, stacked.
      slices: of the batch.
      centers: before the step.
    """
    embedded: dict[str, Any] = {"dino": (outputs.dino, None)}
    if slices.packed is not None:
        embedded["ibot"] = (outputs.ibot, slices.packed.valid)
    biases, updated = {}, dict(centers)
    for name, given in embedded.items():

        def logits(one: Any, name: str = name) -> tuple[jax.Array, jax.Array | None]:
            return compare(one[0], prototypes[name]), one[1]

        if context.loss.centering == "sinkhorn_knopp":
            biases[name] = losses.sinkhorn_bias(given, logits, context.temperature)
            continue

        def total(one: Any, logits: Callable[..., Any] = logits) -> tuple[jax.Array, jax.Array]:
            scores, valid = logits(one)
            weights = jnp.ones(len(scores)) if valid is None else valid.astype(scores.dtype)
            return jnp.matmul(weights, scores, precision=jax.lax.Precision.HIGHEST), weights.sum()

        biases[name] = losses.softmax_bias(centers[name], context.temperature)
        updated[name] = losses.update_center(
            centers[name], *accumulation.sum_slices(total, given), context.loss.center_momentum
        )
    return biases, updated
