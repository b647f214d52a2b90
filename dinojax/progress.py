"""Progress of long work: a bar in a terminal, or a line for every twentieth of it where output goes to a file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PAUSE = 2.0
"""Seconds between two lines, where work is fast."""


@contextmanager
def bar(what: str, total: int, completed: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Shows how many steps of some work are done.

    Args:
      what: the work, in a word or two.
      total: number of steps.
      completed: steps that were done before.

    Yields:
      A function of the number of steps done and a note such as the loss.
    """
    console = Console()
    if not console.is_terminal:
        every, shown, told = max(total // 20, 1), completed, -_PAUSE
        first: tuple[int, float] | None = None  # from its end on: the first step may have compiled

        def line(done: int, note: str = "") -> None:
            nonlocal shown, first, told
            now = time.monotonic()
            first = first or (done, now)
            if done == total or (done // every > shown // every and now - told >= _PAUSE):
                shown, told = done, now
                seconds = (now - first[1]) / max(done - first[0], 1) * (total - done)
                left = f"{duration(seconds)} left" if first[0] < done < total else ""
                print(", ".join(filter(None, (f"{what} {done}/{total}", left, note))), flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task(what, total=total, completed=completed, note="")

        def update(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield update


def duration(seconds: float) -> str:
    """Seconds as `14:05`, or `3:14:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
