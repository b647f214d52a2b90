"""Order and draws are functions of seed and place, whatever the start and the threads."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dinojax.data.pipeline import evaluation_batches, prefetch, training_batches
from dinojax.data.sources import BadFile
from dinojax.errors import RunError, UsageError


class Numbers:
    """A source whose element i is the number i."""

    def __init__(self, count: int, bad: int | None = None, skipped: int | None = None):
        self.indices = np.arange(count)
        self.bad, self.skipped = bad, skipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self.bad:
            raise BadFile(f"cannot read number {index} (numbers.csv, row {index + 2})")
        return {"index": np.int32(index + 1 if index == self.skipped else index)}  # type: ignore[dict-item]


def draw(element, rng):
    return {"index": element["index"], "draw": rng.random(2), "image": rng.integers(0, 256, (2, 3), dtype=np.uint8)}


def take(count: int, source: Numbers | None = None, **options: Any) -> list[dict[str, np.ndarray]]:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 3, "threads": 2}
    batches = training_batches(Numbers(10) if source is None else source, draw, **(defaults | options))
    return list(itertools.islice(batches, count))


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_have_shapes_and_places():
    batches = take(4)
    assert [batch["place"].tolist() for batch in batches] == [list(range(4 * k, 4 * k + 4)) for k in range(4)]
    assert batches[0]["place"].dtype == np.int32
    assert batches[0]["image"].shape == (4, 2, 3)
    assert batches[0]["image"].dtype == np.uint8


def test_every_epoch_holds_every_image_once_in_another_order():
    order = np.concatenate([batch["index"] for batch in take(10)]).reshape(4, 10)
    for epoch in order:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in order}) == 4


def test_seeds_do_not_share_epochs():
    first, second = (np.concatenate([batch["index"] for batch in take(10, seed=s)]).reshape(4, 10) for s in (0, 1))
    assert not {tuple(epoch) for epoch in first} & {tuple(epoch) for epoch in second}


def test_going_on_gives_what_not_stopping_gives():
    assert_same(take(3, start=3), take(6)[3:])
    assert_same(take(2, start=1003, threads=0), take(3, start=1002)[1:])


def test_threads_change_nothing():
    one = take(8, threads=1)
    assert_same(one, take(8, threads=4))
    assert_same(one, take(8, threads=0))


def test_draws_are_apart_from_place_to_place_and_independent_of_the_batch_size():
    small = np.concatenate([batch["draw"] for batch in take(6)])
    large = np.concatenate([batch["draw"] for batch in take(3, batch_size=8)])
    np.testing.assert_array_equal(small, large)
    assert len(np.unique(small)) == small.size
    assert not np.isin(np.concatenate([batch["draw"] for batch in take(6, seed=4)]), small).any()


def test_per_batch_gets_the_global_number():
    batches = take(2, start=5, per_batch=lambda batch, step: batch | {"step": np.array(step)})
    assert [int(batch["step"]) for batch in batches] == [5, 6]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_file_reaches_the_consumer_as_it_is(threads):
    with pytest.raises(BadFile, match=r"number 7 \(numbers\.csv, row 9\)"):
        take(20, Numbers(10, bad=7), threads=threads)
    with pytest.raises(BadFile, match="number 7"):
        list(evaluation_batches(Numbers(10, bad=7), dict, batch_size=4, threads=threads))


def test_nothing_to_train_on_and_a_negative_seed_are_refused():
    with pytest.raises(RunError, match="no images"):
        take(1, Numbers(0))
    with pytest.raises(UsageError, match="seed -1"):
        take(1, seed=-1)


@pytest.mark.parametrize("threads", [0, 3])
def test_evaluation_goes_through_once_in_order_and_pads(threads):
    batches = list(evaluation_batches(Numbers(10), dict, batch_size=4, threads=threads))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [batch["valid"].tolist() for batch in batches][1:] == [[True] * 4, [True, True, False, False]]
    assert batches[0]["valid"].dtype == bool


def test_evaluation_marks_what_stands_in_for_a_skipped_file():
    batch = next(evaluation_batches(Numbers(4, skipped=1), dict, batch_size=4, threads=0))
    assert batch["valid"].tolist() == [True, False, True, True]


def test_prefetch_puts_ahead_and_keeps_all():
    log: list[str] = []

    def put(number: int) -> int:
        log.append(f"put {number}")
        return number

    def consume(batches: Iterator[int]) -> None:
        for number in batches:
            log.append(f"use {number}")

    consume(prefetch(range(3), put))
    assert log == ["put 0", "put 1", "use 0", "put 2", "use 1", "use 2"]
    log.clear()
    consume(prefetch(range(1), put))
    assert log == ["put 0", "use 0"]


def test_stopping_early_reads_no_further():
    """The thread is held up in the fifth element; what it would read after that is called off."""
    gate, reads = threading.Event(), []

    class Gated(Numbers):
        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            reads.append(index)
            assert len(reads) < 5 or gate.wait(timeout=20)
            return super().__getitem__(index)

    before = set(threading.enumerate())
    batches = training_batches(Gated(100), draw, batch_size=4, seed=0, threads=1)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    del batches
    gate.set()
    for thread in started:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert len(reads) <= 5
