"""Which values the keys of a configuration may have, beyond their types."""

import math
from collections.abc import Mapping
from typing import Any

from dinojax.errors import UsageError

# By the whole of a key or, where that stands in none, by its last part; other keys may have any value of their type.
_ABOVE_ZERO = {
    *("batch_size", "batch_sizes", "epochs", "steps", "steps_per_epoch", "groups", "accumulate", "folds", "image_size"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "probe.every", "probe.k", "probe.images"),
    *("model.width", "model.depth", "model.heads", "bottleneck", "layers", "head.hidden", "ibot_head.hidden"),
    *("student_temperature", "teacher.temperature", "teacher.temperature_start", "blur_sigma", "koleo_eps"),
    *("lr", "lrs", "layer_decay"),
}
_FROM_ZERO = {
    *("head_warmup_steps", "threads", "workers", "cache_gib", "fsdp", "locals", "classifier.hidden"),
    *("brightness", "contrast", "saturation", "dino_weight", "ibot_weight", "koleo_weight"),
    *("temperature_warmup_epochs", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end"),
    *("patch_embed_lr", "clip", "freeze_prototypes_epochs", "stop_below", "feature_std", "target_entropy"),
    *("guard.steps", "process", "rotation", "scale", "shear", "shift"),
}
_SHARES = {
    *("global_scale", "local_scale", "horizontal_flip", "vertical_flip", "rotate90", "jitter", "grayscale"),
    *("blur_global1", "blur_global2", "blur_local", "solarize_global2", "probability", "ratio", "center_momentum"),
    *("teacher.momentum", "momentum_end", "beta1", "beta2", "drop_path"),
}
_BELOW_ONE = {"beta1", "beta2", "drop_path"}
_NOT_EMPTY = {"global_scale", "local_scale"}
_RANGES = {"global_scale", "local_scale", "ratio", "blur_sigma", "scale"}


def check_ranges(flat: Mapping[str, Any]) -> None:
    """Refuses, by its key, a value that no run can have.

    Args:
      flat: a configuration as `config.flatten` makes it.

    Raises:
      UsageError: names the key, its value and what it must be.
    """
    if not 0 <= flat["seed"] < 2**32:
        raise UsageError(f"seed is {flat['seed']}; it must be 0 or above, and below 2^32")
    for key, value in flat.items():
        name = key if key in _ABOVE_ZERO | _FROM_ZERO | _SHARES else key.rpartition(".")[2]
        if value is None or isinstance(value, str):
            continue
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UsageError(f"{key} is empty; give at least one value")
        if name in _ABOVE_ZERO and not all(0 < v < math.inf for v in values):
            raise UsageError(f"{key} is {value}; it must be above 0")
        if name in _FROM_ZERO and not all(0 <= v < math.inf for v in values):
            raise UsageError(f"{key} is {value}; it must be 0 or above")
        if name in _SHARES and not all(0 <= v <= 1 for v in values):
            raise UsageError(f"{key} is {value}; it must lie in 0..1")
        if name in _BELOW_ONE and not all(v < 1 for v in values):
            raise UsageError(f"{key} is {value}; it must be below 1")
        if name == "prototypes" and values[0] < 2:
            raise UsageError(f"{key} is {value}; it must be at least 2")
        if name in _NOT_EMPTY and not values[-1]:
            raise UsageError(f"{key} is {value}; it must end above 0")
        if name in _RANGES and values != sorted(values):
            raise UsageError(f"{key} is {value}; the lower one comes first")
