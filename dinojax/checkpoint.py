"""What a run leaves behind to go on from: Orbax checkpoints of its state, and its metrics, one JSON object a line."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from dinojax.errors import RunError

S = TypeVar("S")


class Checkpoints:
    """The last few states of a run, written in the background while it goes on."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Opens or makes a directory of checkpoints, of which the newest `keep` stay."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file otherwise
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        self._directory = directory

    def save(self, step: int, state: Any) -> None:
        """Begins to save the state after `step` steps; the state may be donated right after the call."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: S) -> S | None:
        """The newest state, with the structure, shapes and shardings of `like`; None if there is none yet.

        Raises:
          RunError: the newest checkpoint cannot be read or belongs to another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"{self._directory / str(step)} cannot be restored ({reason}); remove it to go on from an earlier one"
            ) from error
        return restored

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


class MetricsLog:
    """`metrics.jsonl`. What depends on the clock or the machine stands under `time`; all else is reproducible."""

    def __init__(self, path: Path, restored_step: int) -> None:
        """Opens the file and removes the lines after the step that a run goes on from."""
        kept = []
        if path.exists():
            # A run that was killed may have left half a line.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= restored_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, float], time: Mapping[str, float]) -> None:
        """Appends a line, at once."""
        self._file.write(json.dumps({"step": step, **metrics, "time": dict(time)}) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
