"""Projection heads of a run, made or read from a model directory; and a teacher written to one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from dinojax import tree
from dinojax.config.pretrain import HeadConfig
from dinojax.errors import UsageError
from dinojax.models import VisionTransformer, positions
from dinojax.models.heads import DINOHead
from dinojax.models.store import read_params, write_model
from dinojax.seeds import derive


def resample_positions(model: VisionTransformer, image_size: int, plain: bool) -> None:
    """Takes a model's positional embeddings to another image size, in place.

    Args:
      model: its other weights stay as they are.
      image_size: side in pixels.
      plain: by size, without offset or antialiasing, rather than by the model's own rule.
    """
    patch, positional = model.arguments.patch_size, model.pos_embed[...]
    side, grid = model.arguments.image_size // patch, image_size // patch
    table = rearrange(positional[0, 1:], "(h w) d -> h w d", h=side)
    antialias = model.arguments.registers > 0 and not plain
    resampled = positions.interpolate(table, (grid, grid), antialias, offset=0.0 if plain else 0.1)
    model.arguments = dataclasses.replace(model.arguments, image_size=grid * patch)
    patches = rearrange(resampled, "h w d -> 1 (h w) d")
    model.pos_embed = nnx.Param(jnp.concatenate([positional[:, :1], patches], axis=1))


def make_projections(
    forms: Mapping[str, HeadConfig | None], width: int, init: str | None, seed: int
) -> tuple[dict[str, DINOHead], dict[str, str]]:
    """The projection heads: those that lie in the model directory `init`, or new ones; and where each comes from.

    Args:
      forms: by the heads' names, `dino_head` and maybe `ibot_head`; None where the term shares the other head.
      width: D of the backbone.
      init: None makes new ones.
      seed: of the run.

    Raises:
      UsageError: a head in `init` is of another form, or would silently be left out.
    """
    made, origins = {}, {}
    for name, form in forms.items():
        stored = init is not None and (Path(init) / f"{name}.safetensors").exists()
        if form is None:
            if stored:
                raise UsageError(
                    f"{init}/{name}.safetensors is a head of iBOT's own; set ibot_head.* to its form to continue it, "
                    "or start with new heads by --init_heads fresh"
                )
            continue
        head = DINOHead(width, **dataclasses.asdict(form), rngs=nnx.Rngs(derive(seed, name)))
        made[name] = _continued(head, init, name) if init is not None and stored else head
        origins[name] = f"continues that of {init}" if stored else "new, with random weights"
    return made, origins


def _continued(head: DINOHead, init: str, name: str) -> DINOHead:
    """The head with the weights in a model directory."""
    graph, expected = tree.split(head)
    params = read_params(init, name)
    if differences := tree.difference(expected, params):
        section = "head" if name == "dino_head" else name
        raise UsageError(
            f"{init}/{name}.safetensors is of another form than {section} says ({differences[0]}); "
            f"set {section}.* to it, or start with a new one by --init_heads fresh"
        )
    return tree.merge(graph, {path: jnp.asarray(array) for path, array in params.items()})


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
    projections = {path.partition(".")[0] for path in params} - {"backbone"}
    write_model(
        directory,
        backbone.name,
        backbone.arguments,
        tree.subtree("backbone", params),
        dataclasses.replace(backbone.preprocessing, size=size),
        source={"run": run, "step": str(step)},
        extra={name: tree.subtree(name, params) for name in sorted(projections)},
        overwrite=True,
    )
