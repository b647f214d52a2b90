"""Fine-tuning of one starting point on one fold with one setting (MediDino 2024, "fine-tuning", and its code).

Adam at a constant rate, validation loss after every epoch, and a real copy of the best weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dinojax import sharding, tree
from dinojax.augment.classification import train_transform
from dinojax.config.finetune import AugmentConfig
from dinojax.data import pipeline
from dinojax.data.memory import MemorySource
from dinojax.errors import RunError, UsageError
from dinojax.models import preprocess
from dinojax.models.heads import Classifier
from dinojax.models.resnet import running_statistics
from dinojax.optim import adamw, apply_updates
from dinojax.protocols.features import stacked
from dinojax.protocols.study import Scored, Unit
from dinojax.protocols.task import Task
from dinojax.seeds import derive
from dinojax.tree import Params

EVALUATION_BATCH = 32
RATES: Mapping[str, Sequence[tuple[str, float | None]]] = {
    "full": ((r".*", 1.0),),
    "frozen": ((r"head\..*", 1.0), (r".*", None)),
}
"""By mode, multipliers of the learning rate by path; None: not trained."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    lr: float
    batch_size: int

    @property
    def name(self) -> str:
        """Such as `lr1e-05_bs8`; names it in tables and files."""
        return f"lr{self.lr:g}_bs{self.batch_size}"


def make_grid(lrs: Sequence[float], batch_sizes: Sequence[int]) -> tuple[Setting, ...]:
    """Every learning rate with every batch size.

    Raises:
      UsageError: a number is there twice.
    """
    settings = tuple(Setting(lr, batch_size) for lr in lrs for batch_size in batch_sizes)
    if len({setting.name for setting in settings}) < len(settings):
        raise UsageError(f"lrs {list(lrs)} and batch_sizes {list(batch_sizes)}: each must list different numbers")
    return settings


class State(NamedTuple):
    """What a step changes; donated to it."""

    params: Params
    """All that the classifier holds, frozen parameters and running statistics of BatchNorm included."""
    optimizer: optax.OptState
    """Of the trained parameters alone."""


class Steps(NamedTuple):
    """The compiled functions for one batch size, whatever the fold or the learning rate, and the devices they use."""

    mesh: jax.sharding.Mesh
    init: Callable[[Params], State]
    train: Callable[[State, Mapping[str, jax.Array], float], tuple[State, jax.Array]]
    """(state, batch, lr) to (state, loss), in training mode: BatchNorm normalises by the statistics of the whole batch,
    on however many devices, and its running ones move. The state given is donated."""
    predict: Callable[[Params, jax.Array], jax.Array]
    """(params, uint8 [B, S, S, C]) to logits [B, outputs], in inference mode."""


