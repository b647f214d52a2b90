"""Fine-tuning of one starting point on one fold with one setting (MediDino 2024, "fine-tuning", and its code).

Adam at a constant rate, all weights trained, validation loss after every epoch, and a real copy of the best weights.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dinojax import sharding, tree
from dinojax.augment.classification import train_transform
from dinojax.config.finetune import AugmentConfig, ClassifierConfig
from dinojax.data import pipeline
from dinojax.data.memory import MemorySource
from dinojax.data.splits import Fold
from dinojax.errors import RunError, UsageError
from dinojax.models import Model, ResNet, preprocess
from dinojax.models.heads import Classifier
from dinojax.models.resnet import running_statistics
from dinojax.optim import WEIGHT_DECAY, adamw, apply_updates, multipliers
from dinojax.tree import Params

EVALUATION_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    lr: float
    batch_size: int

    @property
    def name(self) -> str:
        """Such as `lr1e-05_bs8`; names it in tables and files."""
        return f"lr{self.lr:g}_bs{self.batch_size}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What all settings share."""

    epochs: int
    epoch_selection: Literal["lowest_val_loss", "last"]
    image_size: int
    augment: AugmentConfig
    threads: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}; it must be 1 or above")


def make_grid(lrs: Sequence[float], batch_sizes: Sequence[int]) -> tuple[Setting, ...]:
    """Every learning rate with every batch size.

    Raises:
      UsageError: a list is empty, repeats a number, or holds one that cannot be.
    """
    settings = tuple(Setting(lr, batch_size) for lr in lrs for batch_size in batch_sizes)
    if not settings or len({setting.name for setting in settings}) < len(settings):
        raise UsageError(f"lrs {list(lrs)} and batch_sizes {list(batch_sizes)}: each must list different numbers")
    if min(batch_sizes) < 1 or min(lrs) <= 0:
        raise UsageError(f"lrs {list(lrs)} and batch_sizes {list(batch_sizes)}: must be above 0")
    return settings


def head_of(config: ClassifierConfig, backbone: Model) -> dict[str, Any]:
    """The form of a classifier's head as it is used: a ResNet has no final norm to apply a second time."""
    renormalise = config.renormalise and not isinstance(backbone, ResNet)
    return dataclasses.asdict(config) | {"renormalise": renormalise}


class State(NamedTuple):
    """What a step changes; donated to it."""

    params: Params
    """All that the classifier holds, the running statistics of a ResNet included."""
    optimizer: optax.OptState
    """Of the weights alone."""


class Steps(NamedTuple):
    """The compiled functions for one batch size, whatever the fold or the learning rate, and the devices they use."""

    mesh: jax.sharding.Mesh
    init: Callable[[Params], State]
    train: Callable[[State, Mapping[str, jax.Array], float], tuple[State, jax.Array]]
    """(state, batch, lr) to (state, loss), in training mode: a ResNet normalises by the statistics of the whole batch,
    on however many devices, and its running ones move. The state given is donated."""
    predict: Callable[[Params, jax.Array], jax.Array]
    """(params, uint8 [B, S, S, C]) to logits [B, outputs], in inference mode."""


def make_steps(graph: nnx.GraphDef, params: Params, weight_decay: float, mesh: jax.sharding.Mesh) -> Steps:
    """Builds and compiles the step of a classifier.

    Args:
      graph: of a `Classifier`; its backbone's preprocessing is applied on the device.
      params: of the same; their paths tell which of them are decayed.
      weight_decay: 0 is Adam.
      mesh: batches are spread over it, parameters and moments over its axis `fsdp`.
    """
    same = sharding.replicated(mesh)
    running = running_statistics(tree.merge(graph, params)).keys()
    rates = dict.fromkeys(params.keys() - running, 1.0)
    decays = multipliers(rates, WEIGHT_DECAY)

    def weights_of(params: Params) -> Params:
        return {path: value for path, value in params.items() if path not in running}

    def loss_of(weights: Params, params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Params]:
        classifier: Classifier = tree.merge(graph, params | weights)
        logits = classifier(preprocess(batch["image"], classifier.backbone), train=True)
        moved, labels = running_statistics(classifier), batch["label"]
        if logits.shape[-1] == 1:
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), moved
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved

    def train(state: State, batch: Mapping[str, jax.Array], lr: float) -> tuple[State, jax.Array]:
        weights = weights_of(state.params)
        (loss, moved), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, state.params, batch)
        updates, optimizer = adamw(lr, weight_decay, rates, decays).update(gradients, state.optimizer, weights)
        return State(apply_updates(weights, updates) | moved, optimizer), loss

    def init(params: Params) -> State:
        return State(params, adamw(0.0, weight_decay, rates, decays).init(weights_of(params)))

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


