"""Checkpoints survive what happens to machines: kills, full disks, damaged files."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax.errors import RunError, Stopped
from dinojax.runs.checkpoint import Checkpoints
from dinojax.runs.metrics import read_metrics

SPREAD = PartitionSpec("data")


class Moments(NamedTuple):
    """Like an optimizer's state: named, nested and partly empty."""

    steps: jax.Array
    mu: dict[str, jax.Array]
    nothing: tuple[()] = ()


def mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def state(step: int, devices: int = 8, spec: PartitionSpec = SPREAD, width: int = 16) -> dict[str, Any]:
    """Every kind of array that a run has, with contents that tell the step."""
    numbers = np.random.default_rng(step)
    weights = {f"blocks.{i}.kernel": numbers.normal(size=(64, width)).astype(np.float32) for i in range(2)}
    moments = Moments(np.int32(step), {"low": numbers.normal(size=(8,)).astype(jnp.bfloat16)})  # type: ignore[arg-type]
    made = {"step": np.int32(step), "student": weights, "optimizer": (moments, {"flag": np.array([True, False] * 8)})}
    spread = NamedSharding(mesh(devices), spec)
    whole = NamedSharding(mesh(devices), PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, spread if x.ndim else whole), made)


def assert_same(given: Any, expected: Any) -> None:
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def saved(directory: Path, *steps: int, keep: int = 9) -> Path:
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()
    return directory


def restore(directory: Path, like: Any = None) -> Any:
    checkpoints = Checkpoints(directory, 9)
    try:
        return checkpoints.restore(state(0) if like is None else like)
    finally:
        checkpoints.close()


def on_disk(directory: Path) -> list[int]:
    names = [path.name for path in directory.iterdir()]
    assert all(name.isdigit() for name in names), names
    return sorted(map(int, names))


def biggest(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_state_comes_back_on_other_devices(tmp_path: Path) -> None:
    assert restore(tmp_path / "none") is None
    run = saved(tmp_path / "run", 3, 5)
    assert_same(restore(run), state(5))
    for devices, spec in ((1, PartitionSpec()), (2, SPREAD), (8, PartitionSpec())):
        assert_same(restore(run, state(0, devices, spec)), state(5, devices, spec))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0, 4))
    assert_same(restore(run, abstract), state(5, 4))


def test_a_state_that_is_saved_may_be_donated(tmp_path: Path) -> None:
    add = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    live = {"a": jnp.zeros((512, 512)), "b": jnp.zeros((512, 512))}
    checkpoints = Checkpoints(tmp_path, 3)
    for step in range(3):
        checkpoints.save(step, live)
        for _ in range(5):
            live = add(live)
    assert checkpoints.steps() == [0, 1, 2]
    checkpoints.close()
    assert jax.tree.map(lambda x: set(np.asarray(x).ravel()), restore(tmp_path, live)) == {"a": {10.0}, "b": {10.0}}


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for step, probe in enumerate([0.1, 0.5, 0.5, None, float("nan"), 0.2], start=1):
        checkpoints.save(step, state(step), probe)
    checkpoints.wait()
    assert checkpoints.steps() == on_disk(tmp_path) == [2, 5, 6]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(7, state(7), 0.4)
    checkpoints.wait()
    assert on_disk(tmp_path) == [2, 6, 7]
    checkpoints.save(8, state(8), 0.6)
    checkpoints.close()
    assert on_disk(tmp_path) == [7, 8]


