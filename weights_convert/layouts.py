"""Recognises which model the tensors of a file are, and turns them into that model's name, arguments and parameters."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import ARGUMENTS, VisionTransformer, ViTArguments, arguments_of
from weights_convert import tables

_PATCH_EMBED = "patch_embed.proj.weight"  # in every DINOv2 backbone, and in nothing else that is read here
_PATCH_SIZE = 14


@dataclasses.dataclass(frozen=True)
class Converted:
    """A checkpoint as a model directory holds it."""

    layout: str
    """`dinov2` (hub files) or `dinov2_teacher` (`teacher_checkpoint.pth`)."""
    name: str
    """The named size that the arguments are nearest to."""
    arguments: ViTArguments
    params: dict[str, np.ndarray]
    heads: dict[str, dict[str, np.ndarray]]
    """Projection heads that the file holds, `dino_head` and `ibot_head`, by name."""


def recognise(tensors: Mapping[str, np.ndarray], heads: int | None = None) -> Converted:
    """Converts the tensors of a DINOv2 hub file or of a teacher checkpoint.

    Args:
      tensors: as `readers.read` names them.
      heads: number of attention heads; needed where the width is none of the published ones, which tell it.

    Raises:
      UsageError: `heads` is needed, or does not divide the width.
      RunError: the tensors are not those of a DINOv2 model; the message lists the whole difference.
    """
    if _PATCH_EMBED in tensors:
        layout, parts = "dinov2", {"backbone": dict(tensors)}
    elif f"teacher.backbone.{_PATCH_EMBED}" in tensors:
        layout, parts = "dinov2_teacher", _teacher_parts(tensors)
    else:
        names = list(tensors)
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise RunError(f"no DINOv2 hub file and no teacher checkpoint; it holds {len(names)} tensors: {shown}")
    backbone = _unchunk(parts.pop("backbone"))
    params = _within("backbone", tables.dinov2_backbone, backbone)
    name, arguments = _arguments(params, heads)
    _, expected = tree.split(nnx.eval_shape(lambda: VisionTransformer(name, arguments, nnx.Rngs(0))))
    tree.check(expected, params, "the backbone")
    return Converted(
        layout, name, arguments, params, {part: _within(part, tables.dino_head, head) for part, head in parts.items()}
    )


def _teacher_parts(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The backbone and the heads of `{"teacher": {...}}`, their names without prefix; nothing may be left over."""
    parts = {part: tree.subtree(f"teacher.{part}", tensors) for part in ("backbone", "dino_head", "ibot_head")}
    known = {f"teacher.{part}.{name}" for part, inside in parts.items() for name in inside}
    if unknown := [name for name in tensors if name not in known]:
        raise RunError(f"a teacher checkpoint with unexpected tensors ({len(unknown)}): {', '.join(unknown)}")
    return {part: inside for part, inside in parts.items() if inside}


def _unchunk(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`blocks.CHUNK.i.` becomes `blocks.i.`: trained in chunks, blocks keep their own number inside them."""
    plain = {re.sub(r"^blocks\.[0-9]+\.([0-9]+)\.", r"blocks.\1.", name): array for name, array in tensors.items()}
    if len(plain) != len(tensors):
        raise RunError("the backbone's chunks hold the same block twice")
    return plain


def _within(
    part: str, convert: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    try:
        return convert(tensors)
    except RunError as error:
        raise RunError(f"the {part}: {error}") from None


def _arguments(params: Mapping[str, np.ndarray], heads: int | None) -> tuple[str, ViTArguments]:
    """The arguments that the parameters tell, and the named size nearest to them."""
    width, positions = params["cls_token"].shape[2], params["pos_embed"].shape[1]
    side = math.isqrt(max(positions - 1, 0))
    if side == 0 or side**2 != positions - 1:
        raise RunError(f"pos_embed has {positions} positions, which are not a class token and a square of patches")
    published = {known.width: known.heads for known in ARGUMENTS.values()}
    if heads is None and width not in published:
        raise UsageError(f"the width, {width}, does not tell the number of attention heads; add --heads N")
    told = {
        "width": width,
        "depth": 1 + max(int(path.split(".")[1]) for path in params if path.startswith("blocks.")),
        "heads": heads or published[width],
        "registers": params["register_tokens"].shape[1] if "register_tokens" in params else 0,
        "mlp": "swiglu" if "blocks.0.mlp.w12.kernel" in params else "gelu",
        "channels": params["patch_embed.proj.kernel"].shape[2],
        "image_size": side * _PATCH_SIZE,
    }

    def distance(name: str) -> tuple[int, int]:
        known = ARGUMENTS[name]
        return sum(getattr(known, key) != value for key, value in told.items()), abs(known.width - width)

    name = min(ARGUMENTS, key=distance)
    return name, arguments_of(name, **told)
