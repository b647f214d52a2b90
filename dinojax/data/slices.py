"""Which images a data set's files give: slices of volumes, frames, and the channels that are stacked to one image."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinojax.augment import geometry
from dinojax.config.images import ImagesConfig, SlicesConfig
from dinojax.data import nifti
from dinojax.data.formats import BadFile, Header
from dinojax.data.records import Records
from dinojax.wording import counted

_EMPTY_SHARE, _BACKGROUND = 0.01, 0.05


class Chosen(NamedTuple):
    """The images that are used."""

    records: Records
    """Entry for entry; a stack with its `further` channels."""
    origin: np.ndarray
    """int64 [C·N], of each channel of each image, as `Records.flat` orders them, the header that it has."""
    notes: list[str]
    """What was left out, in words."""
    bad: list[tuple[str, str]]
    """(path, reason) of files that cannot be read to their end, and of rows whose files make no image together."""


class _Channel(NamedTuple):
    """One channel of the images in a row of files."""

    column: int
    """Place of its file in the row."""
    frames: list[int]
    """Of each image."""


def choose_images(
    records: Records, headers: Sequence[Header | None], config: ImagesConfig, on_bad_file: str = "stop"
) -> Chosen:
    """An entry for each image that is used, rather than for each file.

    Args:
      records: files, or images in them; of a stack, of each channel.
      headers: of each entry of `records.flat()`.
      config: names slices, and says whether a fourth axis holds channels.
      on_bad_file: 'skip' leaves out rows whose files make no image together.

    Raises:
      BadFile: files cannot be stacked, and `on_bad_file` is 'stop'; a volume cannot be read, or lacks what `config`
        asks for; or no image is left.
    """
    count = len(records)
    rows = [[headers[place + column * count] for column in range(len(records.channels))] for place in range(count)]
    stacks = [_channels(records, place, row, config.slices) for place, row in enumerate(rows)]
    form = Counter(tuple(channel.column for channel in stack) for stack in stacks).most_common(1)[0][0]
    frames: list[list[int]] = [[] for _ in form]
    counts, bad, several, empty = np.zeros(count, np.int64), [], 0, 0
    for place, (row, stack) in enumerate(zip(rows, stacks, strict=True)):
        if why := _misfit(records, place, row, stack, form, config):
            bad.append((str(records.paths[place]), f"{why}{records.listed(place)}"))
            continue
        whole = records.frames[place] < 0 and any(header is not None and _has_several(header) for header in row)
        several += sum(header is not None and _has_several(header) for header in row) if whole else 0
        used = list(range(len(stack[0].frames)))
        if whole and config.slices.drop_empty and all(header is not None and header.volume for header in row):
            try:
                full = [_not_empty(column, place, config.slices) for column in records.channels]
            except BadFile as error:  # a header that promises more than follows it
                if on_bad_file == "stop":
                    raise
                bad.append((str(records.paths[place]), str(error)))
                continue
            used = [image for image in used if any(full[column][own[image]] for column, own in stack)]
            empty += len(stack[0].frames) - len(used)
        counts[place] = len(used)
        for numbers, channel in zip(frames, stack, strict=True):
            numbers += [channel.frames[image] for image in used]
    if bad and (on_bad_file == "stop" or len(bad) == count):
        advice = "leave the rows out with --on_bad_file skip" if len(bad) < count else "none is left"
        raise BadFile(f"{bad[0][1]} ({len(bad)} of {counted(count, 'entry', 'entries')}); {advice}")
    expanded = [
        records.channels[column].expanded(counts, np.array(numbers, np.int32))
        for column, numbers in zip(form, frames, strict=True)
    ]
    images = _stacked(expanded)
    if not len(images):
        raise BadFile(f"{records.root}: all slices are empty; use them with --slices.drop_empty false")
    origin = np.repeat(np.arange(count), counts)
    return Chosen(
        images,
        np.concatenate([column * count + origin for column in form]),
        _notes(images, several, empty, config.slices),
        bad,
    )


def pixel_ratio(header: Header | None, axis: str) -> float:
    """Height over width of a pixel; NaN if unknown."""
    if header is None:
        return np.nan
    spacing = header.spacing if header.volume is None else nifti.slice_spacing(header, axis)  # type: ignore[arg-type]
    return spacing[0] / spacing[1] if spacing and spacing[0] > 0 and spacing[1] > 0 else np.nan


def _stacked(channels: Sequence[Records]) -> Records:
    """One data set of which the first of `channels` gives all but the files of the others."""
    bare = {"labels": None, "groups": {}, "splits": None, "folds": ()}
    return dataclasses.replace(channels[0], further=tuple(dataclasses.replace(one, **bare) for one in channels[1:]))


def _notes(images: Records, several: int, empty: int, config: SlicesConfig) -> list[str]:
    notes = []
    if images.stacked:
        names = f": {', '.join(images.channel_columns)}" if images.channel_columns else ", along the fourth axis"
        notes.append(f"images of {len(images.channels)} channels{names}")
    if several:
        notes.append(f"{counted(several, 'file')} of several images or slices: {len(images)} in all")
    if several and (config.every > 1 or config.middle is not None):
        middle = "" if config.middle is None else f"the {config.middle} middle ones, "
        notes.append(f"of each {middle}every {config.every}")
    if empty:
        notes.append(f"{counted(empty, 'empty slice')} left out")
    return notes


def _has_several(header: Header) -> bool:
    return header.frames > 1 or header.volume is not None


def _channels(records: Records, place: int, row: Sequence[Header | None], config: SlicesConfig) -> list[_Channel]:
    """The channels of the images in a row of files: one of each file, or of each place along its fourth axis."""
    given = int(records.frames[place])
    found = []
    for column, header in enumerate(row):
        if header is None or not _has_several(header):
            found.append(_Channel(column, [given]))
            continue
        try:
            found += [_Channel(column, frames) for frames in _chosen(header, config, given)]
        except ValueError as error:
            raise BadFile(f"{records.channels[column].describe(place)}: {error}") from error
    return found


def _chosen(header: Header, config: SlicesConfig, given: int) -> list[list[int]]:
    """Numbers of the frames that are used, in order, of each channel; `given` is the one that is listed, or -1."""
    if given >= 0 and (header.volume is None or config.time != "channels"):
        return [[given]]
    total = header.frames if header.volume is None else nifti.slices(header, config.axis)
    times = 1 if header.volume is None else header.volume[3]
    each = total // times
    channels = [list(range(times))]
    if header.volume is not None and config.time == "channels":
        channels = [[time] for time in range(times)]
    elif header.volume is not None and isinstance(config.time, int):
        if config.time >= times:
            raise ValueError(f"slices.time {config.time}: a volume has {times}, numbered from 0; lower it")
        channels = [[config.time]]
    middle = min(config.middle or each, each)
    start = (each - middle) // 2
    slices = range(start, start + middle, config.every) if given < 0 else [given]
    if given >= each:
        raise ValueError(f"has {each} slices, numbered from 0, and slices.time channels takes one of these")
    return [[time * each + slice_ for time in times for slice_ in slices] for times in channels]


def _misfit(
    records: Records,
    place: int,
    row: Sequence[Header | None],
    stack: Sequence[_Channel],
    form: tuple[int, ...],
    config: ImagesConfig,
) -> str:
    """Why the files of a row make no image of several channels; '' if they do, or if an image has one channel."""
    names = [str(column.paths[place]) for column in records.channels]
    if tuple(channel.column for channel in stack) != form:
        return f"{', '.join(names)}: {counted(len(stack), 'channel')}, where most images have {len(form)}"
    if len(form) == 1:
        return ""
    known = [(name, header) for name, header in zip(names, row, strict=True) if header is not None]
    if colour := [name for name, header in known if header.channels != 1]:
        return f"{colour[0]} is RGB; a channel's file must be grey"
    sizes = [(name, *_size(header, config)) for name, header in known]
    if len({size[1:] for size in sizes}) > 1:
        listed = ", ".join(f"{name} {width}×{height}" for name, height, width in sizes)
        return f"the files of an image differ in size: {listed} pixels"
    if len({len(channel.frames) for channel in stack}) > 1:
        listed = ", ".join(f"{names[channel.column]} {len(channel.frames)}" for channel in stack)
        return f"the files of an image differ in their numbers of slices: {listed}"
    if len({header.patient for _, header in known if header.patient}) > 1:
        return f"{', '.join(names)} are of different patients, by their headers"
    return ""


def _size(header: Header, config: ImagesConfig) -> tuple[int, int]:
    """(height, width) in pixels of an image as it is decoded."""
    axis = config.slices.axis
    shape = (header.height, header.width) if header.volume is None else nifti.slice_shape(header, axis)
    ratio = pixel_ratio(header, axis)
    return geometry.stretched(*shape, ratio) if config.spacing == "isotropic" and np.isfinite(ratio) else shape


def _not_empty(records: Records, place: int, config: SlicesConfig) -> np.ndarray:
    """bool [slices], of a volume: at least 1 % of the pixels are above the background."""
    try:
        volume = nifti.volume_values(records.file(place))
    except ValueError as error:
        raise BadFile(f"cannot read {records.describe(place)}: {error}") from error
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[config.axis]
    slices = np.moveaxis(volume, (3, axis), (0, 1))  # [T, slices, ...]
    slices = np.nan_to_num(slices.reshape(*slices.shape[:2], -1).astype(np.float32), posinf=0, neginf=0)
    low = slices.min(axis=(1, 2), keepdims=True)
    above = slices > low + _BACKGROUND * (slices.max(axis=(1, 2), keepdims=True) - low)
    return (above.mean(axis=2) >= _EMPTY_SHARE).ravel()
