"""The pre-training step against PyTorch: the same seeded weights, images and masks, in interleaved rounds.

    python scripts/bench_pretrain.py --compile --profile
    python scripts/bench_pretrain.py --batch 256 --bfloat16 --drop_path 0 --compile --profile       # on a GPU

ViT-S/14 with MediDino's losses: 2 × 224² and 8 × 98² crops, 65,536 prototypes in one head, Sinkhorn-Knopp, KoLeo, iBOT,
AdamW, moving average. The views are made before; what is timed is the step alone, with the same threads. Each side has
a process of its own and they take turns; so each has its own memory allocator (dinojax' commands ask for huge pages,
PyTorch does not), and the memory told is the most that its process, or its device, needed. First the
losses and gradient norms of a step are compared.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarking import against, interleaved, machine, table
from flax import nnx

from dinojax.__main__ import HUGE_PAGES
from dinojax.config.pretrain import LossConfig, OptimConfig, TeacherConfig
from dinojax.dino import state as states
from dinojax.dino.masking import MaskPlan
from dinojax.dino.step import make_train_step
from dinojax.models import VisionTransformer, create_transformer
from dinojax.models.heads import DINOHead

TARGETS = {0.0: 1.5, 0.3: 1.4}  # on a CPU
MEMORY_TARGET = 1.5
GPU_TARGET = 1.3
STEPS, PROTOTYPES, PATCHES = 1000, 65536, 256
TIMELINE = states.Timeline(STEPS, lr_warmup=STEPS // 10, temperature_warmup=STEPS * 3 // 10)
SIDES = ("torch", "dinojax", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--drop_path", type=float, nargs="+", default=[0.0, 0.3], help="the same in every block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="both sides in bfloat16, for a GPU")
    parser.add_argument("--compile", action="store_true", help="also PyTorch with compiled backbones")
    parser.add_argument("--profile", action="store_true", help="where the time of dinojax' step goes")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    print(f"{machine()}; {'bfloat16' if options.bfloat16 else 'float32'}\n", flush=True)
    rows = []
    for drop_path in options.drop_path:
        sides = {name: Side(name, options, drop_path) for name in SIDES if name != "compiled" or options.compile}
        compare(sides["dinojax"].first, sides["torch"].first, drop_path, 3e-2 if options.bfloat16 else 1e-4)
        seconds = interleaved(sides, options.rounds)
        told = {name: side.close() for name, side in sides.items()}
        rows.append(row(options, drop_path, seconds, told))
        print(told["dinojax"]["profile"], flush=True)
    header = ["drop path", "torch s/step", "dinojax s/step", "dinojax images/s", "TFLOP/s", "faster", "than compiled"]
    print("\n" + table([*header, "torch GiB", "dinojax GiB", "ratio"], rows))
    print(f"\nMedian of {options.rounds} interleaved rounds; batch {options.batch}; load now {os.getloadavg()[0]:.1f}.")


def row(
    options: argparse.Namespace, drop_path: float, seconds: dict[str, float], told: dict[str, dict[str, Any]]
) -> list[str]:
    on_gpu = told["dinojax"]["gpu"]
    target = (GPU_TARGET if on_gpu else TARGETS[drop_path]) if drop_path in TARGETS else None
    ours, memory = seconds["dinojax"], {name: side["gib"] for name, side in told.items()}
    return [
        *(f"{drop_path:g}", f"{seconds['torch']:.3f}", f"{ours:.3f}", f"{options.batch / ours:.1f}"),
        rate(told["dinojax"], ours),
        against(ours, seconds["torch"], target),
        against(ours, seconds["compiled"], None) if options.compile else "–",
        *(f"{memory['torch']:.1f}", f"{memory['dinojax']:.1f}"),
        f"{memory['dinojax'] / memory['torch']:.2f} (target {MEMORY_TARGET:g} at most)",
    ]


def rate(told: dict[str, Any], seconds: float) -> str:
    """Arithmetic of the step per second, and on a GPU its share of what large matrix products reach."""
    tflops = told["flops"] / seconds / 1e12
    return f"{tflops:.2f}" + (f" ({tflops / told['peak']:.0%} of {told['peak']:.0f})" if told["gpu"] else "")


class Side:
    """A process that takes a step whenever it is asked to; `first` are the terms and norms of its first one."""

    def __init__(self, name: str, options: argparse.Namespace, drop_path: float) -> None:
        command = [sys.executable, __file__, "--side", name, "--batch", str(options.batch)]
        command += ["--drop_path", str(drop_path), "--bfloat16"][: 2 + options.bfloat16]
        command += ["--profile"] if options.profile and name == "dinojax" else []
        environment = dict(os.environ)
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share one GPU
        if name == "dinojax":
            environment.setdefault(*HUGE_PAGES)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first: dict[str, float] = self._answer()

    def __call__(self) -> None:
        self._ask("step")

    def close(self) -> dict[str, Any]:
        """What it tells at the end: `gib`, `gpu`, `profile`, and of dinojax `flops` of a step and `peak` TFLOP/s."""
        told = self._ask("end")
        self._process.wait()
        return told

    def _ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        print(what, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with status {self._process.wait()}")
        return json.loads(line)


def serve(options: argparse.Namespace) -> None:
    """One side's process."""
    drop_path, name = options.drop_path[0], options.side
    run = Ours(options, drop_path) if name == "dinojax" else published(options, drop_path, name == "compiled")
    print(json.dumps(run()), flush=True)
    while sys.stdin.readline().strip() == "step":
        run()
        print("0", flush=True)
    gpu = jax.default_backend() == "gpu"
    told: dict[str, Any] = {"gib": peak_memory(name), "gpu": gpu, "profile": ""}
    if isinstance(run, Ours):
        told |= {"flops": run.flops, "peak": matmul_peak() if gpu else None}
        told["profile"] = profile(run, drop_path) if options.profile else ""
    print(json.dumps(told), flush=True)


