"""An index of a folder: a row for every image in it, with what its header says, and what could not be read."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dinojax import progress
from dinojax.data import privacy
from dinojax.data.class_folders import read_class_folders, read_images
from dinojax.data.decode import read_header
from dinojax.data.files import FORMATS, suffix_of
from dinojax.data.formats import Header
from dinojax.data.reading import group_pattern
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import reason

COLUMNS = (
    *("path", "frame", "images", "width", "height", "bits", "modality", "row_mm", "column_mm"),
    *("patient_id", "study_id", "volume_id", "split", "label", "sha256"),
)
_EMPTY_IF_UNKNOWN = (
    "frame",
    "modality",
    "row_mm",
    "column_mm",
    "patient_id",
    "study_id",
    "volume_id",
    "split",
    "label",
)


class Index(NamedTuple):
    """What lies below a folder."""

    images: pd.DataFrame
    """A row an image with `COLUMNS`, all text; a NIfTI volume is one row, whose slices a run chooses."""
    unreadable: pd.DataFrame
    """Columns `path` and `reason`."""
    left_out: tuple[str, ...]
    """What lies there and is not among the images, for people to read."""
    telling: int
    """Files whose path contains a name or id of their header."""


def index_folder(
    folder: Path, part: Path, *, salt: bytes, max_megapixels: float, threads: int, group_regex: str | None = None
) -> Index:
    """Reads the header and the bytes of every image below a folder.

    Args:
      folder: is searched with all its subfolders.
      part: lines of what was read so far; a run that was interrupted goes on with them.
      salt: by which ids are hashed.
      max_megapixels: of the largest image that is not unreadable.
      threads: that read files.
      group_regex: takes the patient from the path, where it finds one.

    Raises:
      UsageError: there is no image, or `group_regex` finds no patient at all.
      RunError: a folder cannot be read, or `part` cannot be written.
    """
    pattern = None if group_regex is None else group_pattern(group_regex)
    found = read_images(folder)
    paths = found.paths.tolist()
    known = {line["path"]: line for line in _lines(part)}
    # What was read with another salt or limit, or below another folder, does not count.
    mark = privacy.hashed(salt, "index", f"{folder.resolve()} {max_megapixels:g}")
    states = {path: [*_state(folder / path), mark] for path in paths}
    missing = [path for path in paths if path not in known or known[path]["state"] != states[path]]

    def read(path: str) -> dict[str, Any]:
        return {"path": path, "state": states[path], **_read(folder / path, path, salt, max_megapixels)}

    try:
        with (
            part.open("a", encoding="utf-8") as file,
            ThreadPoolExecutor(threads) as pool,
            progress.bar("files", len(paths), len(paths) - len(missing)) as bar,
        ):
            for count, line in enumerate(pool.map(read, missing), start=len(paths) - len(missing) + 1):
                known[line["path"]] = line
                file.write(json.dumps(line) + "\n")
                bar(count, "")
    except OSError as error:
        raise RunError(f"{part} cannot be written: {reason(error)}") from error
    lines = [known[path] for path in paths]
    labels = _labels(folder)
    readable = [line for line in lines if "why" not in line]
    if pattern is not None:
        matches = {line["path"]: match[1] for line in readable if (match := pattern.search(line["path"])) and match[1]}
        if not matches:
            raise UsageError(f"--group_regex {group_regex}: finds no patient in any of {len(readable)} paths")
        for line in readable:
            if line["path"] in matches:
                line["patient_id"] = privacy.hashed(salt, "patient", matches[line["path"]])
    if any(line["patient_id"] for line in readable):
        for line in readable:  # without an id of its own an image belongs to its study, else to its file
            line["patient_id"] = line["patient_id"] or privacy.hashed(
                salt, "patient", line["study_id"] or f"file {line['path']}"
            )
    rows = [row | labels.get(line["path"], {}) for line in readable for row in _rows(line)]
    unreadable = [{"path": line["path"], "reason": line["why"]} for line in lines if "why" in line]
    unreadable += [{"path": name, "reason": "its name is not UTF-8"} for name in found.misnamed]
    return Index(
        pd.DataFrame(rows, columns=COLUMNS, dtype=object).fillna(""),
        pd.DataFrame(unreadable, columns=("path", "reason")),
        found.left_out,
        sum(bool(line.get("telling")) for line in lines),
    )


def manifest_of(index: Index, folder: Path, out: Path) -> pd.DataFrame:
    """The images' table with paths relative to where it is written, without columns that are empty throughout."""
    table = index.images.copy()
    table["path"] = relative(table["path"], folder, out)
    return table.drop(columns=[name for name in _EMPTY_IF_UNKNOWN if set(table[name]) <= {""}])


