"""`python -m dinojax demo`: the main job on phantoms, with the very commands that a user would type."""

import dataclasses
import shlex
import subprocess
import sys
import time
from pathlib import Path

from dinojax.config import parser as configuration
from dinojax.errors import RunError, UsageError

# The recipe of configs/pretrain/laptop.yaml, for fewer epochs; a test holds the two together.
PRETRAIN = """
    --batch_size 32 --epochs 28 --steps_per_epoch null --log_every 1 --checkpoint_every 200
    --model.name vitt14 --model.depth 6 --model.image_size 84 --model.channels 1 --model.layer_scale 1.0
    --crops.global_size 84 --crops.global_scale [0.6,1.0]
    --crops.local_size 42 --crops.local_scale [0.15,0.5] --crops.locals 4
    --photometry.jitter 0.5 --photometry.brightness 0.3 --photometry.contrast 0.3 --photometry.grayscale 0
    --photometry.blur_global1 0.2 --photometry.blur_global2 0.2 --photometry.blur_local 0.2
    --photometry.blur_sigma [0.1,1.0] --photometry.solarize_global2 0
    --head.prototypes 1024 --head.hidden 512 --head.bottleneck 128 --loss.ibot_weight 0
    --teacher.momentum 0.94 --teacher.temperature_start 0.02 --teacher.temperature 0.02
    --teacher.temperature_warmup_epochs 0
    --optim.lr 5e-4 --optim.lr_scaling none --optim.warmup_epochs 2.5 --optim.weight_decay_end 0.04
    --optim.layer_decay 1 --optim.patch_embed_lr 1 --optim.freeze_prototypes_epochs 0
"""
FINETUNE = """
    --image_size 84 --normalisation checkpoint --lrs [3e-4] --batch_sizes [16] --epochs 12
    --classifier.renormalise false --classifier.hidden 0
"""
BACKBONE = "--model.name vitt14 --model.depth 6 --model.image_size 84 --model.channels 1"


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Writes a phantom data set, pre-trains on it, scores two starting points over its folds, and reports."""

    out: str
    """A new folder for all of it."""
    seed: int = 0
    quick: bool = False
    """A few steps of everything: shows that it runs, and learns nothing."""


def main(arguments: list[str]) -> None:
    """Runs the verbs one after the other, each in a process of its own."""
    config = configuration.parse(DemoConfig, arguments, "demo")
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a new folder")
    data, seed = out / "phantoms", ["--seed", str(config.seed)]
    began = time.monotonic()
    run("phantoms", str(data), *seed, *(["--patients", "20"] if config.quick else []))
    quick = ["--steps", "4"] if config.quick else []
    run("pretrain", "--data", str(data), "--out", str(out / "pretrained"), *PRETRAIN.split(), *seed, *quick)
    quick = ["--epochs", "1"] if config.quick else []
    common = ["--data", str(data), "--task", "phantoms", *seed]
    starts = {"random": BACKBONE, "pretrained": f"--init {shlex.quote(str(out / 'pretrained' / 'model'))}"}
    runs = []
    for name, start in starts.items():
        own = [*common, *shlex.split(start), "--starting_point", name]
        runs += [str(out / f"{name}_cv"), str(out / f"{name}_knn")]
        run("finetune", *own, *FINETUNE.split(), *quick, "--out", runs[-2])
        run("evaluate", "knn", *own, "--image_size", "84", "--out", runs[-1])
    run("report", *runs, "--out", str(out / "report"))
    minutes = (time.monotonic() - began) / 60
    print(f"\nthe demo took {minutes:.1f} minutes; read {out / 'report' / 'report.md'} (or report.html beside it)")


def run(*arguments: str) -> None:
    """Shows and runs a command."""
    print(f"\n$ python -m dinojax {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "dinojax", *arguments], check=False)
    if done.returncode:
        raise RunError(f"{arguments[0]} ended with status {done.returncode}; see above")
