"""Images a second through a frozen ViT-S/14 or ResNet50, against PyTorch eager and compiled.

    python scripts/bench_features.py
    python scripts/bench_features.py --model resnet50 --batch 8

Both sides hold the same seeded weights, get the same normalised images of 224 pixels and bring the class token and the
mean patch to the host (of a ResNet the global average), with the same threads (`taskset -c 0` gives one). PyTorch's
attention is its fused one; compiled means `torch.compile` with frozen weights, of a ResNet with channels last. First
the features are compared, then all are timed in interleaved rounds. A GPU is used where JAX and PyTorch both find one.
"""

import argparse
import copy
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from benchmarking import against, interleaved, machine, table
from flax import nnx
from published_models import load_published, torch

import dinojax
from dinojax import sharding, tree
from dinojax.models import Backbone
from dinojax.protocols.features import chunked

TARGETS = {"vits14": {1: 1.7, 8: 2.0, 32: 2.0}, "resnet50": {8: 1.15}}  # against eager, on a CPU
COMPILED_TARGETS = {"vits14": {8: 1.0}}
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(TARGETS), default="vits14")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="both sides in bfloat16, for a GPU")
    parser.add_argument("--no_compile", action="store_true", help="leaves out torch.compile, which takes minutes")
    arguments = parser.parse_args()
    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if not gpu and jax.default_backend() != "cpu":
        sys.exit("PyTorch finds no GPU, JAX does; compare on the CPU with JAX_PLATFORMS=cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = "bfloat16" if arguments.bfloat16 else "float32"
    print(f"{machine()}; {jax.devices()[0].device_kind}, {dtype}\n")

    model = dinojax.create_model(arguments.model, nnx.Rngs(0))
    params = {path: np.asarray(value) for path, value in tree.split(model)[1].items()}
    published = load_published(model.arguments, params).eval().to(device, getattr(torch, dtype))
    rows = []
    for batch in arguments.batch:
        images = np.random.default_rng(batch).standard_normal((batch, SIZE, SIZE, 3), dtype=np.float32)
        contenders = {
            "torch eager": Published(published, images),
            "dinojax": Ours(model, images, dtype),
        }
        compare(contenders["dinojax"](), contenders["torch eager"](), 5e-2 if arguments.bfloat16 else 1e-4)
        if not arguments.no_compile:
            try:
                last = arguments.model == "resnet50"  # what suits convolutions best
                layout = torch.channels_last if last else torch.contiguous_format
                compiled = Published(compile_frozen(copy.deepcopy(published).to(memory_format=layout)), images, last)
                compiled()
                contenders["torch compiled"] = compiled
            except Exception as error:  # whatever a compiler that is missing or fails leads to
                print(f"torch.compile fails at batch {batch}, left out: {str(error).splitlines()[0]}")
        seconds = interleaved(contenders, arguments.rounds if batch > 1 else 3 * arguments.rounds)
        rows.append(row(batch, seconds, None if gpu else arguments.model))
    header = ["images/s, batch", "torch eager", "torch.compile, frozen", "dinojax", "to eager", "to compiled"]
    print("\n" + table(header, rows))
    print(
        f"\nMedian of {arguments.rounds} rounds, of three times as many at batch 1; load now {os.getloadavg()[0]:.1f}."
    )


class Ours:
    """The program of `dinojax.protocols.features.extract` on images that are normalised."""

    def __init__(self, model: Backbone, images: np.ndarray, dtype: str) -> None:
        graph, params = tree.split(model.for_inference())

        def forward(params: tree.Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            features = tree.merge(graph, params)(images)
            return features.pooled, features.patches.mean((1, 2))

        mesh = sharding.widest_mesh(len(images))
        params = {path: value.astype(dtype) for path, value in params.items()}
        self.params = jax.device_put(params, sharding.replicated(mesh))
        self.run = jax.jit(chunked(forward, mesh, model.images_per_chunk(*images.shape[1:3])))
        self.images = jax.device_put(jnp.asarray(images, dtype), sharding.batch_sharding(mesh))

    def __call__(self) -> tuple[np.ndarray, ...]:
        return jax.device_get(self.run(self.params, self.images))


class Published:
    """The same by PyTorch."""

    def __init__(self, backbone: torch.nn.Module, images: np.ndarray, last: bool = False) -> None:
        self.backbone = backbone
        weights = next(backbone.parameters())
        nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        self.images = torch.from_numpy(nchw).to(weights.device, weights.dtype)
        if last:
            self.images = self.images.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self) -> tuple[np.ndarray, ...]:
        tokens = self.backbone(self.images)
        if tokens.ndim == 4:  # a ResNet's feature map
            pooled = tokens.mean((2, 3)).float().cpu().numpy()
            return pooled, pooled
        return tokens[:, 0].float().cpu().numpy(), tokens[:, 1:].mean(1).float().cpu().numpy()


def compile_frozen(backbone: torch.nn.Module) -> torch.nn.Module:
    """Compiled with its weights as constants, for one shape."""
    import torch._inductor.config as inductor  # pyright: ignore[reportMissingImports]

    torch.compiler.reset()
    inductor.freezing = True
    return torch.compile(backbone, dynamic=False)


def compare(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...], tolerance: float) -> None:
    """Prints the largest difference relative to the largest value, and ends where it is above the tolerance."""
    worst = max(
        float(np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)
    )
    print(f"batch {len(ours[0])}: the features differ by {worst:.1e}, relative to their largest value")
    if not worst <= tolerance:
        sys.exit(f"the features differ by more than {tolerance:g}: nothing to compare")


def row(batch: int, seconds: dict[str, float], model: str | None) -> list[str]:
    """A line of the table; `model` names the targets, if there are any."""
    eager, ours, compiled = seconds["torch eager"], seconds["dinojax"], seconds.get("torch compiled")
    return [
        str(batch),
        f"{batch / eager:.1f}",
        f"{batch / compiled:.1f}" if compiled else "–",
        f"{batch / ours:.1f}",
        against(ours, eager, TARGETS.get(model or "", {}).get(batch)),
        against(ours, compiled, COMPILED_TARGETS.get(model or "", {}).get(batch)) if compiled else "–",
    ]


if __name__ == "__main__":
    main()
