"""The parts that a pre-training run is put together from, each made from the run's configuration."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh

from dinojax import processes, sharding, tree
from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config.parser import flatten
from dinojax.config.pretrain import HeadConfig, PretrainConfig
from dinojax.data import pipeline
from dinojax.data.decode import Headers, check_headers
from dinojax.data.records import read_records
from dinojax.data.sources import ImageSource
from dinojax.dino import masking
from dinojax.dino.state import Graphs, Schedules, TrainState, init_state, make_optimizer, make_schedules, split_modules
from dinojax.dino.step import Batch, make_train_step
from dinojax.errors import UsageError
from dinojax.models import ARGUMENTS, ResNetArguments, VisionTransformer, create_model, positions
from dinojax.models.heads import DINOHead
from dinojax.models.store import load_vit, read_params, write_model
from dinojax.protocols.probe import Probe
from dinojax.seeds import derive

DeviceBatch = dict[str, jax.Array]


class Run(NamedTuple):
    """A run before its first step, or before it goes on."""

    backbone: VisionTransformer
    graphs: Graphs
    schedules: Schedules
    state: TrainState
    """Spread over the mesh; before the first step."""
    step: Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]
    """Compiled; destroys the state that it is given."""
    augment: Callable[[DeviceBatch], Batch]
    """The device's half of the augmentation: uint8 views to the normalised ones."""


def prepare(config: PretrainConfig, mesh: Mesh, backbone: VisionTransformer, steps: int, logged: np.ndarray) -> Run:
    """Puts models, schedules, optimizer and step together.

    Args:
      config: of the run.
      mesh: that batches and state are spread over.
      backbone: from `make_backbone`.
      steps: length of the run.
      logged: bool [steps]; the steps whose metrics are written.
    """
    warmup = config.head_warmup_steps
    if warmup >= steps:
        raise UsageError(f"head_warmup_steps {warmup} leave none of the {steps} steps to the backbone; lower them")
    graphs, params = split_modules(backbone, make_heads(config, backbone.width))
    schedules = make_schedules(steps, config.epochs, config.batch_size, config.optim, config.teacher, warmup)
    frozen_steps = round(config.optim.freeze_prototypes_epochs * (steps - warmup) / config.epochs)
    optimizer = make_optimizer(params, backbone.arguments.depth, schedules, config.optim, frozen_steps, warmup)
    train_step = make_train_step(
        graphs,
        optimizer,
        schedules,
        config.loss,
        masked_bound(config),
        groups=config.groups,
        accumulate=config.accumulate,
        seed=derive(config.seed, "drop path"),
        dtype=compute_dtype(config.precision),
        logged=logged,
    )
    augment = make_augment(config, backbone)

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        # Any process may ask to stop; all of them see it after the same step.
        stop = batch["stop"].max()
        state, metrics = train_step(state, augment(batch))
        return state, metrics | {"stop": stop}

    state = sharding.put_state(mesh, init_state(graphs, params, optimizer))
    placed = sharding.state_sharding(mesh, state), sharding.replicated(mesh)
    return Run(backbone, graphs, schedules, state, jax.jit(step, donate_argnums=0, out_shardings=placed), augment)


