"""The presets of pre-training: their keys, sources, schedules and parameter groups, against figures stated here."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dinojax
from dinojax import tree
from dinojax.config import parser as configuration
from dinojax.config.pretrain import PretrainConfig
from dinojax.dino.assembly import make_timeline
from dinojax.dino.state import Schedules, Timeline, make_optimizer, make_schedules
from dinojax.models.heads import DINOHead
from dinojax.tree import Params

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SOURCED = ("dinov2_vits14", "dinov2_vitl14", "dinobloom", "histopathology")


class Recipe(NamedTuple):
    """What a preset's run should be, worked out by hand; lengths in steps."""

    steps: int
    batch_size: int
    peak: float
    warmup: int
    weight_decay: tuple[float, float]
    momentum: tuple[float, float]
    temperature: tuple[float, float]
    temperature_warmup: int
    frozen_prototypes: int
    images: int = 10_000
    """Of the data set; they count where an epoch is a pass over it."""
    head_warmup: int = 0
    """Steps of the heads alone, at the peak rate; the other lengths begin after them."""


# Peaks: 4e-3·√2, 2e-4·√3, 2e-4·√1.1875, and 2e-4 / 2 for a quarter of 1,024 images.
RECIPES = {
    "dinov2_vits14": Recipe(
        125_000, 2048, 5.656854249492381e-3, 12_500, (0.04, 0.4), (0.992, 1.0), (0.04, 0.07), 37_500, 1250
    ),
    "dinov2_vitl14": Recipe(
        625_000, 3072, 3.4641016151377546e-4, 100_000, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 37_500, 1250
    ),
    "dinobloom": Recipe(
        100_000, 1216, 2.179449471770337e-4, 10_000, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 15_000, 500
    ),
    "histopathology": Recipe(10_000, 256, 1e-4, 1000, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 3000, 100),
    "medidino_code": Recipe(10_000, 256, 1e-4, 1000, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 3000, 100),
    "medidino_paper": Recipe(20_000, 256, 1e-4, 1000, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 3000, 100),
    # After the heads' warm-up of 500 steps and of 10, lengths are squeezed to the steps that are left.
    "continue_small": Recipe(5000, 64, 5e-5, 450, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 1350, 90, head_warmup=500),
    "trial_cpu": Recipe(30, 8, 1.7677669529663689e-5, 7, (0.04, 0.2), (0.994, 1.0), (0.04, 0.07), 7, 7, head_warmup=10),
    "laptop": Recipe(1240, 32, 5e-4, 78, (0.04, 0.04), (0.94, 1.0), (0.02, 0.02), 0, 0, images=1000),
}


def read(preset: str) -> PretrainConfig:
    path = str(FOLDER / f"{preset}.yaml")
    return configuration.parse(PretrainConfig, ["--data", "d", "--out", "o", "--config", path], "pretrain")


def cosine(start: float, end: float, step: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def linspace(start: float, end: float, step: int, steps: int) -> float:
    return start + (end - start) * step / (steps - 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_schedules_over_a_whole_run(preset: str) -> None:
    recipe, config = RECIPES[preset], read(preset)
    timeline = make_timeline(config, recipe.images)
    steps = timeline.steps
    assert (steps, config.batch_size) == (recipe.steps, recipe.batch_size)
    made = make_schedules(timeline, config.batch_size, config.optim, config.teacher)
    assert [len(schedule) for schedule in made] == [steps] * 4
    warmup, warm, heads = recipe.warmup, recipe.temperature_warmup, recipe.head_warmup
    assert (made.lr[:heads] == made.lr.max()).all()
    made, steps = Schedules(*(schedule[heads:] for schedule in made)), steps - heads
    for step in (0, 1, warmup - 1, warmup, max(warm - 1, 0), warm, steps // 2, steps - 1):
        falling = cosine(recipe.peak, 1e-6, step - warmup, steps - warmup)
        expected = {
            "lr": linspace(0.0, recipe.peak, step, warmup) if step < warmup else falling,
            "weight_decay": cosine(*recipe.weight_decay, step, steps),
            "momentum": cosine(*recipe.momentum, step, steps),
            "teacher_temp": linspace(*recipe.temperature, step, warm) if step < warm else recipe.temperature[1],
        }
        for name, value in expected.items():
            assert getattr(made, name)[step] == pytest.approx(value, rel=1e-9), (name, step)
    assert made.lr.max() == pytest.approx(recipe.peak, rel=1e-9)
    assert timeline.frozen_prototypes == recipe.frozen_prototypes


# Multipliers of the learning rate: 0.9^13 below the first of 12 blocks, 0.9^12 in it, 0.9 in the last; the patch
# embedding has a further 0.2.
DECAYED = {
    "patch_embed.proj.kernel": 0.2 * 0.2541865828329,
    "patch_embed.proj.bias": 0.2 * 0.2541865828329,
    "cls_token": 0.2541865828329,
    "pos_embed": 0.2541865828329,
    "mask_token": 0.2541865828329,
    "blocks.0.attn.qkv.kernel": 0.282429536481,
    "blocks.0.norm1.scale": 0.282429536481,
    "blocks.11.mlp.fc2.kernel": 0.9,
    "blocks.11.mlp.fc2.bias": 0.9,
    "blocks.11.ls2.gamma": 0.9,
    "norm.scale": 1.0,
    "norm.bias": 1.0,
}
EVEN = {
    "patch_embed.proj.kernel": 0.2,
    "patch_embed.proj.bias": 0.2,
    "cls_token": 1.0,
    "pos_embed": 1.0,
    "mask_token": 1.0,
    "blocks.0.attn.qkv.kernel": 1.0,
    "blocks.0.norm1.scale": 1.0,
    "blocks.23.mlp.fc2.kernel": 1.0,
    "blocks.23.mlp.fc2.bias": 1.0,
    "blocks.23.ls2.gamma": 1.0,
    "norm.scale": 1.0,
    "norm.bias": 1.0,
}
HEAD = ("mlp.0.kernel", "mlp.0.bias", "last_layer.weight_g", "last_layer.weight_v")
NOT_DECAYED = ("bias", "scale", "gamma")


@pytest.mark.parametrize(
    ("preset", "backbone", "heads"),
    [
        ("dinov2_vits14", DECAYED, ("dino_head",)),
        ("histopathology", DECAYED, ("dino_head",)),
        ("dinov2_vitl14", EVEN, ("dino_head", "ibot_head")),
    ],
)
def test_parameter_groups(preset: str, backbone: dict[str, float], heads: tuple[str, ...]) -> None:
    """By steps of the optimizer itself, on a narrow model of the preset's depth.

    With zero gradients only the decay moves the parameters; with zero parameters only the gradients do, by the learning
    rate (Adam's first step).
    """
    config = read(preset)
    params = narrow_params(config)
    assert {path.split(".")[0] for path in params} == {"backbone", *heads}
    rate, decay = 0.5, 0.25
    constant = Schedules(*(np.full(2, value) for value in (rate, decay, 0.0, 0.0)))
    depth = len({path.split(".")[2] for path in params if path.startswith("backbone.blocks.")})
    optimizer = make_optimizer(params, depth, constant, Timeline(2), config.optim)
    ones = {path: jnp.ones(like.shape) for path, like in params.items()}
    zeros = {path: jnp.zeros(like.shape) for path, like in params.items()}
    moved = updates(optimizer, ones, zeros)
    decayed = updates(optimizer, zeros, ones)
    expected = {f"backbone.{path}": multiplier for path, multiplier in backbone.items()}
    expected |= {f"{head}.{path}": 1.0 for head in heads for path in HEAD}
    for path, multiplier in expected.items():
        shrinks = 0.0 if path.endswith(NOT_DECAYED) else rate * multiplier * decay
        np.testing.assert_allclose(moved[path], -rate * multiplier, rtol=1e-4, err_msg=path)
        np.testing.assert_allclose(decayed[path], -shrinks, rtol=1e-6, err_msg=path)


def updates(optimizer: optax.GradientTransformation, gradients: Params, params: Params) -> dict[str, np.ndarray]:
    """What the first step adds to the parameters."""
    made: Any = jax.jit(lambda: optimizer.update(gradients, optimizer.init(params), params)[0])()
    return {path: np.asarray(update) for path, update in made.items()}


def narrow_params(config: PretrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Paths and shapes of backbone and heads, as deep as the preset's and as narrow as they can be."""
    made = nnx.eval_shape(lambda: dinojax.create_model(config.model.name, rngs=nnx.Rngs(0), width=48, image_size=28))
    params: dict[str, Any] = tree.prefixed("backbone", tree.split(made)[1])
    heads = {"dino_head": config.head} | ({"ibot_head": config.ibot_head} if config.ibot_head else {})
    for name, form in heads.items():
        head = nnx.eval_shape(lambda layers=form.layers: DINOHead(48, 8, 6, 4, layers, nnx.Rngs(0)))
        params |= tree.prefixed(name, tree.split(head)[1])
    return params


# What tells the recipes apart, besides the schedules.
FORMS: dict[str, dict[str, object]] = {
    "dinov2_vits14": {
        "model.name": "vits14",
        "model.layer_scale": 1e-5,
        "head.prototypes": 65536,
        "head.bottleneck": 256,
        "ibot_head": None,
        "loss.centering": "softmax",
        "loss.koleo_per_group": True,
        "loss.koleo_eps": 1e-8,
        "groups": 32,
        "drop_path": 0.3,
        "drop_path_uniform": True,
        "crops.locals": 8,
        "crops.local_size": 98,
        "crops.vertical_flip": 0.0,
        "optim.layer_decay": 0.9,
    },
    "dinov2_vitl14": {
        "model.name": "vitl14",
        "model.layer_scale": 1e-5,
        "head.prototypes": 131072,
        "head.bottleneck": 384,
        "ibot_head.prototypes": 131072,
        "ibot_head.bottleneck": 256,
        "loss.centering": "sinkhorn_knopp",
        "loss.koleo_per_group": True,
        "loss.koleo_eps": 1e-8,
        "groups": 96,
        "drop_path": 0.4,
        "drop_path_uniform": True,
        "crops.locals": 8,
        "crops.local_size": 98,
        "crops.vertical_flip": 0.0,
        "optim.layer_decay": 1.0,
    },
    "dinobloom": {
        "positions": "resample_plain",
        "model.layer_scale": 1.0,
        "head.prototypes": 65536,
        "head.bottleneck": 256,
        "ibot_head.prototypes": 65536,
        "ibot_head.bottleneck": 256,
        "loss.centering": "sinkhorn_knopp",
        "loss.dino_weight": 0.5,
        "loss.koleo_per_group": True,
        "loss.koleo_eps": 1e-4,
        "groups": 8,
        "drop_path": 0.0,
        "crops.locals": 0,
        "crops.vertical_flip": 0.5,
        "crops.rotate90": 0.75,
        "optim.layer_decay": 1.0,
    },
    "histopathology": {
        "positions": "resample_plain",
        "model.layer_scale": 1.0,
        "head.prototypes": 65536,
        "head.bottleneck": 256,
        "ibot_head": None,
        "loss.centering": "sinkhorn_knopp",
        "loss.koleo_eps": 1e-4,
        "groups": 1,
        "drop_path": 0.0,
        "crops.locals": 8,
        "crops.local_size": 98,
        "crops.vertical_flip": 0.5,
        "crops.rotate90": 0.0,
        "optim.layer_decay": 0.9,
    },
}


@pytest.mark.parametrize("preset", SOURCED)
def test_a_recipe_is_as_published(preset: str) -> None:
    values = configuration.flatten(read(preset))
    assert {key: values[key] for key in FORMS[preset]} == FORMS[preset]
    blur = ("photometry.blur_global1", "photometry.blur_global2", "photometry.blur_local")
    assert [values[key] for key in blur] == [0.0, 0.9, 0.5]
    assert (values["optim.clip"], values["optim.patch_embed_lr"], values["loss.koleo_weight"]) == (3.0, 0.2, 0.1)


def test_medidino_ran_the_code_of_the_histopathology_study() -> None:
    study, medidino = configuration.flatten(read("histopathology")), configuration.flatten(read("medidino_code"))
    housekeeping = {"checkpoint_every", "keep_checkpoints", "model.image_size"}
    assert {key for key, value in study.items() if medidino[key] != value} == housekeeping


@pytest.mark.parametrize("preset", SOURCED)
def test_every_key_names_its_source(preset: str) -> None:
    text = (FOLDER / f"{preset}.yaml").read_text()
    assert "# Time: " in text
    assert "# Result: " in text
    assert f"--config {preset} " in text
    documented = False  # whether the section's first line names the source
    for line in text.splitlines():
        if not (key := re.match(r"( *)\w+:", line)):
            continue
        commented = re.search(r"\S +# \S", line) is not None
        if not key[1]:
            documented = commented
        # A section may leave it to its keys.
        assert commented or documented or line.endswith(":"), line
