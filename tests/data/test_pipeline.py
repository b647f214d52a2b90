"""Order and draws are functions of seed and place, whatever the start and the threads."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dinojax.data.formats import BadFile
from dinojax.data.pipeline import evaluation_batches, prefetch, training_batches
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
    assert batches[0]["place"].dtype == np.uint32
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


def test_resuming_gives_what_not_stopping_gives():
    assert_same(take(3, start=3), take(6)[3:])
    assert_same(take(2, start=1003, threads=0), take(3, start=1002)[1:])


@pytest.mark.parametrize("start", [0, 3])
def test_threads_change_nothing(start):
    one = take(8, start=start, threads=1)
    for threads in (0, 2, 5):
        assert_same(one, take(8, start=start, threads=threads))


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_together_are_the_whole_batch(parts, start):
    shares = [take(6, start=start, part=(own, parts), threads=own % 3) for own in range(parts)]
    joined = [
        {name: np.concatenate([one[name] for one in row]) for name in row[0]} for row in zip(*shares, strict=True)
    ]
    assert_same(joined, take(6, start=start))


def test_per_batch_of_a_part_gets_its_rows_and_the_global_number():
    batch = take(1, start=5, part=(1, 2), per_batch=lambda batch, step: batch | {"step": np.array(step)})[0]
    assert int(batch["step"]) == 5
    assert batch["place"].tolist() == [22, 23]


def test_a_batch_that_does_not_divide_into_parts_is_refused():
    with pytest.raises(UsageError, match=r"batch_size 4 .* 3 processes"):
        take(1, part=(0, 3))


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


def prefetch_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "prefetch"}


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetch_keeps_all_in_order_and_goes_no_further_than_asked(depth):
    made, used = [], []

    def numbers() -> Iterator[int]:
        for number in range(30):
            made.append(number)
            assert len(made) <= len(used) + 1 + depth  # the one in use may not be on the list yet
            yield number

    for number in prefetch(numbers(), lambda number: 10 * number, depth):
        used.append(number)
    assert used == [10 * number for number in range(30)]
    assert list(prefetch([], str)) == []


def test_prefetch_makes_the_next_while_one_is_in_use():
    made = [threading.Event() for _ in range(3)]
    thread_of_put = []

    def put(number: int) -> int:
        thread_of_put.append(threading.current_thread())
        made[number].set()
        return number

    batches = prefetch(range(3), put)
    assert next(batches) == 0
    assert made[1].wait(timeout=20)
    assert made[2].wait(timeout=20)
    assert list(batches) == [1, 2]
    assert threading.current_thread() not in thread_of_put
    assert not prefetch_threads()


@pytest.mark.parametrize("where", ["batches", "put"])
def test_prefetch_raises_when_the_batch_is_due(where):
    def check(number: int, here: str) -> int:
        if here == where and number == 2:
            raise BadFile("cannot read 2.png")
        return number

    batches = prefetch((check(number, "batches") for number in range(9)), lambda number: check(number, "put"))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(BadFile, match=r"cannot read 2\.png"):
        next(batches)
    assert list(batches) == []
    assert not prefetch_threads()


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_the_prefetching_thread_ends_with_its_iterator(how):
    made = []
    batches = prefetch(itertools.count(), made.append)
    next(batches)
    assert len(prefetch_threads()) == 1
    if how == "closed":
        batches.close()  # type: ignore[attr-defined]
    del batches
    assert not prefetch_threads()
    assert len(made) <= 3


def test_stopping_early_reads_no_further():
    """The thread is held up in the fifth element; what it would read after that is cancelled."""
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
