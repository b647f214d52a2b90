"""Which column of a table is what, by the names that people give them."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from dinojax.data.files import FORMATS
from dinojax.data.spellings import check_values
from dinojax.data.table_text import Text, headers
from dinojax.errors import RunError, UsageError

Uncertain = Literal["ignore", "zero", "one"]
GROUP_COLUMNS = ("patient_id", "study_id", "volume_id")
MULTILABEL = "label_"
CHANNEL = "path_"
"""What the names of several columns of files begin with, each of a channel."""
_MASKS = {"mask", "masks", "seg", "segmentation", "label", "labels", "annotation", "annotations", "roi"}
KNOWN: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "filename", "img_dir", "imgpath", "dir", "file", "filepath"),
        *("image", "image_path", "image_file", "image_filename", "img", "img_path", "img_file", "img_name"),
    ),
    "label": ("label", "acl_label", "class"),
    "frame": ("frame",),
    "patient_id": ("patient_id", "patient", "pid", "subject_id", "subject"),
    "study_id": ("study_id", "study"),
    "volume_id": ("volume_id", "volume", "series_id", "series"),
    "split": ("split",),
    "pseudonym": ("pseudonym",),
}
"""`Image Path`, `imagepath` and `IMAGE-PATH` are `image_path`, too."""
_ADVICE: dict[str, str] = {
    "path": "say which with --path_column",
    "label": "say which with --label_column",
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be read from tables.

    Attributes:
      labelled: whether labels are needed.
      uncertain: what -1 in a column `label_<class>` means: unknown, 0 or 1.
      path_column, label_column, patient_column: names of the columns, where `KNOWN` names do not tell them.
      salt_file: beside which the key of pseudonyms lies.
    """

    labelled: bool
    uncertain: Uncertain | None = None
    path_column: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    salt_file: str | None = None


