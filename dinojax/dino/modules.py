"""Backbone and projection heads of a run: made, or read from a model directory; and a teacher written to one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from dinojax import tree
from dinojax.config.model import ModelConfig
from dinojax.config.pretrain import HeadConfig
from dinojax.errors import UsageError
from dinojax.models import VisionTransformer, create_transformer, positions
from dinojax.models.heads import DINOHead
from dinojax.models.store import load_transformer, read_params, write_model
from dinojax.seeds import derive


def make_backbone(init: str | None, form: ModelConfig, overrides: Mapping[str, Any], seed: int) -> VisionTransformer:
    """The model of the directory `init`, or one of this form with random weights; with overridden arguments."""
    if init is not None:
        return load_transformer(init, **overrides)
    given = {name: value for name, value in dataclasses.asdict(form).items() if value is not None}
    return create_transformer(rngs=nnx.Rngs(seed), **given, **overrides)


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


def make_projections(forms: Mapping[str, HeadConfig], width: int, init: str | None, seed: int) -> dict[str, DINOHead]:
    """The projection heads: those that lie in the model directory `init`, or new ones.

    Args:
      forms: by the heads' names, `dino_head` and maybe `ibot_head`.
      width: D of the backbone.
      init: None makes new ones.
      seed: of the run.

    Raises:
      UsageError: a head in `init` is of another form.
    """
    return {name: _make_projection(name, form, width, init, derive(seed, name)) for name, form in forms.items()}


def _make_projection(name: str, form: HeadConfig, width: int, init: str | None, seed: int) -> DINOHead:
    made = DINOHead(width, **dataclasses.asdict(form), rngs=nnx.Rngs(seed))
    if init is None or not (Path(init) / f"{name}.safetensors").exists():
        print(f"{name}: new, with random weights")
        return made
    graph, expected = tree.split(made)
    params = read_params(init, name)
    if differences := tree.difference(expected, params):
        section = "head" if name == "dino_head" else name
        raise UsageError(
            f"{init}/{name}.safetensors is of another form than {section} says ({differences[0]}); "
            f"set {section}.* to it, or start with a new one by --init_heads fresh"
        )
    print(f"{name}: continues that of {init}")
    return tree.merge(graph, {path: jnp.asarray(array) for path, array in params.items()})


def check_no_ibot_head(init: str) -> None:
    """Refuses to leave out silently a projection head of iBOT's own that lies in a model directory."""
    path = Path(init) / "ibot_head.safetensors"
    if path.exists():
        raise UsageError(
            f"{path} is a head of iBOT's own; set ibot_head.* to its form to continue it, "
            "or start with new heads by --init_heads fresh"
        )


def save_teacher(
    directory: Path, backbone: VisionTransformer, params: tree.Params, size: int, run: str, step: int
) -> None:
    """Writes a teacher as a model directory: its backbone, and its projection heads for a later run to continue.

    Args:
      directory: where to; a model that is there is replaced.
      backbone: that it was trained from.
      params: the teacher's, whole, on one device.
      size: side in pixels of the images that it reads.
      run: name of the run, for `source`.
      step: steps that it has been trained for, for `source`.
    """
    graph, _ = tree.split(backbone)
    trained = tree.subtree("backbone", params)
    model: VisionTransformer = tree.merge(graph, trained)
    projections = {path.partition(".")[0] for path in params} - {"backbone"}
    write_model(
        directory,
        model.name,
        model.arguments,
        trained,
        dataclasses.replace(backbone.preprocessing, size=size),
        source={"run": run, "step": str(step)},
        extra={name: tree.subtree(name, params) for name in sorted(projections)},
        overwrite=True,
    )
