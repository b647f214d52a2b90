"""From listed files to images that can be decoded: headers read, slices listed, patients known, intensities decided."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dinojax.config.images import ImagesConfig, SlicesConfig
from dinojax.data import intensity, nifti, privacy
from dinojax.data.files import TEXT
from dinojax.data.formats import KINDS, BadFile, Header
from dinojax.data.headers import Found, Headers, find_headers, summarise
from dinojax.data.intensity import group_of
from dinojax.data.records import Display, Records
from dinojax.data.survey import decide_intensities
from dinojax.levels import Rule
from dinojax.wording import counted

LIMIT = 100_000
"""Of more pictures than this the headers of so many are read."""
_EMPTY_SHARE, _BACKGROUND = 0.01, 0.05


def open_images(
    records: Records,
    config: ImagesConfig | None = None,
    *,
    on_bad_file: Literal["stop", "skip"] = "stop",
    known: Sequence[Rule] = (),
    limit: int = LIMIT,
) -> tuple[Records, Headers]:
    """Finds out how every image of a data set is decoded.

    Files of several images become an entry each; patients, studies and volumes are taken from DICOM headers, hashed.

    Args:
      records: files, or images in them.
      config: how images are to be read.
      on_bad_file: 'skip' leaves unreadable files out, and lists them in the headers.
      known: the intensity rules of the checkpoint that will read the images, see `intensity.decide`.
      limit: headers that are read at most of plain pictures.

    Returns:
      The images, in the order of their files, with `display`; and what the headers say.

    Raises:
      RunError: files are unreadable, and `on_bad_file` is 'stop'; or none is readable, or no slice is left.
    """
    config = ImagesConfig() if config is None else config
    found = find_headers(records, limit, on_bad_file, config.max_megapixels)
    if all(header is None or (header.kind == "raster" and header.frames == 1) for header in found.headers):
        records, headers, notes = found.records, found.headers, []
        kinds = found.kinds
    else:
        found, full = _without_damaged(found, config.slices, on_bad_file)
        records, origin, notes = _expand(found, config.slices, full)
        headers, kinds = [found.headers[place] for place in origin], found.kinds[origin]
        records, more = _with_groups(records, headers, kinds, config.salt_file)
        notes += more
    warnings = _telling_paths(records, headers)
    display = Display(
        rules=(intensity.FULL,),
        rule=np.zeros(len(records), np.int8),
        levels=np.full((len(records), 2), np.nan),
        kind=kinds,
        ratio=np.array([_ratio(header, config.slices.axis) for header in headers], np.float32),
        axis=config.slices.axis,
        isotropic=config.spacing == "isotropic",
        max_megapixels=config.max_megapixels,
        assumed=np.array([header is None for header in headers]),
        grey=all(header.channels == 1 for header in headers if header is not None),
    )
    records = dataclasses.replace(records, display=display)
    groups = ["8 bits" if header is None else group_of(header) for header in headers]
    records, rules, said, complaints = decide_intensities(records, headers, groups, config.intensity, known)
    told = summarise(found, notes=tuple(notes), rules=rules, intensity=tuple(said), warnings=(*warnings, *complaints))
    return records, told


def _without_damaged(
    found: Found, config: SlicesConfig, on_bad_file: Literal["stop", "skip"]
) -> tuple[Found, dict[int, np.ndarray]]:
    """What can be read to the last voxel; and, by place, which slices of a volume are not empty."""
    full: dict[int, np.ndarray] = {}
    bad: list[tuple[str, str]] = []
    kept: list[int] = []
    for place, header in enumerate(found.headers):
        if config.drop_empty and header is not None and header.volume is not None and found.records.frames[place] < 0:
            try:
                slices = _not_empty(found.records, place, config)
            except BadFile as error:
                if on_bad_file == "stop":
                    raise
                bad.append((str(found.records.paths[place]), str(error)))
                continue
            full[len(kept)] = slices
        kept.append(place)
    if not bad:
        return found, full
    if not kept:
        raise BadFile(f"none of {counted(len(bad), 'file')} can be read: {bad[0][1]}")
    left = found._replace(
        records=found.records.take(np.array(kept)),
        headers=[found.headers[place] for place in kept],
        kinds=found.kinds[kept],
        bad=(*found.bad, *bad),
    )
    return left, full


def _expand(
    found: Found, config: SlicesConfig, full: Mapping[int, np.ndarray]
) -> tuple[Records, np.ndarray, list[str]]:
    """An entry for each image that is used, the entries that they are of, and what was left out, in words."""
    counts, frames = np.ones(len(found.records), np.int64), []
    empty = several = 0
    for place, header in enumerate(found.headers):
        given = int(found.records.frames[place])
        if header is None or given >= 0 or (header.frames == 1 and header.volume is None):
            chosen = [given]
        else:
            several += 1
            chosen = _chosen(found.records, place, header, config)
            if place in full:
                left = [frame for frame in chosen if full[place][frame]]
                empty += len(chosen) - len(left)
                chosen = left
        counts[place] = len(chosen)
        frames += chosen
    records = found.records.expanded(counts, np.array(frames, np.int32))
    if not len(records):
        raise BadFile(f"{found.records.root}: all slices are empty; use them with --slices.drop_empty false")
    notes = [f"{counted(several, 'file')} of several images or slices: {len(records)} in all"] if several else []
    if several and (config.every > 1 or config.middle is not None):
        middle = "" if config.middle is None else f"the {config.middle} middle ones, "
        notes.append(f"of each {middle}every {config.every}")
    if empty:
        notes.append(f"{counted(empty, 'empty slice')} left out")
    return records, np.repeat(np.arange(len(counts)), counts), notes


def _chosen(records: Records, place: int, header: Header, config: SlicesConfig) -> list[int]:
    """Numbers of the frames that are used, in order."""
    total = header.frames if header.volume is None else nifti.slices(header, config.axis)
    times = 1 if header.volume is None else header.volume[3]
    each = total // times
    if header.volume is not None and config.time is not None:
        if config.time >= times:
            raise BadFile(
                f"slices.time {config.time}: a volume has {times}, numbered from 0, {records.describe(place)}; lower it"
            )
        first = [config.time]
    else:
        first = list(range(times))
    middle = min(config.middle or each, each)
    start = (each - middle) // 2
    return [time * each + place for time in first for place in range(start, start + middle, config.every)]


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


def _with_groups(
    records: Records, headers: Sequence[Header | None], kinds: np.ndarray, salt_file: str | None
) -> tuple[Records, list[str]]:
    """Patients, studies and volumes, where nothing else gave them: ids of DICOM headers as hashes."""
    groups, notes = dict(records.groups), []
    source = records.patient_source
    dicom = [header is not None and header.kind == "dicom" for header in headers]
    paths = records.paths.tolist()
    if any(dicom):
        salt = privacy.read_salt(salt_file)
        ids = [(header.patient, header.study, header.series) if header else ("", "", "") for header in headers]
        if "patient_id" not in groups and any(patient for patient, _, _ in ids):
            # Without an id of its own an image belongs to its study, else to its file.
            values = [
                patient or (f"study {study}" if study else f"file {path}")
                for (patient, study, _), path in zip(ids, paths, strict=True)
            ]
            groups["patient_id"] = privacy.hashed_column(salt, "patient", values)
            source = "DICOM headers, hashed"
            if without := sum(is_dicom and not patient for is_dicom, (patient, _, _) in zip(dicom, ids, strict=True)):
                notes.append(f"{without} without PatientID, told apart by study or file")
        if "study_id" not in groups and any(study for _, study, _ in ids):
            groups["study_id"] = privacy.hashed_column(salt, "study", [study for _, study, _ in ids])
        series = privacy.hashed_column(salt, "series", [series for _, _, series in ids]).tolist()
    else:
        series = [""] * len(paths)
    if "volume_id" not in groups:
        # The images of an array or of a data set are no slices of one thing.
        several = [
            header is not None and kind != KINDS.index("member") and (header.frames > 1 or header.volume is not None)
            for header, kind in zip(headers, kinds, strict=True)
        ]
        volumes = [path if is_file else name for path, is_file, name in zip(paths, several, series, strict=True)]
        if any(volumes):
            groups["volume_id"] = np.array(volumes, TEXT)
    return dataclasses.replace(records, groups=groups, patient_source=source), notes


def _telling_paths(records: Records, headers: Sequence[Header | None]) -> list[str]:
    """A sentence if paths contain names or ids of their headers, which itself gives none away."""
    if records.files is not None:
        return []
    telling = {
        path
        for path, header in zip(records.paths.tolist(), headers, strict=True)
        if header is not None and header.tells(path)
    }
    if not telling:
        return []
    return [
        f"the paths of {counted(len(telling), 'file')} contain a name or id of their header, and paths are written to "
        "results: make a manifest with `index --pseudonyms true`"
    ]


def _ratio(header: Header | None, axis: str) -> float:
    """Height over width of a pixel."""
    if header is None:
        return np.nan
    spacing = header.spacing if header.volume is None else nifti.slice_spacing(header, axis)  # type: ignore[arg-type]
    return spacing[0] / spacing[1] if spacing and spacing[0] > 0 and spacing[1] > 0 else np.nan
