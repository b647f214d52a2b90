"""Fine-tuning in memory, without a run's directory."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dinojax import tree
from dinojax.config.finetune import AugmentConfig
from dinojax.data.records import Fold
from dinojax.optim import WEIGHT_DECAY, multipliers
from dinojax.protocols.finetuning import RATES, Finetuning, Setting, Steps, make_steps
from dinojax.protocols.study import Scored, Unit
from dinojax.protocols.task import Task
from dinojax.tree import Params

BINARY = Task("binary", ("benign", "malignant"))
FOLD = Fold(train=np.arange(12), val=np.arange(12, 18), test=np.arange(18, 24))
LABELS = (np.arange(24) % 2).astype(np.int32)


def make_images(side: int) -> np.ndarray:
    """Noise, uint8 [24, side, side, 1]."""
    return np.random.default_rng(0).integers(0, 256, (24, side, side, 1), dtype=np.uint8)


def steps_of(
    model: nnx.Module, mesh: Mesh, task: Task = BINARY, mode: str = "full", weight_decay: float = 0.0
) -> Steps:
    """The steps of a classifier."""
    graph, params = tree.split(model)
    weights = tree.weights(model)
    rates = {path: rate for path in weights if (rate := tree.match(path, RATES[mode])) is not None}
    decays = {path: weight_decay * share for path, share in multipliers(rates, WEIGHT_DECAY).items()}
    return make_steps(graph, params, task.loss, rates, decays, mesh)


class Fitted(NamedTuple):
    """What came of a unit, and the weights that were kept."""

    scored: Scored
    params: Params


def fit(
    steps: Steps,
    start: Params,
    images: np.ndarray,
    setting: Setting,
    epochs: int,
    keep: Literal["lowest_val_loss", "last"] = "lowest_val_loss",
) -> Fitted:
    """Fine-tunes on `FOLD`."""
    written: list[Params] = []
    finetuning = Finetuning(
        task=BINARY,
        images=images,
        labels=LABELS,
        steps={setting.batch_size: steps},
        start=lambda seed: start,
        epochs=epochs,
        epoch_selection=keep,
        augment=AugmentConfig(),
        threads=0,
        seed=0,
        write_weights=lambda unit, epoch, params, folder: written.append(params),
    )
    scored = finetuning(Unit(1, FOLD, setting, 0))
    assert scored.write_weights is not None
    scored.write_weights(Path())
    return Fitted(scored, written[0])
