"""Lists the images below a folder, and says what else lies there."""

import dataclasses
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dinojax.data.dicom import is_dicom
from dinojax.data.files import FORMATS, TEXT, inode_of, may_be_image, suffix_of
from dinojax.errors import RunError
from dinojax.runs.files import reason

SYSTEM_FOLDERS = {
    *("@eadir", "__macosx", "__pycache__", "#recycle", "#snapshot", "$recycle.bin"),
    *("system volume information", "lost+found"),
}
"""Of Synology, macOS, Python, Windows and Linux; as those with a dot in front, they hold nobody's images."""
IMAGE_FOLDERS = {"image", "images", "img", "imgs", "picture", "pictures", "imagestr", "imagests"}
MASK_FOLDERS = {
    *("mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "label", "labels"),
    *("labelstr", "labelsts", "gt", "groundtruth", "ground_truth", "ground truth"),
}
_MASK_WORDS = ("mask", "seg", "gt", "annotation")
_MASK = re.compile(r"(.+?)[ _-](?:masks?|seg|segmentation|gt|annotation)(?:[ _-]?\d+)?", re.IGNORECASE)
_CHUNK = 65_536
_SHOWN = 5


@dataclasses.dataclass
class Listing:
    """What lies below a folder. Paths are relative to it, with forward slashes; those that are no UTF-8 are escaped.

    Attributes:
      paths: StringDType [N], of the images, sorted.
      inodes: uint64 [N], of the files that the images are; 0 if unknown.
      folders: those that were looked into, sorted, without the folder itself.
      others: how many other files there are by suffix, by the folder that they lie in.
      masks: segmentation masks beside the image that they belong to, such as `benign (1)_mask.png`.
      mask_folders: such as `masks` beside a folder `images`, and `benign_masks` beside `benign`.
      system: folders of the system, and hidden ones.
      hidden: hidden files.
      again: (folder, folder with the same contents that was looked into before), by links.
      misnamed: images whose names are no UTF-8.
    """

    paths: np.ndarray
    inodes: np.ndarray
    folders: list[str] = dataclasses.field(default_factory=list)
    others: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    masks: list[str] = dataclasses.field(default_factory=list)
    mask_folders: list[str] = dataclasses.field(default_factory=list)
    system: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)
    again: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    misnamed: list[str] = dataclasses.field(default_factory=list)

    def others_below(self, folder: str = "") -> Counter[str]:
        """How many files that are no images lie in a folder and below it, by suffix."""
        inside = (counts for name, counts in self.others.items() if not folder or f"{name}/".startswith(f"{folder}/"))
        return sum(inside, Counter())

    def used(self, file: str) -> None:
        """Takes a file that was read, such as a table, from the `others`."""
        folder, _, name = file.rpartition("/")
        if folder in self.others:
            self.others[folder] -= Counter([suffix_of(name)])

    def left_out(self) -> tuple[str, ...]:
        """All that is not in `paths`, for people to read."""
        lines: list[str] = []
        if self.masks:
            lines.append(f"{len(self.masks)} masks beside their images (such as {self.masks[0]})")
        if self.mask_folders:
            lines.append(f"folders of masks beside images: {some(self.mask_folders)}")
        if self.system:
            lines.append(f"system folders: {some(self.system)}")
        if self.hidden:
            lines.append(f"{len(self.hidden)} hidden files (such as {self.hidden[0]})")
        if self.again:
            lines.append(f"folders seen before by a link: {some([folder for folder, _ in self.again])}")
        if others := self.others_below():
            lines.append(f"{sum(others.values())} other files ({kinds(others)})")
        if self.misnamed:
            lines.append(f"{len(self.misnamed)} files whose names are not UTF-8 (such as {self.misnamed[0]})")
        return tuple(lines)


