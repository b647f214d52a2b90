"""Progress of long work: a bar in a terminal, or a line for every twentieth of it where output goes to a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
        every, shown = max(total // 20, 1), completed

        def line(done: int, note: str = "") -> None:
            nonlocal shown
            if done // every > shown // every or done == total:
                shown = done
                print(f"{what} {done}/{total} {note}".rstrip(), flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task(what, total=total, completed=completed, note="")

        def update(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield update
