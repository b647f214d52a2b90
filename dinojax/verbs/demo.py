"""`dinojax demo`: the main job on phantoms, with the very commands that a user would type."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from dinojax.config.demo import DemoConfig
from dinojax.errors import RunError, UsageError


def main(config: DemoConfig) -> Path:
    """Runs the verbs one after the other, each in a process of its own."""
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a new folder")
    data, pretrained, seed = out / "phantoms", out / "pretrained", ["--seed", str(config.seed)]
    began = time.monotonic()
    run("phantoms", str(data), *seed, *(["--patients", "20", "--folds", "3"] if config.quick else []))
    less = ["--steps", "4", "--model.depth", "1"] if config.quick else ["--epochs", "28"]
    form = ["--model.depth", "1"] if config.quick else []
    run("pretrain", "--config", "laptop", "--data", str(data), "--out", str(pretrained), *seed, *less)
    epochs = "1" if config.quick else "12"
    runs = []
    for name, init in (("random", form), ("pretrained", ["--init", str(pretrained / "model")])):
        own = ["--config", "laptop", "--data", str(data), *init, "--starting_point", name, *seed]
        runs += [str(out / f"{name}_cv"), str(out / f"{name}_knn")]
        run("finetune", *own, "--epochs", epochs, "--out", runs[-2])
        run("evaluate", "knn", *own, "--out", runs[-1])
    run("report", *runs, "--out", str(out / "report"))
    minutes = (time.monotonic() - began) / 60
    print(f"\nthe demo took {minutes:.1f} minutes; read {out / 'report' / 'report.md'} (or report.html beside it)")
    return out


def run(*arguments: str) -> None:
    """Shows and runs a command."""
    print(f"\n$ dinojax {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "dinojax", *arguments], check=False)
    if done.returncode:
        raise RunError(f"{arguments[0]} ended with status {done.returncode}; see above")
