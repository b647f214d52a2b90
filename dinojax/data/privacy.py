"""What stands in place of the names and ids in headers and paths: keyed hashes, whose key stays with the user."""

import csv
import hashlib
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dinojax.data.files import TEXT
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import reason

_BYTES = 32
_LEAST = 16
_DIGITS = 16
KEYS = "pseudonyms.csv"
"""Beside the salt: which file each pseudonym stands for."""


def salt_path(salt_file: str | None) -> Path:
    """Where the salt lies: the file that is named, else `dinojax/salt` in the user's configuration folder."""
    if salt_file is not None:
        return Path(salt_file).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dinojax" / "salt"


def read_salt(salt_file: str | None) -> bytes:
    """The secret by which ids are hashed; one is drawn at the first use, in a file that its owner alone may read.

    Raises:
      UsageError: the file is too short to be a secret.
      RunError: it can be neither read nor made.
    """
    path = salt_path(salt_file)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
        salt = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"the salt {path} can be neither read nor made: {reason(error)}; name another --salt_file"
        ) from error
    if len(salt) < _LEAST:
        raise UsageError(f"--salt_file {path}: has {len(salt)} bytes, too few for a secret; give {_LEAST} or more")
    return salt


def hashed(salt: bytes, what: str, value: str) -> str:
    """A pseudonym: 16 hexadecimal digits, the same for the same value and salt.

    Args:
      salt: of `read_salt`.
      what: is hashed too, so that a patient and a study of one id have different pseudonyms.
      value: the id.
    """
    return hashlib.blake2b(f"{what}\0{value}".encode(), key=salt[:64], digest_size=_DIGITS // 2).hexdigest()


def hashed_column(salt: bytes, what: str, values: Iterable[str]) -> np.ndarray:
    """Pseudonyms of a column, StringDType [N]; '' stays ''."""
    known: dict[str, str] = {"": ""}
    column = []
    for value in values:
        if value not in known:
            known[value] = hashed(salt, what, value)
        column.append(known[value])
    return np.array(column, TEXT)


def write_keys(salt_file: str | None, pseudonyms: Sequence[tuple[str, Path]]) -> Path:
    """Adds which file each pseudonym stands for to the table beside the salt, which its owner alone may read."""
    path = salt_path(salt_file).parent / KEYS
    known = read_keys(salt_file) if path.exists() else {}
    known |= {name: str(file) for name, file in pseudonyms}
    try:
        # Written beside and renamed, as a table cut short would lose the way back.
        part = path.with_suffix(".part")
        with os.fdopen(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            csv.writer(file).writerows([("pseudonym", "file"), *sorted(known.items())])
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {reason(error)}") from error
    return path


def read_keys(salt_file: str | None) -> dict[str, str]:
    """The file of each pseudonym.

    Raises:
      RunError: there is no table, or it cannot be read.
    """
    path = salt_path(salt_file).parent / KEYS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["pseudonym"]: row["file"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise RunError(
            f"the images are listed by pseudonyms, whose key {path} cannot be read: {reason(error)}; "
            "name the salt that `index` used with --salt_file"
        ) from error
