"""A pre-training run put together: `assemble` reads the configuration, and every maker takes the part that it needs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinojax import processes, sharding
from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config.parser import flatten
from dinojax.config.pretrain import CropsConfig, PhotometryConfig, PretrainConfig, ProbeConfig
from dinojax.data import pipeline
from dinojax.data.decode import Headers, check_headers
from dinojax.data.reading import read_records
from dinojax.data.sources import ImageSource
from dinojax.dino.evaluators import Evaluator, every, knn_evaluator
from dinojax.dino.forward import Batch
from dinojax.dino.health import Guard
from dinojax.dino.masking import MaskPlan
from dinojax.dino.modules import check_no_ibot_head, make_backbone, make_projections, resample_positions
from dinojax.dino.state import TrainState, init_state, make_optimizer, make_schedules, split_modules
from dinojax.dino.step import make_train_step
from dinojax.dino.timeline import Timeline, make_timeline
from dinojax.errors import UsageError
from dinojax.models import Preprocessing, VisionTransformer
from dinojax.protocols.probe import Probe
from dinojax.seeds import derive

DeviceBatch = dict[str, jax.Array]
HostBatch = dict[str, np.ndarray]


class Pretraining(NamedTuple):
    """The parts of a run, before its first step or before it resumes."""

    mesh: Mesh
    """What batches and state are spread over."""
    backbone: VisionTransformer
    """As it was before training, with the preprocessing that the trained one is saved with."""
    timeline: Timeline
    state: TrainState
    """Spread over the mesh; before the first step."""
    step: Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]
    """Compiled; destroys the state that it is given."""
    augment: Callable[[DeviceBatch], Batch]
    """The device's half of the augmentation: uint8 views to the normalised ones."""
    source: ImageSource
    headers: Headers
    read_batches: Callable[[int], Iterator[HostBatch]]
    """This process' rows of the endless batches from a step on: uint8 views, masks, places of images in the records."""
    guard: Guard
    evaluators: tuple[Evaluator, ...]
    logged: np.ndarray
    """bool [steps]: after which steps metrics are written."""
    saved: np.ndarray
    """bool [steps]: after which steps the state is saved."""


def assemble(config: PretrainConfig) -> Pretraining:
    """Puts a run together: images, models, schedules, optimizer, step and evaluators."""
    mesh = sharding.make_mesh(config.batch_size, config.fsdp)
    training = ("drop_path", "drop_path_uniform", "drop_path_subset", "loop_blocks")
    overrides = {name: getattr(config, name) for name in training}
    backbone = make_backbone(config.init, config.model, overrides, derive(config.seed, "backbone"))
    if config.init is not None and config.positions != "keep":
        plain = config.positions == "resample_plain"
        backbone = resample_positions(backbone, config.crops.global_size, plain)
    patch_size = backbone.arguments.patch_size
    check_crops(config.crops, patch_size)
    source, headers = open_source(
        config.data, config.data_root, backbone.channels, config.on_bad_file, config.cache_gib, config.batch_size
    )
    check_agreement(flatten(config), source.records.paths.tolist())
    timeline = make_timeline(
        len(source),
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps=config.steps,
        steps_per_epoch=config.steps_per_epoch,
        head_warmup=config.head_warmup_steps,
        optim=config.optim,
        teacher=config.teacher,
    )
    steps = timeline.steps
    evaluators = make_evaluators(
        config.probe, backbone, timeline, config.crops.global_size, config.on_bad_file, config.threads
    )
    logged = np.any([every(steps, config.log_every), *(evaluator.due for evaluator in evaluators)], axis=0)

    ibot_head = config.ibot_head if config.loss.ibot_weight else None  # without the term it would have no use
    resumed = config.init if config.init_heads == "auto" else None
    if resumed and config.loss.ibot_weight and ibot_head is None:
        check_no_ibot_head(resumed)
    forms = {"dino_head": config.head} | ({"ibot_head": ibot_head} if ibot_head else {})
    graphs, params = split_modules(backbone, make_projections(forms, backbone.width, resumed, config.seed))
    side = config.crops.global_size // patch_size
    masking = config.masking
    masks = MaskPlan(2 * config.batch_size, (side, side), masking.probability, masking.ratio, config.groups)
    schedules = make_schedules(timeline, config.batch_size, config.optim, config.teacher)
    optimizer = make_optimizer(params, backbone.arguments.depth, schedules, timeline, config.optim)
    train_step = make_train_step(
        graphs,
        optimizer,
        schedules,
        config.loss,
        masks.bound,
        groups=config.groups,
        accumulate=config.accumulate,
        seed=derive(config.seed, "drop path"),
        dtype=compute_dtype(config.precision),
        logged=logged,
    )
    augment = make_augment(
        config.photometry, backbone.preprocessing, backbone.channels, derive(config.seed, "intensities")
    )
    state = sharding.put_state(mesh, init_state(graphs, params, optimizer))
    placed = sharding.state_sharding(mesh, state), sharding.replicated(mesh)

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        # Any process may be asked to stop; all of them see it after the same step.
        stop = batch["stop"].max()
        state, metrics = train_step(state, augment(batch))
        return state, metrics | {"stop": stop}

    def read_batches(start: int) -> Iterator[HostBatch]:
        part = jax.process_index(), jax.process_count()
        return pipeline.training_batches(
            source,
            partial(multicrop, config=config.crops),
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            threads=config.threads,
            workers=config.workers,
            part=part,
            per_batch=DrawMasks(masks, derive(config.seed, "masks"), part) if config.loss.ibot_weight else None,
        )

    return Pretraining(
        mesh=mesh,
        backbone=backbone,
        timeline=timeline,
        state=state,
        step=jax.jit(step, donate_argnums=0, out_shardings=placed),
        augment=augment,
        source=source,
        headers=headers,
        read_batches=read_batches,
        guard=Guard(config.guard, config.head.prototypes, timeline.warmup),
        evaluators=evaluators,
        logged=logged,
        saved=every(steps, config.checkpoint_every),
    )


