"""Losses against the published code's, and masks against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.dino import losses
from dinojax.dino.masking import MaskPlan
from tests import goldens_reader as goldens

GOLDEN = goldens.load("losses.npz")
MASKED = int(GOLDEN["masks"].sum())
TEMPERATURE = 0.06


def given(name: str, shape: tuple[int, ...], factor: float = 1.0) -> jax.Array:
    return jnp.asarray(factor * goldens.rebuild(f"input.loss.{name}", shape))


TEACHER = given("teacher", (16, 256), 0.3)
TEACHER_PATCHES = given("teacher_patch", (MASKED, 256), 0.3)
STUDENT_PATCHES = given("student_patch", (MASKED, 256))


def test_golden_sinkhorn() -> None:
    goldens.assert_close(sinkhorn(TEACHER, None, slices=1), GOLDEN["sinkhorn"], 1e-5)
    goldens.assert_close(sinkhorn(TEACHER, None, slices=4), GOLDEN["sinkhorn"], 1e-5)


@pytest.mark.parametrize(("padding", "slices"), [(0, 1), (13, 1), (100 - MASKED % 100, 4)])
def test_golden_sinkhorn_of_padded_patches(padding: int, slices: int) -> None:
    padded = jnp.pad(TEACHER_PATCHES, ((0, padding), (0, 0)), constant_values=3.0)
    targets = sinkhorn(padded, jnp.arange(len(padded)) < MASKED, slices)
    goldens.assert_close(targets[:MASKED], GOLDEN["ibot_sinkhorn"], 1e-5)


def sinkhorn(logits: jax.Array, valid: jax.Array | None, slices: int) -> jax.Array:
    """Targets of a whole batch whose bias is found slice by slice."""
    split = jax.tree.map(lambda x: x.reshape(slices, -1, *x.shape[1:]), (logits, valid))
    return losses.targets(logits, TEMPERATURE, losses.sinkhorn_bias(split, lambda one: one, TEMPERATURE))


def test_golden_softmax_centering() -> None:
    center = given("center", (1, 256), 0.1)[0]
    targets = losses.targets(TEACHER, TEMPERATURE, losses.softmax_bias(center, TEMPERATURE))
    goldens.assert_close(targets, GOLDEN["softmax_centered"], 1e-5)
    updated = losses.update_center(center, TEACHER.sum(0), len(TEACHER), 0.9)
    goldens.assert_close(updated, GOLDEN["center_after_update"][0], 1e-5)
    center = given("patch_center", (1, 1, 256), 0.1)[0, 0]
    targets = losses.targets(TEACHER_PATCHES, TEMPERATURE, losses.softmax_bias(center, TEMPERATURE))
    goldens.assert_close(targets, GOLDEN["ibot_softmax_centered"], 1e-5)
    updated = losses.update_center(center, TEACHER_PATCHES.sum(0), MASKED, 0.9)
    goldens.assert_close(updated, GOLDEN["ibot_center_after_update"][0, 0], 1e-5)


def test_golden_dino_losses() -> None:
    targets = jnp.asarray(GOLDEN["sinkhorn"])
    views = targets.reshape(2, 8, 256).swapaxes(0, 1)
    local = given("student_local", (64, 256)).reshape(8, 8, 256).swapaxes(0, 1)
    goldens.assert_close(losses.dino_loss(local, views, 0.1), GOLDEN["dino_local"], 1e-5)
    student = given("student_global", (16, 256))
    goldens.assert_close(losses.cross_entropy(student, targets, 0.1).mean(), GOLDEN["dino_global"], 1e-5)


def test_golden_ibot_loss() -> None:
    per_image = GOLDEN["masks"].sum(1)
    weights = jnp.asarray(np.repeat(1 / np.maximum(per_image, 1), per_image))
    loss = losses.ibot_loss(STUDENT_PATCHES, jnp.asarray(GOLDEN["ibot_sinkhorn"]), weights, 16, 0.1)
    goldens.assert_close(loss, GOLDEN["ibot"], 1e-5)


def test_golden_koleo() -> None:
    loss, gradient = jax.value_and_grad(losses.koleo_loss)(given("koleo", (16, 64)))
    goldens.assert_close(loss, GOLDEN["koleo"], 2e-6)
    goldens.assert_close(gradient, GOLDEN["koleo_grad"], 1e-5)


def test_entropy_counts_empty_entries_as_nothing() -> None:
    rows = jnp.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    np.testing.assert_allclose(losses.entropy(rows), [np.log(2), 0, np.log(4)], atol=1e-6)


@pytest.mark.parametrize(("images", "groups"), [(16, 1), (16, 4), (6, 1)])
def test_masks_hold_to_their_ratios_and_the_bound(images: int, groups: int) -> None:
    grid, ratio = (16, 16), (0.1, 0.5)
    plan = MaskPlan(images, grid, 0.5, ratio, groups)
    for seed in range(20):
        masks = plan.draw(np.random.default_rng(seed))
        counts = masks.sum(1).reshape(groups, -1)
        size = images // groups
        assert ((counts > 0).sum(1) == size // 2).all()
        assert (counts.sum(1) <= plan.bound).all()
        edges = np.linspace(*ratio, size // 2 + 1)[1:]
        assert (np.sort(counts, 1)[:, size - size // 2 :] <= 256 * edges).all()


def test_masks_reach_their_targets_and_are_blocks() -> None:
    masks = MaskPlan(200, (16, 16), 0.5, (0.1, 0.5)).draw(np.random.default_rng(0))
    counts = np.sort(masks.sum(1))[100:]
    targets = np.linspace(0.1, 0.5, 101) * 256
    assert np.abs(counts - targets[1:]).mean() < 3  # a few stop short, where no further block fits
    first = masks[masks.sum(1) > 0].reshape(-1, 16, 16)
    same_as_right = (first[:, :, :-1] == first[:, :, 1:]).mean()
    assert same_as_right > 0.8  # scattered patches would agree with their neighbour in 0.58 of the places
