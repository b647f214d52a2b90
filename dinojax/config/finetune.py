"""What `finetune` can be told; the defaults are those of the published MediDino code."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import NonNegative, NonNegativeInt, NonNegativeRange, Positive, PositiveInt, Share
from dinojax.config.study import StudyConfig


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Geometry of the training images in fine-tuning: MediDino's, in the order of its code."""

    rotation: NonNegative = 10.0
    """Degrees, either way."""
    horizontal_flip: Share = 0.5
    scale: NonNegativeRange = (0.9, 1.1)
    """Random resized crop, as shares of the image's area; above 1 it is the whole image."""
    shear: NonNegative = 10.0
    """Degrees, either way."""
    shift: NonNegative = 0.1
    """Share of width and height, either way."""


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The head on the class token (or a CNN's pooled features)."""

    hidden: NonNegativeInt = 256
    """Width of the hidden layer with ReLU; 0: a linear head."""
    renormalise: bool = True
    """Applies the backbone's final norm to the class token a second time, as MediDino's code does; a CNN has none, and
    its head reads the pooled features as they are."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(StudyConfig):
    """Fine-tunes one starting point on every fold with every setting, and selects inside each fold."""

    image_size: PositiveInt | None = 224
    """Side in pixels; null: the size that the weights were used at."""
    normalisation: Literal["checkpoint", "none"] = "none"
    """The checkpoint's mean, standard deviation and order of channels, or RGB in 0..1 as MediDino's code feeds it."""
    mode: Literal["full", "frozen"] = "full"
    """What is trained: all weights, or the head alone."""
    frozen_batchnorm: Literal["inference", "train"] = "inference"
    """A BatchNorm that is not trained normalises by its running statistics and leaves them as they are, as Keras does
    it; or by the batch's, which move the running ones, as in PyTorch scripts that only stop the gradients."""
    lrs: tuple[Positive, ...] = (1e-5, 1e-6)
    batch_sizes: tuple[PositiveInt, ...] = (8, 16, 32)
    """Every learning rate with every batch size is one setting."""
    epochs: PositiveInt = 30
    weight_decay: NonNegative = 0.0
    """0 is Adam, as published; above, AdamW."""
    epoch_selection: Literal["lowest_val_loss", "last"] = "lowest_val_loss"
    """`last` is what MediDino's code reports: its best weights alias the live ones."""
    fsdp: NonNegativeInt = 1
    """Devices over which parameters and optimizer state are spread; the rest of the devices hold copies. 0: all."""
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
