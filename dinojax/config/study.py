"""What every protocol can be told: data, folds, starting point, and how a setting is selected."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import NonNegativeInt, PositiveInt, Seed, check
from dinojax.config.labelled import LabelledConfig
from dinojax.config.model import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig(LabelledConfig):
    """One starting point on every fold of a labelled data set."""

    data: str
    """A manifest, or a labelled data set of any kind that the README lists."""
    out: str
    """The run's directory; the same command resumes."""
    init: str | None = None
    """A model directory to start from; without it, `model` with random weights."""
    input_channels: PositiveInt | None = None
    """Channels that the model is made to read; null: as the checkpoint. 1 folds an RGB checkpoint: the same features of
    grey images for a third of the input, and colour becomes luminance. Of N others, such as MR sequences, each gets an
    equal share of its weights."""
    task: str | None = None
    """Name of the task in tables; by default that of the data's folder."""
    starting_point: str | None = None
    """Name of the starting point in tables; by default that of `init`'s folder, or `random`."""
    seed: Seed = 0
    positive_class: str | None = None
    """The positive class of a binary task; by default the last in sorted order, unless its name says normal."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """A file found unreadable stops the run, or is left out and listed in `skipped_files.csv`."""
    folds: PositiveInt = 5
    """How many folds to make when the data brings none."""
    fold_seed: Seed = 0
    """Draws these folds, so that runs of several seeds share them."""
    drop_duplicates: bool = False
    """Leaves one of each group of images with the same pixels, and none where their labels differ; they are listed in
    `dropped_duplicates.csv`."""
    allow_shared_patients: bool = False
    """Takes folds that have a patient on two sides, which are refused otherwise; results are then optimistic."""
    image_size: PositiveInt | None = None
    """Side in pixels; null: the size that the weights were used at."""
    normalisation: Literal["checkpoint", "none"] = "checkpoint"
    """The checkpoint's mean, standard deviation and order of channels, or RGB values in 0..1."""
    selection: Literal["nested", "published"] = "nested"
    """Whose models are kept, and whose AUCs are the run's; both are in its results. `nested`: each fold selects its
    setting by its own validation part. `published`: one setting for all folds, the one with the best mean test AUC,
    which is optimistic."""
    threads: NonNegativeInt = 2
    """Threads that read images."""
    check: bool = False
    """Says how everything was read and what would be done, and stops there."""
    accept_changes: str = ""
    """Keys, separated by commas, that may differ from those that the run in `out` began with."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(layer_scale=None))

    def __post_init__(self) -> None:
        check(self)
