"""DINOv2's losses as pure functions (Oquab et al. 2023, arXiv 2304.07193, section 4). All in float32.

Both kinds of centering come down to one number a prototype: the targets are softmax(logits / temperature + bias). So
targets of a batch may be made slice by slice, while the bias is that of the whole batch.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from dinojax.dino.accumulation import map_slices, sum_slices

S = TypeVar("S")
# Accelerators would otherwise round the factors of float32 products to fewer digits.
_EXACT = jax.lax.Precision.HIGHEST


def targets(logits: jax.Array, temperature: jax.Array | float, bias: jax.Array) -> jax.Array:
    """The teacher's probabilities: logits [..., K] and bias [K] to [..., K], every row adding up to 1."""
    return jax.nn.softmax(logits / temperature + bias, axis=-1)


def softmax_bias(center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """The bias of centering and sharpening (DINO, arXiv 2104.14294, eq. 4): [K] to [K]."""
    return -center / temperature


def sinkhorn_bias(
    slices: S, logits: Callable[[S], tuple[jax.Array, jax.Array | None]], temperature: jax.Array | float
) -> jax.Array:
    """The bias of Sinkhorn-Knopp centering, three iterations (SwAV, Caron et al. 2020, arXiv 2006.09882).

    The scaled matrix is diag(rows)·E·diag(columns), an iteration two matrix-vector products. The last one ends with the
    rows, and that is the softmax of `targets`: only the columns have to be known.

    Args:
      slices: arrays whose leading axis counts the slices of the batch.
      logits: maps a slice to the teacher's logits [B, K], and to bool [B], False for rows of padding, or None.
      temperature: of the teacher.

    Returns:
      [K]: the logarithm of the columns' scale.
    """

    def exponent(one: S) -> jax.Array:
        scores, valid = logits(one)
        return scores / temperature if valid is None else jnp.where(valid[:, None], scores / temperature, -jnp.inf)

    def first(one: S) -> tuple[jax.Array, jax.Array, jax.Array]:
        exponents = exponent(one)
        largest = exponents.max()
        largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
        return largest, jnp.exp(exponents - largest).sum(0), jnp.isfinite(exponents[:, 0]).sum()

    maxima, sums, counts = map_slices(first, slices)
    largest, count = maxima.max(), jnp.maximum(counts.sum(), 1)  # the largest is a factor that falls out again
    prototypes = sums.shape[1]

    def columns(one: S, scale: jax.Array) -> jax.Array:
        e = jnp.exp(exponent(one) - largest)
        rows = 1 / (count * _nonzero(jnp.matmul(e, scale, precision=_EXACT)))
        return jnp.matmul(rows, e, precision=_EXACT)

    scale = 1 / (prototypes * _nonzero(jnp.matmul(jnp.exp(maxima - largest), sums, precision=_EXACT)))
    for _ in range(2):
        total = sum_slices(lambda one, scale=scale: columns(one, scale), slices)
        scale = 1 / (prototypes * _nonzero(total))
    return jnp.log(scale)


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1.0, x)


def update_center(center: jax.Array, total: jax.Array, count: jax.Array | int, momentum: float) -> jax.Array:
    """The running mean [K] of the teacher's logits, given their sum [K] and number, after their targets were taken."""
    return center * momentum + total / jnp.maximum(count, 1) * (1 - momentum)


def cross_entropy(student: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Cross-entropy of the student's softmax against the targets, for each row: [..., K] twice to [...]."""
    logits = student / temperature
    return targets.sum(-1) * jax.nn.logsumexp(logits, -1) - (targets * logits).sum(-1)


def dino_loss(student: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Sum over all pairs of a student's and a teacher's view of the mean cross-entropy.

    Args:
      student: logits [B, S, K] of S views of each image.
      targets: [B, T, K] of T views.
      temperature: of the student.
    """
    # Cross-entropy is linear in its targets: those of an image may be added up first.
    return cross_entropy(student, targets.sum(1, keepdims=True), temperature).sum(1).mean()


def ibot_loss(student: jax.Array, targets: jax.Array, weights: jax.Array, images: int, temperature: float) -> jax.Array:
    """iBOT's loss on masked patches (Zhou et al. 2022, arXiv 2111.07832): mean per image, summed, over all images.

    Args:
      student: logits [M, K] of masked patches.
      targets: [M, K] of the same patches, which the teacher saw.
      weights: [M]; 1 / (number of masked patches of the patch's image), 0 for padding.
      images: number of global crops, those without a mask included.
      temperature: of the student.
    """
    return (cross_entropy(student, targets, temperature) * weights).sum() / images


def koleo_loss(features: jax.Array, eps: float = 1e-8) -> jax.Array:
    """Kozachenko-Leonenko regulariser (Sablayrolles et al. 2019, arXiv 1806.03198): [B, D] to a scalar.

    The features are normalised; the nearest neighbour is that of the largest dot product.

    Args:
      features: class tokens.
      eps: added to the coordinates of the distance; 1e-8 as published, 1e-4 in forks of it for half precision.
    """
    features = features.astype(jnp.float32)
    normed = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    similarity = jax.lax.stop_gradient(jnp.matmul(normed, normed.T, precision=_EXACT))
    nearest = jnp.argmax(jnp.where(jnp.eye(len(normed), dtype=bool), -1.0, similarity), axis=1)
    distance = jnp.linalg.norm(normed - normed[nearest] + eps, axis=-1)
    return -jnp.log(distance + 1e-8).mean()


def entropy(targets: jax.Array) -> jax.Array:
    """Entropy in nats of each row: [..., K] to [...]."""
    return jax.scipy.special.entr(targets).sum(-1)