def some(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def kinds(counts: Mapping[str, int]) -> str:
    """Such as `2 .csv, 1 without suffix`."""
    return ", ".join(f"{count} {shown(suffix) or 'without suffix'}" for suffix, count in sorted(counts.items()))


def shown(name: str) -> str:
    r"""A file's name as text that can be written; bytes that are no UTF-8 are escaped.

    >>> shown("b\udcf6se.png")
    'b\\udcf6se.png'
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def list_images(folder: Path) -> Listing:
    """Lists a folder with all its subfolders, links to folders included.

    Hidden files and folders, folders of the system, masks beside their images, and folders of masks beside folders of
    images are left out.

    Raises:
      RunError: a folder cannot be read.
    """
    found = Listing(np.empty(0, TEXT), np.empty(0, np.uint64))
    parts: list[np.ndarray] = []
    paths: list[str] = []
    inodes = array("Q")
    seen: dict[str, str] = {}
    stack = [""]
    while stack:
        below = stack.pop()
        if below:
            found.folders.append(shown(below))
        real = os.path.realpath(folder / below)
        if real in seen:  # links may form a circle, or show one folder twice
            found.again.append((shown(below), seen[real] or "."))
            continue
        seen[real] = shown(below)
        prefix = f"{below}/" if below else ""
        folders, images = _scan(folder, below, found)
        # Sorted, so that of two links to one folder the same is followed everywhere.
        stack += [prefix + name for name in sorted(folders, reverse=True)]
        for name in _without_masks(images, prefix, found):
            paths.append(prefix + name)
            inodes.append(images[name])
        if len(paths) >= _CHUNK:  # as objects, millions of paths would take twice the memory
            parts.append(np.array(paths, TEXT))
            paths.clear()
    found.paths = np.concatenate([*parts, np.array(paths, TEXT)])
    found.inodes = np.frombuffer(inodes, np.uint64) if inodes else found.inodes
    order = np.argsort(found.paths, kind="stable")
    found.paths, found.inodes = found.paths[order], found.inodes[order]
    found.folders.sort()
    return found


def _scan(folder: Path, below: str, found: Listing) -> tuple[list[str], dict[str, int]]:
    """Folders to look into, and images with their inodes, of one folder; notes the rest of what lies in it."""
    folders: list[str] = []
    images: dict[str, int] = {}
    others: Counter[str] = Counter()
    prefix = f"{below}/" if below else ""
    try:
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    hidden = name.startswith(".") or name.casefold() in SYSTEM_FOLDERS
                    (found.system if hidden else folders).append(shown(prefix + name) if hidden else name)
                elif name.startswith("."):
                    found.hidden.append(shown(prefix + name))
                elif (suffix := suffix_of(name)) in FORMATS or (may_be_image(name) and is_dicom(Path(entry.path))):
                    images[name] = inode_of(entry)
                else:
                    others[suffix] += 1
    except OSError as error:
        raise RunError(f"cannot read the folder {shown(str(folder / below))}: {reason(error)}") from error
    if others:
        found.others[shown(below)] = others
    masks = _mask_folders(folders)
    found.mask_folders += [shown(prefix + name) for name in masks]
    folders = [name for name in folders if name not in masks]
    for listed in (found.system, found.hidden):
        listed.sort()
    return folders, images


def _mask_folders(folders: Sequence[str]) -> list[str]:
    """Such as `masks` beside `images`, and `benign_masks` beside `benign`."""
    matches = {name: _MASK.fullmatch(name) for name in folders}
    masks = {name for name, match in matches.items() if match and match[1] in matches}
    if any(name.casefold() in IMAGE_FOLDERS for name in folders):
        masks |= {name for name in folders if name.casefold() in MASK_FOLDERS}
    return sorted(masks)


def _without_masks(images: Mapping[str, int], prefix: str, found: Listing) -> Iterable[str]:
    """The names that are UTF-8, without those of masks beside their images; all are images of one folder."""
    names = list(images)
    together = "\n".join(names)  # one look at all of them tells most folders to be without masks
    if not _is_text(prefix + together):
        found.misnamed += sorted(shown(prefix + name) for name in names if not _is_text(prefix + name))
        names = [name for name in names if _is_text(prefix + name)]
    lowered = together.lower()
    if any(word in lowered for word in _MASK_WORDS):
        stems = {name[: name.rfind(".")] for name in names}
        matches = {name: _MASK.fullmatch(name[: name.rfind(".")]) for name in names}
        masks = {name for name, match in matches.items() if match and match[1] in stems}
        found.masks += sorted(prefix + name for name in masks)
        names = [name for name in names if name not in masks]
    return names


def _is_text(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are no UTF-8 stand as surrogates in a file's name
        return False
    return True
