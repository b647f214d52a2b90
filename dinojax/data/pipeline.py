"""From a source to batches through Grain: order and random draws are functions of (seed, place); there is no state.

The place is an element's number in the whole endless sequence of a training run: batch k holds the places
k·B to (k + 1)·B − 1. So a run resumes at any step, with any number of threads, worker processes and parts, exactly as
if it had never stopped.
"""

import dataclasses
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from dinojax.data.workers import close_at_exit, read_in_processes
from dinojax.errors import RunError, UsageError
from dinojax.seeds import mix

Element = dict[str, Any]
Batch = dict[str, np.ndarray]
Transform = Callable[[Element, np.random.Generator], Element]
T = TypeVar("T")
U = TypeVar("U")

_JOIN_S = 10.0
"""How long closing the iterator waits for a batch that is still being read."""


class Source(Protocol):
    """Random access to elements, such as `ImageSource`; element i is of the record `indices[i]`, its `index`."""

    @property
    def indices(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...


def training_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    threads: int = 2,
    per_batch: Callable[[Batch, int], Batch] | None = None,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches; every image once an epoch, in another order each epoch.

    Args:
      source: the images. An epoch ends where it ends, also in the middle of a batch.
      transform: gets an element and a generator that is a function of (seed, place); gives arrays of fixed shapes.
      batch_size: B, elements a batch; may exceed the number of images.
      seed: 0 or above.
      start: number of the first batch.
      threads: threads that read and transform; with 0, the consumer's does. They change no result.
      per_batch: gets each batch and its number, and returns what is yielded; for draws that belong to a whole batch.
      workers: processes that read and transform, each a batch at a time with `threads` threads; with 0, this one does.
        They change no result. `source` and `transform` are pickled for them by `cloudpickle`, closures included.
        Up to four batches a worker lie in shared memory (`/dev/shm`).
      part: (p, n) reads the slice p of n equal slices of each batch, for process p of n. The concatenation over p is
        the batch of one process.

    Yields:
      The transform's arrays, stacked, and `place` uint32 [B / n], modulo 2^32.

    Raises:
      RunError: there are no images; a worker died; or whatever the source raises, such as `BadFile`, when its batch is
        due.
      UsageError: the seed is negative, or the batch does not divide into the parts.
    """
    if not len(source):
        raise RunError("there are no images to train on")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be 0 or above")
    own, parts = part
    if batch_size % parts:
        raise UsageError(f"batch_size {batch_size} does not divide into {parts} processes; make it a multiple of them")
    # Grain numbers its epochs' seeds consecutively; unhashed, seed 1 would repeat the orders of seed 0 an epoch later.
    shuffle_seed = mix(seed)
    order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    rows = batch_size // parts
    elements = _TrainingElements(
        source, transform, order, seed, batch_size, first=start * batch_size + own * rows, rows=rows
    )
    if workers:
        batches = read_in_processes(partial(elements.batch, threads=threads), source, workers)
    else:
        batches = _read(grain.MapDataset.source(elements), rows, threads)
    return batches if per_batch is None else (per_batch(batch, start + k) for k, batch in enumerate(batches))


def evaluation_batches(
    source: Source,
    transform: Callable[[Element], Element],
    *,
    batch_size: int,
    threads: int = 2,
) -> Iterator[Batch]:
    """Every image once, in the source's order; all batches have the same shape.

    Args:
      source: the images.
      transform: gives arrays of fixed shapes.
      batch_size: B; the last batch is filled up with copies of its last element.
      threads: as in `training_batches`.

    Yields:
      The transform's arrays, stacked, and `valid` bool [B]: False for what fills up the last batch, and for a place
      whose own file the source skipped.
    """

    def prepare(place: int, element: Element) -> Element:
        return {**transform(element), "valid": np.bool_(element["index"] == source.indices[place])}

    for batch in _read(grain.MapDataset.source(source).map_with_index(prepare), batch_size, threads):
        missing = batch_size - len(batch["valid"])
        if missing:
            batch = {name: np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for name, array in batch.items()}
            batch["valid"][-missing:] = False
        yield batch


def prefetch(batches: Iterable[T], put: Callable[[T], U], depth: int = 2) -> Iterator[U]:
    """Makes batches and puts them on the device in a thread, ahead of their use, so that this overlaps with the steps.

    The thread starts with the first batch asked for, and ends when the iterator is closed or dropped.

    Args:
      batches: on the host; only the thread goes through them.
      put: starts the transfer, as `jax.device_put` does; called in the thread.
      depth: how many batches are made ahead of the one in use, at most.

    Raises:
      Whatever `batches` or `put` raises, when that batch is due.
    """
    # A thread that is inside the device's library while Python ends would abort the process.
    return close_at_exit(_prefetched(batches, put, depth))


def _prefetched(batches: Iterable[T], put: Callable[[T], U], depth: int) -> Generator[U, None, None]:
    made: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            iterator = iter(batches)
            while room.acquire() and not stop.is_set():
                made.put((True, put(next(iterator))))
        except StopIteration:
            made.put((False, None))
        except BaseException as error:
            made.put((False, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    result = None
    try:
        while True:
            more, result = made.get()
            if not more:
                break
            room.release()
            yield result
            result = None  # else it would stay on the device while the next is waited for
        if result is not None:
            raise result
    finally:
        result = None  # an error keeps this frame; the frame must not keep the error
        stop.set()
        room.release()
        thread.join(_JOIN_S)


def _read(elements: grain.MapDataset, batch_size: int, threads: int) -> Iterator[Batch]:
    """Reads a batch ahead with threads, and stacks; the threads end when nobody holds the iterator any more."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batch_size + threads if threads else 0)
    return iter(elements.to_iter_dataset(options).batch(batch_size))


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainingElements:
    """This process's elements of the endless sequence, transformed; a source for Grain.

    Attributes:
      order: the source's position for each place.
      batch_size: places from one batch to the next.
      first: place of the first element.
      rows: this process's elements of each batch.
    """

    source: Source
    transform: Transform
    order: grain.MapDataset[int]
    seed: int
    batch_size: int
    first: int
    rows: int

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size * self.rows  # endless

    def __getitem__(self, index: int) -> Element:
        batch, row = divmod(index, self.rows)
        place = self.first + batch * self.batch_size + row
        position = self.order[place]
        assert position is not None  # nothing is filtered
        element = self.source[position]
        return {**self.transform(element, np.random.default_rng((self.seed, place))), "place": np.uint32(place % 2**32)}

    def batch(self, number: int, threads: int) -> Batch:
        """Reads one batch by its number, from 0."""
        chosen = grain.MapDataset.source(self)[number * self.rows : (number + 1) * self.rows]
        return next(_read(chosen, self.rows, threads))
