"""A pre-training run put together: `assemble` reads the configuration, and every maker takes the part that it needs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dinojax import costs, sharding
from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config.pretrain import HeadConfig, PhotometryConfig, PretrainConfig
from dinojax.data import pipeline
from dinojax.data.facts import Facts, render
from dinojax.data.headers import Headers
from dinojax.data.sources import ImageSource, jitter_window
from dinojax.dino.corpus import open_source
from dinojax.dino.evaluators import Evaluator, every, knn_evaluator
from dinojax.dino.facts import machine_facts, run_facts
from dinojax.dino.forward import Batch
from dinojax.dino.health import Guard
from dinojax.dino.masking import MaskPlan
from dinojax.dino.memory import Need, check_memory, compiled_need, lower_bound, state_bytes
from dinojax.dino.modules import make_projections, resample_positions
from dinojax.dino.state import Timeline, TrainState, init_state, make_optimizer, make_schedules, split_modules
from dinojax.dino.step import make_train_step
from dinojax.errors import UsageError
from dinojax.models import Backbone, VisionTransformer, as_transformer, create_transformer
from dinojax.models.channels import with_input_channels
from dinojax.models.preprocessing import model_input
from dinojax.models.store import head_left_out, load_transformer
from dinojax.protocols.probe import Probe
from dinojax.seeds import derive

DeviceBatch = dict[str, jax.Array]


class Pretraining(NamedTuple):
    """The parts of a run, before its first step or before it resumes."""

    mesh: Mesh
    """What batches and state are spread over."""
    backbone: VisionTransformer
    """Gives form and preprocessing; its arrays become part of the state, which the step destroys."""
    timeline: Timeline
    state: TrainState
    """Spread over the mesh; before the first step."""
    step: Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]
    """Destroys the state that it is given; see `compile_step`."""
    free_gib: float
    """Memory that was free before the run had any."""
    augment: Callable[[DeviceBatch], Batch]
    """The device's half of the augmentation: uint8 views to the normalised ones."""
    source: ImageSource
    headers: Headers
    facts: Facts
    """How everything was understood, as far as it does not depend on the machine."""
    read_batches: Callable[[int], Iterator[pipeline.Batch]]
    """Yields this process' rows of every batch from a step on: uint8 views, masks, places of images in the records."""
    guard: Guard
    evaluators: tuple[Evaluator, ...]
    logged: np.ndarray
    """bool [steps]: after which steps metrics are written."""
    saved: np.ndarray
    """bool [steps]: after which steps the state is saved."""


