"""What the headers of a data set's files say, read before a run begins."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from dinojax import progress
from dinojax.data.decode import read_header
from dinojax.data.formats import KINDS, Header
from dinojax.data.intensity import group_of
from dinojax.data.records import Records
from dinojax.errors import RunError
from dinojax.levels import EIGHT, WIDE, Rule
from dinojax.runs.files import reason, replacing
from dinojax.wording import counted

_OPENED_AT_A_TIME = 8
_REASONS = 3
_SHOWN_FROM = 5_000
"""Headers that take some seconds, so that progress is shown."""


@dataclasses.dataclass(frozen=True)
class Headers:
    """What the headers of a data set's files say, and how its images are shown.

    Attributes:
      files: number of files.
      read: of which the headers were read.
      grey, colour: how many of these hold images of one channel, and of three.
      groups: how many of these are of each kind that intensities tell apart, see `intensity.GROUPS`.
      smallest, largest: (width, height) in pixels, by area; (0, 0) if none was readable.
      bad: (path as in the records, reason) of the files that cannot be read, and of frames that a file does not have.
      notes: what else was found: files of several images, slices left out.
      rules: by kind, how values become grey levels.
      intensity: a line for each kind: how, and why.
      warnings: what looks wrong.
      stack: how many grey images are the channels of one; 1 where a file's image is one.
    """

    files: int
    read: int
    grey: int
    colour: int
    groups: Mapping[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    intensity: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stack: int = 1

    @property
    def channels(self) -> int:
        """Of an image: those of a stack; else 1 if every file is grey, so that one channel stays one channel, or 3."""
        return self.stack if self.stacked else 3 if self.colour else 1

    @property
    def stacked(self) -> bool:
        """Whether the channels are grey images of one place, such as MR sequences, and no colours."""
        return self.stack > 1

    def summary(self) -> str:
        """One line: how many headers were read, and what they say."""
        of = "" if self.read == self.files else f" of {self.files}, evenly spaced"
        parts = [f"{self.read}{of} headers read: {self.grey} grey, {self.colour} RGB"]
        if self.grey + self.colour:
            parts.append("{}×{} to {}×{} pixels".format(*self.smallest, *self.largest))
        kinds = {group: count for group, count in self.groups.items() if group != EIGHT}
        parts += [f"{count} of {group}" if group == WIDE else f"{count} {group}" for group, count in kinds.items()]
        parts += self.notes
        if self.bad:
            parts.append(f"{len(self.bad)} unreadable and left out")
        return "; ".join(parts)


class Found(NamedTuple):
    """The headers of a data set, entry by entry."""

    records: Records
    """The entries that can be read."""
    headers: list[Header | None]
    """None of an entry whose header was not read."""
    kinds: np.ndarray
    """int8 [N], places in `KINDS`."""
    kept: np.ndarray
    """int64 [N], the entries' places among all that were asked for."""
    bad: tuple[tuple[str, str], ...]
    files: int
    read: int


