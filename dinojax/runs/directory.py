"""A run's directory: one run at a time, and always the configuration and the images that it began with."""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dinojax.config.parser import flatten, nested
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import free_path, reason, write_json, write_text

# Where a run is stored, which machines it uses, what it keeps and which files it may skip change no result.
_NOT_COMPARED = (
    *("out", "accept_changes", "on_bad_file", "keep_checkpoints", "corpus_hashes"),
    *("check", "log_to", "threads", "workers", "cache_gib", "fsdp", "loop_blocks", "distributed"),
    "max_megapixels",
)


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Locks a run's directory, which is made if need be, against a second run.

    The kernel releases the lock however the process ends. Of several processes that train together, one holds it.

    Raises:
      UsageError: another process holds it.
      RunError: the directory cannot be written to.
    """
    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {reason(error)}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                f"{directory} is in use by {file.read().strip() or 'another run'}; "
                "wait for it, stop it, or choose another --out"
            ) from error
        except OSError as error:  # some network file systems have no locks
            print(f"{directory} cannot be locked ({reason(error)}): do not start a second run there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def check_free(directory: Path) -> None:
    """Refuses a directory that another run holds; for before long work that writes nothing yet, such as compiling.

    Raises:
      UsageError: another process holds it.
    """
    if (directory / ".lock").exists():
        with lock(directory):
            pass


def check_config(
    config: object, directory: Path, accept_changes: Sequence[str] = (), changeable: Collection[str] | None = None
) -> None:
    """Compares a configuration with that of the run in a directory, if there is one. Writes nothing.

    Args:
      config: a frozen dataclass of `dinojax.config`.
      directory: the run's.
      accept_changes: keys that may differ, such as `optim.lr`.
      changeable: the keys that `accept_changes` may name; by default all.

    Raises:
      UsageError: it is another configuration, and `accept_changes` does not name every changed key; or
        `accept_changes` names what is no key, or what must not change.
    """
    values, before = flatten(config), _read_config(directory / "config.yaml")
    _check_accepted(accept_changes, values.keys() | (before or {}).keys(), changeable)
    if before is None:
        if any((directory / "checkpoints").glob("[0-9]*")):
            raise UsageError(f"{directory} has checkpoints but no config.yaml; put it back, or choose another --out")
        return
    changed = _changed(before, values, _defaults(type(config)))
    refused = [key for key in changed if key not in accept_changes]
    if refused:
        was, now = ({key: repr(of[key]) if key in of else "not there" for key in refused} for of in (before, values))
        listed = ", ".join(f"{key} was {was[key]}, is {now[key]}" for key in refused)
        advice = "choose another --out"
        if changeable is None or set(changed) <= set(changeable):
            advice += f", or resume with --accept_changes {','.join(changed)}"
            if refused == ["data"]:
                advice += ", which a folder that was moved or renamed needs: the images are compared by relative paths"
        raise UsageError(f"{directory} holds a run with another configuration: {listed}; {advice}")


def write_config(config: object, directory: Path, step: int | None = None) -> None:
    """Writes `config.yaml`, every key of it, into a run's directory.

    Where a run resumes with another configuration, the former file stays as `config.before_step<N>.yaml`.

    Args:
      config: a frozen dataclass of `dinojax.config` that `check_config` accepted.
      directory: the run's; made if need be.
      step: N, after which the configuration holds; without it, the former file becomes `config.before.yaml`.

    Raises:
      RunError: it cannot be written.
    """
    path, values = directory / "config.yaml", flatten(config)
    before = _read_config(path)
    if before is not None and _changed(before, values, _defaults(type(config))):
        name = "config.before" if step is None else f"config.before_step{step}"
        write_text(free_path(directory, name, ".yaml"), path.read_text())
    write_text(path, yaml.safe_dump(nested(config), sort_keys=False))


def pin_data(directory: Path, paths: Sequence[str], accept: bool) -> None:
    """Writes `data.json`, a digest of the paths of a run's images; or compares with the one that the run began with.

    Their order counts, because a run's batches follow from it.

    Args:
      directory: the run's; made if need be.
      paths: of the images, as `Records` name them.
      accept: whether other images may replace those of the run from now on.

    Raises:
      UsageError: they are other images.
      RunError: the file cannot be written.
    """
    digest = hashlib.sha256(json.dumps(list(paths)).encode()).hexdigest()
    path, now = directory / "data.json", {"images": len(paths), "sha256": digest}
    try:
        before = json.loads(path.read_text()) if path.exists() else None
        images, same = (before["images"], before["sha256"] == digest) if before else (0, False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}); remove it if the images are the same") from error
    if same:
        if accept:
            print(f"the images are those that the run in {directory} began with, by their relative paths", flush=True)
        return
    counts = f"{images} then, {len(paths)} now" if images != len(paths) else f"{images}, but other paths or order"
    if before and accept:
        print(f"from now on the run in {directory} has other images: {counts}", flush=True)
    if before and not accept:
        raise UsageError(
            f"the images are not those that the run in {directory} began with ({counts}); "
            "put them back, choose another --out, or resume with --accept_changes data"
        )
    write_json(path, now)


def _check_accepted(accepted: Sequence[str], known: Collection[str], changeable: Collection[str] | None) -> None:
    for key in accepted:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UsageError(
                f"--accept_changes {key}: there is no such key{f'; did you mean {near[0]}?' if near else ''}"
            )
        if changeable is not None and key not in changeable:
            raise UsageError(f"--accept_changes {key}: choose another --out; only {', '.join(changeable)} may change")


def _read_config(path: Path) -> dict[str, Any] | None:
    """The stored configuration as one level, or None if there is none."""
    if not path.exists():
        return None
    try:
        sections = yaml.safe_load(path.read_text()) or {}
        if not isinstance(sections, dict):
            raise ValueError("it holds no keys")
        return flatten(sections)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}); repair it, or choose another --out") from error


def _changed(before: dict[str, Any], values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Keys that differ; a key that is younger than the run is taken to have had its default."""
    compared = [key for key in before.keys() | values.keys() if key.split(".")[0] not in _NOT_COMPARED]
    return sorted(key for key in compared if before.get(key, defaults.get(key)) != values.get(key))


def _defaults(kind: type) -> dict[str, Any]:
    """Every default of a configuration, as `flatten` gives values."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            found |= {f"{field.name}.{key}": value for key, value in flatten(field.default_factory()).items()}
    return found
