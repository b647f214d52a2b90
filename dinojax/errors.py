"""Errors that a user can fix: one line and an exit status. Any other exception is a bug and shows its traceback."""


class RunError(Exception):
    """A run that failed. The message is one line that says what, where and what to do. Exit status 1."""

    status = 1


class UsageError(RunError):
    """Wrong arguments, configuration or paths given on the command line. Exit status 2."""

    status = 2


class Stopped(RunError):
    """A signal stopped the run after its state was saved; the same command resumes. Exit status 3."""

    status = 3
