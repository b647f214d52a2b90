"""A run that dies at any moment resumes as if nothing had happened; several processes train as one.

Only what needs a process of its own is here: kill -9, a signal to a command, several processes, other devices.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DEADLINE_S = 240
STEPS, EVERY = 24, 4
TINY = shlex.split(f"""
    --batch_size 8 --steps {STEPS} --epochs 3 --log_every 1 --checkpoint_every {EVERY} --groups 8
    --model.name vitt14 --model.width 32 --model.depth 1 --model.heads 2 --model.image_size 28 --model.layer_scale 1.0
    --crops.global_size 28 --crops.local_size 14 --crops.locals 2
    --head.prototypes 64 --head.hidden 32 --head.bottleneck 16
    --optim.warmup_epochs 1 --optim.lr 0.001 --optim.lr_scaling none --drop_path 0.1
""")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 40, 40), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def start(images: Path, out: Path, *more: str, devices: int = 8) -> subprocess.Popen[str]:
    """Begins a run in a process of its own, with so many devices."""
    # Without the compiler's optimisation a run of these few steps takes half the time.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "dinojax", "pretrain", *TINY, "--data", str(images), "--out", str(out), *more]
    # All of them but the first find their programs compiled.
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(child: subprocess.Popen[str]) -> str:
    output, _ = child.communicate(timeout=DEADLINE_S)
    return output


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    child = start(images, out)
    assert "done" in finish(child)
    return out


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"]
    return lines


def wait_for(happened: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def saving(run: Path) -> bool:
    return any(not path.name.isdigit() for path in (run / "checkpoints").glob("*"))


def test_a_run_that_is_killed_resumes_as_if_never_stopped(images: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a save, and of a run that has resumed."""
    out = tmp_path / "run"
    moments: list[Callable[[], bool]] = [
        lambda: bool(saved(out)) and saving(out),
        lambda: bool(saved(out)) and logged(out) >= 4 * EVERY + 1,
    ]
    for moment in moments:
        child = start(images, out)
        wait_for(moment, child)
        child.send_signal(signal.SIGKILL)
        finish(child)
        lines = logged(out)
        # At most the steps of one interval and of the save in flight are lost.
        assert (saved(out) or [0])[-1] >= lines - 2 * EVERY - 1
    child = start(images, out, "--threads", "1")
    output = finish(child)
    assert child.returncode == 0, output
    assert "resuming after step" in output
    assert metrics(out) == metrics(whole)
    model = Path("model") / "params.safetensors"
    assert (out / model).read_bytes() == (whole / model).read_bytes()
    assert not saving(out)


def test_another_number_of_devices_and_workers_resumes(images: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = start(images, out)
    wait_for(lambda: logged(out) >= 2 * EVERY, child)
    child.send_signal(signal.SIGTERM)
    assert "the same command resumes" in finish(child)
    assert child.returncode == 3
    child = start(images, out, "--workers", "2", "--fsdp", "2", devices=2)
    output = finish(child)
    assert child.returncode == 0, output
    close(metrics(out), metrics(whole))


def close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6), line["step"]


def test_two_processes_train_as_one(images: Path, whole: Path, tmp_path: Path) -> None:
    """A signal to one of them stops both after the same step; one process with all devices resumes."""
    out = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = ("--distributed.coordinator", f"localhost:{port}", "--distributed.processes", "2")
    pair = [start(images, out, *joined, "--distributed.process", str(i), "--fsdp", "2", devices=4) for i in (0, 1)]
    wait_for(lambda: logged(out) >= 2 * EVERY, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    output = [finish(child) for child in pair]
    for child, text in zip(pair, output, strict=True):
        assert child.returncode == 3, text
    assert "images" in output[0]
    assert "images" not in output[1]  # only the first process prints, but for how it ended
    close(metrics(out), metrics(whole)[: logged(out)])
    assert saved(out)[-1] == logged(out)
    child = start(images, out)
    assert "done" in finish(child)
    close(metrics(out), metrics(whole))


def test_an_error_of_one_process_ends_both(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "data.json").write_text('{"images": 20, "sha256": "of others"}')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = ("--distributed.coordinator", f"localhost:{port}", "--distributed.processes", "2")
    pair = [start(images, out, *joined, "--distributed.process", str(i), devices=4) for i in (0, 1)]
    output = [finish(child) for child in pair]
    assert "the images are not those that the run" in output[0]
    assert pair[0].returncode == 2
    assert pair[1].returncode
