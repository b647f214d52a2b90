"""Files and directories that are written whole or not at all and are on the disk afterwards; and checks of such files.

What is written lies beside its place under a name of its own until it is complete, and is then renamed. A process that
is killed, a full disk or a machine that fails leaves the former file as it was.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dinojax.errors import RunError, UsageError


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """A file to write, which takes the place of `path` when the block ends without an error.

    Args:
      path: of the file; its folder is made if need be.
      mode: `w` for text in UTF-8, or `wb`.
      newline: as of `open`; `""` for what the module `csv` or pandas writes.

    Raises:
      RunError: it cannot be written. As after any other error, a former file is unchanged and nothing else is left.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open(mode, encoding=None if "b" in mode else "utf-8", newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {reason(error)}") from error
        raise


@contextlib.contextmanager
def replacing_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which takes the place of `path` when the block ends without an error.

    Its files should be written by `replacing`, `write_text` or `write_json`, which sync them to the disk.

    Args:
      path: of the directory; its parents are made. A symbolic link keeps pointing to what it points to.
      overwrite: replaces a directory that is there; otherwise it must be empty or not exist.

    Raises:
      UsageError: the directory exists and may not be replaced.
      RunError: it cannot be written. As after any other error, a former one is unchanged and nothing else is left.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and (overwrite or not any(path.iterdir()))):
        raise UsageError(f"{path} exists already; choose another directory or remove it")
    partial = partial_path(path)
    former = partial.with_suffix(".replaced")
    try:
        partial.mkdir(parents=True)
        yield partial
        if overwrite and path.exists():
            path.rename(former)
        partial.rename(path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not path.exists():
            former.rename(path)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path}: {reason(error)}") from error
        if isinstance(error, RunError):  # of a file inside
            raise type(error)(str(error).replace(str(partial), str(path))) from error
        raise
    shutil.rmtree(former, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, in UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented by 2; see `replacing`. Numbers that are not finite are a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
      RunError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read: {reason(error)}; put back a good copy, or remove it and repeat what wrote it"
        ) from error


def partial_path(path: Path) -> Path:
    """Where to write what becomes `path` when it is complete: a hidden name beside it that no other writer has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def free_path(directory: Path, name: str, suffix: str = "") -> Path:
    """`directory/name` and the suffix; or, where that is taken, the first of `name.1`, `name.2`, ... that is free."""
    path, number = directory / f"{name}{suffix}", 0
    while path.exists():
        number += 1
        path = directory / f"{name}.{number}{suffix}"
    return path


def checksums(directory: Path) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of every file below a directory, by its path there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _crc(path)] for path in files}


def damage(directory: Path, sums: Mapping[str, Sequence[int]]) -> str | None:
    """The first way in which files differ from their `checksums`; None if they are intact. Other files do not count."""
    for name, (size, crc) in sums.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _crc(path) != crc:
            return f"{name} is damaged"
    return None


def reason(error: BaseException) -> str:
    """An error in one line; of the operating system's errors, also inside TensorStore's, the system's own words."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; some network file systems cannot, and do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc
