"""`python -m dinojax pretrain`: continues or begins DINOv2's self-supervised pre-training on a folder of images."""

import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from dinojax import config as configuration
from dinojax import sharding, tree
from dinojax.augment.multicrop import augment_views, multicrop
from dinojax.checkpoint import Checkpoints, MetricsLog
from dinojax.config import PretrainConfig
from dinojax.data import pipeline, sources
from dinojax.dino import masking
from dinojax.dino import step as dino
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.evaluation import plots
from dinojax.models import VisionTransformer, create_model
from dinojax.models.heads import DINOHead
from dinojax.models.store import load_model, save_model
from dinojax.signals import StopRequest

Step = Callable[[dino.TrainState, dict[str, jax.Array]], tuple[dino.TrainState, dict[str, jax.Array]]]


def main(arguments: list[str]) -> None:
    """Runs, or goes on with, the pre-training that the command line describes."""
    config = configuration.parse(PretrainConfig, arguments, "pretrain")
    out = Path(config.out)
    source = open_source(config)
    steps = total_steps(config, len(source))
    mesh = sharding.make_mesh(config.batch_size)
    backbone = make_backbone(config)
    head = DINOHead(backbone.width, **dataclasses.asdict(config.head), rngs=nnx.Rngs(config.seed + 1))
    graphs, params = dino.split_modules(backbone, head)
    schedules = dino.make_schedules(steps, config.epochs, config.batch_size, config.optim, config.teacher)
    frozen_steps = round(config.optim.freeze_prototypes_epochs * steps / config.epochs)
    optimizer = dino.make_optimizer(params, backbone.arguments.depth, schedules, config.optim, frozen_steps)
    step = make_step(config, graphs, optimizer, schedules, backbone)

    configuration.store(config, out, config.accept_changes.split(","))
    (out / "figures").mkdir(exist_ok=True)
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    state = jax.device_put(dino.init_state(params, optimizer), sharding.replicated(mesh))
    state = checkpoints.restore(state) or state
    start = int(state.step)
    print(f"{len(source)} images, {steps} steps of {config.batch_size} on {mesh.size} {jax.default_backend()} device(s)"
          + (f", going on after step {start}" if start else ""))