def test_a_state_from_before_a_collapse_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for step, suspect in {10: None, 20: None, 30: 25, 40: 25, 50: 25}.items():
        checkpoints.save(step, state(step), suspect=suspect)
    checkpoints.wait()
    assert on_disk(tmp_path) == [20, 40, 50]
    checkpoints.save(60, state(60), suspect=None)  # it was none
    checkpoints.close()
    assert on_disk(tmp_path) == [50, 60]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(saved(tmp_path, 4), 2)
    for _ in range(2):
        checkpoints.save(4, state(9))
    checkpoints.save(6, state(6))
    checkpoints.save(6, state(9))
    checkpoints.close()
    assert_same(restore(tmp_path), state(6))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def damage_an_array(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("which", "harm", "problem"),
    [
        ("biggest", cut, "bytes instead of"),
        ("biggest", Path.unlink, "is missing"),
        ("biggest", garble, "is damaged"),
        ("biggest", damage_an_array, "is damaged"),
        ("_METADATA", garble, "_METADATA is damaged"),
        ("manifest.ocdbt", Path.unlink, "manifest.ocdbt is missing"),
        ("checkpoint.json", cut, "checkpoint.json: "),
        ("checkpoint.json", Path.unlink, "checkpoint.json: No such file"),
        (".", shutil.rmtree, "checkpoint.json: "),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], which: str, harm: Callable[[Path], None], problem: str
) -> None:
    run = saved(tmp_path / "checkpoints", 2, 4)
    harm(biggest(run / "4") if which == "biggest" else run / "4" / which)
    (run / "4").mkdir(exist_ok=True)  # all that is left where everything was removed
    checkpoints = Checkpoints(run, 9)
    assert_same(checkpoints.restore(state(0)), state(2))
    out, err = capfd.readouterr()
    assert re.fullmatch(rf"the checkpoint of step 4 cannot be read \(.*{re.escape(problem)}.*\) and is now .*/4\n", out)
    assert err == ""
    assert on_disk(run) == [2]
    assert on_disk(tmp_path / "checkpoints_unreadable") == [4]
    checkpoints.save(4, state(4))
    checkpoints.close()
    assert_same(restore(run), state(4))
    harm(biggest(run / "4") if which == "biggest" else run / "4" / which)
    (run / "4").mkdir(exist_ok=True)
    restore(run)
    assert sorted(path.name for path in (tmp_path / "checkpoints_unreadable").iterdir()) == ["4", "4.1"]


def test_what_only_orbax_notices_is_set_aside_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = saved(tmp_path / "run", 2, 4)
    shutil.rmtree(run / "4" / "d")
    record = run / "4" / "checkpoint.json"
    record.write_text(json.dumps({"probe": None, "files": {}}))
    assert_same(restore(run), state(2))
    assert capfd.readouterr().out.startswith("the checkpoint of step 4 cannot be read (")


def test_where_none_can_be_read_all_stay(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 2, 4)
    for step in (2, 4):
        biggest(run / str(step)).unlink()
    for _ in range(2):  # the same command must not begin anew
        with pytest.raises(
            RunError, match=r"\(step 4: .* is missing; step 2: .* is missing\); put back.*--out"
        ) as caught:
            restore(run)
        assert "\n" not in str(caught.value)
    assert on_disk(run) == [2, 4]


def test_another_model_is_no_damage(tmp_path: Path) -> None:
    run = saved(tmp_path, 4)
    with pytest.raises(RunError, match=r"/4 belongs to another model \(2 differences: .*kernel: 64×16, expected 64×8"):
        restore(run, state(0, width=8))
    with pytest.raises(RunError, match=r"missing more 2; unexpected optimizer\.0\.mu\.low 8; .*; \.\.\.\).*--out"):
        restore(run, {"step": jnp.int32(0), "more": jnp.zeros(2)})
    assert on_disk(run) == [4]


def test_a_directory_that_is_gone_is_an_error_at_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(saved(tmp_path / "run", 1), 2)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("no directory")
    with pytest.raises(RunError, match=r"step 2 could not be written to .*/run: Not a directory; .* from step 1$"):
        checkpoints.save(2, state(2))
    checkpoints.close()


