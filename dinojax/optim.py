"""AdamW with schedules and multipliers per parameter, and clipping per submodule, as DINOv2's code does it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinojax import tree
from dinojax.tree import Params

# Biases, norms and LayerScale are not decayed; everything else is, the prototypes' magnitudes too, as published.
WEIGHT_DECAY: tuple[tuple[str, float], ...] = (
    (r".*\.bias", 0.0),
    (r"(.*\.)?(norm|bn)\d?\.scale", 0.0),
    (r".*\.gamma", 0.0),
    (r".*", 1.0),
)


def layer_decay(depth: int, decay: float, patch_embed: float) -> tuple[tuple[str, float], ...]:
    """Learning-rate multipliers of a ViT's parameters, `decay ** (layers above)` (ELECTRA, Clark et al. 2020, app. A).

    Args:
      depth: number of blocks.
      decay: multiplier from one layer to that below.
      patch_embed: a further multiplier of the patch embedding (DINOv2, appendix B).

    Returns:
      A table for `tree.match`, for paths within the backbone.
    """
    lowest = decay ** (depth + 1)
    return (
        (r"patch_embed\..*", lowest * patch_embed),
        (r"cls_token|pos_embed|mask_token|register_tokens", lowest),
        *((rf"blocks\.{block}\..*", decay ** (depth - block)) for block in range(depth)),
        (r"norm\..*", 1.0),
    )


def multipliers(paths: Sequence[str] | Mapping[str, Any], table: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The table's value for every path; KeyError if a path has none."""
    return {path: tree.match(path, table) for path in paths}


class _Count(NamedTuple):
    step: jax.Array


def adamw(
    learning_rate: np.ndarray | float,
    weight_decay: np.ndarray | float,
    learning_rates: Mapping[str, float],
    weight_decays: Mapping[str, float],
    beta1: float = 0.9,
    beta2: float = 0.999,
    clip: float = 0.0,
    frozen: Sequence[tuple[str, int]] = (),
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), eps 1e-8, as PyTorch computes it.

    Args:
      learning_rate: per step, [steps], or constant.
      weight_decay: likewise.
      learning_rates: path to multiplier of the learning rate.
      weight_decays: path to multiplier of the weight decay.
      beta1: of the first moment.
      beta2: of the second.
      clip: largest gradient norm of each submodule (first part of the path); 0 clips nothing.
      frozen: (regex, steps): these parameters have learning rate 0 in the first steps, while their moments advance.

    Returns:
      A transformation of flat dicts of gradients; `update` needs the parameters.
    """
    frozen_for = {path: tree.match(path, (*frozen, (".*", 0))) for path in learning_rates}

    def update(updates: Params, state: _Count, params: Params | None = None) -> tuple[Params, _Count]:
        assert params is not None
        rate, decay = at(learning_rate, state.step), at(weight_decay, state.step)
        rates = {steps: jnp.where(state.step < steps, 0.0, rate) for steps in set(frozen_for.values())}
        scaled = {
            path: -rates[frozen_for[path]]
            * learning_rates[path]
            * (update + decay * weight_decays[path] * params[path])
            for path, update in updates.items()
        }
        return scaled, _Count(state.step + 1)

    return optax.chain(
        clip_by_submodule(clip) if clip else optax.identity(),
        optax.scale_by_adam(beta1, beta2, eps=1e-8),
        optax.GradientTransformation(lambda params: _Count(jnp.zeros((), jnp.int32)), update),  # type: ignore[arg-type]
    )


def apply_updates(params: Params, updates: Any) -> Params:
    """Adds what a transformation's `update` returned; `optax.apply_updates` typed for flat dicts."""
    return {path: value + updates[path] for path, value in params.items()}


def at(schedule: np.ndarray | float, step: jax.Array) -> jax.Array:
    """The value of a schedule at a step, float32; the last one beyond its end."""
    values = jnp.asarray(schedule, jnp.float32)
    return values[jnp.minimum(step, values.size - 1)] if values.ndim else values


def submodule_norms(gradients: Params) -> dict[str, jax.Array]:
    """The gradients' L2 norm for each first part of the paths, such as `backbone` and `dino_head`."""
    names = dict.fromkeys(path.split(".")[0] for path in gradients)
    return {name: optax.global_norm(tree.subtree(name, gradients)) for name in names}


def clip_by_submodule(limit: float) -> optax.GradientTransformation:
    """Scales each submodule's gradients by min(1, limit / (norm + 1e-6)), like `torch.nn.utils.clip_grad_norm_`."""

    def update(updates: Any, params: Any) -> Params:
        del params
        scales = {name: jnp.minimum(1.0, limit / (norm + 1e-6)) for name, norm in submodule_norms(updates).items()}
        return {path: update * scales[path.split(".")[0]] for path, update in updates.items()}

    return optax.stateless(update)
