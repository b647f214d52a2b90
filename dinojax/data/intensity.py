"""The intensity policy: how stored values become 256 grey levels, for every kind of image of a data set."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dinojax.config.images import IntensityConfig
from dinojax.data.formats import Header, Stored
from dinojax.errors import RunError
from dinojax.levels import EIGHT, WIDE, Rule

WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "bone": (400, 1800),
    "brain": (40, 80),
    "subdural": (75, 200),
    "stroke": (40, 40),
    "liver": (30, 150),
    "abdomen": (50, 400),
    "soft_tissue": (40, 400),
}
"""Centre and width in Hounsfield units, as in Radiopaedia's "Windowing (CT)" (rID 52108); of a range there (subdural
50–100 and 130–300, soft tissue 20–60 and 350–400) a value inside it."""

GROUPS = (EIGHT, WIDE, "CT", "MR", "other DICOM", "NIfTI")
"""Kinds of images that `auto` tells apart."""
_HOUNSFIELD = -500.0
"""A NIfTI volume with lower values than this is CT: air is -1000."""
_AIR = -900.0
_ROUNDED = 0.1
"""Ends of a range within this share of 0 or of 2^n − 1 are taken to be these."""
_SATURATED = 0.05
_LEVELS = 64
_IN_TABLE = (np.dtype(np.uint16), np.dtype(np.int16))


OWN_RANGE = Rule("other DICOM", "percentiles", 0, 100)
"""What takes the place of a window that a file does not have."""
FULL = Rule(EIGHT, "full")


class Sampled(NamedTuple):
    """Values of an image that is looked at to decide or to check a rule."""

    group: str
    values: np.ndarray
    """Float [n], without padding."""
    full: tuple[float, float]
    integers: bool


def group_of(header: Header) -> str:
    """The kind, of `GROUPS`, that an image is of."""
    if header.kind == "nifti":
        return "NIfTI"
    if header.bits <= 8:
        return EIGHT
    if header.kind == "raster":
        return WIDE
    return header.modality if header.modality in ("CT", "MR") else "other DICOM"


def decide(
    config: IntensityConfig, groups: Sequence[str], sampled: Sequence[Sampled], known: Sequence[Rule] = ()
) -> tuple[dict[str, Rule], dict[str, str]]:
    """The rule of each kind of images.

    Args:
      config: what the user set.
      groups: kinds that occur.
      sampled: an evenly spaced choice of the images.
      known: the rules that a checkpoint brings along; for `auto`.

    Returns:
      The rules by kind, and for each, in a few words, why.
    """
    stored = {rule.group: rule for rule in known}
    rules: dict[str, Rule] = {}
    reasons: dict[str, str] = {}
    for group in groups:
        of_group = [image for image in sampled if image.group == group]
        if config.policy != "auto":
            rules[group], reasons[group] = _asked(config, group, sampled), f"intensity.policy {config.policy}"
        elif group in stored:
            rules[group], reasons[group] = stored[group], "as the checkpoint was trained"
        else:
            rules[group], reasons[group] = _automatic(config, group, of_group)
    return rules, reasons


def _asked(config: IntensityConfig, group: str, sampled: Sequence[Sampled]) -> Rule:
    if config.policy == "full":
        return Rule(group, "full")
    if config.policy == "range":
        assert config.range is not None
        return Rule(group, "range", *config.range)
    if config.policy == "file":
        return Rule(group, "file", number=config.number)
    if config.policy in WINDOWS:
        return window(group, config.policy)
    if config.over == "dataset":
        return Rule(group, "range", *percentiles(sampled, config.percentiles))
    return Rule(group, "percentiles", *config.percentiles, over=config.over)


def _automatic(config: IntensityConfig, group: str, sampled: Sequence[Sampled]) -> tuple[Rule, str]:
    volumes = Rule(group, "percentiles", *config.percentiles, over="volume")
    if group == EIGHT:
        return FULL, "8 bits"
    if group == WIDE:
        low, high = config.percentiles
        return _used_range(sampled, config.percentiles), f"percentiles {low:g} and {high:g} of the data set, rounded"
    if group == "CT":
        return window(group, "soft_tissue"), "one window for all, soft tissue"
    if group == "MR":
        return volumes, "MR has no unit"
    if group == "other DICOM":
        return Rule(group, "file"), "their own range without one"
    lows = [float(image.values.min()) for image in sampled if len(image.values)]
    if sum(low < _HOUNSFIELD for low in lows) * 2 > len(lows):
        return window(group, "soft_tissue"), f"CT by its values below {_HOUNSFIELD:g}: one window for all, soft tissue"
    return volumes, "no unit is known"


def window(group: str, name: str) -> Rule:
    """The range of a window by its name."""
    centre, width = WINDOWS[name]
    return Rule(group, "range", centre - width / 2, centre + width / 2)


def percentiles(sampled: Sequence[Sampled], shares: tuple[float, float]) -> tuple[float, float]:
    """Of all values together; a constant is widened, so that something is black and something white."""
    parts = [image.values for image in sampled if len(image.values)]
    if not parts:
        return 0.0, 1.0
    least = min(len(part) for part in parts)  # so that each image counts the same
    low, high = np.percentile(np.concatenate([part[:: max(len(part) // least, 1)] for part in parts]), shares)
    return float(low), float(high) if high > low else float(low) + 1.0


def _used_range(sampled: Sequence[Sampled], shares: tuple[float, float]) -> Rule:
    """The range that a set of more than 8 bits uses; ends near 0 and 2^n − 1 are these: 12 bits in 16 are 0..4095."""
    low, high = percentiles(sampled, shares)
    if not sampled or not all(image.integers for image in sampled):
        return Rule(WIDE, "range", low, high)
    least = min(float(image.values.min()) for image in sampled if len(image.values))
    most = max(float(image.values.max()) for image in sampled if len(image.values))
    if least >= 0 and low <= _ROUNDED * high:
        low = 0.0
    whole = 2.0 ** np.ceil(np.log2(max(most, 1) + 1)) - 1
    if high >= (1 - _ROUNDED) * whole:
        high = float(whole)
    return Rule(WIDE, "range", low, high)


def grey_levels(stored: Stored, rule: Rule, levels: tuple[float, float] | None = None) -> np.ndarray:
    """Grey levels of an image, uint8 [H, W, C]; padding is black.

    Args:
      stored: as decoded; for a rule 'file' after the file's window.
      rule: of its kind.
      levels: the values that are black and white, where they are known already: of a volume, or changed by chance.
    """
    low, high = levels or levels_of(stored, rule)
    values = stored.values
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        image = values
    elif values.dtype in _IN_TABLE:
        # One entry a value that may occur, looked up as unsigned.
        image = _table(values.dtype.str, float(low), float(high))[values.view(np.uint16)]
    else:
        image = _scaled(values, low, high)
    if stored.inverted:
        image = 255 - image
    if stored.padding is not None:
        image = np.where(stored.padding[:, :, None], np.uint8(0), image)
    return image


def levels_of(stored: Stored, rule: Rule) -> tuple[float, float]:
    """The values that are black and white in one image by itself."""
    if rule.name == "range":
        return rule.low, rule.high
    if rule.name == "percentiles":
        values = stored.values if stored.padding is None else stored.values[~stored.padding]
        if not values.size:
            return stored.full
        low, high = np.percentile(values, (rule.low, rule.high))
        return float(low), float(high) if high > low else float(low) + 1.0
    return stored.full


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if not high > low:
        raise RunError(f"a range from {low:g} to {high:g} shows nothing")
    with np.errstate(invalid="ignore"):  # NaN is padding, and painted over
        return np.clip(np.rint((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255).astype(np.uint8)


@functools.lru_cache(64)
def _table(kind: str, low: float, high: float) -> np.ndarray:
    return _scaled(np.arange(2**16, dtype=np.uint16).view(kind), low, high)


def complaints(
    rules: Mapping[str, Rule], sampled: Sequence[tuple[Sampled, tuple[float, float]]], policy: str = "auto"
) -> list[str]:
    """What is wrong with the rules, seen on a choice of images.

    Args:
      rules: by kind.
      sampled: images, with the values that are black and white in each.
      policy: that was asked for.

    Returns:
      A sentence for each kind of which more than 5 % of the pixels are beyond the range (background, the lowest value
      of an image, and air are not counted, nor what a file's window cuts off), or else uses fewer than 64 levels.
    """
    said = []
    for group, rule in rules.items():
        images = [(image, levels) for image, levels in sampled if image.group == group and len(image.values)]
        if not images or (rule.name == "full" and group == EIGHT):
            continue
        beyond = counted = 0
        used = np.zeros(256, bool)
        for image, (low, high) in images:
            values = image.values
            used[_scaled(values, low, high)] = True
            kept = values[values > values.min()]
            if group in ("CT", "NIfTI") and values.min() < _HOUNSFIELD:
                kept = kept[kept >= _AIR]
            counted += len(kept)
            beyond += int(((kept < low) | (kept > high)).sum())
        if rule.name != "file" and counted and beyond > _SATURATED * counted:
            share = f"{beyond / counted:.0%} of the pixels that are neither background nor air"
            unit = "; windows are in Hounsfield units, of CT" if policy in WINDOWS and group != "CT" else ""
            said.append(f"{group}, {rule}: {share} are beyond the range, black or white{unit}; choose another policy")
        elif used.sum() < _LEVELS:
            said.append(f"{group}, {rule}: only {used.sum()} of 256 grey levels are in use; choose a narrower range")
    return said
