"""From listed files to images that can be decoded: headers read, slices listed, patients known, intensities decided."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dinojax.config.images import ImagesConfig
from dinojax.data import intensity, privacy
from dinojax.data.files import TEXT
from dinojax.data.formats import KINDS, BadFile, Header
from dinojax.data.headers import Found, Headers, find_headers, summarise
from dinojax.data.intensity import group_of
from dinojax.data.records import Display, Records
from dinojax.data.slices import choose_images, pixel_ratio
from dinojax.data.survey import decide_intensities
from dinojax.levels import EIGHT, Rule
from dinojax.wording import counted

LIMIT = 100_000
"""Of more pictures than this the headers of so many are read."""


def open_images(
    records: Records,
    config: ImagesConfig | None = None,
    *,
    on_bad_file: Literal["stop", "skip"] = "stop",
    known: Sequence[Rule] = (),
    limit: int = LIMIT,
) -> tuple[Records, Headers]:
    """Finds out how every image of a data set is decoded.

    Files of several images become an entry each, and those of several channels a stack; patients, studies and volumes
    are taken from DICOM headers, hashed (of a stack, from its first file's).

    Args:
      records: files, or images in them.
      config: how images are to be read.
      on_bad_file: 'skip' leaves unreadable files out, and lists them in the headers.
      known: the intensity rules of the checkpoint that will read the images, see `intensity.decide`.
      limit: headers that are read at most of plain pictures.

    Returns:
      The images, in the order of their files, with `display`; and what the headers say.

    Raises:
      RunError: files are unreadable or cannot be stacked, and `on_bad_file` is 'stop'; or none is readable, or no slice
        is left.
    """
    config = ImagesConfig() if config is None else config
    found = find_headers(records.flat(), limit, on_bad_file, config.max_megapixels)
    records, headers, kinds = _readable(records, found)
    notes, unfit = [], []
    plain = all(header is None or (header.kind == "raster" and header.frames == 1) for header in headers)
    if records.stacked or not plain:
        records, origin, notes, unfit = choose_images(records, headers, config, on_bad_file)
        headers, kinds = [headers[place] for place in origin], kinds[origin]
        records, more = _with_groups(records, headers[: len(records)], kinds[: len(records)], config.salt_file)
        notes += more
    flat = records.flat()
    warnings = _telling_paths(flat, headers)
    display = Display(
        rules=(intensity.FULL,),
        rule=np.zeros(len(flat), np.int8),
        levels=np.full((len(flat), 2), np.nan),
        kind=kinds,
        ratio=np.array([pixel_ratio(header, config.slices.axis) for header in headers], np.float32),
        axis=config.slices.axis,
        isotropic=config.spacing == "isotropic",
        max_megapixels=config.max_megapixels,
        assumed=np.array([header is None for header in headers]),
        grey=all(header.channels == 1 for header in headers if header is not None),
    )
    flat = dataclasses.replace(flat, display=display)
    groups = [EIGHT if header is None else group_of(header) for header in headers]
    flat, rules, said, complaints = decide_intensities(flat, headers, groups, config.intensity, known)
    assert flat.display is not None
    told = dataclasses.replace(
        summarise(found._replace(bad=(*found.bad, *unfit))),
        notes=tuple(notes),
        rules=rules,
        intensity=tuple(said),
        warnings=(*warnings, *complaints),
        stack=len(records.channels),
    )
    return _displayed(records, flat.display), told


def _readable(records: Records, found: Found) -> tuple[Records, list[Header | None], np.ndarray]:
    """The entries all of whose files can be read, with the headers and kinds of each channel of them."""
    count = len(records)
    whole = np.zeros(count * len(records.channels), bool)
    whole[found.kept] = True
    if whole.all():
        return records, found.headers, found.kinds
    rows = np.flatnonzero(whole.reshape(-1, count).all(axis=0))
    if not len(rows):
        raise BadFile(f"{records.root}: of no image all channels can be read, such as {found.bad[0][0]}")
    chosen = np.isin(found.kept % count, rows)
    headers = [header for header, is_chosen in zip(found.headers, chosen, strict=True) if is_chosen]
    return records.take(rows), headers, found.kinds[chosen]


def _displayed(records: Records, display: Display) -> Records:
    """The images with how each channel of them is decoded, one channel after the other."""
    places = np.arange(len(display.rule)).reshape(-1, len(records))
    first, *further = (
        dataclasses.replace(one, display=display.take(chosen))
        for one, chosen in zip(records.channels, places, strict=True)
    )
    return dataclasses.replace(first, further=tuple(further))


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
