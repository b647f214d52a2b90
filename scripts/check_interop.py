"""Loads exported models into the real libraries, strictly, and compares their features with ours.

    pip install -e '.[interop]' --extra-index-url https://download.pytorch.org/whl/cpu
    python scripts/check_interop.py

Seeded models are written with `weights_convert.writers` and loaded by transformers, timm and torchvision. Exit status 1
where a difference, relative to the largest value, is beyond the tolerance, or a library does not take a file.

Transformers and timm interpolate the positional embeddings of models without registers in another way than DINOv2, so
that these agree at their native 518 pixels alone; how far they differ at 224 is shown, and not held against them.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinojax import tree
from dinojax.models import Backbone, create_model
from dinojax.models.store import save_model
from weights_convert import writers

try:
    import timm  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import torchvision  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
except ImportError as error:
    sys.exit(f"{error}; pip install -e '.[interop]'")


class Case(NamedTuple):
    """One model in one library."""

    name: str
    library: str
    to: writers.Layout
    load: Callable[[Path], Any]
    """A file or folder to the library's model; it raises where names or shapes differ."""
    features: Callable[[Any, Any], Any]
    """Of that model and images [B, C, H, W]: all tokens [B, N, D], or the pooled features [B, D]."""
    sizes: tuple[int, ...]
    otherwise: tuple[int, ...] = ()
    """Sizes at which the library does not do what DINOv2 does."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, ", end="")
    print(f"timm {timm.__version__}, transformers {transformers.__version__}, jax {jax.__version__}\n")
    print(f"{'model':14} {'library':13} {'pixels':>6}  {'largest relative difference':32}  what the writer lists")
    worst = 0.0
    for case in CASES:
        for size, difference, lost in compare(case, arguments.seed):
            worst = max(worst, difference if size in case.sizes else 0.0)
            shown = f"{difference:.2g}" + ("" if size in case.sizes else ", interpolated otherwise")
            print(f"{case.name:14} {case.library:13} {size:6}  {shown:32}  {lost}")
    print(f"\nlargest {worst:.2g}, tolerance {arguments.tolerance:.2g}")
    return 0 if worst <= arguments.tolerance else 1


def compare(case: Case, seed: int) -> list[tuple[int, float, str]]:
    """Size, largest relative difference and what was lost, for each size of a case."""
    ours = seeded(case.name, seed)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / ("exported" if case.to == "hf" else "exported.safetensors")
        save_model(Path(folder) / "model", ours)
        lost = writers.write(Path(folder) / "model", case.to, exported)
        theirs = case.load(exported).eval()
    told = ", ".join(line.split(":")[0].split(",")[0] for line in lost) or "-"
    results = []
    for size in (*case.sizes, *case.otherwise):
        x = np.random.RandomState(seed + size).standard_normal((2, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = case.features(theirs, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        given = _features(ours, jnp.asarray(x), expected.ndim == 3)
        results.append((size, float(np.abs(given - expected).max() / np.abs(expected).max()), told))
    return results


def seeded(name: str, seed: int) -> Backbone:
    """A model in which every parameter is random, so that two of them put in each other's place would show."""
    graph, params = tree.split(create_model(name, nnx.Rngs(seed)))
    random = np.random.RandomState(seed)
    return tree.merge(graph, {path: jnp.asarray(_drawn(path, p.shape, random)) for path, p in params.items()})


def _drawn(path: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    x = random.standard_normal(shape).astype(np.float32)
    match path.rsplit(".", 1)[-1]:
        case "scale":
            return 1 + 0.1 * x
        case "var":
            return 1 + 0.2 * np.abs(x)
        case "bias" | "mean":
            return 0.1 * x
        case "kernel":
            return x / np.sqrt(np.float32(np.prod(shape[:-1])))
    return 0.2 * x  # tokens, positions, LayerScale


def _features(model: Backbone, x: jax.Array, tokens: bool) -> np.ndarray:
    """All tokens in the order of the published models, or the pooled features."""
    features = jax.jit(lambda x: model(x))(x)
    if not tokens:
        return np.asarray(features.pooled)
    batch, _, _, width = features.patches.shape
    registers = [] if features.registers is None else [features.registers]
    parts = [features.pooled[:, None], *registers, features.patches.reshape(batch, -1, width)]
    return np.concatenate(parts, axis=1)


def _from_transformers(folder: Path) -> Any:
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    if any(told.values()):
        raise SystemExit(f"transformers does not take the folder: {told}")
    transformers.AutoImageProcessor.from_pretrained(folder)
    return model


def _from_timm(name: str, **options: Any) -> Callable[[Path], Any]:
    def load(file: Path) -> Any:
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        model.load_state_dict(safetensors_of(file), strict=True)
        return model

    return load


def _from_torchvision(file: Path) -> Any:
    model = torchvision.models.resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(safetensors_of(file), strict=True)
    return model


def safetensors_of(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def _hidden(model: Any, x: Any) -> Any:
    return model(x).last_hidden_state


def _tokens(model: Any, x: Any) -> Any:
    return model.forward_features(x)


def _pooled(model: Any, x: Any) -> Any:
    return model(x)


CASES = (
    Case("vits14", "transformers", "hf", _from_transformers, _hidden, (518,), (224,)),
    Case(
        "vits14",
        "timm",
        "timm",
        _from_timm("vit_small_patch14_dinov2", dynamic_img_size=True),
        _tokens,
        (518,),
        (224,),
    ),
    Case("vits14_reg4", "transformers", "hf", _from_transformers, _hidden, (518, 224)),
    Case(
        "vits14_reg4",
        "timm",
        "timm",
        _from_timm("vit_small_patch14_reg4_dinov2", dynamic_img_size=True),
        _tokens,
        (518, 224),
    ),
    Case("resnet50", "torchvision", "torchvision", _from_torchvision, _pooled, (224,)),
    Case("resnet50", "timm", "timm", _from_timm("resnet50"), _pooled, (224,)),
)

if __name__ == "__main__":
    sys.exit(main())
