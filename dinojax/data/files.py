"""Which files of a list are there, which of them are the same, and what kinds of files are read."""

import os
import stat
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

TEXT = np.dtypes.StringDType()
FORMATS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k", ".mpo"),
    *(".dcm", ".dicom", ".nii", ".nii.gz"),
)
"""How the names of images end; files without an ending may be DICOM, too."""
_LISTING_PAYS = 32
"""With fewer files than this to look up in a folder, they are looked up singly: the folder may hold many more."""
_MISSING = -1


def suffix_of(name: str) -> str:
    """In lower case, with the dot; '' without one."""
    lower = name.lower()
    if lower.endswith(".nii.gz"):
        return ".nii.gz"
    return os.path.splitext(lower)[1]  # noqa: PTH122 (a Path for each file is slow)


def may_be_image(name: str) -> bool:
    """Whether a file may be an image by its name: DICOM files often end in nothing, or in a part of a number."""
    suffix = suffix_of(name)
    return suffix in FORMATS or not suffix[1:].strip("0123456789")


def inode_of(entry: os.DirEntry[str]) -> int:
    """Number of the file that a folder's entry is, or links to; 0 if unknown. Only links cost a look at the file."""
    try:
        return os.stat(entry.path).st_ino if entry.is_symlink() else entry.inode()  # noqa: PTH116
    except OSError:
        return 0


def look_up(root: Path, paths: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Looks files up by their `paths`, relative to `root`; links are followed.

    A folder is listed once, rather than every file looked up: on a network each lookup is a round trip.

    Returns:
      The places at which there is no file, increasing; and the inodes, uint64 [N], 0 where unknown.
    """
    folders: dict[str, array[int]] = defaultdict(lambda: array("i"))
    for place, path in enumerate(paths):
        folders[path[: path.rfind("/") + 1]].append(place)
    inodes = np.zeros(len(paths), np.uint64)
    missing: list[int] = []
    for folder, places in folders.items():
        listed = _files_in(root / folder) if len(places) >= _LISTING_PAYS else {}
        for place in places:
            path = paths[place]
            inode = listed.get(path[len(folder) :], _MISSING)
            if inode == _MISSING:
                # The file system may take a name that the listing spells otherwise, so it has the last word.
                inode = _inode(root / path)
            if inode == _MISSING:
                missing.append(place)
            else:
                inodes[place] = inode
    return sorted(missing), inodes


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda path: path.replace("\\", "/"),
    lambda path: unicodedata.normalize("NFC", path.replace("\\", "/")),
    lambda path: unicodedata.normalize("NFD", path.replace("\\", "/")),
)
"""Windows separates folders by backslashes; macOS takes accents from their letters."""


def respell(root: Path, paths: list[str], missing: list[int], inodes: np.ndarray) -> list[int]:
    """Writes `paths` as the files are called that they mean, where only slashes or the Unicode form differ.

    Args:
      root, paths: as of `look_up`; changed in place.
      missing: places at which there is no file.
      inodes: changed in place.

    Returns:
      The places at which there is still no file.
    """
    for spelling in _SPELLINGS:
        places = [place for place in missing if spelling(paths[place]) != paths[place]]
        if not places:
            continue
        spelled = [spelling(paths[place]) for place in places]
        gone, found = look_up(root, spelled)
        for index in set(range(len(places))) - set(gone):
            paths[places[index]] = spelled[index]
            inodes[places[index]] = found[index]
        missing = sorted({*missing} - {*places} | {places[index] for index in gone})
    return missing


def repeated(root: Path, paths: np.ndarray, inodes: np.ndarray, frames: np.ndarray) -> list[tuple[int, int]]:
    """Images that are listed before, under whatever name: hard links, symbolic links and other spellings of a path.

    Args:
      root: folder that the paths are relative to.
      paths, inodes, frames: [N] each.

    Returns:
      (place, first place of the same file and frame), by increasing place.
    """
    order = np.lexsort((frames, inodes))  # stable
    same = (np.diff(inodes[order]) == 0) & (np.diff(frames[order]) == 0)
    found: list[tuple[int, int]] = []
    for start, stop in _runs(same):
        first: dict[object, int] = {}
        for place in order[start:stop].tolist():  # numbers are given by disk, so that one alone does not prove it
            before = first.setdefault(file_key(root / paths[place]), place)
            if before != place:
                found.append((place, before))
    return sorted(found)


def file_key(path: Path) -> object:
    """What is the same for all names of a file and differs between files."""
    try:
        status = path.stat()
    except OSError:
        status = None
    if status is None or not status.st_ino:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _runs(same: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of the runs in a list of which `same` says where neighbours are equal."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return [(start, stop + 1) for start, stop in edges.reshape(-1, 2).tolist()]


def _files_in(folder: Path) -> dict[str, int]:
    """Names and inodes."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: inode_of(entry) for entry in entries if entry.is_file()}
    except OSError:
        return {}


def _inode(path: Path) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return _MISSING
    return status.st_ino if stat.S_ISREG(status.st_mode) else _MISSING
