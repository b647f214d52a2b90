"""Errors that a user can fix: one line and an exit status. Any other exception is a bug and shows its traceback."""

from collections.abc import Sequence


class RunError(Exception):
    """A run that failed. The message is one line that says what, where and what to do. Exit status 1."""

    status = 1


class UsageError(RunError):
    """Wrong arguments, configuration or paths given on the command line. Exit status 2."""

    status = 2


class Stopped(RunError):
    """A signal stopped the run after its state was saved; the same command resumes. Exit status 3."""

    status = 3


def first_of(items: Sequence[str], characters: int = 180, separator: str = ", ") -> str:
    """The first items, in about so many characters, for a message: "a, b and 36 more"; one item at least."""
    shown, length = 0, 0
    for item in items:
        length += len(item) + len(separator)
        if shown and length > characters:
            break
        shown += 1
    text = separator.join(item if len(item) <= characters else f"{item[:characters]}..." for item in items[:shown])
    return text if shown == len(items) else f"{text} and {len(items) - shown} more"