def make_backbone(config: PretrainConfig) -> VisionTransformer:
    """The model of `init`, or one with random weights, with this run's drop path and positional embeddings."""
    training = {
        "drop_path": config.drop_path,
        "drop_path_uniform": config.drop_path_uniform,
        "drop_path_subset": config.drop_path_subset,
        "loop_blocks": config.loop_blocks,
    }
    if config.init is None:
        if isinstance(ARGUMENTS.get(config.model.name), ResNetArguments):
            raise UsageError(f"model.name {config.model.name}: pre-training needs a vision transformer")
        given = {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
        made = create_model(rngs=nnx.Rngs(derive(config.seed, "backbone")), **given, **training)
        assert isinstance(made, VisionTransformer)
        return made
    model = load_vit(config.init, **training)
    if config.positions == "keep":
        return model
    return resample_positions(model, config.crops.global_size, plain=config.positions == "resample_plain")


def resample_positions(model: VisionTransformer, image_size: int, plain: bool) -> VisionTransformer:
    """The model with positional embeddings for another image size.

    Args:
      model: is left as it is.
      image_size: side in pixels.
      plain: by size, without offset or antialiasing, rather than by the model's own rule.
    """
    patch = model.arguments.patch_size
    side, grid = model.arguments.image_size // patch, image_size // patch
    table = rearrange(model.pos_embed[...][0, 1:], "(h w) d -> h w d", h=side)
    antialias = model.arguments.registers > 0 and not plain
    resampled = positions.interpolate(table, (grid, grid), antialias, offset=0.0 if plain else 0.1)
    arguments = dataclasses.replace(model.arguments, image_size=grid * patch)
    graph, _ = tree.split(nnx.eval_shape(lambda: VisionTransformer(model.name, arguments, nnx.Rngs(0))))
    _, params = tree.split(model)
    first = params["pos_embed"][:, :1]
    params["pos_embed"] = jnp.concatenate([first, rearrange(resampled, "h w d -> 1 (h w) d")], axis=1)
    made: VisionTransformer = tree.merge(graph, params)
    made.preprocessing = model.preprocessing
    return made


def make_heads(config: PretrainConfig, width: int) -> dict[str, DINOHead]:
    """The projection heads: those that lie in `init`, or new ones.

    Raises:
      UsageError: the heads in `init` are of another form than the configuration's.
    """
    wanted = {"dino_head": config.head}
    if config.init is not None and config.init_heads == "auto" and config.ibot_head is None and config.loss.ibot_weight:
        apart = Path(config.init) / "ibot_head.safetensors"
        if apart.exists():
            raise UsageError(
                f"{apart} is a head of iBOT's own; set ibot_head.* to its form to go on with it, "
                "or begin new heads with --init_heads fresh"
            )
    # Without the term, a head of its own would have no gradient and no use.
    if config.ibot_head is not None and config.loss.ibot_weight:
        wanted["ibot_head"] = config.ibot_head
    return {name: _make_head(config, name, head, width) for name, head in wanted.items()}


def _make_head(config: PretrainConfig, name: str, form: HeadConfig, width: int) -> DINOHead:
    made = DINOHead(width, **dataclasses.asdict(form), rngs=nnx.Rngs(derive(config.seed, name)))
    if config.init is None or config.init_heads == "fresh" or not (Path(config.init) / f"{name}.safetensors").exists():
        print(f"{name}: new, with random weights")
        return made
    graph, expected = tree.split(made)
    params = read_params(config.init, name)
    if differences := tree.difference(expected, params):
        section = "head" if name == "dino_head" else name
        raise UsageError(
            f"{config.init}/{name}.safetensors is of another form than {section} says ({differences[0]}); "
            f"set {section}.* to it, or begin a new one with --init_heads fresh"
        )
    print(f"{name}: goes on with that of {config.init}")
    return tree.merge(graph, {path: jnp.asarray(array) for path, array in params.items()})


def compute_dtype(precision: str) -> Any:
    """dtype of the matrix products: what is asked for, or what suits the device."""
    if precision == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def open_source(config: PretrainConfig, channels: int) -> tuple[ImageSource, Headers]:
    """The images, after a look at their headers; grey ones keep one channel until they are on the device."""
    for name, size in (("global", config.crops.global_size), ("local", config.crops.local_size)):
        if size <= 0 or size % 14:
            raise UsageError(f"crops.{name}_size {size} is not a multiple of the patch size, 14")
    records = read_records(config.data, labelled=False, data_root=config.data_root)
    print(records.summary())
    records, headers = check_headers(records, on_bad_file=config.on_bad_file)
    print(headers.summary())
    source = ImageSource(
        records,
        channels=1 if channels == 1 else headers.channels,
        on_bad_file=config.on_bad_file,
        cache_gib=config.cache_gib,
    )
    return source, headers


def check_agreement(config: PretrainConfig, source: ImageSource) -> None:
    """Compares configuration and images of several processes; raises as `processes.check_agreement`."""
    own = ("distributed", "threads", "workers", "cache_gib")
    settings = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in own}
    images = json.dumps(source.records.paths.tolist())
    processes.check_agreement({"configuration": json.dumps(settings), "images": images})