def find_headers(records: Records, limit: int, on_bad_file: Literal["stop", "skip"], max_megapixels: float) -> Found:
    """Reads the headers of all files, or, of very many pictures, of an evenly spaced choice.

    A choice suffices where everything in it is a picture of 8 bits and one frame; else all are read.

    Args:
      records: the images; entries of one file share its header.
      limit: how many headers are read at most in the first place.
      on_bad_file: 'skip' leaves unreadable files out.
      max_megapixels: of the largest image that is read.

    Raises:
      RunError: files are unreadable, and `on_bad_file` is 'stop'; or no file is readable.
    """
    first: dict[str, int] = {}
    for place, path in enumerate(records.paths.tolist()):
        first.setdefault(path, place)
    places = np.fromiter(first.values(), np.int64, len(first))
    chosen = places
    if len(places) > limit:
        chosen = places[np.unique(np.linspace(0, len(places) - 1, limit).astype(np.int64))]
    found = _read(records, chosen, max_megapixels)
    if len(chosen) < len(places) and not all(_plain(header) for _, header, _ in found.values()):
        found |= _read(records, np.setdiff1d(places, chosen), max_megapixels)
        chosen = places
    by_path = {str(records.paths[place]): entry for place, entry in found.items()}
    raster = ("raster", None, "")
    entries = [by_path.get(path, raster) for path in records.paths.tolist()]
    beyond = {place: why for place, (_, header, _) in enumerate(entries) if (why := _beyond(records, place, header))}
    bad = {place: why for place, (_, _, why) in found.items() if why} | beyond
    kept = np.array([place for place, (_, _, why) in enumerate(entries) if not why and place not in beyond], np.int64)
    if bad and (on_bad_file == "stop" or not len(kept)):
        of_reason: dict[str, int] = {}
        for place, why in bad.items():
            of_reason.setdefault(why, place)
        times = Counter(bad.values())
        reasons = [f"{why}: {_times(times[why])}{records.describe(place)}" for why, place in of_reason.items()]
        more = [counted(len(reasons) - _REASONS, "more reason")] if len(reasons) > _REASONS else []
        listed = "; ".join([*reasons[:_REASONS], *more])
        advice = "repair them, or leave them out with --on_bad_file skip" if len(kept) else "none is left"
        files = len({str(records.paths[place]) for place in bad})
        raise RunError(f"{files} of {len(chosen)} files checked cannot be read ({listed}); {advice}")
    listed_bad = (
        *((path, "its name is not UTF-8") for path in records.misnamed),
        *((str(records.paths[place]), why) for place, why in bad.items()),
    )
    return Found(
        records.take(kept) if bad else records,
        [entries[place][1] for place in kept],
        np.array([KINDS.index(entries[place][0]) for place in kept], np.int8),
        kept,
        listed_bad,
        files=len(places),
        read=len(chosen),
    )


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} files such as "


def summarise(found: Found) -> Headers:
    """What headers say together."""
    unique = {str(path): header for path, header in zip(found.records.paths, found.headers, strict=True) if header}
    sizes = sorted(
        {(header.width, header.height) for header in unique.values()}, key=lambda size: (size[0] * size[1], size)
    )
    channels = Counter(header.channels for header in unique.values())
    return Headers(
        files=found.files,
        read=found.read,
        grey=channels[1],
        colour=channels[3],
        groups=Counter(map(group_of, unique.values())),
        smallest=sizes[0] if sizes else (0, 0),
        largest=sizes[-1] if sizes else (0, 0),
        bad=found.bad,
    )


def list_skipped(skipped: Sequence[tuple[str, str]], path: Path) -> None:
    """Adds (path, reason) of the files that were left out, because they cannot be read, to the table `path`."""
    if not skipped:
        return
    table = pd.DataFrame(skipped, columns=["path", "reason"])
    if path.exists():  # from before the run was interrupted
        table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), table])
    with replacing(path, newline="") as file:
        table.drop_duplicates().sort_values(["path", "reason"]).to_csv(file, index=False)


def _plain(header: Header | None) -> bool:
    return header is None or (header.kind == "raster" and header.bits <= 8 and header.frames == 1)


def _beyond(records: Records, place: int, header: Header | None) -> str:
    """Why an entry has no image, if its file has fewer; which slices a volume has depends on the axis."""
    frame = int(records.frames[place])
    if header is None or header.volume is not None or frame < header.frames:
        return ""
    return f"has {counted(header.frames, 'image')}, numbered from 0, and none of number {frame}"


def _read(records: Records, places: np.ndarray, max_megapixels: float) -> dict[int, tuple[str, Header | None, str]]:
    """Reader, header and, if it cannot be read, the reason, of some entries."""

    def read(place: int) -> tuple[str, Header | None, str]:
        try:
            kind, header = read_header(records.file(place), int(records.frames[place]), max_megapixels)
        except Exception as error:  # whatever the damage leads to, or the disk
            return "raster", None, reason(error)
        return kind, header, ""

    found: dict[int, tuple[str, Header | None, str]] = {}
    with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool:
        results = zip(places.tolist(), pool.map(read, places.tolist()), strict=True)
        if len(places) < _SHOWN_FROM:
            return dict(results)
        with progress.bar("headers", len(places)) as bar:
            for count, (place, entry) in enumerate(results, start=1):
                found[place] = entry
                bar(count, "")
    return found
