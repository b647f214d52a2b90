"""DINOv2's losses as pure functions (Oquab et al. 2023, arXiv 2304.07193, section 4). All in float32."""

import jax
import jax.numpy as jnp


def sinkhorn_knopp(logits: jax.Array, temperature: jax.Array | float, valid: jax.Array | None = None) -> jax.Array:
    """Targets by Sinkhorn-Knopp centering, three iterations (SwAV, Caron et al. 2020, arXiv 2006.09882).

    The matrix is kept as diag(rows)·E·diag(columns), so that an iteration is two matrix-vector products.

    Args:
      logits: [B, K] of the teacher, over the whole batch.
      temperature: of the teacher.
      valid: bool [B]; rows that are padding are left out of all sums, and their targets are zero.

    Returns:
      [B, K]; every valid row adds up to 1.
    """
    prototypes = logits.shape[1]
    exponent = logits / temperature
    if valid is not None:
        exponent = jnp.where(valid[:, None], exponent, -jnp.inf)
    count = jnp.asarray(len(logits) if valid is None else jnp.maximum(valid.sum(), 1), logits.dtype)
    largest = exponent.max()  # a common factor, which the first normalisation takes out again
    e = jnp.exp(exponent - jnp.where(jnp.isfinite(largest), largest, 0.0))
    by_sample = jnp.full((len(logits),), 1.0)
    by_prototype = jnp.full((prototypes,), 1.0)
    for _ in range(3):
        by_prototype = 1 / (prototypes * _nonzero(by_sample @ e))
        by_sample = 1 / (count * _nonzero(e @ by_prototype))
    return e * by_prototype * (by_sample * count)[:, None]


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1.0, x)


def softmax_centering(logits: jax.Array, center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Targets by centering and sharpening (DINO, arXiv 2104.14294, eq. 4): [B, K] and [K] to [B, K]."""
    return jax.nn.softmax((logits - center) / temperature, axis=-1)


def update_center(center: jax.Array, logits: jax.Array, momentum: float, valid: jax.Array | None = None) -> jax.Array:
    """The running mean [K] of the teacher's logits [B, K], after their targets were taken."""
    weights = jnp.ones(len(logits)) if valid is None else valid.astype(logits.dtype)
    mean = weights @ logits / jnp.maximum(weights.sum(), 1.0)
    return center * momentum + mean * (1 - momentum)


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


def koleo_loss(features: jax.Array) -> jax.Array:
    """Kozachenko-Leonenko regulariser (Sablayrolles et al. 2019, arXiv 1806.03198): [B, D] to a scalar.

    The features are normalised; the nearest neighbour is that of the largest dot product.
    """
    normed = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    similarity = jax.lax.stop_gradient(normed @ normed.T)
    nearest = jnp.argmax(jnp.where(jnp.eye(len(normed), dtype=bool), -1.0, similarity), axis=1)
    distance = jnp.linalg.norm(normed - normed[nearest] + 1e-8, axis=-1)
    return -jnp.log(distance + 1e-8).mean()


def entropy(targets: jax.Array) -> jax.Array:
    """Entropy in nats of each row: [..., K] to [...]."""
    return jax.scipy.special.entr(targets).sum(-1)
