"""Keeps what was read last in memory, within a bound, for all threads of a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key, of which the least recently used are dropped when they take too many bytes together.

    A value that several threads ask for is loaded once; other values are loaded meanwhile.
    """

    def __init__(self, limit: int):
        """Args: limit, in bytes; the last value is kept even if it alone is larger."""
        self.limit = limit
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], tuple[Value, int]]) -> Value:
        """The value of a key, else the one that `load` returns, with its size in bytes; its errors pass through."""
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key][0]
                turn = self._loading.setdefault(key, threading.Lock())
            with turn:
                with self._lock:
                    if self._loading.get(key) is not turn:  # another thread has loaded it, or failed to
                        continue
                try:
                    value, size = load()
                    with self._lock:
                        self._values[key] = value, size
                        while len(self._values) > 1 and sum(size for _, size in self._values.values()) > self.limit:
                            self._values.popitem(last=False)
                    return value
                finally:
                    with self._lock:
                        del self._loading[key]

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


def stamp(path: Path) -> tuple[str, int, int]:
    """What changes when a file does: its name, size and time."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns
