"""What a field of a configuration says beyond its type: the values that it may have, and the function that checks them.

>>> @dataclasses.dataclass(frozen=True)
... class Example:
...     lr: Positive = 1e-3
>>> check(Example(lr=-1.0))
Traceback (most recent call last):
dinojax.errors.UsageError: lr is -1.0; it must be above 0
"""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from dinojax.errors import UsageError


@dataclasses.dataclass(frozen=True, repr=False)
class Bounds:
    """Of a number, or of every number of a tuple, which must also be finite."""

    low: float = -math.inf
    """The lowest value."""
    high: float = math.inf
    """The highest."""
    above: float = -math.inf
    """Every value is higher than this."""
    below: float = math.inf
    """Every value is lower than this."""

    def problem(self, values: tuple[float, ...]) -> str | None:
        """What the values must be, unless they are."""
        # What is not finite fails too, whatever the limits.
        holds = all(self.low <= value <= self.high and self.above < value < self.below for value in values)
        return None if holds else f"it must {self}"

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"lie in {self.low}..{self.high}"
        words = {"{} or above": self.low, "{} or below": self.high, "above {}": self.above, "below {}": self.below}
        return "be " + ", and ".join(text.format(limit) for text, limit in words.items() if math.isfinite(limit))

    def __repr__(self) -> str:  # as `--help` shows it
        return str(self).removeprefix("be ").removeprefix("lie ")


@dataclasses.dataclass(frozen=True, repr=False)
class Ascending:
    """Of a tuple (low, high): in this order."""

    ends_above: float | None = None
    """The high one is higher than this."""

    def problem(self, values: tuple[float, ...]) -> str | None:
        """What the values must be, unless they are."""
        if self.ends_above is not None and not values[-1] > self.ends_above:
            return f"it must end above {self.ends_above}"
        return None if list(values) == sorted(values) else "the lower one comes first"

    def __repr__(self) -> str:
        return "ascending"


Positive = Annotated[float, Bounds(above=0)]
PositiveInt = Annotated[int, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(low=0)]
NonNegativeInt = Annotated[int, Bounds(low=0)]
Share = Annotated[float, Bounds(0, 1)]
BelowOne = Annotated[float, Bounds(low=0, below=1)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]

PositiveRange = Annotated[tuple[float, float], Bounds(above=0), Ascending()]
NonNegativeRange = Annotated[tuple[float, float], Bounds(low=0), Ascending()]
ShareRange = Annotated[tuple[float, float], Bounds(0, 1), Ascending()]
ScaleRange = Annotated[tuple[float, float], Bounds(0, 1), Ascending(ends_above=0)]


def positional(help: str) -> Any:
    """A field that the command line gives by place, without `--`; several values where its type is a tuple."""
    return dataclasses.field(metadata={"positional": help})


def check(config: object, section: str = "") -> None:
    """Refuses values out of the bounds that are annotated at the fields of a configuration or of its sections.

    Args:
      config: a dataclass; a field that is None is not checked.
      section: what the keys in messages begin with, such as `optim.`.

    Raises:
      UsageError: names the key, its value and what it must be; a tuple must not be empty, unless it is so by default.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        key, value = f"{section}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{key}.")
        elif value == () != field.default:
            raise UsageError(f"{key} is empty; give at least one value")
        elif value is not None and not isinstance(value, str):  # a word in place of a number
            several = isinstance(value, tuple)
            for bounds in _annotated(hints[field.name]):
                if problem := bounds.problem(value if several else (value,)):
                    raise UsageError(f"{key} is {list(value) if several else value}; {problem}")


def _annotated(hint: Any) -> Iterator[Bounds | Ascending]:
    """The bounds in a type, also in that of a tuple's numbers or of what may be None."""
    for part in typing.get_args(hint):  # of Annotated: the type and what is said of it
        if isinstance(part, Bounds | Ascending):
            yield part
        else:
            yield from _annotated(part)
