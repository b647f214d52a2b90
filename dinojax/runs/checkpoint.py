"""Checkpoints of a run's state.

A checkpoint is a directory named by its step that Orbax writes in the background and renames when it is complete.
Beside Orbax's files it holds `checkpoint.json`: the probe's accuracy, and size and CRC-32 of every other file. Orbax
notices missing and short files, but returns a damaged array as if it were intact.
"""

import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dinojax import tree
from dinojax.errors import RunError, Stopped
from dinojax.runs.files import checksums, damage, free_path, reason, write_text

S = TypeVar("S")
_RECORD = "checkpoint.json"
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX


class Checkpoints:
    """The newest states of a run and the best one, written in the background.

    Where several processes train together, each calls every method, in the same order.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        """Opens or makes a directory of checkpoints.

        Args:
          directory: holds nothing but checkpoints.
          keep: how many of the newest to keep, beside the first of those with the highest probe accuracy.

        Raises:
          RunError: the directory cannot be made.
        """
        for name in ("absl", "asyncio"):  # Orbax logs every file, and errors that are raised here anyway
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write to {directory}: {reason(error)}") from error
        self._directory, self._keep = directory.resolve(), keep
        self._shown = directory  # as it was given, for messages
        steps = sorted(int(path.name) for path in directory.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name))
        self._probes = {step: _read_probe(self._directory / str(step)) for step in steps}  # increasing
        self._writing: int | None = None
        self._suspect: int | None = None
        self._handler = ocp.StandardCheckpointHandler()
        # Else, where a directory cannot be made, threads would wait for it, and the exit for them.
        options = ocp.AsyncOptions(post_finalization_callback=self._seal, create_directories_asynchronously=False)
        self._checkpointer = ocp.AsyncCheckpointer(self._handler, async_options=options)
        self._former_hook = sys.unraisablehook
        sys.unraisablehook = _silence_closed_loop(self._former_hook)

    def steps(self) -> list[int]:
        """The steps whose states are saved or being saved, in order."""
        return list(self._probes)

    def save(self, step: int, state: Any, probe: float | None = None, suspect: int | None = None) -> None:
        """Starts to save the state after `step` steps, unless it is saved already.

        Args:
          step: of the state.
          state: a pytree of arrays; may be donated right after the call.
          probe: the probe's accuracy, where it was measured.
          suspect: the step since which the run may have collapsed; the newest state before it is kept too.

        Raises:
          RunError: the previous checkpoint could not be written, or this one cannot.
        """
        self.wait()
        if step in self._probes:
            return
        self._writing, self._suspect = step, suspect
        self._probes[step] = probe
        try:
            self._checkpointer.save(self._directory / str(step), args=ocp.args.StandardSave(_by_path(state)))
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Waits until the state that is being saved is written, and removes those that need not be kept.

        Raises:
          RunError: it could not be written; names the step, the reason and the last good step.
        """
        if self._writing is None:
            return
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise self._failed(self._writing, error) from error
        self._writing = None
        self._remove_old()

    def close(self) -> None:
        """Waits until everything is written; to be called last, whether or not the run failed.

        Raises:
          RunError: as `wait`; but only printed while another exception is being raised, which it must not hide. A
            `Stopped` it replaces, for that says that the state is saved.
        """
        underway = sys.exception()
        try:
            self.wait()
        except RunError as error:
            if underway is None or isinstance(underway, Stopped):
                raise
            print(error)
        finally:
            try:
                self._checkpointer.close()
            except Exception as error:  # follows from what `wait` has raised
                logging.getLogger(__name__).debug("while closing: %s", error)
            sys.unraisablehook = self._former_hook

    def restore(self, like: S) -> S | None:
        """Restores the newest state that can be read; None if none was ever saved.

        Newer ones that cannot be read are moved to `<directory>_unreadable`, each with a printed line.

        Args:
          like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings: gives structure, shapes and shardings.

        Raises:
          RunError: there are checkpoints, but none can be read (they stay where they are); or the newest one that can
            be read belongs to another model.
        """
        self.wait()
        problems: dict[int, str] = {}
        for step in reversed(self.steps()):
            path = self._directory / str(step)
            state, problem = None, _record_damage(path) if jax.process_index() == 0 else None
            if not _anywhere(problem is not None):
                try:
                    state = self._read(path, like)
                except RunError:
                    raise
                except Exception as error:  # damage may raise anything
                    problem = reason(error)
            if not _anywhere(problem is not None):
                self._move_aside(problems)
                return state
            problems[step] = problem or "another process cannot read it"
        if not problems:
            return None
        listed = "; ".join(f"step {step}: {problem}" for step, problem in problems.items())
        raise RunError(
            f"no checkpoint in {self._shown} can be read ({listed}); "
            "put back a good copy, or choose another --out to begin anew"
        )

    def _read(self, path: Path, like: S) -> S:
        """Restores a state without Orbax's barriers, at which the other processes would wait for one that fails."""
        expected = _by_path(like)
        # Shapes are compared here because Orbax's messages name neither the run nor what to do.
        differences = tree.difference(expected, dict(self._handler.metadata(path).tree))  # type: ignore[arg-type]
        if differences:
            first = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
            raise RunError(
                f"{self._shown / path.name} belongs to another model ({len(differences)} differences: {first}); "
                "choose another --out, or the configuration that it was saved with"
            )
        wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in expected.items()}
        restored = self._handler.restore(path, args=ocp.args.StandardRestore(wanted))  # type: ignore[arg-type]
        return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in expected])

    def _move_aside(self, problems: Mapping[int, str]) -> None:
        aside = self._shown.with_name(f"{self._shown.name}_unreadable")
        for step, problem in problems.items():
            if jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                target = free_path(aside, str(step))
                (self._directory / str(step)).rename(target)
                print(f"the checkpoint of step {step} cannot be read ({problem}) and is now {target}", flush=True)
            del self._probes[step]
        if problems and jax.process_count() > 1:
            multihost_utils.sync_global_devices("dinojax: unreadable checkpoints are moved aside")

    def _seal(self) -> None:
        """Writes the record into the directory that Orbax is about to rename; Orbax calls it in one process."""
        assert self._writing is not None
        path = self._directory / f"{self._writing}{_UNFINISHED}"
        sums = checksums(path)
        sums.pop("_CHECKPOINT_METADATA", None)  # changes when Orbax renames the directory; not read to restore
        record = {"probe": self._probes[self._writing], "files": sums}
        write_text(path / _RECORD, json.dumps(record, indent=1) + "\n")

    def _remove_old(self) -> None:
        steps = self.steps()
        kept = set(steps[-self._keep :])
        measured = {step: probe for step, probe in self._probes.items() if probe is not None and math.isfinite(probe)}
        if measured:
            kept.add(max(measured, key=measured.__getitem__))  # the first of the highest
        if self._suspect is not None:
            kept.update([step for step in steps if step < self._suspect][-1:])
        self._probes = {step: self._probes[step] for step in steps if step in kept}
        if jax.process_index() != 0:
            return
        try:
            for step in set(steps) - kept:  # renamed first: a directory that is named by a step is complete
                path = self._directory / str(step)
                path.rename(path.with_name(f"{step}{_UNFINISHED}"))
            for unfinished in self._directory.glob(f"*{_UNFINISHED}"):  # also those of runs that were killed
                shutil.rmtree(unfinished)
        except OSError as error:
            print(f"old checkpoints in {self._shown} cannot be removed: {reason(error)}", flush=True)

    def _failed(self, step: int, error: Exception) -> RunError:
        self._writing = None
        del self._probes[step]
        if jax.process_index() == 0:  # frees its space, as the disk may be full
            shutil.rmtree(self._directory / f"{step}{_UNFINISHED}", ignore_errors=True)
        last = f"the same command resumes from step {max(self._probes)}" if self._probes else "there is none before it"
        return RunError(f"the checkpoint of step {step} could not be written to {self._shown}: {reason(error)}; {last}")


def _by_path(state: Any) -> dict[str, Any]:
    """The arrays of a pytree by their paths, such as `student.backbone.blocks.3.attn.qkv.kernel`."""
    leaves = jax.tree.leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    assert len(arrays) == len(leaves), "two arrays of the state have the same path"
    return arrays


def _anywhere(happened: bool) -> bool:
    """Whether it happened in any process."""
    return bool(multihost_utils.process_allgather(np.array(happened)).any()) if jax.process_count() > 1 else happened


def _record_damage(directory: Path) -> str | None:
    """How a checkpoint differs from its record; None if it does not."""
    try:
        return damage(directory, json.loads((directory / _RECORD).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_RECORD}: {reason(error)}"


def _read_probe(directory: Path) -> float | None:
    try:
        probe = json.loads((directory / _RECORD).read_text())["probe"]
        return None if probe is None else float(probe)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `restore` reports it


def _silence_closed_loop(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Drops errors about the event loop that Orbax closes when a write fails while other writes still use it."""

    def silenced(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return silenced
