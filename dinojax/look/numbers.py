"""What there is to see in a model: its parameters, attention, token norms, and the similarities of its features.

Images are uint8 [N, H, W, C], C 1, 3 or the model's, of a size that the model reads; its own preprocessing is applied.
`look.figures` draws the results.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import scipy.linalg
from einops import rearrange
from sklearn.metrics.pairwise import cosine_similarity

from dinojax import tree
from dinojax.augment import geometry
from dinojax.data.memory import decode_all
from dinojax.data.records import Records
from dinojax.models import Backbone, VisionTransformer, as_transformer
from dinojax.models.channels import check_readable
from dinojax.protocols.features import FeatureRunner, pooled

PUBLISHED_CUTOFF = 150.0
"""Norm above which a patch of DINOv2 ViT-g/14 is an outlier (Darcet et al. 2023, arXiv 2309.16588, section 2.1)."""

# Parts in the order of the table; a parameter that no row matches belongs to a part named by its first name.
_PARTS = (
    (r"patch_embed\..*", "patch embedding"),
    (r"pos_embed", "positional embeddings"),
    (r"(?:cls_token|register_tokens|mask_token)", "tokens"),
    (r"(?:conv1|bn1)\..*", "stem"),
    (r"blocks\.(\d+)\..*", r"block \1"),
    (r"layers\.(\d+)\..*", r"stage \1"),
    (r"norm\..*", "final norm"),
)


def read_images(records: Records, places: np.ndarray, model: Backbone, size: int | None = None) -> np.ndarray:
    """Decodes images and makes squares of them, bicubically, whatever their shape: uint8 [N, size, size, C].

    Args:
      records: the data set.
      places: which of its images.
      model: its channels are kept.
      size: side in pixels; the one that the model's weights were used at, if None.

    Raises:
      RunError: an image cannot be read.
      UsageError: the images have other channels than the model reads.
      ValueError: the model cannot read images of this size.
    """
    side = model.preprocessing.size if size is None else size
    model.check_size(side, side)
    view = partial(geometry.square, size=side, resample=geometry.BICUBIC)
    found = len(records.channels) if records.stacked else 1 if model.channels == 1 else 3
    decoded = decode_all(records.take(places), {"image": view}, channels=found, threads=2, on_bad_file="stop")
    images = decoded.views["image"]
    check_readable(model.channels, images.shape[3], records.stacked)
    return np.repeat(images, model.channels, axis=3) if images.shape[3] == 1 else images


def parameters_by_part(model: Backbone) -> pd.DataFrame:
    """Counts and sizes of a model's parameters, by part: embeddings, tokens, each block or stage, the final norm.

    Returns:
      Indexed by part: `parameters` (how many there are), `statistics` (running means and variances), `bytes` of both,
      `norm` (L2, of the parameters) and `rms` = norm / √parameters, comparable among parts of different size. After
      a training that went wrong, one part may be far off the others.
    """
    trained, rows = tree.weights(model), []
    for path, array in tree.split(model)[1].items():
        squares = np.square(np.asarray(array, np.float32), dtype=np.float64).sum()
        own = (array.size, 0, array.nbytes, squares) if path in trained else (0, array.size, array.nbytes, 0.0)
        rows.append((*_part(path), *own))
    order = ["row", "number", "part"]
    table = pd.DataFrame(rows, columns=[*order, "parameters", "statistics", "bytes", "squares"])
    table = pd.DataFrame(table.groupby(order).sum()).droplevel(["row", "number"])
    table["norm"] = np.sqrt(table.pop("squares"))
    table["rms"] = table["norm"] / np.sqrt(np.maximum(table["parameters"], 1))
    return table


def _part(path: str) -> tuple[int, int, str]:
    """Row of `_PARTS`, number of the block or stage, and name: in their order, the rows of the table."""
    for row, (pattern, part) in enumerate(_PARTS):
        if match := re.fullmatch(pattern, path):
            return row, int(match[1]) if match.groups() else 0, match.expand(part)
    return len(_PARTS), 0, path.split(".")[0]


def pooled_features(model: Backbone, images: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """float32 [N, D]: the class token; of a CNN, the global average."""
    return _run(model, images, pooled, batch_size)


def patch_features(model: Backbone, images: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """float32 [N, h, w, D]: the patch tokens after the final norm; of a CNN, the last feature map."""
    return _run(model, images, lambda model, x: model(x).patches, batch_size)


def _run(model: Backbone, images: np.ndarray, function: Callable[..., jax.Array], batch_size: int) -> np.ndarray:
    return FeatureRunner(model, function, min(batch_size, max(len(images), 1)))(images).astype(np.float32)


class ClassAttention(NamedTuple):
    """Attention weights of the class token; over all tokens, those of a head sum to 1."""

    patches: np.ndarray
    """float32 [N, heads, h, w]."""
    registers: np.ndarray
    """float32 [N, heads, R]; R may be 0."""
    itself: np.ndarray
    """float32 [N, heads]."""


def class_attention(model: Backbone, images: np.ndarray, block: int = -1, batch_size: int = 4) -> ClassAttention:
    """Attention of the class token in one block, by default the last.

    Raises:
      ValueError: not a vision transformer, or it has no such block.
    """
    arguments = as_transformer(model, "attention maps").arguments
    weights = _run(model, images, lambda model, x: model.attention(x, block)[:, :, 0], batch_size)
    first, rows = 1 + arguments.registers, images.shape[1] // arguments.patch_size
    patches = rearrange(weights[:, :, first:], "n a (h w) -> n a h w", h=rows)
    return ClassAttention(patches, weights[:, :, 1:first], weights[:, :, 0])


class TokenNorms(NamedTuple):
    """Norms of the tokens after the last block, before the final norm, and which patches are outliers."""

    patches: np.ndarray
    """float32 [N, h, w], L2."""
    registers: np.ndarray
    """float32 [N, R], L2."""
    cutoff: float
    outliers: np.ndarray
    """bool [N, h, w]: patches whose norm is above the cut-off."""


def token_norms(model: Backbone, images: np.ndarray, cutoff: float | None = None, batch_size: int = 8) -> TokenNorms:
    """Finds outlier tokens: background patches that a large transformer uses to store global information.

    Darcet et al. 2023 (arXiv 2309.16588, section 2.1, figure 3) find them in 2 % of the patches of DINOv2 ViT-g, with
    norms some ten times those of the others. They spoil attention maps and dense features; registers replace them.

    Args:
      model: a vision transformer.
      images: some dozens give a smooth histogram.
      cutoff: norm above which a patch is an outlier, such as `PUBLISHED_CUTOFF`; by default `robust_cutoff`.
      batch_size: images to run at a time.

    Raises:
      ValueError: not a vision transformer.
    """
    arguments = as_transformer(model, "outlier tokens").arguments
    depth, registers = arguments.depth, arguments.registers

    def norms_of(model: VisionTransformer, x: jax.Array) -> jax.Array:
        return jax.numpy.linalg.norm(model.stream(x, depth)[:, 1:].astype(np.float32), axis=-1)

    norms = _run(model, images, norms_of, batch_size)
    patches = rearrange(norms[:, registers:], "n (h w) -> n h w", h=images.shape[1] // arguments.patch_size)
    cutoff = robust_cutoff(patches) if cutoff is None else cutoff
    return TokenNorms(patches, norms[:, :registers], cutoff, patches > cutoff)


def robust_cutoff(norms: np.ndarray) -> float:
    """A cut-off for a model of any size: twice the 90th percentile of the norms.

    It finds outliers that have some ten times the norm of other tokens and are at most a tenth of the patches. Rules
    about the median fail: black background and tissue make two modes of the distribution, in either of which the median
    may lie, and the larger of which, however rare, is not one of outliers.
    """
    return 2 * float(np.percentile(norms, 90))


def attention_mass(attention: ClassAttention, outliers: np.ndarray) -> pd.DataFrame:
    """Shares of the class token's attention, by head and kind of token, mean over the images; each row sums to 1.

    Args:
      attention: of N images.
      outliers: bool [N, h, w], of the same images, as in `TokenNorms`.
    """
    on_outliers = (attention.patches * outliers[:, None]).sum((2, 3))
    columns = {
        "class token": attention.itself,
        **({"registers": attention.registers.sum(-1)} if attention.registers.size else {}),
        "outlier patches": on_outliers,
        "other patches": attention.patches.sum((2, 3)) - on_outliers,
    }
    return pd.DataFrame({name: values.mean(0) for name, values in columns.items()}).rename_axis("head")


class Components(NamedTuple):
    """Principal components of patch features."""

    scores: np.ndarray
    """float32 [N, h, w, K]: coordinates of the patches."""
    directions: np.ndarray
    """float32 [K, D], unit vectors."""
    variance: np.ndarray
    """float32 [K]: share of the total variance, 0..1."""


def principal_components(patches: np.ndarray, components: int = 3) -> Components:
    """PCA of the patches [N, h, w, D] of all images together, so that a colour means the same in each of them.

    The arbitrary sign of a component is chosen so that its loading of largest magnitude is positive: maps of the same
    features never change sign, whatever the order of the images.

    Raises:
      ValueError: `components` is not in 1..D.
    """
    width = patches.shape[-1]
    flat = patches.reshape(-1, width).astype(np.float64)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred
    if not 1 <= components <= width:
        raise ValueError(f"components must be 1 to {width}, got {components}")
    variances, columns = scipy.linalg.eigh(covariance, subset_by_index=(width - components, width - 1))
    directions = columns[:, ::-1].T
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(components), largest])[:, None]
    scores = (centred @ directions.T).reshape(*patches.shape[:3], components)
    share = variances[::-1] / max(float(np.trace(covariance)), np.finfo(np.float64).tiny)
    return Components(scores.astype(np.float32), directions.astype(np.float32), share.astype(np.float32))


def colour_range(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the colour scale of each component, [K]: the 1st and 99th percentile over all images."""
    low, high = np.percentile(scores.reshape(-1, scores.shape[-1]), (1, 99), axis=0)
    return low, np.maximum(high, low + np.finfo(np.float32).eps)


def as_colours(scores: np.ndarray) -> np.ndarray:
    """Scores [N, h, w, 3] as red, green and blue in 0..1, on one scale for all images."""
    low, high = colour_range(scores)
    return np.clip((scores - low) / (high - low), 0, 1)


def similarity_map(patches: np.ndarray, row: int, column: int) -> np.ndarray:
    """Cosine similarity, float32 [h, w], of the patches [h, w, D] of an image to the one at (row, column)."""
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    chosen = patches[row, column][None].astype(np.float64)
    return cosine_similarity(flat, chosen).reshape(patches.shape[:2]).astype(np.float32)


def position_similarity(model: Backbone) -> np.ndarray:
    """Cosine similarity of the patches' positional embeddings, float32 [M, M, M, M]: at [row, column], a map.

    Raises:
      ValueError: not a vision transformer.
    """
    table = np.asarray(as_transformer(model, "positional embeddings").pos_embed[...], np.float64)[0, 1:]
    side = round(len(table) ** 0.5)
    return cosine_similarity(table).astype(np.float32).reshape(side, side, side, side)
