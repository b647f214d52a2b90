"""What one channel saves: features of grey images by an RGB ViT-S/14, and by the same model folded into one channel.

    python scripts/bench_channels.py

Grey uint8 images of 224 pixels go through the program of `evaluate` and come back as features. Three contenders: the
RGB model on images of three equal channels, as a loader of RGB makes them; the RGB model on one channel repeated on
the device, as every run here does it; the folded model. Then the input alone: uint8 to patch tokens. The features are
compared first; all are timed in interleaved rounds, of which the fastest counts, as others may use the machine.
"""

import argparse
import os
import sys

import jax
import numpy as np
from benchmarking import interleaved, machine, table
from flax import nnx

import dinojax
from dinojax import preprocess
from dinojax.models import Backbone, as_transformer, to_one_channel
from dinojax.protocols.features import FeatureRunner, pooled

SIZE = 224


def patch_tokens(backbone: Backbone, x: jax.Array) -> jax.Array:
    """float32 [B, D]: the mean of the patch embedding, before any block."""
    return as_transformer(backbone, "patch embedding").patch_embed(x).mean((1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{machine(('jax',))}; {jax.devices()[0].device_kind}\n")

    rgb = dinojax.create_model("vits14", nnx.Rngs(0))
    one, batch = to_one_channel(rgb), arguments.batch
    grey = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 1), np.uint8)
    inputs = {
        "RGB, three equal channels": (rgb, np.repeat(grey, 3, axis=3)),
        "RGB, repeated on the device": (rgb, grey),
        "one channel": (one, grey),
    }
    rows = []
    seconds = {}
    for what, function in (("features", pooled), ("input", patch_tokens)):
        runners = {name: FeatureRunner(model, function, batch) for name, (model, _) in inputs.items()}
        found = {name: run(inputs[name][1]) for name, run in runners.items()}
        worst = max(float(np.abs(values - found["one channel"]).max()) for values in found.values())
        print(f"{what}: differ by {worst:.1e} at most")
        if not worst <= 1e-5:
            sys.exit("they differ by more than 1e-5: nothing to compare")
        calls = {name: lambda run=run, name=name: run(inputs[name][1]) for name, run in runners.items()}
        seconds[what] = interleaved(calls, arguments.rounds, min)
    for name, (model, images) in inputs.items():
        read = np.prod(preprocess(images[:1], model).shape) * 4 * batch
        features, first = seconds["features"][name], seconds["input"][name]
        rows.append(
            [
                name,
                f"{batch / features:.1f}",
                f"{1000 * features:.1f}",
                f"{1000 * first:.2f}",
                f"{images.nbytes:,}",
                f"{read:,}",
            ]
        )
    header = ["model", "images/s", "ms a batch", "of it input, ms", "bytes to the device", "bytes the model reads"]
    print("\n" + table(header, rows))
    print(f"\nBatch {batch}, fastest of {arguments.rounds} rounds; load now {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