def make_probe(config: PretrainConfig, backbone: VisionTransformer) -> Probe | None:
    """The k-NN probe, where the configuration names its images."""
    probe = config.probe
    if probe.data is None:
        return None
    made = Probe(
        backbone,
        probe.data,
        size=config.crops.global_size,
        k=probe.k,
        images=probe.images,
        data_root=probe.data_root,
        group_regex=probe.group_regex,
        on_bad_file=config.on_bad_file,
        threads=config.threads,
    )
    print(made.summary)
    return made


def warmup_steps(config: PretrainConfig, run: Run) -> int:
    """Steps until backbone and heads are trained at the peak learning rate."""
    return config.head_warmup_steps + int(np.argmax(run.schedules.lr[config.head_warmup_steps :]))


def epoch_steps(config: PretrainConfig, images: int) -> int:
    """Steps of an epoch."""
    if images < config.batch_size:
        raise UsageError(f"batch_size {config.batch_size} is more than the {images} images of {config.data}; lower it")
    return config.steps_per_epoch or images // config.batch_size


def total_steps(config: PretrainConfig, images: int) -> int:
    """Length of the run in steps."""
    each = epoch_steps(config, images)
    steps = config.steps or round(config.epochs * each)
    if steps < 1:
        raise UsageError(f"epochs {config.epochs:g} make no step; raise them")
    return steps


def masked_bound(config: PretrainConfig) -> int:
    """The most masked patches that a group of the batch can have."""
    height, width = _grid(config)
    masks = config.masking
    return masking.bound(2 * config.batch_size, height * width, masks.probability, masks.ratio, config.groups)


class DrawMasks(NamedTuple):
    """Adds iBOT's masks to a batch; drawn for the whole batch, of which each process keeps its rows."""

    config: PretrainConfig
    part: tuple[int, int]

    def __call__(self, batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        config, (process, processes) = self.config, self.part
        rng = np.random.default_rng((derive(config.seed, "masks"), step))
        settings = (config.masking.probability, config.masking.ratio, config.groups)
        masks = masking.draw(rng, 2 * config.batch_size, _grid(config), *settings)
        rows = masks.reshape(processes, config.batch_size // processes, 2, -1)[process]
        return batch | {"masks": rows}


def read_batches(
    config: PretrainConfig, source: ImageSource, start: int, part: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on: uint8 views, masks, and the images' places in the sequence.

    Args:
      config: of the run.
      source: the images.
      start: steps taken before.
      part: number of this process and how many there are; it reads its rows of each batch.
    """
    return pipeline.training_batches(
        source,
        partial(multicrop, config=config.crops),
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        threads=config.threads,
        workers=config.workers,
        part=part,
        per_batch=DrawMasks(config, part) if config.loss.ibot_weight else None,
    )


def make_augment(config: PretrainConfig, backbone: VisionTransformer) -> Callable[[DeviceBatch], Batch]:
    """The device's half of the augmentation: uint8 views to the normalised ones that a step reads."""
    mean, std = backbone.preprocessing.mean, backbone.preprocessing.std
    seed = derive(config.seed, "intensities")

    def augment(batch: DeviceBatch) -> Batch:
        views = augment_views(batch, jax.random.key(seed), config.photometry, mean, std, backbone.channels)
        return {"globals": views[0], "locals": views[1], "masks": batch.get("masks")}

    return augment


def save_teacher(run: Run, params: tree.Params, directory: Path, config: PretrainConfig, step: int) -> None:
    """Writes a teacher as a model directory: its backbone, and its heads for a later run to go on with.

    Args:
      run: that it belongs to.
      params: the teacher's, whole, on one device.
      directory: where to; a model that is there is replaced.
      config: of the run.
      step: steps that it has been trained for.
    """
    graph, _ = tree.split(run.backbone)
    model: VisionTransformer = tree.merge(graph, tree.subtree("backbone", params))
    write_model(
        directory,
        model.name,
        model.arguments,
        tree.subtree("backbone", params),
        dataclasses.replace(run.backbone.preprocessing, size=config.crops.global_size),
        source={"run": Path(config.out).name, "step": str(step)},
        extra={name: tree.subtree(name, params) for name in run.graphs.heads},
        overwrite=True,
    )


def _grid(config: PretrainConfig) -> tuple[int, int]:
    side = config.crops.global_size // 14
    return side, side