@dataclasses.dataclass(frozen=True)
class Columns:
    """Places of a table's columns.

    Attributes:
      text: how the table is written.
      header: names as they are written.
      roles: the columns that are read.
      paths: those that may hold the paths, if `roles` does not have it.
      flags: of the labels of a multi-label task.
      channels: of the files of an image's channels, in the table's order; the first is the path of `roles`. Empty where
        a file is an image.
    """

    text: Text
    header: list[str]
    roles: dict[str, int]
    paths: list[int]
    flags: list[int]
    channels: list[int] = dataclasses.field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of a multi-label task."""
        return tuple(self.header[place][len(MULTILABEL) :] for place in self.flags)

    @property
    def unread(self) -> tuple[str, ...]:
        read = {*self.roles.values(), *self.flags, *self.channels}
        return tuple(name or f"{place + 1} (unnamed)" for place, name in enumerate(self.header) if place not in read)


def key_of(name: str) -> str:
    """What is the same for all ways to write a column's name.

    >>> key_of("Patient ID"), key_of("patientId")
    ('patientid', 'patientid')
    """
    return re.sub(r"[\W_]+", "", name).casefold()


_ROLES = {key_of(name): role for role, names in KNOWN.items() for name in names}


def find_columns(file: Path, wanted: Wanted) -> Columns:
    """Reads a table's header.

    Raises:
      RunError: it has no column for the paths or the labels, or several that may be it.
      UsageError: it lacks a column that `wanted` names.
    """
    text, header = _cut(file, wanted)
    flags = _flags(file, header, wanted)
    places = _by_role(header, flags)
    places["path"] = _named(file, header, "path", wanted.path_column) or places["path"]
    places["label"] = _named(file, header, "label", wanted.label_column) or places["label"]
    if wanted.patient_column:
        places["patient_id"] = _named(file, header, "patient", wanted.patient_column)
    channels = [] if places["path"] else _channels(file, header, places)
    places["path"] = places["pseudonym"] or places["path"] or channels[:1]
    if not wanted.labelled or flags:
        places["label"] = []
    needed = ("path", "label") if wanted.labelled and not flags else ("path",)
    _check(file, header, places, flags, channels, needed)
    roles = {role: found[0] for role, found in places.items() if len(found) == 1}
    return Columns(text, header, roles, places["path"], flags, channels)


def choose_path(columns: Columns, exists: Callable[[str], bool], head: Sequence[Sequence[str]]) -> Columns:
    """Of several columns that may hold the paths takes the one of which most files exist.

    Args:
      columns: of the table.
      exists: tells whether there is a file of this path.
      head: cells of the first rows.

    Raises:
      RunError: those of several do.
    """
    if "path" in columns.roles:
        return columns
    counts = {place: sum(len(row) > place and exists(row[place]) for row in head) for place in columns.paths}
    best = [place for place, count in counts.items() if count == max(counts.values())]
    if len(best) > 1 and max(counts.values()):
        names = " and ".join(columns.header[place] for place in best)
        raise RunError(f"{columns.text.file}: columns {names} both name images; {_ADVICE['path']}")
    # If none does, reading names an image that is missing.
    return dataclasses.replace(columns, roles={**columns.roles, "path": best[0]})


def _cut(file: Path, wanted: Wanted) -> tuple[Text, list[str]]:
    """The header, cut at the separator by which it has a column of paths; else at the one that makes most columns."""
    cuts = headers(file)
    named = {key_of(name) for name in (wanted.path_column, wanted.label_column) if name}
    for text, header in cuts:
        keys = {key_of(name) for name in header}
        if not named.isdisjoint(keys) or any(_ROLES.get(key) in ("path", "pseudonym") for key in keys):
            return text, header
        if sum(map(_is_channel, header)) > 1:
            return text, header
    return max(cuts[:-1], key=lambda cut: len(cut[1]))  # spaces stand in any text


def _named(file: Path, header: list[str], role: str, name: str | None) -> list[int]:
    """Places of the column that an option names."""
    if name is None:
        return []
    exact = [place for place, other in enumerate(header) if other == name]
    alike = [place for place, other in enumerate(header) if key_of(other) == key_of(name)]
    if not (found := exact or alike):
        raise UsageError(f"--{role}_column {name}: the columns of {file} are {', '.join(header)}")
    return found


def _flags(file: Path, header: list[str], wanted: Wanted) -> list[int]:
    """The columns of several labels, if that is what the table has."""
    if not wanted.labelled or wanted.label_column is not None:
        return []
    flags = [place for place, name in enumerate(header) if name.casefold().startswith(MULTILABEL)]
    if not flags:
        return []
    others = [name for place, name in enumerate(header) if place not in flags]
    if single := [name for name in others if _ROLES.get(key_of(name)) == "label"]:
        raise RunError(
            f"{file}: has columns {single[0]} and {header[flags[0]]}; keep one label an image, or several, "
            "or name the one with --label_column"
        )
    for place in flags:
        if len(header[place]) == len(MULTILABEL):
            raise RunError(f"{file}: column {MULTILABEL} names no class; call it {MULTILABEL}<class>")
    return flags


def _is_channel(name: str) -> bool:
    return name.casefold().startswith(CHANNEL) and len(name) > len(CHANNEL)


def _channels(file: Path, header: list[str], places: Mapping[str, list[int]]) -> list[int]:
    """The columns of the files of an image's channels, if that is what the table has: two at least."""
    found = [place for place, name in enumerate(header) if _is_channel(name)]
    if len(found) < 2:
        return []
    names = " and ".join(header[place] for place in found)
    if places["pseudonym"]:
        raise RunError(f"{file}: has columns pseudonym and {names}; several files an image are listed by their paths")
    if masks := [header[place] for place in found if header[place][len(CHANNEL) :].casefold() in _MASKS]:
        raise RunError(
            f"{file}: columns {names} would be the channels of one image, but {masks[0]} reads like a mask; "
            "name the one column of images with --path_column"
        )
    return found


def _check(
    file: Path,
    header: list[str],
    places: Mapping[str, list[int]],
    flags: list[int],
    channels: list[int],
    needed: Sequence[str],
) -> None:
    """Refuses columns of which one is meant and several are there, or none."""
    listed = f"its columns are {', '.join(name or '(unnamed)' for name in header)}"
    for role, found in (*places.items(), (MULTILABEL, flags), (CHANNEL, channels)):
        names = [header[place] for place in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RunError(f"{file}: has several columns {twice[0]}; {listed}")
        if role in (MULTILABEL, CHANNEL):
            check_values(dict.fromkeys(names, f"a column of {file}"), "column")
        elif len(names) > 1 and role != "path":  # which has the paths, the files tell
            advice = _ADVICE.get(role, "keep one")
            raise RunError(f"{file}: columns {' and '.join(names)} may each be the {role}; {advice}")
    for role in needed:
        if not places[role] and any(word.lower().endswith(FORMATS) for name in header for word in name.split()):
            raise RunError(f"{file}: its first line names an image, not columns; put a line such as path,label above")
        if not places[role]:
            known = ", ".join(KNOWN[role][:4])
            single = [name for name in header if role == "path" and _is_channel(name)]
            several = f"; {single[0]} alone makes no image of several channels" if single else ""
            raise RunError(f"{file}: has no column {known} or alike; {listed}{several}; {_ADVICE[role]}")


def _by_role(header: list[str], flags: list[int]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {role: [] for role in KNOWN}
    for place, name in enumerate(header):
        if place not in flags and (role := _ROLES.get(key_of(name))):
            places[role].append(place)
    return places