def peak_memory(name: str) -> float:
    """GiB, of the device, or of the process on a CPU."""
    if jax.default_backend() != "gpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if name == "dinojax":
        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**30 if stats else float("nan")
    from published_models import torch

    return torch.cuda.max_memory_allocated() / 2**30


def mask_plan(batch: int) -> MaskPlan:
    return MaskPlan(2 * batch, (16, 16), 0.5, (0.1, 0.5))


def make_batch(batch: int) -> dict[str, np.ndarray]:
    """Noise in the place of normalised images, image-major, and iBOT's masks."""
    rng = np.random.default_rng(0)
    masks = mask_plan(batch).draw(rng)
    return {
        "globals": rng.standard_normal((batch, 2, 224, 224, 3), dtype=np.float32),
        "locals": rng.standard_normal((batch, 8, 98, 98, 3), dtype=np.float32),
        "masks": masks.reshape(batch, 2, PATCHES),
    }


def make_model(drop_path: float) -> tuple[VisionTransformer, states.Graphs, dict[str, jax.Array]]:
    backbone = create_transformer("vits14", nnx.Rngs(0), drop_path=drop_path, drop_path_uniform=True)
    head = DINOHead(backbone.width, PROTOTYPES, 2048, 256, 3, nnx.Rngs(1))
    return backbone, *states.split_modules({"backbone": backbone, "dino_head": head})