def relative(paths: Iterable[str], folder: Path, out: Path) -> list[str]:
    """Paths below a folder as they are written in a table elsewhere."""
    return [Path(os.path.relpath(folder / path, out.parent)).as_posix() for path in paths]


def pseudonyms(paths: Sequence[str], folder: Path, salt: bytes) -> dict[str, str]:
    """A hashed name, with the file's ending, for each path."""
    endings = {path: suffix_of(path) if suffix_of(path) in FORMATS else "" for path in paths}
    return {path: privacy.hashed(salt, "path", str((folder / path).resolve())) + endings[path] for path in paths}


def _state(path: Path) -> list[int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


def _lines(part: Path) -> Iterator[dict[str, Any]]:
    """What an interrupted index has read; the last line may be cut short."""
    text = part.read_text(encoding="utf-8", errors="replace") if part.exists() else ""
    for line in text.split("\n")[:-1]:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and {"path", "state"} <= found.keys():
            yield found


def _read(file: Path, path: str, salt: bytes, max_megapixels: float) -> dict[str, Any]:
    """What is kept of a file: ids are hashed before anything is written."""
    try:
        _, header = read_header(file, -1, max_megapixels)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except Exception as error:  # whatever the damage leads to, or the disk
        return {"why": reason(error)}
    several = header.frames > 1 or header.volume is not None
    return {
        "frames": 1 if header.volume is not None else header.frames,
        "images": header.frames,
        "width": header.width,
        "height": header.height,
        "bits": header.bits,
        "modality": header.modality,
        "spacing": [f"{value:.6g}" for value in header.spacing or ()],
        "patient_id": header.patient and privacy.hashed(salt, "patient", header.patient),
        "study_id": header.study and privacy.hashed(salt, "study", header.study),
        "volume_id": _volume(header, path, salt) if several or header.series else "",
        "sha256": digest,
        "telling": header.tells(path),
    }


def _volume(header: Header, path: str, salt: bytes) -> str:
    """What the slices of a file, or the files of a series, have in common."""
    if header.frames > 1 or header.volume is not None:
        return privacy.hashed(salt, "volume", path)
    return privacy.hashed(salt, "series", header.series)


def _rows(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spacing = line["spacing"] or ["", ""]
    same = {name: str(line[name]) for name in ("path", "images", "width", "height", "bits", "modality", "sha256")}
    same |= {name: line[name] for name in ("patient_id", "study_id", "volume_id")}
    same |= {"row_mm": spacing[0], "column_mm": spacing[1]}
    for frame in range(line["frames"]):
        yield same | {"frame": str(frame) if line["frames"] > 1 else ""}


def _labels(folder: Path) -> dict[str, dict[str, str]]:
    """Label and part of each image, where the names of the folders tell them."""
    try:
        records = read_class_folders(folder)
    except RunError:  # they are no class folders
        return {}
    assert records.labels is not None
    if len(set(records.labels.tolist())) < 2:
        return {}
    splits = [""] * len(records) if records.splits is None else records.splits.tolist()
    return {
        path: {"label": label, "split": split}
        for path, label, split in zip(records.paths.tolist(), records.labels.tolist(), splits, strict=True)
    }
