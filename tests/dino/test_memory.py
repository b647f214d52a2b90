"""Which batch size fits is said in one line; on recorded needs, without compiling."""

import pytest

from dinojax.dino.memory import Need, check_memory
from dinojax.errors import UsageError

GIB = 2**30


def test_what_fits_is_said() -> None:
    assert check_memory(Need(1 * GIB, 2 * GIB), 8.0, 64, 8) == "needs about 3 GiB of 8 GiB free"


@pytest.mark.parametrize(
    ("need", "free", "size"),
    [
        (Need(1 * GIB, 174 * GIB), 16.0, "batch_size 22 should fit"),  # 15 / 174 × 256
        (Need(20 * GIB, 10 * GIB), 16.0, "no batch_size fits"),
    ],
)
def test_what_does_not_fit_names_the_batch_size_that_does(need: Need, free: float, size: str) -> None:
    with pytest.raises(
        UsageError, match=rf"{need.total / GIB:.0f} GiB of 16 GiB free; {size}.*batch_size, accumulate"
    ) as caught:
        check_memory(need, free, 256, 1)
    assert "\n" not in str(caught.value)


def test_a_batch_size_is_a_multiple_of_the_devices() -> None:
    assert Need(0, 64 * GIB).largest_batch(29 * GIB, 64, 8) == 24