def test_an_error_is_reported_once_and_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = saved(tmp_path / "run", 1)
    monkeypatch.setattr("dinojax.runs.checkpoint.checksums", full)
    message = f"the checkpoint of step 2 could not be written to {run}: No space left on device; "
    message += "the same command resumes from step 1"
    for then in (Checkpoints.wait, lambda checkpoints: checkpoints.save(3, state(3)), lambda checkpoints: None):
        with pytest.raises(RunError, match=f"^{message}$"):
            save_and_continue(Checkpoints(run, 2), then)
        assert on_disk(run) == [1]

    def divide(checkpoints: Checkpoints) -> None:
        _ = 1 / 0

    assert capsys.readouterr().out == ""
    with pytest.raises(ZeroDivisionError):
        save_and_continue(Checkpoints(run, 2), divide)
    assert capsys.readouterr().out == f"{message}\n"

    def stop(checkpoints: Checkpoints) -> None:
        raise Stopped("SIGTERM at step 2: the state is saved")

    with pytest.raises(RunError, match=message):
        save_and_continue(Checkpoints(run, 2), stop)


def save_and_continue(checkpoints: Checkpoints, then: Callable[[Checkpoints], None]) -> None:
    """As a verb does, which continues while a state is being written, and closes whatever happens."""
    try:
        checkpoints.save(2, state(2))
        then(checkpoints)
    finally:
        checkpoints.close()