def assemble(config: PretrainConfig, resuming: bool = False) -> Pretraining:
    """Puts a run together: images, models, schedules, optimizer, step and evaluators; prints the block of facts.

    Args:
      config: of the run.
      resuming: whether the state will be replaced by a saved one.
    """
    mesh, free = sharding.make_mesh(config.batch_size, config.fsdp), costs.memory_gib()
    backbone = make_backbone(config)
    source, headers = open_source(config, backbone)
    timeline = make_timeline(config, len(source))
    evaluators, probe = make_evaluators(config, backbone, timeline)
    logged = np.any([every(timeline.steps, config.log_every), *(evaluator.due for evaluator in evaluators)], axis=0)

    forms: dict[str, HeadConfig | None] = {"dino_head": config.head}
    if config.loss.ibot_weight:  # without the term its head would have no use
        forms["ibot_head"] = config.ibot_head
    resumed = config.init if config.init_heads == "auto" else None
    projections, heads = make_projections(forms, backbone.width, resumed, config.seed)
    graphs, params = split_modules({"backbone": backbone, **projections})
    side, masking = config.crops.global_size // backbone.arguments.patch_size, config.masking
    masks = MaskPlan(2 * config.batch_size, (side, side), masking.probability, masking.ratio, config.groups)
    schedules = make_schedules(timeline, config.batch_size, config.optim, config.teacher)
    optimizer = make_optimizer(params, backbone.arguments.depth, schedules, timeline, config.optim)
    automatic = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype = jnp.dtype(automatic if config.precision == "auto" else config.precision)
    heads = {} if resuming else heads
    facts = run_facts(config, source.records, headers, backbone, heads, probe, timeline, dtype)
    need = least_memory(config, backbone, state_bytes(params), dtype)
    if jax.process_index() == 0:
        print(render(facts | machine_facts(resuming, need.total)), flush=True)
    check_memory(need, free, config.batch_size, batch_multiple(config), least=True)
    train_step = make_train_step(
        graphs,
        optimizer,
        schedules,
        config.loss,
        masks.bound,
        groups=config.groups,
        accumulate=config.accumulate,
        seed=derive(config.seed, "drop path"),
        dtype=dtype,
        logged=logged,
    )
    state = sharding.put_state(mesh, init_state(params, optimizer))
    placed = sharding.state_sharding(mesh, state), sharding.replicated(mesh)

    def augment(batch: DeviceBatch) -> Batch:
        key = jax.random.key(derive(config.seed, "intensities"))
        return input_views(batch, key, config.photometry, backbone, headers.stacked)

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        # Any process may be asked to stop; all of them see it after the same step.
        stop = batch["stop"].max()
        state, metrics = train_step(state, augment(batch))
        return state, metrics | {"stop": stop}

    def views(element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if source.windowed:
            element = jitter_window(element, rng, config.window_jitter)
        return multicrop(element, rng, config.crops)

    def read_batches(start: int) -> Iterator[pipeline.Batch]:
        part = jax.process_index(), jax.process_count()
        masked = partial(add_masks, masks, derive(config.seed, "masks"), part) if config.loss.ibot_weight else None
        return pipeline.training_batches(
            source,
            views,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            threads=config.threads,
            workers=config.workers,
            part=part,
            per_batch=masked,
        )

    return Pretraining(
        mesh=mesh,
        backbone=backbone,
        timeline=timeline,
        state=state,
        free_gib=free,
        step=jax.jit(step, donate_argnums=0, out_shardings=placed),
        augment=augment,
        source=source,
        headers=headers,
        facts=facts,
        read_batches=read_batches,
        guard=Guard(config.guard, config.head.prototypes, timeline.warmup),
        evaluators=evaluators,
        logged=logged,
        saved=every(timeline.steps, config.checkpoint_every),
    )


def input_views(
    batch: Mapping[str, jax.Array], key: jax.Array, photometry: PhotometryConfig, model: Backbone, stacked: bool = False
) -> Batch:
    """The views of a batch as the model reads them, exactly as `preprocess` would make them once augmented.

    Args:
      batch, key, photometry, stacked: see `augment_views`; iBOT's `masks` are passed on, where there are any.
      model: gives channels, their order, mean and standard deviation.
    """
    views = augment_views(batch, key, photometry, stacked)
    return {
        "globals": model_input(views[0], model),
        "locals": model_input(views[1], model),
        "masks": batch.get("masks"),
    }


def compile_step(run: Pretraining, config: PretrainConfig) -> Pretraining:
    """The run with its step compiled, which is what it then takes; prints how much memory a step needs.

    Raises:
      UsageError: there is not as much.
    """
    print("compiling the training step", flush=True)
    lowered = run.step.lower(run.state, batch_shapes(run, config))  # type: ignore[attr-defined]
    compiled, devices = lowered.compile(), jax.local_device_count()
    state = devices * state_bytes(run.state.student) / run.mesh.shape["fsdp"]
    if need := compiled_need(compiled, state, devices):
        told = check_memory(need, run.free_gib, config.batch_size, batch_multiple(config))
        print(f"memory: {told}", flush=True)
    return run._replace(step=compiled)


def batch_shapes(run: Pretraining, config: PretrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch on the devices is like, found without reading one."""
    image = np.zeros((8, 8, run.source.channels), np.uint8)
    element = multicrop({"image": image, "index": np.int32(0)}, np.random.default_rng(0), config.crops)
    element |= {"place": np.uint32(0), "stop": np.bool_(False)}
    if config.loss.ibot_weight:
        side = config.crops.global_size // run.backbone.arguments.patch_size
        element["masks"] = np.zeros((2, side**2), bool)
    spread = sharding.batch_sharding(run.mesh)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *np.shape(value)), value.dtype, sharding=spread)
        for name, value in element.items()
    }


def least_memory(config: PretrainConfig, backbone: VisionTransformer, state: float, dtype: np.dtype) -> Need:
    """A bound of what the step needs on the devices of this process, from a state of so many bytes."""
    here, crops = jax.local_device_count(), config.crops
    images = config.batch_size * here / jax.device_count() / config.accumulate
    sizes = ((2, crops.global_size), (crops.locals, crops.local_size))
    share = here / (config.fsdp or jax.device_count())
    return lower_bound(share * state, backbone.arguments, images, sizes, dtype.itemsize)


def batch_multiple(config: PretrainConfig) -> int:
    """What a batch size of this run has to be a multiple of."""
    return math.lcm(jax.device_count(), config.groups)


def make_backbone(config: PretrainConfig) -> VisionTransformer:
    """The model of `init`, or one with random weights, with the channels that this run uses.

    Raises:
      UsageError: there is no such model, its patches do not divide the crops, or it cannot be made to read so many
        channels.
    """
    training = ("drop_path", "drop_path_uniform", "drop_path_subset", "loop_blocks")
    given = {name: getattr(config, name) for name in training}
    if config.init is not None:
        if note := head_left_out(config.init):
            print(note)
        backbone = load_transformer(config.init, **given)
        if config.positions != "keep":
            resample_positions(backbone, config.crops.global_size, plain=config.positions == "resample_plain")
    else:
        given |= {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
        backbone = create_transformer(rngs=nnx.Rngs(derive(config.seed, "backbone")), **given)
    patch = backbone.arguments.patch_size
    sizes = {"global": config.crops.global_size} | ({"local": config.crops.local_size} if config.crops.locals else {})
    for name, size in sizes.items():
        if size <= 0 or size % patch:
            raise UsageError(f"crops.{name}_size {size} is not a multiple of the patch size, {patch}")
    return as_transformer(with_input_channels(backbone, config.input_channels), "patches to mask")


def make_timeline(config: PretrainConfig, images: int) -> Timeline:
    """Lays a run on so many images out in steps: the one place where its epochs are converted.

    Raises:
      UsageError: the epochs make no step, or the head's warm-up leaves none.
    """
    each = config.steps_per_epoch or images // config.batch_size
    steps, head_warmup = config.steps or round(config.epochs * each), config.head_warmup_steps
    if steps < 1:
        raise UsageError(f"epochs {config.epochs:g} make no step; raise them")
    if head_warmup >= steps:
        raise UsageError(f"head_warmup_steps {head_warmup} leave none of the {steps} steps to the backbone; lower them")

    def in_steps(epochs: float) -> int:
        return round(epochs * (steps - head_warmup) / config.epochs)

    return Timeline(
        steps=steps,
        steps_per_epoch=each,
        head_warmup=head_warmup,
        lr_warmup=in_steps(config.optim.warmup_epochs),
        temperature_warmup=in_steps(config.teacher.temperature_warmup_epochs),
        frozen_prototypes=in_steps(config.optim.freeze_prototypes_epochs),
    )


def make_evaluators(config: PretrainConfig, model: Backbone, timeline: Timeline) -> tuple[tuple[Evaluator, ...], str]:
    """What measures the teacher, and a line on it: the k-NN probe, where its section names a data set."""
    section = config.probe
    if section.data is None:
        return (), ""
    size, threads = config.crops.global_size, config.threads
    rules = model.preprocessing.intensity
    probe = Probe(model, section, size=size, on_bad_file=config.on_bad_file, threads=threads, intensity=rules)
    due = every(timeline.steps, section.every or timeline.steps_per_epoch)
    return (knn_evaluator(probe, due, section.stop_below),), probe.summary


def add_masks(plan: MaskPlan, seed: int, part: tuple[int, int], batch: pipeline.Batch, step: int) -> pipeline.Batch:
    """Adds iBOT's masks, drawn for the whole batch, of which each process (its number, and how many) keeps its rows."""
    masks = plan.draw(np.random.default_rng((seed, step)))
    return batch | {"masks": masks.reshape(part[1], -1, 2, masks.shape[1])[part[0]]}
