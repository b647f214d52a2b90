"""The parts that a pre-training run is put together from, each made from the run's configuration."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx

from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.config import PretrainConfig
from dinojax.data import pipeline
from dinojax.data.sources import Headers, ImageSource, check_headers, read_records
from dinojax.dino import masking
from dinojax.dino import step as dino
from dinojax.errors import UsageError
from dinojax.models import VisionTransformer, create_model
from dinojax.models.heads import DINOHead
from dinojax.models.store import load_model


def make_backbone(config: PretrainConfig) -> VisionTransformer:
    """The model of `init`, or one with random weights, with this run's drop path."""
    training = {
        "drop_path": config.drop_path,
        "drop_path_uniform": config.drop_path_uniform,
        "groups": config.groups,
    }
    if config.init is not None:
        return load_model(config.init, **training)
    given = {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
    return create_model(rngs=nnx.Rngs(config.seed), **given, **training)


def open_source(config: PretrainConfig, channels: int) -> tuple[ImageSource, Headers]:
    """The images, after a look at their headers; grey ones keep one channel until they are on the device."""
    for name, size in (("global", config.crops.global_size), ("local", config.crops.local_size)):
        if size % 14:
            raise UsageError(f"crops.{name}_size {size} is not a multiple of the patch size, 14")
    records = read_records(config.data, labelled=False, data_root=config.data_root)
    print(records.summary())
    records, headers = check_headers(records, on_bad_file=config.on_bad_file)
    print(headers.summary())
    source = ImageSource(records, channels=1 if channels == 1 else headers.channels, on_bad_file=config.on_bad_file)
    return source, headers


def total_steps(config: PretrainConfig, images: int) -> int:
    """Length of the run in steps."""
    if images < config.batch_size:
        raise UsageError(f"batch_size {config.batch_size} is more than the {images} images of {config.data}; lower it")
    steps = config.steps or round(config.epochs * (config.steps_per_epoch or images // config.batch_size))
    if steps < 1:
        raise UsageError(f"epochs {config.epochs:g} make no step; raise them")
    return steps


def make_head(config: PretrainConfig, width: int) -> DINOHead:
    """A projection head with random weights of its own."""
    return DINOHead(width, **dataclasses.asdict(config.head), rngs=nnx.Rngs(config.seed + 1))


def masked_bound(config: PretrainConfig) -> int:
    """The most masked patches that a group of the batch can have."""
    height, width = _grid(config)
    masks = config.masking
    return masking.bound(2 * config.batch_size, height * width, masks.probability, masks.ratio, config.groups)


def read_batches(config: PretrainConfig, source: ImageSource, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on: uint8 views, masks, and the images' places in the sequence."""

    def add_masks(batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((config.seed, step, 1))  # a stream apart from those of the images
        settings = (config.masking.probability, config.masking.ratio, config.groups)
        masks = masking.draw(rng, 2 * config.batch_size, _grid(config), *settings)
        return batch | {"masks": masks.reshape(config.batch_size, 2, -1)}

    return pipeline.training_batches(
        source,
        lambda element, rng: multicrop(element, rng, config.crops),
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        threads=config.threads,
        per_batch=add_masks if config.loss.ibot_weight else None,
    )


def make_augment(config: PretrainConfig, backbone: VisionTransformer) -> Callable[[dict[str, jax.Array]], dino.Batch]:
    """The device's half of the augmentation: uint8 views to the normalised ones that a step reads."""
    mean, std = backbone.preprocessing.mean, backbone.preprocessing.std

    def augment(batch: dict[str, jax.Array]) -> dino.Batch:
        key = jax.random.key(config.seed)
        views = augment_views(batch, key, config.photometry, mean, std, backbone.channels)
        return {"globals": views[0], "locals": views[1], "masks": batch.get("masks")}

    return augment


def _grid(config: PretrainConfig) -> tuple[int, int]:
    side = config.crops.global_size // 14
    return side, side
