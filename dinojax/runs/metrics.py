"""`metrics.jsonl`, the metrics of a run: a JSON object a line, appended step by step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinojax.errors import RunError
from dinojax.runs.files import reason, write_text
from dinojax.runs.trackers import Writer


class MetricsLog:
    """Writes the lines. What depends on the clock or the machine stands under `time`; all else is reproducible."""

    def __init__(self, path: Path, restored_step: int | None, track: Writer | None = None) -> None:
        """Opens the file and removes the lines after the step that a run resumes from.

        Args:
          path: the file; made if need be.
          restored_step: the step of the restored state; None where none was restored, which removes every line.
          track: gets what is written too, the names under `time` with `time/` before them.

        Raises:
          RunError: a line of the file is damaged, or it cannot be written.
        """
        kept = [line for line, values in _lines(path) if restored_step is not None and values["step"] <= restored_step]
        write_text(path, "".join(kept))
        self._path, self._track = path, track
        # Unbuffered: a buffer would try once more, at exit, to write what the disk has no room for.
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float], time: Mapping[str, float]) -> None:
        """Appends a line, at once.

        Raises:
          RunError: the disk is full, say; no part of the line is left in the file.
        """
        line = (json.dumps({"step": step, **metrics, "time": dict(time)}) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(end)
            what = f"the metrics of step {step} could not be written to {self._path}"
            raise RunError(f"{what}: {reason(error)}") from error
        if self._track is not None:
            self._track(step, {**metrics, **{f"time/{name}": value for name, value in time.items()}})

    def sync(self) -> None:
        """Waits until the lines are on the disk, so that no checkpoint outlives them when the power fails."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without one that is cut short; none if there is no file.

    Raises:
      RunError: a line is damaged.
    """
    return [values for _, values in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last line break was cut short
        try:
            values = json.loads(line)
            int(values["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"line {number} of {path} is damaged ({line[:40]!r}); remove it to resume") from error
        found.append((line + "\n", values))
    return found