class Fitted(NamedTuple):
    """The weights that were kept, and what they predict."""

    epoch: int
    """From 1."""
    val_loss: float
    history: list[tuple[float, float]]
    """Training and validation loss of every epoch, in nats."""
    params: Params
    val_scores: np.ndarray
    """float64 [len(fold.val), C], probabilities."""
    test_scores: np.ndarray
    """float64 [len(fold.test), C]."""


def fit(
    steps: Steps,
    start: Params,
    images: np.ndarray,
    labels: np.ndarray,
    fold: Fold,
    setting: Setting,
    recipe: Recipe,
    seed: int,
    after_step: Callable[[], None],
    after_epoch: Callable[[int, float], None],
) -> Fitted:
    """Fine-tunes on the fold's training part, and predicts its validation and test part.

    Args:
      steps: from `make_steps`.
      start: the initial weights; left as they are.
      images: uint8 [N, S, S, C], of the task.
      labels: int32 [N].
      fold: places in these.
      setting: learning rate and batch size.
      recipe: what all settings share.
      seed: of the order and the augmentation.
      after_step: may raise to end the run.
      after_epoch: gets the epochs done and the validation loss.

    Raises:
      RunError: the validation loss is not finite.
    """
    mesh = steps.mesh
    # The step destroys what it is given: it gets copies of its own.
    state = steps.init(sharding.put_state(mesh, {k: jnp.array(v) for k, v in start.items()}))
    transform = partial(train_transform, size=recipe.image_size, config=recipe.augment)
    source = MemorySource(images, labels, fold.train)
    batches = pipeline.prefetch(
        pipeline.training_batches(source, transform, batch_size=setting.batch_size, seed=seed, threads=recipe.threads),
        lambda batch: sharding.put_batch(mesh, {name: batch[name] for name in ("image", "label")}),
    )
    history: list[tuple[float, float]] = []
    kept: tuple[int, float, Params, np.ndarray] | None = None
    done = 0
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        # Epochs end where every image was seen once more, give or take a batch.
        while not losses or done * setting.batch_size < epoch * len(source):
            state, loss = steps.train(state, next(batches), setting.lr)
            losses.append(loss)
            done += 1
            if len(losses) > 1:
                losses[-2].block_until_ready()  # one step ahead of the device is enough, and a signal is soon answered
            after_step()
        logits = predict(steps, state.params, images, fold.val)
        val_loss = cross_entropy(logits, labels[fold.val])
        if not np.isfinite(val_loss):
            raise RunError(
                f"setting {setting.name}: the validation loss is {val_loss} after epoch {epoch}; lower the lr"
            )
        history.append((float(np.mean(jax.device_get(losses))), val_loss))
        if kept is None or recipe.epoch_selection == "last" or val_loss < kept[1]:
            kept = epoch, val_loss, jax.tree.map(jnp.copy, state.params), logits
        after_epoch(epoch, val_loss)
    assert kept is not None
    epoch, val_loss, params, val_logits = kept
    test_logits = predict(steps, params, images, fold.test)
    return Fitted(epoch, val_loss, history, params, probabilities(val_logits), probabilities(test_logits))


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
    pieces = []
    for first in range(0, len(indices), size):
        chosen = indices[first : first + size]
        padded = np.resize(chosen, size)
        batch = sharding.put_batch(mesh, {"image": images[padded]})
        pieces.append(jax.device_get(steps.predict(params, batch["image"]))[: len(chosen)])
    return np.concatenate(pieces)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits [N, outputs] to float64 [N, C]: softmax, or of one logit the sigmoid and its complement."""
    return np.exp(_log_probabilities(logits))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the cases of −log of the true class's probability, in nats."""
    return float(-_log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
