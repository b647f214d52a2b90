"""Configuration of `finetune`; the defaults are those of the published MediDino code."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import (
    NonNegative,
    NonNegativeInt,
    NonNegativeRange,
    Positive,
    PositiveInt,
    Seed,
    Share,
    check,
)
from dinojax.config.model import ModelConfig


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
    """The head on the class token (or a ResNet's pooled features)."""

    hidden: NonNegativeInt = 256
    """Width of the hidden layer with ReLU; 0: a linear head."""
    renormalise: bool = True
    """Applies the backbone's final norm to the class token a second time, as MediDino's code does; a ResNet has none,
    and its head reads the pooled features as they are."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tunes one starting point on every fold with every setting, and selects inside each fold."""

    data: str
    out: str
    """The run's directory; the same command resumes it."""
    init: str | None = None
    """A model directory to start from; without it, `model` with random weights."""
    task: str | None = None
    """Name of the task in tables; by default that of the data's folder."""
    starting_point: str | None = None
    """Name of the starting point in tables; by default that of `init`'s folder, or `random`."""
    seed: Seed = 0
    data_root: str | None = None
    group_regex: str | None = None
    """Takes the patient from the path: the first group of this expression."""
    positive_class: str | None = None
    """The positive class of a binary task; by default the last in sorted order."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    folds: PositiveInt = 5
    """How many folds to make when the data brings none."""
    image_size: PositiveInt = 224
    normalisation: Literal["checkpoint", "none"] = "none"
    """The checkpoint's mean and standard deviation, or values in 0..1 as MediDino's code feeds them."""
    lrs: tuple[Positive, ...] = (1e-5, 1e-6)
    batch_sizes: tuple[PositiveInt, ...] = (8, 16, 32)
    """Every learning rate with every batch size is one setting."""
    epochs: PositiveInt = 30
    weight_decay: NonNegative = 0.0
    """0 is Adam, as published; above, AdamW."""
    epoch_selection: Literal["lowest_val_loss", "last"] = "lowest_val_loss"
    """`last` is what MediDino's code reports: its best weights alias the live ones."""
    selection: Literal["nested", "published"] = "nested"
    """`nested`: each fold picks its setting by its own validation loss. `published`: one setting for all folds, the
    best by mean test AUC, which is optimistic."""
    threads: NonNegativeInt = 2
    """Threads that read and crop images."""
    fsdp: NonNegativeInt = 1
    """Devices over which parameters and optimizer state are spread; the rest of the devices hold copies. 0: all."""
    accept_changes: str = ""
    """Keys, separated by commas, that may differ from those that the run in `out` began with."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(layer_scale=None))
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check(self)
