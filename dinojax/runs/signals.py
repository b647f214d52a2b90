"""SIGINT and SIGTERM as a request to stop, which a run reads between two steps."""

import signal
from types import FrameType


class StopRequest:
    """Inside its context, the first signal is only recorded; a SIGINT after it interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that was received, such as `SIGTERM`."""
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