def make_steps(
    graph: nnx.GraphDef,
    params: Params,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    rates: Mapping[str, float],
    decays: Mapping[str, float],
    mesh: jax.sharding.Mesh,
) -> Steps:
    """Builds and compiles the step of a classifier.

    Args:
      graph: of a `Classifier`; its backbone's preprocessing is applied on the device.
      params: of the same; only paths and shapes are read.
      loss: of logits [B, outputs] and labels, a scalar.
      rates: multiplier of the learning rate by path. A path without one is frozen: it has no gradient and no optimizer
        state. Whether its BatchNorm is frozen is part of the graph (`resnet.freeze_batchnorm`).
      decays: weight decay by path, of all paths with a rate; 0 everywhere is Adam.
      mesh: batches are spread over it, parameters and moments over its axis `fsdp`.
    """
    same = sharding.replicated(mesh)

    def trained(params: Params) -> Params:
        return {path: value for path, value in params.items() if path in rates}

    def loss_of(weights: Params, params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Params]:
        classifier: Classifier = tree.merge(graph, params | weights)
        logits = classifier(preprocess(batch["image"], classifier.backbone), train=True)
        return loss(logits, batch["label"]), running_statistics(classifier)

    def train(state: State, batch: Mapping[str, jax.Array], lr: float) -> tuple[State, jax.Array]:
        weights = trained(state.params)
        (value, moved), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, state.params, batch)
        updates, optimizer = adamw(lr, 1.0, rates, decays).update(gradients, state.optimizer, weights)
        return State(state.params | apply_updates(weights, updates) | moved, optimizer), value

    def init(params: Params) -> State:
        return State(params, adamw(0.0, 1.0, rates, decays).init(trained(params)))

    def logits_of(params: Params, images: jax.Array) -> jax.Array:
        classifier: Classifier = tree.merge(graph, params)
        return classifier(preprocess(images, classifier.backbone))

    placed = sharding.state_sharding(mesh, jax.eval_shape(init, params))
    return Steps(
        mesh,
        jax.jit(init, donate_argnums=0, out_shardings=placed),
        jax.jit(train, donate_argnums=0, out_shardings=(placed, same)),
        jax.jit(logits_of, out_shardings=same),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Finetuning:
    """The protocol: fine-tunes on a unit's training part and predicts its validation and test part."""

    task: Task
    images: np.ndarray
    """uint8 [N, S, S, C], of all cases."""
    labels: np.ndarray
    steps: Mapping[int, Steps]
    """By batch size."""
    start: Callable[[int], Params]
    """Initial weights by seed; left as they are."""
    epochs: int
    epoch_selection: Literal["lowest_val_loss", "last"]
    augment: AugmentConfig
    threads: int
    seed: int
    write_weights: Callable[[Unit, int, Params, Path], None]
    """Gets the unit, the epoch and the weights that were kept, and the folder to write."""

    def __call__(
        self,
        unit: Unit,
        after_step: Callable[[], None] = lambda: None,
        after_epoch: Callable[[int, float], None] = lambda epoch, val_loss: None,
    ) -> Scored:
        """Trains for `epochs`.

        Args:
          unit: its setting is a `Setting`.
          after_step: may raise to end the run.
          after_epoch: gets the epochs done and the validation loss.

        Raises:
          RunError: the validation loss is not finite.
        """
        steps, fold = self.steps[unit.setting.batch_size], unit.fold
        # Order, augmentation and the head's weights are the same for every setting of a fold.
        seed = derive(self.seed, unit.number)
        # Steps donate their input, so they start from a copy.
        start = {path: jnp.array(value) for path, value in self.start(seed).items()}
        state = steps.init(sharding.put_state(steps.mesh, start))
        batches = self._batches(steps, unit, seed)
        history: list[dict[str, float]] = []
        kept: tuple[int, float, Params, np.ndarray] | None = None
        done = 0
        for epoch in range(1, self.epochs + 1):
            losses = []
            # An epoch ends at the first batch boundary after every image has been seen once more.
            while not losses or done * unit.setting.batch_size < epoch * len(fold.train):
                state, loss = steps.train(state, next(batches), unit.setting.lr)
                losses.append(loss)
                done += 1
                if len(losses) > 1:
                    losses[-2].block_until_ready()  # one step ahead of the device is enough, and signals are soon seen
                after_step()
            logits = predict(steps, state.params, self.images, fold.val)
            val_loss = self.task.validation_loss(logits, self.labels[fold.val])
            if not np.isfinite(val_loss):
                raise RunError(
                    f"setting {unit.setting.name}: the validation loss is {val_loss} after epoch {epoch}; lower the lr"
                )
            train_loss = float(np.mean(jax.device_get(losses)))
            history.append({"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss})
            if kept is None or self.epoch_selection == "last" or val_loss < kept[1]:
                kept = epoch, val_loss, jax.tree.map(jnp.copy, state.params), logits
            after_epoch(epoch, val_loss)
        assert kept is not None
        epoch, val_loss, params, val_logits = kept
        test_logits = predict(steps, params, self.images, fold.test)
        return Scored(
            self.task.probabilities(val_logits),
            self.task.probabilities(test_logits),
            {"epoch": epoch, "val_loss": val_loss},
            history,
            partial(self.write_weights, unit, epoch, params),
        )

    def _batches(self, steps: Steps, unit: Unit, seed: int) -> Iterator[dict[str, jax.Array]]:
        batches = pipeline.training_batches(
            MemorySource(self.images, self.labels, unit.fold.train),
            partial(train_transform, size=self.images.shape[1], config=self.augment),
            batch_size=unit.setting.batch_size,
            seed=seed,
            threads=self.threads,
        )
        return pipeline.prefetch(
            batches, lambda batch: sharding.put_batch(steps.mesh, {name: batch[name] for name in ("image", "label")})
        )


def predict(steps: Steps, params: Params, images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Logits float32 [len(indices), outputs] in inference mode, in batches of one shape.

    Args:
      steps: from `make_steps`.
      params: on the devices of the steps' mesh.
      images: uint8 [N, S, S, C].
      indices: which of them, in this order.
    """
    mesh = steps.mesh
    size = mesh.size * -(-EVALUATION_BATCH // mesh.size)
    filled = np.resize(indices, -(-len(indices) // size) * size).reshape(-1, size)
    batches = (sharding.put_batch(mesh, {"image": images[chosen]})["image"] for chosen in filled)
    return stacked((jax.device_get(steps.predict(params, batch)) for batch in batches), len(indices))
