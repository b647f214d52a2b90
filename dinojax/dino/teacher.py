"""The teacher's half of a step: its outputs, and the bias that centers them into targets."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dinojax.dino import accumulation, losses
from dinojax.dino.forward import BatchSlice, StepContext
from dinojax.dino.masked_patches import take_masked
from dinojax.models.heads import prototype_logits
from dinojax.tree import Params

Embedded = tuple[jax.Array, jax.Array | None]


class TeacherOutputs(NamedTuple):
    """Of a slice's global crops."""

    tokens: jax.Array
    """[b·V, D]: class tokens."""
    embedded: dict[str, Embedded]
    """By term, what its head makes of the class tokens (`dino`, [b·V, E]) and of the masked patches (`ibot`, [R, E]);
    and bool [R], False for rows of padding, None where there are none."""


def teacher_outputs(context: StepContext, params: Params, one: BatchSlice) -> TeacherOutputs:
    """Runs the teacher on a slice."""
    features, heads = context.backbone(params)(context.images_of(one.globals)), context.heads(params)
    embedded: dict[str, Embedded] = {"dino": (heads["dino"].embed(features.pooled), None)}
    if one.packed is not None:
        embedded["ibot"] = heads["ibot"].embed(take_masked(features.patches, one.packed)), one.packed.valid
    return TeacherOutputs(features.pooled, embedded)


def center(
    context: StepContext,
    prototypes: dict[str, jax.Array],
    outputs: TeacherOutputs,
    centers: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The bias of each term's targets, and the centers for the next step: they are updated after their use.

    Args:
      context: of the step.
      prototypes: the teacher's.
      outputs: of all slices, stacked.
      centers: before the step.
    """
    biases, updated = {}, dict(centers)
    for term, embedded in outputs.embedded.items():
        if context.loss.centering == "sinkhorn_knopp":
            biases[term] = losses.sinkhorn_bias(embedded, partial(_logits, prototypes[term]), context.temperature)
        else:
            biases[term] = losses.softmax_bias(centers[term], context.temperature)
            total, count = accumulation.sum_slices(partial(_sum_of_logits, prototypes[term]), embedded)
            updated[term] = losses.update_center(centers[term], total, count, context.loss.center_momentum)
    return biases, updated


def _logits(prototypes: jax.Array, one: Embedded) -> Embedded:
    return prototype_logits(one[0], prototypes), one[1]


def _sum_of_logits(prototypes: jax.Array, one: Embedded) -> tuple[jax.Array, jax.Array]:
    """Over the rows that are not padding: [K], and their number."""
    logits, valid = _logits(prototypes, one)
    weights = jnp.ones(len(logits)) if valid is None else valid.astype(logits.dtype)
    return jnp.matmul(weights, logits, precision=jax.lax.Precision.HIGHEST), weights.sum()
