"""Configuration of `pretrain`; the defaults are those of the published MediDino code."""

import dataclasses
from typing import Annotated, Literal

from dinojax.config.bounds import (
    BelowOne,
    Bounds,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    PositiveRange,
    ScaleRange,
    Seed,
    Share,
    ShareRange,
    check,
)
from dinojax.config.images import ImagesConfig
from dinojax.config.labelled import LabelledConfig
from dinojax.config.model import ModelConfig
from dinojax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Geometry of the views (DINOv2, section 5; sizes in pixels, scales as shares of the image's area)."""

    global_size: int = 224
    global_scale: ScaleRange = (0.32, 1.0)
    local_size: int = 98
    local_scale: ScaleRange = (0.05, 0.32)
    locals: NonNegativeInt = 8
    horizontal_flip: Share = 0.5
    """Probability; 0 where left and right differ for a reader."""
    vertical_flip: Share = 0.0
    rotate90: Share = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, each as likely; for images without an up and down."""


@dataclasses.dataclass(frozen=True)
class WindowJitterConfig:
    """Changes by chance which stored values become black and white, once for all views of an image; the values
    between them keep all their bits, as 8-bit brightness and contrast could not."""

    probability: Share = 0.0
    centre: Share = 0.1
    """Either way, as a share of the window's width."""
    width: NonNegative = 0.2
    """The width is multiplied by up to 1 + this, or divided by it."""


@dataclasses.dataclass(frozen=True)
class PhotometryConfig:
    """Intensities of the views. Probabilities are those that take effect.

    The published `GaussianBlur(p)` applies with 1 - p, so the published code blurs global view 1 never, view 2 with 0.9
    and local views with 0.5; the paper says 1.0, 0.1 and 0.5.
    """

    jitter: Share = 0.8
    """Probability of the colour jitter; its four operations come in random order."""
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: float = 0.1
    grayscale: Share = 0.2
    blur_global1: Share = 0.0
    blur_global2: Share = 0.9
    blur_local: Share = 0.5
    blur_sigma: PositiveRange = (0.1, 2.0)
    solarize_global2: Share = 0.2


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """iBOT's block masks on the student's global crops."""

    probability: Share = 0.5
    """Share of the global crops that are masked."""
    ratio: ShareRange = (0.1, 0.5)
    """Share of the patches masked in such a crop; equal slices of this range, one slice a crop."""


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """A projection head."""

    prototypes: Annotated[int, Bounds(low=2)] = 65536
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    layers: PositiveInt = 3


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The terms of the objective."""

    centering: Literal["sinkhorn_knopp", "softmax"] = "sinkhorn_knopp"
    student_temperature: Positive = 0.1
    center_momentum: Share = 0.9
    """Of the softmax centering."""
    dino_weight: NonNegative = 1.0
    ibot_weight: NonNegative = 1.0
    """0 leaves out the masks and the term."""
    koleo_weight: NonNegative = 0.1
    koleo_per_group: bool = False
    """Looks for the nearest neighbour in the whole batch, or only inside each of `groups`: the published code sees one
    GPU's images."""
    koleo_eps: Positive = 1e-8
    """Added to the coordinates of the distance; forks for half precision have 1e-4."""


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The teacher is a moving average of the student; its temperature rises over a warm-up."""

    momentum: Share = 0.994
    momentum_end: Share = 1.0
    temperature_start: Positive = 0.04
    temperature: Positive = 0.07
    temperature_warmup_epochs: NonNegative = 30


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with cosine schedules per step, layer-wise decay and clipping per submodule."""

    lr: Positive = 2e-4
    """Base learning rate; see `lr_scaling`."""
    lr_scaling: Literal["sqrt_1024", "none"] = "sqrt_1024"
    """`sqrt_1024`: the peak is lr × sqrt(batch_size / 1024), as published."""
    min_lr: NonNegative = 1e-6
    warmup_epochs: NonNegative = 10
    weight_decay: NonNegative = 0.04
    weight_decay_end: NonNegative = 0.2
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    layer_decay: Positive = 0.9
    patch_embed_lr: NonNegative = 0.2
    """Multiplier of the patch embedding's learning rate, on top of its layer decay."""
    clip: NonNegative = 3.0
    """Largest gradient norm of the backbone and of the head, each by itself; 0 clips nothing."""
    freeze_prototypes_epochs: NonNegative = 1
    """While frozen, the prototypes' learning rate is 0; their moments still advance, as published."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig(LabelledConfig):
    """A k-NN probe of the teacher's class token on labelled images, before the first step and regularly after.

    Every image is classified by its nearest neighbours among those of other patients. Only the training part of a data
    set that is split is used, so that nothing is chosen by test images.
    """

    data: str | None = None
    """A labelled data set of any kind that `finetune` reads; without it there is no probe."""
    every: PositiveInt | None = None
    """Steps between two probes; null: an epoch. The last step is probed too."""
    k: PositiveInt = 20
    images: PositiveInt = 2000
    """At most so many, chosen evenly from the training part."""
    stop_below: NonNegative | None = None
    """Stops the run when the accuracy (0..1) has fallen this far below its start, such as 0.05."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a run counts as collapsed and is stopped. A value that is not finite, or features that are all the same,
    stop it at once, whatever is set here."""

    feature_std: NonNegative = 0.01
    """Collapse of the features: the spread of the teacher's class tokens stays below this; see `health.spread`."""
    target_entropy: NonNegative = 0.02
    """Collapse to uniform targets or to one prototype: the targets' mean entropy stays within so many nats of
    log(prototypes), or that of the mean target of 0."""
    steps: NonNegativeInt = 500
    """How many steps either must last, counted from the end of the learning rate's warm-up; 0 turns both off."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes, one for each machine or GPU, that train one model together."""

    cluster: bool = False
    """Reads the processes from the cluster (SLURM, Open MPI, Kubernetes, Cloud TPU)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where there is no such cluster."""
    processes: int | None = None
    process: NonNegativeInt | None = None
    """Number of this process, from 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(ImagesConfig):
    """Self-supervised pre-training with DINOv2's objective. The same command resumes a run."""

    data: str
    """A folder of images (labels are ignored), a manifest, or a data set of any kind that the README lists."""
    out: str
    """The run's directory."""
    init: str | None = None
    """A model directory to continue from; without it, `model` is trained from random weights."""
    init_heads: Literal["auto", "fresh"] = "auto"
    """`auto` continues with the projection heads in `init`, if there are any; `fresh` starts from new ones."""
    input_channels: PositiveInt | None = None
    """Channels that the model is made to read; null: as the checkpoint. 1 folds an RGB checkpoint: the same features of
    grey images for a third of the input, and colour becomes luminance. Of N others, such as MR sequences, each gets an
    equal share of its weights."""
    head_warmup_steps: NonNegativeInt = 0
    """Steps at the beginning in which the backbone is frozen and only the heads are trained, at the peak learning rate;
    they count among `steps`, and the schedules begin after them. For released weights, which come without heads."""
    positions: Literal["keep", "resample", "resample_plain"] = "keep"
    """`keep` trains the positional embeddings at the size they have, interpolated in every step; `resample` takes them
    once to the grid of the global crops, by the model's own rule; `resample_plain` by size, cubic with a = -0.75,
    without offset or antialiasing."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """A file found unreadable stops the run, or is skipped and listed in `skipped_files.csv`."""
    corpus_hashes: bool = True
    """Keeps hashes of the images' pixels beside the model, by which `finetune` and `evaluate` know test images that it
    has seen; every image is decoded once more at the end."""
    seed: Seed = 0
    batch_size: PositiveInt = 256
    epochs: Positive = 100
    steps_per_epoch: PositiveInt | None = 100
    """Length of an epoch, the unit of all warm-ups; null: the images divided by the batch size."""
    steps: PositiveInt | None = None
    """Length of the run in steps; the schedules and their warm-ups are stretched or squeezed to it."""
    log_every: PositiveInt = 10
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Services that get the metrics too, beside `metrics.jsonl`; each needs its extra, as in `dinojax[tensorboard]`."""
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    """So many of the newest are kept, and the best by the probe."""
    threads: NonNegativeInt = 2
    """Threads that read and crop images, in each worker."""
    workers: NonNegativeInt = 0
    """Processes that read and crop images; 0 reads in this one. They change no result."""
    cache_gib: NonNegative = 2.0
    """Memory in GiB, of each worker, that decoded images are kept in."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; parameters, losses, centring and moving averages are float32. `auto`: bfloat16 on
    accelerators, float32 on CPUs, where bfloat16 is slower."""
    accumulate: PositiveInt = 1
    """Slices of the batch that are differentiated one after the other, to save memory. Sinkhorn-Knopp, centres and
    KoLeo see the whole batch all the same. `groups` must be a multiple of it."""
    fsdp: NonNegativeInt = 1
    """Devices over which parameters and optimizer state are spread; the rest of the devices hold copies. 0: all."""
    loop_blocks: bool = False
    """Compiles the blocks as a loop, where all have the same drop path: for large models, above all with `fsdp`. On a
    CPU it is a fifth slower."""
    check: bool = False
    """Says how everything was read and what would be done, and stops there."""
    accept_changes: str = ""
    """Keys, separated by commas, that may differ from those that the run in `out` began with."""
    groups: PositiveInt = 1
    """Equal slices of the batch in which masked patches are packed and drop path picks its subset: a multiple of the
    number of devices (times `accumulate`) keeps these gathers inside a device, see `dinojax.dino.step`."""
    drop_path: BelowOne = 0.0
    drop_path_uniform: bool = False
    """The same rate in every block, or rising linearly from 0."""
    drop_path_subset: bool = True
    """Rates above 0.1 run a branch on a random subset of the batch only, as published, instead of masking images one by
    one: compute falls with the rate."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    crops: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    window_jitter: WindowJitterConfig = dataclasses.field(default_factory=WindowJitterConfig)
    photometry: PhotometryConfig = dataclasses.field(default_factory=PhotometryConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    """Of the DINO term, and of iBOT's without `ibot_head`."""
    ibot_head: HeadConfig | None = None
    """A separate head for the iBOT term; without it, both terms share one."""
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size % self.groups:
            raise UsageError(f"groups {self.groups} does not divide batch_size {self.batch_size}")
        if self.groups % self.accumulate:
            raise UsageError(f"accumulate {self.accumulate} does not divide groups {self.groups}; set both")
        loss = self.loss
        if not (loss.dino_weight or loss.ibot_weight or loss.koleo_weight):
            raise UsageError("loss.dino_weight, .ibot_weight and .koleo_weight are all 0; set at least one")
        if loss.koleo_weight and self.batch_size // (self.groups if loss.koleo_per_group else 1) < 2:
            where, advice = ("each group", "lower groups") if loss.koleo_per_group else ("a batch", "raise batch_size")
            raise UsageError(f"KoLeo needs two images in {where}; {advice}, or set loss.koleo_weight 0")
