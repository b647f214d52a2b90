"""A classification task: its kind and classes alone determine outputs, loss and probabilities."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax.data.records import Records

Kind = Literal["binary", "multi-class", "multi-label"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Labels are int32 [N], places in the classes; of a multi-label task float32 [N, C] of 0, 1 and NaN, which is unknown
    and has no weight anywhere. Scores are probabilities [N, C], of a multi-label task one for each class by itself.
    """

    kind: Kind
    classes: tuple[str, ...]
    """Of a binary task the last is the positive one."""

    @classmethod
    def of(cls, records: Records) -> "Task":
        """The task that labelled images pose."""
        if records.multilabel:
            return cls("multi-label", records.classes)
        return cls("binary" if len(records.classes) == 2 else "multi-class", records.classes)

    @property
    def outputs(self) -> int:
        """Number of a model's logits."""
        return 1 if self.kind == "binary" else len(self.classes)

    def has_auc(self, labels: np.ndarray) -> bool:
        """Whether cases with these labels have an AUC: all classes occur, or some label has both values."""
        if self.kind == "multi-label":
            return bool(((labels == 0).any(0) & (labels == 1).any(0)).any())
        return len(np.unique(labels)) == len(self.classes)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropy in nats, the mean over the cases, of a multi-label task over the known entries.

        Args:
          logits: float [B, outputs].
          labels: [B] or [B, C].

        Returns:
          float32 scalar; 0 where nothing is known.
        """
        if self.kind == "binary":
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean()
        if self.kind == "multi-class":
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        known = ~jnp.isnan(labels)
        # Zeros in place of NaN: a NaN would pass through the gradient even where it has no weight.
        each = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, 0.0))
        return (each * known).sum() / jnp.maximum(known.sum(), 1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """float64 [N, C] of logits [N, outputs]: softmax, or the sigmoid of each label."""
        return np.exp(self._log_probabilities(logits))

    def validation_loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """As `loss`, in float64; NaN where nothing is known."""
        if self.kind != "multi-label":
            return float(-self._log_probabilities(logits)[np.arange(len(labels)), labels].mean())
        positive, negative = self._log_probabilities(logits), self._log_probabilities(-logits)
        known = ~np.isnan(labels)
        return float(-np.where(labels == 1, positive, negative)[known].mean()) if known.any() else np.nan

    def memberships(self, labels: np.ndarray) -> np.ndarray:
        """float32 [N, C]: 1 where a case is of a class, 0 where it is not, NaN where that is unknown."""
        if self.kind == "multi-label":
            return labels
        return np.eye(len(self.classes), dtype=np.float32)[labels]

    def score_by_label(self, labels: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Scores [M, C] of a method that knows single labels only; of a multi-label task, label by label.

        Args:
          labels: of the training cases.
          score: takes the places of the training cases to learn from, and their classes (all of them, or 0 and 1), and
            gives probabilities [M, classes].
        """
        if self.kind != "multi-label":
            return score(np.arange(len(labels)), labels)
        known = [np.flatnonzero(~np.isnan(column)) for column in labels.T]
        columns = [score(rows, column[rows].astype(np.int32)) for rows, column in zip(known, labels.T, strict=True)]
        return np.stack([scores[:, 1] for scores in columns], axis=1)

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(np.float64)
        if self.kind == "multi-label":
            return -np.logaddexp(0, -logits)
        if self.kind == "binary":
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
