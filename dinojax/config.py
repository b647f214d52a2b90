"""Every run's configuration: frozen dataclasses, read from YAML and the command line by jsonargparse.

Presets are the YAML files in `configs/`; the defaults here are those of the published MediDino code. Any key may be
given on the command line (`--optim.lr 1e-4`), types are checked, and an unknown key is refused by name. `--help` and
`--print_config` list everything.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import jsonargparse
import yaml

from dinojax.errors import UsageError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone when no `init` gives one; a number overrides that of the named size."""

    name: str = "vits14"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    image_size: int | None = None
    """Side of the image, in pixels, whose patch grid the positional embeddings have."""
    channels: int | None = None
    """1 for a backbone that reads grey images, 3 for RGB."""
    layer_scale: float = 1e-5
    """What LayerScale starts from; 1e-5 as published for training from scratch."""


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Geometry of the views (DINOv2, section 5; sizes in pixels, scales as shares of the image's area)."""

    global_size: int = 224
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_size: int = 98
    local_scale: tuple[float, float] = (0.05, 0.32)
    locals: int = 8
    horizontal_flip: float = 0.5
    """Probability; 0 where left and right differ for a reader."""
    vertical_flip: float = 0.0


@dataclasses.dataclass(frozen=True)
class PhotometryConfig:
    """Intensities of the views. Probabilities are those that take effect.

    The published `GaussianBlur(p)` applies with 1 - p, so the published code blurs global view 1 never, view 2 with 0.9
    and local views with 0.5; the paper says 1.0, 0.1 and 0.5.
    """

    jitter: float = 0.8
    """Probability of the colour jitter; its four operations come in random order."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur_global1: float = 0.0
    blur_global2: float = 0.9
    blur_local: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_global2: float = 0.2


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """iBOT's block masks on the student's global crops."""

    probability: float = 0.5
    """Share of the global crops that are masked."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Share of the patches masked in such a crop; equal slices of this range, one slice a crop."""


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The projection head, shared by the DINO and iBOT losses."""

    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3


@dataclasses.dataclass(frozen=True)
class LossConfig:
    centering: Literal["sinkhorn_knopp", "softmax"] = "sinkhorn_knopp"
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    """Of the softmax centering."""
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    """0 leaves the masks and the term out."""
    koleo_weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    momentum: float = 0.994
    momentum_end: float = 1.0
    temperature_start: float = 0.04
    temperature: float = 0.07
    temperature_warmup_epochs: float = 30


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with cosine schedules per step, layer-wise decay and clipping per submodule."""

    lr: float = 2e-4
    """Base learning rate; see `lr_scaling`."""
    lr_scaling: Literal["sqrt_1024", "none"] = "sqrt_1024"
    """`sqrt_1024`: the peak is lr × sqrt(batch_size / 1024), as published."""
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    layer_decay: float = 0.9
    patch_embed_lr: float = 0.2
    """Multiplier of the patch embedding's learning rate, on top of its layer decay."""
    clip: float = 3.0
    """Largest gradient norm, for the backbone and the head apart; 0 clips nothing."""
    freeze_prototypes_epochs: float = 1
    """While frozen, the prototypes' learning rate is 0; their moments still advance, as published."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Self-supervised pre-training with DINOv2's objective. The same command goes on where a run stopped."""

    data: str
    """A folder of images (labels are ignored), a manifest, or a data set of any kind that the README lists."""
    out: str
    """The run's directory."""
    init: str | None = None
    """A model directory to continue from; without it, `model` is trained from random weights."""
    data_root: str | None = None
    """What a manifest's paths are relative to, if not its own folder."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """A file found unreadable stops the run, or is skipped and listed in `skipped_files.csv`."""
    seed: int = 0
    batch_size: int = 256
    epochs: float = 100
    steps_per_epoch: int | None = 100
    """Length of an epoch, the unit of all warm-ups; null: the images divided by the batch size."""
    steps: int | None = None
    """Length of the run in steps; the schedules and their warm-ups are stretched or squeezed to it."""
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    threads: int = 2
    """Threads that read and crop images."""
    accept_changes: str = ""
    """Keys, separated by commas, that may differ from those that the run in `out` began with."""
    groups: int = 1
    """Equal slices of the batch in which masked patches are packed and drop path picks its subset; more than one keeps
    these gathers inside a device, see `dinojax.dino.step`."""
    drop_path: float = 0.0
    drop_path_uniform: bool = False
    """The same rate in every block, or rising linearly from 0."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    crops: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    photometry: PhotometryConfig = dataclasses.field(default_factory=PhotometryConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "batch_size", "epochs", "log_every", "checkpoint_every", "keep_checkpoints", "groups")
        _check_positive(self, *(name for name in ("steps", "steps_per_epoch") if getattr(self, name) is not None))
        _check_seed(self.seed)
        if self.batch_size % self.groups:
            raise UsageError(f"groups {self.groups} does not divide batch_size {self.batch_size}")
        for name, value in {
            "crops.locals": self.crops.locals,
            "optim.clip": self.optim.clip,
            "threads": self.threads,
        }.items():
            if value < 0:
                raise UsageError(f"{name} is {value}; it must be 0 or above")
        shares = {
            "crops.global_scale": self.crops.global_scale,
            "crops.local_scale": self.crops.local_scale,
            "masking.ratio": self.masking.ratio,
            "masking.probability": (self.masking.probability, 1.0),
        }
        for name, (low, high) in shares.items():
            if not 0 <= low <= high <= 1:
                raise UsageError(
                    f"{name}: {low:g} to {high:g} is no range of shares; it must lie in 0..1, the lower first"
                )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Geometry of the training images in fine-tuning: MediDino's, in the order of its code."""

    rotation: float = 10.0
    """Degrees, either way."""
    horizontal_flip: float = 0.5
    scale: tuple[float, float] = (0.9, 1.1)
    """Random resized crop, as shares of the image's area; above 1 it is the whole image."""
    shear: float = 10.0
    """Degrees, either way."""
    shift: float = 0.1
    """Share of width and height, either way."""


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The head on the class token (or a ResNet's pooled features)."""

    hidden: int = 256
    """Width of the hidden layer with ReLU; 0: a linear head."""
    renormalise: bool = True
    """Applies the backbone's final norm to the class token a second time, as MediDino's code does."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tunes one starting point on every fold with every setting, and selects inside each fold."""

    data: str
    out: str
    """The run's directory; the same command goes on where it stopped."""
    init: str | None = None
    """A model directory to start from; without it, `model` with random weights."""
    task: str | None = None
    """Name of the task in tables; by default that of the data's folder."""
    starting_point: str | None = None
    """Name of the starting point in tables; by default that of `init`'s folder, or `random`."""
    seed: int = 0
    data_root: str | None = None
    group_regex: str | None = None
    """Takes the patient from the path: the first group of this expression."""
    positive_class: str | None = None
    """The positive class of a binary task; by default the last in sorted order."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    folds: int = 5
    """How many folds to make when the data brings none."""
    image_size: int = 224
    normalisation: Literal["checkpoint", "none"] = "none"
    """The checkpoint's mean and standard deviation, or values in 0..1 as MediDino's code feeds them."""
    lrs: tuple[float, ...] = (1e-5, 1e-6)
    batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Every learning rate with every batch size is one setting."""
    epochs: int = 30
    weight_decay: float = 0.0
    """0 is Adam, as published; above, AdamW."""
    epoch_selection: Literal["lowest_val_loss", "last"] = "lowest_val_loss"
    """`last` is what MediDino's code reports: its best weights alias the live ones."""
    selection: Literal["nested", "published"] = "nested"
    """`nested`: each fold picks its setting by its own validation loss. `published`: one setting for all folds, the
    best by mean test AUC, which is optimistic."""
    threads: int = 2
    """Threads that read and crop images."""
    accept_changes: str = ""
    """Keys, separated by commas, that may differ from those that the run in `out` began with."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(layer_scale=1.0))
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_seed(self.seed)


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise UsageError(f"{name} is {getattr(config, name)}; it must be above 0")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; it must be 0 or above, and below 2^32")


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser; a mistake raises a `UsageError` of one line instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        raise UsageError(f"{' '.join(str(message).split())} (see {self.prog} --help)")


def parse(config: type[T], arguments: Sequence[str], verb: str, *, positional: bool = False) -> T:
    """Reads a verb's configuration from `--config` files and keys on the command line.

    Args:
      config: a frozen dataclass; the first line of its docstring becomes the help's.
      arguments: the command line after the verb.
      positional: fields without a default are given by place rather than by name.

    Raises:
      UsageError: an unknown key, a wrong type, a missing key or an unreadable file, by name.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=f"python -m dinojax {verb}", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of keys, such as a preset from configs/")
    parser.add_class_arguments(config, nested_key=None, as_positional=positional)
    values = parser.instantiate(parser.parse_args(list(arguments)))
    return config(**{field.name: values[field.name] for field in dataclasses.fields(config)})  # type: ignore[arg-type]


# Where a run lies, how many threads feed it and what it may overlook are no part of what it computes.
_NOT_COMPARED = ("out", "accept_changes", "threads", "on_bad_file")


def flatten(config: object) -> dict[str, Any]:
    """A configuration as one level: `{"optim.lr": 1e-3, ...}`."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def store(config: object, directory: Path, accept_changes: Sequence[str] = ()) -> None:
    """Writes `config.yaml` into a run's directory, or compares with the one that is there.

    Raises:
      UsageError: the directory's run has another configuration, and `accept_changes` does not name every changed key.
    """
    path = directory / "config.yaml"
    values = {key: value for key, value in flatten(config).items() if key not in _NOT_COMPARED}
    if path.exists():
        before = _flatten_mapping(yaml.safe_load(path.read_text()) or {})
        changed = sorted(key for key in before.keys() | values.keys() if before.get(key) != values.get(key))
        refused = [key for key in changed if key not in accept_changes]
        if refused:
            listed = ", ".join(f"{key} was {before.get(key)!r}, is {values.get(key)!r}" for key in refused)
            raise UsageError(
                f"{directory} holds a run with another configuration: {listed}; "
                f"choose another --out, or go on with --accept_changes {','.join(changed)}"
            )
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(_nest(values), sort_keys=False))
    partial.replace(path)


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested


def _flatten_mapping(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flatten_mapping(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
