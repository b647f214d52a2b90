"""Figures of health against computations written out, and each reason that stops a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.config.pretrain import GuardConfig
from dinojax.dino.health import Guard, effective_rank, not_finite, spread

RNG = np.random.default_rng(0)
WELL = {"loss": 6.0, "feature_std": 0.5, "target_entropy": 5.0, "mean_target_entropy": 6.5}
UNIFORM = float(np.log(1024))
Metrics = dict[str, float]


def guard(steps: int = 100) -> Guard:
    return Guard(GuardConfig(feature_std=0.01, target_entropy=0.02, steps=steps), prototypes=1024, warmup_steps=50)


def first_stop(guarded: Guard, steps: range, metrics: Metrics) -> tuple[int, str] | None:
    for step in steps:
        if reason := guarded.check(step, metrics):
            return step, reason
    return None


def test_even_directions_have_a_spread_of_one() -> None:
    features = jnp.asarray(RNG.normal(size=(1024, 64)))
    assert float(spread(features)) == pytest.approx(1, abs=2e-3)
    assert float(spread(1000 * features)) == pytest.approx(float(spread(features)), rel=1e-5)


def test_spread_by_its_definition() -> None:
    features = RNG.normal(size=(50, 7)) + 1
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.sqrt((unit.std(axis=0) ** 2).mean()) * np.sqrt(7)
    assert float(spread(jnp.asarray(features))) == pytest.approx(expected, rel=1e-5)


def test_one_direction_has_no_spread() -> None:
    row = jnp.asarray(RNG.normal(size=384))
    assert float(spread(jnp.tile(row, (100, 1)))) == 0
    lengths = jnp.asarray(RNG.uniform(1, 9, (100, 1)))
    assert float(spread(lengths * row)) < 1e-6
    assert float(spread(jnp.zeros((4, 3)))) == 0


@pytest.mark.parametrize(("rows", "width"), [(300, 96), (64, 200)])
@pytest.mark.parametrize("decay", [1e9, 5.0])
def test_effective_rank_against_singular_values_in_double_precision(rows: int, width: int, decay: float) -> None:
    features = RNG.normal(size=(rows, width)) * np.exp(-np.arange(width) / decay) + 10
    values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum())
    assert float(jax.jit(effective_rank)(jnp.asarray(features))) == pytest.approx(expected, rel=1e-3)


def test_effective_rank_of_points_on_a_line_and_in_one_place() -> None:
    line = RNG.normal(size=(100, 1)) * RNG.normal(size=(1, 32)) + 3
    assert float(effective_rank(jnp.asarray(line))) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(jnp.ones((5, 4)))) == 1


def test_what_is_not_finite_is_named() -> None:
    reason = not_finite(7, {**WELL, "koleo": float("inf"), "grad_norm_backbone": float("nan")})
    assert reason is not None
    assert reason.startswith("koleo is inf, grad_norm_backbone is nan at step 7;")
    assert not_finite(7, WELL) is None


def test_equal_features_stop_the_run_at_once() -> None:
    reason = guard(steps=0).check(1, {**WELL, "feature_std": 0.0})
    assert reason is not None
    assert "all images have the same features" in reason
    assert guard().check(1, {**WELL, "feature_std": 1e-5}) is None


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"feature_std": 0.009}, "the features collapsed: feature_std is below 0.01 since step 51, 0.009 at step 150"),
        ({"target_entropy": UNIFORM - 0.01}, "uniform ones: target_entropy is above 6.911 since step 51, 6.921 at"),
        ({"mean_target_entropy": 0.01}, "one prototype: mean_target_entropy is below 0.02 since step 51, 0.01 at"),
    ],
)
def test_a_collapse_that_lasts_stops_the_run(metrics: Metrics, what: str) -> None:
    stop = first_stop(guard(), range(1, 400), WELL | metrics)
    assert stop is not None
    assert stop[0] == 150  # a hundred steps from 51, the first after the warm-up
    assert what in stop[1]
    assert "\n" not in stop[1]
    assert first_stop(guard(steps=0), range(1, 400), WELL | metrics) is None


def test_a_run_that_is_well_goes_on() -> None:
    near = {"feature_std": 0.011, "target_entropy": UNIFORM - 0.03, "mean_target_entropy": 0.03}
    assert first_stop(guard(), range(1, 400), WELL | near) is None


def test_a_recovery_begins_the_count_anew() -> None:
    guarded, low = guard(), {**WELL, "feature_std": 0.001}
    assert first_stop(guarded, range(51, 140), low) is None
    assert guarded.check(140, WELL) is None
    stop = first_stop(guarded, range(141, 400), low)
    assert stop is not None
    assert stop[0] == 240


def test_steps_count_and_not_lines() -> None:
    stop = first_stop(guard(), range(10, 400, 10), {**WELL, "feature_std": 0.001})
    assert stop is not None
    assert stop[0] == 160  # seen from 60 on; at 150 it has lasted 91 steps


def test_steps_without_the_metrics_decide_nothing() -> None:
    guarded, low = guard(), {**WELL, "feature_std": 0.001}
    assert first_stop(guarded, range(51, 149), low) is None
    assert first_stop(guarded, range(149, 160), {"loss": 6.0}) is None
    assert guarded.check(160, low) is not None


@pytest.mark.parametrize("interrupted", [0, 60, 150, 170])
def test_a_guard_that_replayed_the_lines_decides_as_without_interruption(interrupted: int) -> None:
    lines: list[dict] = [{"step": 0, "probe": 0.6, "probe_pixels": 0.7}]
    for step in range(10, 400, 10):
        std = 0.5 if step == 80 else 0.001
        lines.append({"step": step, **WELL, "feature_std": std, "time": {"seconds": 1.0}})

    def stop(guarded: Guard, after: int) -> tuple[int, str] | None:
        for line in lines[1:]:
            metrics = {name: value for name, value in line.items() if name not in ("step", "time")}
            if line["step"] > after and (reason := guarded.check(line["step"], metrics)):
                return line["step"], reason
        return None

    resumed = guard()
    resumed.replay(line for line in lines if line["step"] <= interrupted)
    expected = stop(guard(), 0)
    assert expected is not None
    assert expected[0] == 190
    assert stop(resumed, interrupted) == expected
