"""A look at some images of a data set, which decides how all of them are shown, and checks it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np

from dinojax import progress
from dinojax.config.images import IntensityConfig
from dinojax.data import intensity, nifti
from dinojax.data.decode import stored_of
from dinojax.data.formats import BadFile, Header
from dinojax.data.intensity import OWN_RANGE, Sampled
from dinojax.data.records import Records
from dinojax.levels import EIGHT, Rule

_SAMPLED, _VALUES = 200, 20_000
"""Images, and values of each, that decide over the intensities of a data set."""
_OF_A_SERIES = 8
"""Slices of a volume that its percentiles are taken from."""
_DECODED_AT_A_TIME = 4
_LABELS = 8
"""A scan has more values than this."""
_SHOWN_FROM = 500
"""Volumes that take some seconds, so that progress is shown."""


def decide_intensities(
    records: Records,
    headers: Sequence[Header | None],
    groups: Sequence[str],
    config: IntensityConfig,
    known: Sequence[Rule],
) -> tuple[Records, dict[str, Rule], list[str], list[str]]:
    """Finds the rule of each image, and the values that are black and white in each volume.

    Args:
      records: with `display`, whose rules do not count yet.
      headers: of each image; None if it was not read.
      groups: the kind of each image, see `intensity.GROUPS`.
      config: the policy.
      known: the rules that a checkpoint brings along.

    Returns:
      The records with their rules; the rules by kind; a line for each kind, with the reason; and what is wrong.
    """
    present = [group for group in intensity.GROUPS if group in set(groups)]
    plain = present == [EIGHT] and config.policy in ("auto", "full")
    places = np.unique(np.linspace(0, len(records) - 1, 0 if plain else min(_SAMPLED, len(records))).astype(np.int64))
    sampled = dict(_samples(records, places, groups))
    rules, reasons = intensity.decide(config, present, list(sampled.values()), known)
    listed = (*dict.fromkeys(rules.values()), OWN_RANGE)
    code, without = np.zeros(len(records), np.int8), dict.fromkeys(present, 0)
    for place, (group, header) in enumerate(zip(groups, headers, strict=True)):
        rule = rules[group]
        lacks = rule.name == "file" and (header is None or header.windows < rule.number)
        code[place] = len(listed) - 1 if lacks else listed.index(rule)
        without[group] += lacks
    assert records.display is not None
    records = dataclasses.replace(records, display=dataclasses.replace(records.display, rules=listed, rule=code))
    records = _with_levels(records, headers)
    lines = [
        f"{group}: {rules[group]} ({reasons[group]})" + (f"; {count} have none" if (count := without[group]) else "")
        for group in present
    ]
    by_file = np.array([place for place in sampled if listed[code[place]].name == "file"], np.int64)
    sampled |= dict(_samples(records, by_file, groups))  # now after the file's window
    checked = [(image, _levels(records, place, image)) for place, image in sampled.items()]
    said = [*intensity.complaints(rules, checked, config.policy), *_like_labels(records, sampled)]
    return records, rules, lines, said


def _like_labels(records: Records, sampled: Mapping[int, Sampled]) -> list[str]:
    """A sentence if images of many bits hold few values, as label maps do."""
    few = [place for place, image in sampled.items() if image.group != EIGHT and _is_label_map(image)]
    if not few:
        return []
    such = f"{len(few)} of {len(sampled)} images looked at hold {_LABELS} values or fewer, as label maps do"
    return [f"{such} (such as {records.paths[few[0]]}); leave those out if they are"]


def _is_label_map(image: Sampled) -> bool:
    values = np.unique(image.values)
    return 1 < len(values) <= _LABELS and bool((values == np.rint(values)).all())


def _levels(records: Records, place: int, image: Sampled) -> tuple[float, float]:
    """The values that are black and white in an image of which some values are known."""
    assert records.display is not None
    low, high = records.display.levels[place].tolist()
    if not np.isnan(low):
        return low, high
    rule = records.display.rules[records.display.rule[place]]
    if rule.name == "range":
        return rule.low, rule.high
    return intensity.percentiles([image], (rule.low, rule.high)) if rule.name == "percentiles" else image.full


def _samples(records: Records, places: np.ndarray, groups: Sequence[str]) -> Iterator[tuple[int, Sampled]]:
    """Evenly spaced values of images, without padding; later reading finds those that cannot be read."""

    def read(place: int) -> tuple[int, Sampled] | None:
        try:
            stored, _, _ = stored_of(records, place)
        except BadFile:
            return None
        values = stored.values if stored.padding is None else stored.values[~stored.padding]
        flat = values.reshape(-1)
        chosen = flat[:: max(flat.size // _VALUES, 1)].astype(np.float64)
        return place, Sampled(groups[place], chosen, stored.full, stored.values.dtype.kind in "iu")

    with ThreadPoolExecutor(_DECODED_AT_A_TIME) as pool:
        yield from (found for found in pool.map(read, places.tolist()) if found is not None and len(found[1].values))


def _with_levels(records: Records, headers: Sequence[Header | None]) -> Records:
    """The values that are black and white in each volume of which percentiles are asked, by some of its slices."""
    display = records.display
    assert display is not None
    asked = np.array([rule.name == "percentiles" and rule.over == "volume" for rule in display.rules])[display.rule]
    if not asked.any():
        return records
    levels, volumes = display.levels.copy(), records.groups.get("volume_id")
    units: dict[tuple[str, int], list[int]] = {}
    for place in np.flatnonzero(asked).tolist():
        header = headers[place]
        volume = str(volumes[place]) if volumes is not None and volumes[place] else f"file {records.paths[place]}"
        # A fourth axis may hold other sequences, with values of their own.
        each = 0 if header is None or header.volume is None else nifti.slices(header, display.axis) // header.volume[3]
        units.setdefault((volume, int(records.frames[place]) // each if each else 0), []).append(place)
    groups = [""] * len(records)
    with progress.bar("intensities of volumes", len(units)) if len(units) > _SHOWN_FROM else nullcontext() as bar:
        for count, places in enumerate(units.values(), start=1):
            some = np.array(places[:: max(len(places) // _OF_A_SERIES, 1)])
            if values := [image for _, image in _samples(records, some, groups)]:
                rule = display.rules[display.rule[places[0]]]
                levels[places] = intensity.percentiles(values, (rule.low, rule.high))
            if bar is not None:
                bar(count, "")
    return dataclasses.replace(records, display=dataclasses.replace(display, levels=levels))
