"""A data set as columns: an entry an image, with what is known of it, and the folds that divide it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.data.formats import Axis
from dinojax.levels import Rule

SPLITS = ("train", "val", "test")
FROM_NAMES = "the file names"
"""How `patient_source` begins where nobody gave the patients."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """One way to divide a data set; each part is int64 [n], places in the data set, increasing."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Display:
    """How each image of a data set is decoded, as columns; made by `opening.open_images`.

    Attributes:
      rules: the ways in which values become grey levels.
      rule: int8 [N], places in `rules`.
      levels: float64 [N, 2], the values that are black and white, NaN where each image tells them.
      kind: int8 [N], places in `formats.KINDS`.
      ratio: float32 [N], height over width of a pixel; NaN if unknown.
      axis: of the slices of volumes.
      isotropic: whether pixels are made square.
      max_megapixels: of the largest image that is decoded.
      assumed: bool [N], of which the header was not read: all those that were are 8-bit pictures.
      grey: whether all those are grey, too.
    """

    rules: tuple[Rule, ...]
    rule: np.ndarray
    levels: np.ndarray
    kind: np.ndarray
    ratio: np.ndarray
    axis: Axis
    isotropic: bool
    max_megapixels: float
    assumed: np.ndarray
    grey: bool

    def take(self, kept: np.ndarray) -> "Display":
        columns = ("rule", "levels", "kind", "ratio", "assumed")
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in columns})


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A data set's images as columns, in an order that depends on their names (or on the manifest) alone.

    Attributes:
      root: folder that `paths` are relative to.
      paths: StringDType [N], as the manifest names them, or relative to `root` with forward slashes.
      frames: int32 [N], number of the frame in a file of several; -1 for a file that is one image.
      task: name of the task, from the fold files' prefix, else of the manifest or folder.
      labels: int32 [N], places in `classes`; multi-label: float32 [N, C] of 0, 1 and NaN (unknown); None if unlabelled.
      classes: sorted names, the positive class of a binary task last; multi-label: in the order of the columns.
      groups: StringDType [N] each, of `patient_id`, `study_id` and `volume_id` those that are known; only a patient is
        never ''. A volume is what slices or frames are of: a file of several, or a series of files.
      splits: StringDType [N] of 'train', 'val', 'test' or '' (none given), or None.
      folds: indices into these columns, from fold files; else empty.
      table: the manifest, if there is one.
      rows: int32 [N], each entry's row in the manifest, or in a fold file that lists it, the header being row 1; else
        empty.
      reader: how the data was understood, such as 'class folders'.
      unread_columns: columns of the tables that were not used.
      left_out: what lies there and is not among the images, for people to read: masks, system folders, other files.
      patient_source: where the patients come from, such as 'column patient_id'; '' if none are known.
      hints: what the user may want to know, such as that folders look like patients.
      misnamed: images left out because their names are no UTF-8, escaped.
      files: StringDType [N], where the images really lie, if `paths` are pseudonyms.
      display: how they are decoded; None before their headers were read.
      further: where an image is a stack of grey images of one place, such as MR sequences, each a channel: the columns
        of its second channel, its third and so on, entry for entry. Of these only what tells files and decoding counts
        (`root`, `paths`, `frames`, `table`, `rows`, `files`, `display`); all else stands in the first channel's.
      channel_columns: names of the manifest's columns of files, where it has several.
    """

    root: Path
    paths: np.ndarray
    frames: np.ndarray
    task: str
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    splits: np.ndarray | None = None
    folds: tuple[Fold, ...] = ()
    table: Path | None = None
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    reader: str = ""
    unread_columns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    patient_source: str = ""
    hints: tuple[str, ...] = ()
    misnamed: tuple[str, ...] = ()
    files: np.ndarray | None = None
    display: Display | None = None
    further: tuple["Records", ...] = ()
    channel_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def patients_derived(self) -> bool:
        """Whether nobody gave the patients: they are what the files' names say."""
        return self.patient_source.startswith(FROM_NAMES)

    @property
    def patients(self) -> np.ndarray | None:
        return self.groups.get("patient_id")

    @property
    def channels(self) -> tuple["Records", ...]:
        """Files and decoding of each channel of a stack, the first of which is this; else this alone."""
        return (self, *self.further)

    @property
    def stacked(self) -> bool:
        """Whether an image is several grey ones, as its channels, which are no colours."""
        return bool(self.further)

    @property
    def multilabel(self) -> bool:
        return self.labels is not None and self.labels.ndim == 2

    @property
    def units(self) -> np.ndarray:
        """int64 [N]: images of one number stay in one part of a fold: those of a patient, else of a volume."""
        if self.patients is not None:
            return np.unique(self.patients, return_inverse=True)[1]
        alone = np.arange(len(self))
        volumes = self.groups.get("volume_id")
        if volumes is None:
            return alone
        names, number = np.unique(volumes, return_inverse=True)
        single = volumes == ""
        return np.unique(np.where(single, alone + len(names), number), return_inverse=True)[1]

    def file(self, index: int) -> Path:
        return self.root / (self.paths if self.files is None else self.files)[index]

    def all_files(self, index: int) -> list[Path]:
        """The files of an image, each once: several of a stack."""
        return list(dict.fromkeys(one.file(index) for one in self.channels))

    def describe(self, index: int) -> str:
        """The file and where it is listed, for messages; a pseudonym is not given away."""
        name = str(self.file(index) if self.files is None else self.paths[index]).replace("\n", r"\n")
        frame = f", frame {self.frames[index]}" if self.frames[index] >= 0 else ""
        return f"{name}{frame}{self.listed(index)}"

    def listed(self, index: int) -> str:
        """Where an image is listed, in parentheses, to follow its name; empty without a manifest."""
        return f" ({self.table}, row {self.rows[index]})" if self.table else ""

    def take(self, kept: np.ndarray) -> "Records":
        """The entries at the places `kept`, which are distinct, in that order; the folds are renumbered."""
        place = np.full(len(self), -1)
        place[kept] = np.arange(len(kept))

        def renumber(indices: np.ndarray) -> np.ndarray:
            new = place[indices]
            return np.sort(new[new >= 0])

        return dataclasses.replace(
            self,
            paths=self.paths[kept],
            frames=self.frames[kept],
            labels=None if self.labels is None else self.labels[kept],
            groups={name: column[kept] for name, column in self.groups.items()},
            splits=None if self.splits is None else self.splits[kept],
            folds=tuple(Fold(renumber(f.train), renumber(f.val), renumber(f.test)) for f in self.folds),
            rows=self.rows[kept] if len(self.rows) else self.rows,
            files=None if self.files is None else self.files[kept],
            display=None if self.display is None else self.display.take(kept),
            further=tuple(one.take(kept) for one in self.further),
        )

    def of_files(self, paths: Sequence[np.ndarray], files: np.ndarray | None = None) -> "Records":
        """The same entries with `paths`, StringDType [N], of each channel, and with `files`."""
        first = dataclasses.replace(self, paths=paths[0], files=files)
        plain = dataclasses.replace(self, labels=None, groups={}, splits=None, folds=(), further=())
        return dataclasses.replace(
            first, further=tuple(dataclasses.replace(plain, paths=column) for column in paths[1:])
        )

    def flat(self) -> "Records":
        """Every channel of a stack as an image by itself, channel after channel, without labels and parts; else these.

        Volumes are told apart by channel.
        """
        if not self.further:
            return self
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(one, name) for one in self.channels])
            for name in ("paths", "frames", "rows", "files")
            if getattr(self, name) is not None
        }
        volumes = self.groups.get("volume_id")
        groups = {}
        if volumes is not None:
            names = [
                name and f"{name}, channel {number}"
                for number in range(len(self.channels))
                for name in volumes.tolist()
            ]
            groups["volume_id"] = np.array(names, volumes.dtype)
        return dataclasses.replace(
            self, **columns, groups=groups, labels=None, splits=None, folds=(), display=None, further=()
        )

    def expanded(self, counts: np.ndarray, frames: np.ndarray) -> "Records":
        """Entries that stand for several images each as as many entries; of a stack, its first channel alone.

        Args:
          counts: int [N], images of each entry; 0 leaves it out.
          frames: int32 [sum of counts], their numbers.
        """
        origin = np.repeat(np.arange(len(self)), counts)

        def places(part: np.ndarray) -> np.ndarray:
            return np.flatnonzero(np.isin(origin, part))

        plain = dataclasses.replace(self, folds=(), further=()).take(origin)
        folds = tuple(Fold(places(fold.train), places(fold.val), places(fold.test)) for fold in self.folds)
        return dataclasses.replace(plain, frames=frames.astype(np.int32), folds=folds)

    def undivided(self) -> "Records":
        """The same images without the parts and folds that the data brings along."""
        return dataclasses.replace(self, folds=(), splits=None)

    def summary(self) -> str:
        """One line: how the data was understood, how many images of which classes, and what was left out."""
        parts = [f"{self.reader}: {len(self)} images" if self.reader else f"{len(self)} images"]
        if self.multilabel:
            assert self.labels is not None
            known, positive = (~np.isnan(self.labels)).sum(axis=0), (self.labels == 1).sum(axis=0)
            counts = zip(self.classes, positive, known, strict=True)
            parts.append(", ".join(f"{name} {ones} of {all_} known" for name, ones, all_ in counts))
        elif self.labels is not None:
            counts = np.bincount(self.labels, minlength=len(self.classes))
            parts.append(", ".join(f"{count} {name}" for name, count in zip(self.classes, counts, strict=True)))
        if self.patients is not None:
            parts.append(f"{len(np.unique(self.patients))} patients from {self.patient_source}")
        if self.folds:
            parts.append(f"{len(self.folds)} folds")
        if self.unread_columns:
            parts.append(f"columns not read: {', '.join(self.unread_columns)}")
        if self.left_out:
            parts.append(f"left out: {', '.join(self.left_out)}")
        return "; ".join([*parts, *self.hints])
