"""Reads batches in other processes, through Grain, such that a bad file or a lost process raises in this one."""

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import connection, resource_tracker
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags

from dinojax.errors import RunError

Batch = dict[str, np.ndarray]
T = TypeVar("T")


def read_in_processes(read: Callable[[int], Batch], source: Any, workers: int) -> Iterator[Batch]:
    """Endless batches 0, 1, 2, ..., each read whole by one of the workers in turn: their number changes nothing.

    Args:
      read: gives batch k. Pickled with `source` for the workers, by `cloudpickle`, which takes closures too.
      source: what `read` reads from. Where it lists the files that it `skipped`, as `ImageSource` does, those that a
        worker skips are added to this process's list.
      workers: how many processes, 1 or more. Of each, up to four batches lie in shared memory (`/dev/shm`): waiting in
        the worker, on the way, and two in this process.

    Raises:
      RunError: a worker died, by the out-of-memory killer for example; seen seconds after its batch is due.
      What `read` raises, when its batch is due, with the worker's traceback as a note.
    """
    return close_at_exit(_read_in_processes(read, source, workers))


def _read_in_processes(read: Callable[[int], Batch], source: Any, workers: int) -> Generator[Batch, None, None]:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags when it starts processes
    numbers = grain.MapDataset.source(_WorkerReports(read, source)).to_iter_dataset(grain.ReadOptions(0, 0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    reports = iter(numbers.mp_prefetch(options, worker_init_fn=_start_worker))
    guard = _signals_blocked()  # the processes start with the first batch
    try:
        while True:
            with guard:
                batch = _receive(reports, source)
            yield batch
            guard = nullcontext()
    finally:
        reports.close()


def _receive(reports: Iterator[dict[str, Any]], source: Any) -> Batch:
    try:
        report = next(reports)
    except RuntimeError as error:  # Grain's own; what `read` raises arrives as a value
        what, *_ = str(error).split(". ")
        raise RunError(
            f"a worker process that reads images died ({what}): out of memory, or of shared memory in /dev/shm? "
            "The same command resumes; lower workers or cache_gib"
        ) from error
    if report["skipped"]:
        source.add_skipped(report["skipped"])
    if report["error"] is not None:
        raise report["error"]
    # Copies, so that the shared memory is free again, and nobody need know that it was one.
    return {name: np.array(array) for name, array in report["batch"].items()}


def close_at_exit(generator: Generator[T, None, None]) -> Generator[T, None, None]:
    """Closes a generator before Python ends, if it is not exhausted by then.

    Generators are closed in the reverse of the order of these calls: what one reads from comes after it.
    """

    def close() -> None:
        unfinished = reference()
        if unfinished is not None:
            with suppress(ValueError):  # a thread still runs it
                unfinished.close()

    reference = weakref.ref(generator, lambda _: atexit.unregister(close))
    atexit.register(close)
    return generator


class _WorkerReports:
    """What a worker sends, by the batch's number; a source for Grain.

    Each has `batch`, the files `skipped` since the last report, and the `error` that came instead of a batch.
    """

    def __init__(self, read: Callable[[int], Batch], source: Any):
        self.read = read
        self.source = source
        self._reported: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        report: dict[str, Any] = {"batch": {}, "error": None}
        try:
            report["batch"] = self.read(index)
        except Exception as error:
            report["error"] = _portable(error)
        new = set(getattr(self.source, "skipped", ())) - self._reported
        self._reported |= new
        return report | {"skipped": sorted(new)}


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; one that does not pickle, and would never arrive, becomes its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker process:\n{traceback.format_exc()}")
    return error


def _start_worker(worker: int, workers: int) -> None:
    """Keeps a worker off the accelerator, and ends it with the run, even if that is killed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if jax := sys.modules.get("jax"):  # it has read its environment already
        jax.config.update("jax_platforms", "cpu")
    run = multiprocessing.parent_process()
    assert run is not None

    def follow() -> None:
        connection.wait([run.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in this thread and, for good, in the threads and processes that it starts.

    A terminal or a cluster sends them to the workers too, but the run handles them: it still needs batches.
    """
    resource_tracker.ensure_running()  # where it is started by itself, it lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