def run_child(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FULL_DISK = """
import pathlib, resource, sys
import jax.numpy as jnp
import numpy as np
from dinojax.errors import RunError
from dinojax.runs.checkpoint import Checkpoints
from dinojax.runs.metrics import MetricsLog

out = pathlib.Path(sys.argv[1])
numbers = np.random.default_rng(0).normal(size=(8, 128, 256)).astype(np.float32)
state = {f"a{i}": jnp.asarray(numbers[i]) for i in range(8)}
checkpoints = Checkpoints(out / "checkpoints", 2)
with MetricsLog(out / "metrics.jsonl", None) as log:
    log.write(1, {"loss": 1.0}, {"seconds": 1.0})
    checkpoints.save(1, state)
    checkpoints.wait()
    log.write(2, {"loss": 1.0}, {"seconds": 1.0})
    for limit in (lambda: 100_000, lambda: (out / "metrics.jsonl").stat().st_size + 9, lambda: 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit(), resource.RLIM_INFINITY))
        for act in (lambda: (checkpoints.save(2, state), checkpoints.wait()), lambda: log.write(3, {}, {})):
            try:
                act()
            except RunError as error:
                print(error)
try:
    checkpoints.save(2, state)
    checkpoints.close()
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    out, err = run_child(FULL_DISK, tmp_path).communicate(timeout=120)
    lines = out.splitlines()
    checkpoint = (
        rf"the checkpoint of step 2 could not be written to {tmp_path}/checkpoints: File too large; the same .* 1"
    )
    metrics = rf"the metrics of step 3 could not be written to {tmp_path}/metrics\.jsonl: File too large"
    assert [bool(re.fullmatch(checkpoint, line)) for line in lines] == [True, True, False, True, False, True], out
    assert [bool(re.fullmatch(metrics, line)) for line in lines] == [False, False, True, False, True, False], out
    assert err == ""
    assert not (tmp_path / "checkpoints" / "2").exists()
    numbers = np.random.default_rng(0).normal(size=(8, 128, 256)).astype(np.float32)
    back = restore(tmp_path / "checkpoints", {f"a{i}": jnp.zeros((128, 256)) for i in range(8)})
    np.testing.assert_array_equal(np.stack([back[f"a{i}"] for i in range(8)]), numbers)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


KILLED = """
import os, pathlib, signal, sys, time
import jax
import jax.numpy as jnp
from dinojax.runs.checkpoint import Checkpoints

# Modules are loaded once; each process starts JAX after the fork.
add = lambda state: jax.tree.map(lambda x: x + 1, state)
unfinished = "*.orbax-checkpoint-tmp"
moments = {
    "begun": lambda run: any(run.glob(unfinished)),
    "written_in_part": lambda run: any(run.glob(f"{unfinished}/**/d/*")),
    "sealed": lambda run: any(run.glob(f"{unfinished}/checkpoint.json")),
    "renamed": lambda run: (run / "3").exists(),
    "an_old_one_goes": lambda run: not (run / "1").exists(),
}
for name, reached in moments.items():
    run = pathlib.Path(sys.argv[1]) / name
    pid = os.fork()
    if pid == 0:
        step = jax.jit(add, donate_argnums=0)
        state = {f"a{i}": jnp.ones((256, 1024)) for i in range(4)} | {"step": jnp.int32(1)}
        checkpoints = Checkpoints(run, 2)
        for number in range(1, 10_000):
            checkpoints.save(number, state)
            state = step(state)
        os._exit(0)
    deadline = time.monotonic() + 60
    seen = False
    while not (seen and reached(run)) and time.monotonic() < deadline:
        seen = seen or (run / "2").exists()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def test_a_kill_loses_at_most_the_save_in_flight(tmp_path: Path) -> None:
    _, err = run_child(KILLED, tmp_path).communicate(timeout=300)
    assert err == ""
    like = {f"a{i}": jnp.ones((256, 1024)) for i in range(4)} | {"step": jnp.int32(1)}
    runs = list(tmp_path.iterdir())
    assert len(runs) == 5
    for run in runs:
        checkpoints = Checkpoints(run, 2)
        newest = checkpoints.steps()[-1]
        back = checkpoints.restore(like)
        assert back is not None
        step = int(back["step"])
        assert 2 <= newest == step
        assert all(set(np.unique(back[f"a{i}"])) == {float(step)} for i in range(4)), run
        again = jax.tree.map(lambda x: x + 1, back)
        checkpoints.save(step + 1, again)
        checkpoints.close()
        assert on_disk(run) == [step, step + 1]
        assert int(restore(run, like)["step"]) == step + 1


TWO = """
import pathlib, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec as P
from dinojax.runs.checkpoint import Checkpoints

jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
run = pathlib.Path(sys.argv[1])
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole = np.arange(32, dtype=np.float32).reshape(8, 4)
def state(step):
    spread = NamedSharding(mesh, P("data"))
    a = jax.make_array_from_callback((8, 4), spread, lambda i: whole[i] + step)
    return {"a": a, "step": jax.make_array_from_callback((), NamedSharding(mesh, P()), lambda i: np.int32(step))}
checkpoints = Checkpoints(run, 1)
for step in (1, 2, 3):
    checkpoints.save(step, state(step), 0.5 if step == 2 else None)
checkpoints.close()
sync_global_devices("written")
if jax.process_index() == 0:
    next((run / "3").rglob("d/*")).unlink()
sync_global_devices("damaged")
checkpoints = Checkpoints(run, 1)
back = checkpoints.restore(state(0))
print(int(back["step"]), all(bool((s.data == whole[s.index] + 2).all()) for s in back["a"].addressable_shards))
checkpoints.save(3, state(3), 0.4)
checkpoints.close()
jax.distributed.shutdown()
"""


def test_two_processes_share_their_checkpoints(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    children = [run_child(TWO, tmp_path / "run", address, number) for number in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    (out, _), (other, _) = outputs  # among lines that Gloo writes
    assert len(re.findall(r"the checkpoint of step 3 cannot be read \(.* is missing\) and is now .*/3\n", out)) == 1
    assert "cannot be read" not in other
    assert out.endswith("2 True\n")
    assert other.endswith("2 True\n")
    assert on_disk(tmp_path / "run") == [2, 3]
    assert on_disk(tmp_path / "run_unreadable") == [3]
    spread = NamedSharding(mesh(8), SPREAD)
    back = restore(tmp_path / "run", {"a": jax.device_put(np.zeros((8, 4), np.float32), spread), "step": jnp.int32(0)})
    np.testing.assert_array_equal(back["a"], np.arange(32).reshape(8, 4) + 3)
