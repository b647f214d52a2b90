"""Worker processes change no batch, and what goes wrong in them is not lost."""

import itertools
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinojax.data.formats import BadFile
from dinojax.data.pipeline import prefetch, training_batches
from dinojax.data.reading import read_records
from dinojax.data.sources import ImageSource
from dinojax.data.workers import _WorkerReports
from dinojax.errors import RunError

DEADLINE_S = 60


def draw(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"index": element["index"], "level": element["image"][0, 0, 0], "draw": rng.random(2)}


def write_images(folder: Path, count: int, bad: tuple[int, ...] = ()) -> ImageSource:
    """Images whose level is ten times their number; of a bad one only the beginning is there."""
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("L", (64, 64), 10 * number).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:60])
    return ImageSource(read_records(str(folder), labelled=False), channels=1, on_bad_file="skip", cache_gib=1e-5)


def take(count: int, source: ImageSource, **options: Any) -> list[dict[str, np.ndarray]]:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 3, "threads": 2}
    return list(itertools.islice(training_batches(source, draw, **(defaults | options)), count))


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


def within_deadline(call: Callable[[], Any]) -> Any:
    """What the call returns or raises; fails if it hangs."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it hangs"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.mark.parametrize(
    ("workers", "options"), [(1, {"start": 3, "threads": 0}), (2, {"part": (1, 2)}), (2, {"start": 3, "threads": 5})]
)
def test_workers_change_nothing_and_list_what_they_skip(tmp_path, workers, options):
    source = write_images(tmp_path, 11, bad=(4, 7))
    expected = take(20, source, **(options | {"threads": 2}))
    apart: ImageSource = pickle.loads(pickle.dumps(source))  # nothing cached, nothing skipped
    given: list[int] = []

    def number(batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        given.append(step)
        return batch

    assert_same(within_deadline(lambda: take(20, apart, workers=workers, per_batch=number, **options)), expected)
    assert given == list(range(options.get("start", 0), options.get("start", 0) + 20))
    assert [path for path, _ in apart.skipped] == ["4.png", "7.png"]
    assert apart.skipped == source.skipped
    assert not multiprocessing.active_children()


def test_a_bad_file_comes_out_of_a_worker_as_it_is(tmp_path):
    write_images(tmp_path, 6, bad=(5,))
    table = tmp_path / "manifest.csv"
    table.write_text("path\n" + "".join(f"{number}.png\n" for number in range(6)))
    source = ImageSource(read_records(str(table), labelled=False), channels=1)
    batches = training_batches(source, draw, batch_size=2, seed=1, workers=2)
    plain = training_batches(source, draw, batch_size=2, seed=1, threads=0)
    before: list[dict[str, np.ndarray]] = []
    with pytest.raises(BadFile) as expected:
        before.extend(plain)
    after: list[dict[str, np.ndarray]] = []
    with pytest.raises(BadFile) as caught:
        within_deadline(lambda: after.extend(batches))
    assert str(caught.value) == str(expected.value)
    assert "manifest.csv, row 7" in str(caught.value)
    assert_same(after, before)
    assert not multiprocessing.active_children()


def test_a_killed_worker_ends_the_run_with_one_line(tmp_path):
    batches = prefetch(training_batches(write_images(tmp_path, 8), draw, batch_size=4, seed=0, workers=2), dict)
    within_deadline(lambda: [next(batches), next(batches)])
    children = multiprocessing.active_children()
    assert len(children) == 2
    children[1].kill()
    with pytest.raises(RunError, match=r"worker process .* died .*exit code -9.*lower workers or cache_gib") as caught:
        within_deadline(lambda: list(batches))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing
import os
import signal
import sys

import numpy as np
from dinojax.data.pipeline import prefetch, training_batches

class Numbers:
    indices = np.arange(9)

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return {"index": np.int32(index)}

if __name__ == "__main__":
    transform = lambda element, rng: element
    batches = prefetch(training_batches(Numbers(), transform, batch_size=2, seed=0, workers=2), dict)
    numbers = [int(number) for _ in range(2) for number in next(batches)["place"]]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    numbers += [int(number) for _ in range(10) for number in next(batches)["place"]]
    print(numbers == list(range(24)), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_workers_leave_signals_to_the_run_and_end_with_it(tmp_path, killed):
    """A terminal's Ctrl-C and a cluster's SIGTERM reach the workers too; the run answers, and needs batches till then.

    The workers hold the run's output open: that it ends means that they did. The iterator is never closed.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert within_deadline(run.stdout.readline) == "True\n"
    if killed:
        run.kill()
    _, errors = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == (-signal.SIGKILL if killed else 0)
    assert killed or not errors


def test_an_error_that_does_not_pickle_still_arrives():
    class LocalError(Exception):
        """No module has it."""

    def read(number: int) -> dict[str, np.ndarray]:
        raise LocalError(f"batch {number}")

    error = pickle.loads(pickle.dumps(_WorkerReports(read, None)[5]["error"]))
    assert str(error) == "LocalError: batch 5"
    assert "in read" in "".join(error.__notes__)