def compute_dtype(precision: str) -> Any:
    """dtype of the matrix products: what is asked for, or what suits the device."""
    if precision == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def check_crops(crops: CropsConfig, patch_size: int) -> None:
    """Refuses crops that the backbone's patches do not divide."""
    for name, size in (("global", crops.global_size), ("local", crops.local_size)):
        if size <= 0 or size % patch_size:
            raise UsageError(f"crops.{name}_size {size} is not a multiple of the patch size, {patch_size}")


def open_source(
    data: str,
    data_root: str | None,
    channels: int,
    on_bad_file: Literal["stop", "skip"],
    cache_gib: float,
    batch_size: int,
) -> tuple[ImageSource, Headers]:
    """The images, after a look at their headers; grey ones keep one channel until they are on the device.

    Raises:
      UsageError: they are fewer than `batch_size`; or there are none.
    """
    records = read_records(data, labelled=False, data_root=data_root)
    print(records.summary())
    records, headers = check_headers(records, on_bad_file=on_bad_file)
    print(headers.summary())
    if len(records) < batch_size:
        raise UsageError(f"batch_size {batch_size} is more than the {len(records)} images of {data}; lower it")
    channels = 1 if channels == 1 else headers.channels
    return ImageSource(records, channels=channels, on_bad_file=on_bad_file, cache_gib=cache_gib), headers


def check_agreement(settings: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Compares the flat configuration and the images of several processes; raises as `processes.check_agreement`."""
    own = ("distributed", "threads", "workers", "cache_gib")
    common = {key: value for key, value in settings.items() if key.split(".")[0] not in own}
    processes.check_agreement({"configuration": json.dumps(common), "images": json.dumps(list(paths))})


def make_evaluators(
    probe: ProbeConfig,
    backbone: VisionTransformer,
    timeline: Timeline,
    size: int,
    on_bad_file: Literal["stop", "skip"],
    threads: int,
) -> tuple[Evaluator, ...]:
    """What measures the teacher: the k-NN probe, where its section names a data set.

    Args:
      probe: the section.
      backbone: of the kind to be measured.
      timeline: of the run.
      size: side in pixels that images are resized to.
      on_bad_file: of the probe's files.
      threads: that decode them.
    """
    if probe.data is None:
        return ()
    made = Probe(
        backbone,
        probe.data,
        size=size,
        k=probe.k,
        images=probe.images,
        data_root=probe.data_root,
        group_regex=probe.group_regex,
        on_bad_file=on_bad_file,
        threads=threads,
    )
    print(made.summary)
    due = every(timeline.steps, probe.every or timeline.steps_per_epoch)
    return (knn_evaluator(made, due, probe.stop_below),)


class DrawMasks(NamedTuple):
    """Adds iBOT's masks to a batch; drawn for the whole batch, of which each process keeps its rows."""

    plan: MaskPlan
    seed: int
    part: tuple[int, int]
    """Number of this process, and how many there are."""

    def __call__(self, batch: HostBatch, step: int) -> HostBatch:
        process, processes = self.part
        masks = self.plan.draw(np.random.default_rng((self.seed, step)))
        return batch | {"masks": masks.reshape(processes, -1, 2, masks.shape[1])[process]}


def make_augment(
    photometry: PhotometryConfig, preprocessing: Preprocessing, channels: int, seed: int
) -> Callable[[DeviceBatch], Batch]:
    """The device's half of the augmentation: uint8 views to the normalised ones that a step reads."""

    def augment(batch: DeviceBatch) -> Batch:
        mean, std = preprocessing.mean, preprocessing.std
        views = augment_views(batch, jax.random.key(seed), photometry, mean, std, channels)
        return {"globals": views[0], "locals": views[1], "masks": batch.get("masks")}

    return augment