class Ours:
    """dinojax' step, compiled, with its state."""

    def __init__(self, options: argparse.Namespace, drop_path: float) -> None:
        backbone, graphs, params = make_model(drop_path)
        optim, teacher = OptimConfig(), TeacherConfig()
        schedules = states.make_schedules(TIMELINE, options.batch, optim, teacher)
        optimizer = states.make_optimizer(params, backbone.arguments.depth, schedules, TIMELINE, optim)
        bound = mask_plan(options.batch).bound
        dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32
        logged = np.arange(STEPS) % 10 == 9  # as the presets have it
        made = make_train_step(graphs, optimizer, schedules, LossConfig(), bound, dtype=dtype, logged=logged)
        self.state = states.init_state(params, optimizer)
        self.batch: Any = jax.device_put(make_batch(options.batch))
        lowered = jax.jit(made, donate_argnums=0).lower(self.state, self.batch)
        self.flops = (lowered.cost_analysis() or {}).get("flops", float("nan"))  # before fusion and library calls
        self.step = lowered.compile()

    def __call__(self) -> dict[str, float]:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state.student)
        return {name: float(value) for name, value in jax.device_get(metrics).items()}


def published(options: argparse.Namespace, drop_path: float, compiled: bool = False) -> Any:
    """PyTorch's step from the same weights, as a function without arguments."""
    from published_models import torch
    from published_torch import SSLStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    backbone, _, params = make_model(drop_path)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    step = SSLStep(
        backbone.arguments,
        {path: np.asarray(value) for path, value in params.items()},
        drop_path=drop_path,
        drop_path_uniform=True,
        device=device,
        bfloat16=options.bfloat16,
        compiled=compiled,
    )
    batch = make_batch(options.batch)

    def crops(name: str) -> Any:
        ours = batch[name]  # image-major and NHWC; the published ones are crop-major and NCHW
        return torch.from_numpy(np.ascontiguousarray(ours.transpose(1, 0, 4, 2, 3)).reshape(-1, 3, *ours.shape[2:4]))

    given = [crops("globals"), crops("locals"), torch.from_numpy(batch["masks"].swapaxes(0, 1).reshape(-1, PATCHES))]
    given = [tensor.to(device) for tensor in given]
    optim, teacher = OptimConfig(), TeacherConfig()
    schedules = states.make_schedules(TIMELINE, options.batch, optim, teacher)
    taken = 0

    def run() -> dict[str, float]:
        nonlocal taken
        lr, decay, momentum, temperature = (float(schedule[taken]) for schedule in schedules)
        found = step(given[0], given[1], given[2], lr, decay, momentum, temperature)
        taken += 1
        return found  # its floats were waited for

    return run


def compare(ours: dict[str, float], theirs: dict[str, float], drop_path: float, tolerance: float) -> None:
    """Terms and gradient norms of the first step; with drop path, whose draws differ, they are only printed."""
    worst = max((abs(ours[name] - value) / abs(value), name) for name, value in theirs.items())
    print(f"drop path {drop_path:g}: the first step differs by {worst[0]:.1e} at most ({worst[1]}), relative")
    if drop_path == 0 and not worst[0] <= tolerance:
        sys.exit(f"that is more than {tolerance:g}: nothing to compare")


def matmul_peak() -> float:
    """TFLOP/s of large bfloat16 products, the best of ten."""
    side = 8192
    matrix = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    seconds = min(
        interleaved({"product": lambda: product(matrix).block_until_ready()}, 1)["product"] for _ in range(10)
    )
    return 2 * side**3 / seconds / 1e12


def profile(ours: Ours, drop_path: float) -> str:
    """The operations that a step's time goes to, from JAX's own profiler, as a table."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            ours()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(trace))
        seconds: Counter[str] = Counter()
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if "hlo_op" in dict(event.stats):
                        seconds[event.name.rstrip("0123456789").rstrip(".")] += event.duration_ns / 1e9
    total = sum(seconds.values())
    rows = [[name, f"{spent:.3f}", f"{100 * spent / total:.1f}"] for name, spent in seconds.most_common(15)]
    title = f"Where a step with drop path {drop_path:g} spends its {total:.2f} s of all threads together"
    return f"\n{title}\n\n{table(['operation', 's', '%'], rows)}"


if __name__ == "__main__":
    main()
