"""From a source to batches through Grain: order and draws are functions of (seed, place), and no state is kept.

The place is an element's number in the whole endless sequence of a training run: batch k holds the places
k·B to (k + 1)·B − 1. So a run goes on at any step, with any number of threads, exactly as if it had never stopped.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import grain
import numpy as np

from dinojax.errors import RunError, UsageError

Element = dict[str, Any]
Batch = dict[str, np.ndarray]
T = TypeVar("T")
U = TypeVar("U")


class Source(Protocol):
    """Random access to elements, such as `ImageSource`; element i is of the record `indices[i]`, its `index`."""

    @property
    def indices(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Element: ...


def training_batches(
    source: Source,
    transform: Callable[[Element, np.random.Generator], Element],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    threads: int = 2,
    per_batch: Callable[[Batch, int], Batch] | None = None,
) -> Iterator[Batch]:
    """Endless batches; every image once an epoch, in another order each epoch.

    Args:
      source: the images. An epoch ends where it ends, also in the middle of a batch.
      transform: gets an element and a generator that is a function of (seed, place); gives arrays of fixed shapes.
      batch_size: B, elements a batch; may exceed the number of images.
      seed: 0 or above.
      start: number of the batch to begin with.
      threads: threads that read and transform; 0 does it in the consumer's. They change no result.
      per_batch: gets each batch and its number, and gives what is yielded; for draws that belong to a whole batch.

    Yields:
      The transform's arrays, stacked, and `place` int32 [B].

    Raises:
      RunError: there are no images; or whatever the source raises, such as `BadFile`, when its batch is due.
      UsageError: the seed is negative.
    """
    if not len(source):
        raise RunError("there are no images to train on")
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be 0 or above")

    def draw(place: int, element: Element) -> Element:
        return {**transform(element, np.random.default_rng((seed, place))), "place": np.int32(place)}

    # Grain numbers its epochs' seeds consecutively; unhashed, seed 1 would repeat the orders of seed 0 an epoch later.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    elements = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat().map_with_index(draw)
    batches = _read(elements[start * batch_size :], batch_size, threads)
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
    """Puts batches on the device ahead of their use, so that the transfer overlaps with the step before.

    Args:
      batches: on the host.
      put: starts the transfer and returns without waiting, as `jax.device_put` does.
      depth: how many batches are on the device at a time, the one in use included.
    """
    ahead: deque[U] = deque()
    for batch in batches:
        ahead.append(put(batch))
        if len(ahead) == depth:
            yield ahead.popleft()
    yield from ahead


def _read(elements: grain.MapDataset, batch_size: int, threads: int) -> Iterator[Batch]:
    """Reads a batch ahead with threads, and stacks; the threads end when nobody holds the iterator any more."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batch_size + threads if threads else 0)
    return iter(elements.to_iter_dataset(options).batch(batch_size))
