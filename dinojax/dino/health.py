"""Health of a run: measures of its features and targets, and the guard that ends it when they have collapsed."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dinojax.config.pretrain import GuardConfig

CONSTANT = 1e-7
"""Features of a smaller spread are the same up to float32's rounding. A backbone with random weights and LayerScale
1e-5, whose class token hardly sees the image yet, is above: at 6e-5 for a ViT-S/14, 1e-6 for one block of width 32."""
_SPREAD_ADVICE = "lower optim.lr, or raise batch_size or loss.koleo_weight"


def spread(features: jax.Array) -> jax.Array:
    """How evenly directions fill the sphere: root mean square over coordinates of the standard deviation, times √D.

    The standard deviation is that of the L2-normalised rows, as in SimSiam's study of collapse (Chen & He 2021, arXiv
    2011.10566, section 4.1). It equals √(1 − ‖mean of the normalised rows‖²).

    Args:
      features: [N, D], class tokens of different images.

    Returns:
      float32 scalar: 0 if all rows have one direction (collapse), 1 if the directions cancel out; √(1 − 1/N) on average
      for N independent directions.
    """
    features = features.astype(jnp.float32)
    unit = features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # Taken relative to a row, so that equal rows give 0 to the last bit.
    relative = unit - unit[:1]
    return jnp.sqrt(relative.var(axis=0).sum())


def effective_rank(features: jax.Array) -> jax.Array:
    """Number of directions that the features fill: exp of the entropy of the normalised singular values.

    The measure is Roy & Vetterli's (2007, "The effective rank", definition 1), which RankMe (Garrido et al. 2023, arXiv
    2210.02885, eq. 1) proposes to judge self-supervised features by; here of the centred features, as a mean that all
    images share does not tell them apart. The singular values are computed directly: as roots of the Gram
    matrix's eigenvalues, those below 3e-4 of the largest would be rounding in float32, and there are many of them.

    Args:
      features: [N, D].

    Returns:
      float32 scalar in 1..min(N − 1, D); 1 if all rows are equal.
    """
    features = features.astype(jnp.float32)
    relative = features - features[:1]
    values = jnp.linalg.svd(relative - relative.mean(axis=0), compute_uv=False)
    shares = values / jnp.maximum(values.sum(), 1e-30)
    return jnp.exp(jax.scipy.special.entr(shares).sum())


def not_finite(step: int, metrics: Mapping[str, float], equal: Callable[[], str] = str) -> str | None:
    """One line that names every metric that is nan or infinite after `step`, or None.

    Args:
      step: from 1.
      metrics: of the step.
      equal: names images of the batch that are equal, if any; is asked only where KoLeo, which takes the logarithm of
        the distance between neighbours, is among these metrics.
    """
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if not bad:
        return None
    advice = "lower optim.lr, or lengthen its warm-up"
    if not math.isfinite(metrics.get("koleo", 0.0)) and (copies := equal()):
        advice = f"a likely cause is that the batch holds equal images ({copies}), which KoLeo pushes apart without end"
        advice += ": remove the copies, or set loss.koleo_weight 0"
    return f"{', '.join(bad)} at step {step}; {advice}"


class _Rule(NamedTuple):
    """A metric on the wrong side of a limit counts as a collapse once it has stayed there."""

    metric: str
    side: Literal["above", "below"]
    limit: float
    what: str
    advice: str

    def holds(self, value: float) -> bool:
        return value > self.limit if self.side == "above" else value < self.limit


class Guard:
    """Decides from the logged metrics whether a run continues.

    Nothing but the lines of `metrics.jsonl` enters the decision, and how long a state lasts is counted in steps, not in
    lines: so a resumed run, whose guard has replayed the lines, is stopped where it would have been without the
    interruption.
    """

    def __init__(self, config: GuardConfig, prototypes: int, warmup_steps: int) -> None:
        """A guard at the beginning of a run.

        Args:
          config: the limits.
          prototypes: K of the DINO head; targets have an entropy of at most log K.
          warmup_steps: steps until the learning rate has reached its peak, in which a collapse may still resolve.
        """
        self.steps = config.steps
        self.warmup_steps = warmup_steps
        margin = config.target_entropy
        uniform, one = "the targets collapsed to uniform ones", "the targets collapsed to one prototype"
        warmer = "raise teacher.temperature, or center by sinkhorn_knopp"
        self._rules = (
            _Rule("feature_std", "below", config.feature_std, "the features collapsed", _SPREAD_ADVICE),
            _Rule("target_entropy", "above", math.log(prototypes) - margin, uniform, "lower teacher.temperature"),
            _Rule("mean_target_entropy", "below", margin, one, warmer),
        )
        self._since: dict[str, int] = {}

    def check(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Takes in the metrics that are logged after `step`; steps must come in order.

        Args:
          step: from 1.
          metrics: `feature_std`, `target_entropy` and `mean_target_entropy`, where present, are compared with the
            limits; all are finite, see `not_finite`.

        Returns:
          Why the run has to stop, in one line, or None.
        """
        std = metrics.get("feature_std", math.inf)
        if std < CONSTANT:
            return f"all images have the same features (feature_std {std:.2g}) at step {step}; {_SPREAD_ADVICE}"
        self._count(step, metrics)
        for rule in self._rules:
            since = self._since.get(rule.metric, step + 1)
            if self.steps and rule.metric in metrics and step - since + 1 >= self.steps:
                return (
                    f"{rule.what}: {rule.metric} is {rule.side} {rule.limit:.4g} since step {since}, "
                    f"{metrics[rule.metric]:.4g} at step {step}; {rule.advice}"
                )
        return None

    @property
    def since(self) -> int | None:
        """The step since which the run looks as if it had collapsed; None if it does not."""
        return min(self._since.values(), default=None)

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Takes in the lines of `metrics.jsonl` up to the step that a run resumes from, in order."""
        for line in lines:
            self._count(line["step"], line)

    def _count(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes since which step each rule holds without a break."""
        if step <= self.warmup_steps:
            return
        for rule in self._rules:
            if rule.metric not in metrics:
                continue
            if rule.holds(metrics[rule.metric]):
                self._since.setdefault(rule.metric, step)
            else:
                self._since.pop(rule.metric, None)
