"""Images in TFDS data sets that are prepared on disk, read by random access and without TensorFlow."""

import functools
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinojax.data.columns import KNOWN, key_of
from dinojax.data.files import TEXT
from dinojax.data.formats import Header, Stored
from dinojax.data.records import Records
from dinojax.data.spellings import check_values
from dinojax.data.tables import SPLIT_NAMES
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import reason

PREFIX = "tfds:"
_NEEDED = 'it must be prepared there with file_format="array_record"'
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ROLES = {key_of(name): role for role in ("label", "patient_id", "study_id") for name in KNOWN[role]}


def read_tfds(name: str, data_dir: Path | None, labelled: bool) -> Records:
    """Lists the images of a TFDS data set.

    Args:
      name: `tfds:NAME[/CONFIG][:VERSION]`; without a version the latest that is there.
      data_dir: folder of TFDS data sets; None: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      labelled: read the labels.

    Returns:
      An entry an image, with path `tfds:NAME[/CONFIG]:VERSION/SPLIT` relative to the folder of data sets, and its
      place as frame. Features are read as columns of a manifest: the image `image`, else the only one; the label
      `label` (names of a ClassLabel, text, or whole numbers as text), as StringDType [N] without `classes`;
      `patient_id` and `study_id`; all by the names that `columns.KNOWN` lists. Splits other than train, validation and
      test are ''. Images whose ClassLabel is −1, unknown, are left out.

    Raises:
      UsageError: it is not there, or not by random access; the message says where was looked.
      RunError: it cannot be read, has no image or several, or lacks a label.
    """
    builder = _found(name, data_dir)
    features = builder.info.features
    _image_feature(name, features)
    roles = _roles(name, features, labelled)
    paths, frames, splits = [], [], []
    columns: dict[str, list[str]] = {role: [] for role in roles}
    without = 0
    root, member = _place(builder)
    for split in builder.info.splits:
        source = _source(str(builder.data_dir), split)
        kept = 0
        for place in range(len(source)):
            row = _row(name, source, place, features, roles)
            if row.get("label") == "":
                without += 1
                continue
            for role, text in row.items():
                columns[role].append(text)
            frames.append(place)
            kept += 1
        paths += [f"{member}/{split}"] * kept
        splits += [SPLIT_NAMES.get(split.casefold(), "")] * kept
    if not paths:
        raise RunError(f"--data {name}: holds no images" + (" with a label" if without else ""))
    for role, what in (("label", "label"), ("patient_id", "patient")):
        check_values(dict.fromkeys(columns.get(role, ()), f"feature {roles.get(role)} of {name}"), what)
    arrays = {role: np.array(texts, TEXT) for role, texts in columns.items()}
    used = {*roles.values(), _image_feature(name, features)}
    return Records(
        root,
        np.array(paths, TEXT),
        np.array(frames, np.int32),
        task=builder.name,
        labels=arrays.pop("label", None),
        groups=arrays,
        splits=np.array(splits, TEXT) if any(splits) else None,
        reader=f"TFDS data set {member}",
        unread_columns=tuple(sorted(set(features) - used)),
        left_out=(f"{without} images without a label",) if without else (),
        patient_source=f"column {roles['patient_id']}" if "patient_id" in roles else "",
    )


def read_tfds_header(folder: Path, split: str, frame: int) -> Header:
    """Of one image; `frames` counts those of the split.

    Raises:
      Exception: whatever the damage leads to.
    """
    contents, count = _encoded(folder, split, frame)
    with Image.open(io.BytesIO(contents)) as image:
        width, height = ImageOps.exif_transpose(image).size
        mode = image.mode
        return Header(
            kind="raster",
            format=image.format or "image",
            width=width,
            height=height,
            channels=1 if _is_grey(mode) else 3,
            bits=16 if mode in _SIXTEEN_BITS else 8,
            frames=count,
        )


def read_tfds_image(folder: Path, split: str, frame: int) -> Stored:
    """One image, upright, with what is transparent over black.

    Raises:
      Exception: whatever the damage leads to.
    """
    return _decoded(_encoded(folder, split, frame)[0])


def _decoded(contents: bytes) -> Stored:
    """An image file's pixels."""
    with Image.open(io.BytesIO(contents)) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image)
        return Stored(values.astype(np.uint16)[:, :, None], (0.0, 65535.0))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (0, 0, 0, 255))
        shown = Image.alpha_composite(under, transparent).convert("L" if _is_grey(image.mode) else "RGB")
    else:
        shown = image.convert("L" if _is_grey(image.mode) else "RGB")
    values = np.asarray(shown)
    return Stored(values if values.ndim == 3 else values[:, :, None], (0.0, 255.0))


def _is_grey(mode: str) -> bool:
    if mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {mode}; save them with 8 or 16 bits")
    return mode in ("1", "L", "LA", "La", *_SIXTEEN_BITS)


def _found(name: str, data_dir: Path | None) -> Any:
    """The builder of a data set on disk, which runs no code of the data set's."""
    wanted = name.removeprefix(PREFIX)
    base, _, version = wanted.partition(":")
    if not base or ":" in version or base.count("/") > 1:
        raise UsageError(f"--data {name}: write {PREFIX}NAME, {PREFIX}NAME/CONFIG or {PREFIX}NAME/CONFIG:VERSION")
    tfds = _library(name)
    folders = [data_dir.expanduser()] if data_dir else tfds.core.utils.file_utils.list_data_dirs()
    places = " or ".join(map(str, folders))
    options = {"data_dir": str(folders[0])} if data_dir else {}
    try:
        builder = tfds.core.read_only_builder.builder_from_files(wanted, **options)
    except tfds.core.DatasetNotFoundError as error:
        raise UsageError(f"--data {name}: no such TFDS data set in {places}; {_NEEDED}") from error
    except Exception as error:
        raise RunError(f"--data {name}: cannot be read from {places}: {reason(error)}") from error
    if version and str(builder.version) != version and "*" not in version:
        raise UsageError(f"--data {name}: in {places} there is only version {builder.version}")
    formats = {str(kind.value) for kind in builder.info.available_file_formats()}
    if not formats & {kind.value for kind in tfds.core.FileFormat.with_random_access()}:
        raise UsageError(f"--data {name}: lies in {builder.data_dir} as {', '.join(sorted(formats))}; {_NEEDED}")
    return builder


def _library(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow_datasets
    except ImportError as error:
        raise UsageError(
            f"--data {name}: tensorflow-datasets cannot be imported ({reason(error)}); install it"
        ) from error
    return tensorflow_datasets


def _place(builder: Any) -> tuple[Path, str]:
    """The folder of data sets, and what of a member's name stands before its split."""
    folder = Path(str(builder.data_dir)).resolve()
    names = [builder.name, *([builder.builder_config.name] if builder.builder_config else [])]
    return folder.parents[len(names)], f"{PREFIX}{'/'.join(names)}:{folder.name}"


@functools.lru_cache(maxsize=16)
def _opened(folder: str) -> Any:
    return _library(folder).builder_from_directory(folder)


@functools.lru_cache(maxsize=64)
def _source(folder: str, split: str) -> Sequence[Any]:
    """The examples of a split, with images as encoded bytes."""
    builder = _opened(folder)
    skip = _library(folder).decode.SkipDecoding()
    images = _images(builder.info.features)
    return builder.as_data_source(split=split, decoders=dict.fromkeys(images, skip))


def _encoded(folder: Path, split: str, frame: int) -> tuple[bytes, int]:
    source = _source(str(folder), split)
    if not 0 <= frame < len(source):
        raise ValueError(f"has {len(source)} images, numbered from 0, and none of number {frame}")
    feature = _image_feature(str(folder), _opened(str(folder)).info.features)
    return source[frame][feature], len(source)


def _images(features: Any) -> list[str]:
    kind = _library("").features.Image
    return sorted(feature for feature, value in features.items() if isinstance(value, kind))


def _image_feature(name: str, features: Any) -> str:
    """The feature that is the image, if it is one whose encoded file holds the values themselves."""
    found = _images(features)
    if "image" not in found and len(found) != 1:
        kinds = f"several images ({', '.join(found)}), and none is called image" if found else "no image"
        raise RunError(f"--data {name}: has {kinds}; its features are {', '.join(sorted(features))}")
    feature = "image" if "image" in found else found[0]
    dtype, channels = np.dtype(features[feature].np_dtype), features[feature].shape[-1]
    # Floats are stored as the bytes of colours; of 16 bits a channel Pillow keeps eight.
    if dtype != np.uint8 and (dtype != np.uint16 or channels != 1):
        raise RunError(
            f"--data {name}: feature {feature} is {dtype.name} of {channels} channels; uint8, or uint16 of one "
            "channel, is read"
        )
    return feature


def _roles(name: str, features: Any, labelled: bool) -> dict[str, str]:
    """The features that are read beside the image."""
    roles: dict[str, str] = {}
    for feature in sorted(features):
        role = _ROLES.get(key_of(feature))
        if role is None or (role == "label" and not labelled):
            continue
        if role in roles:
            raise RunError(f"--data {name}: features {roles[role]} and {feature} may each be the {role}")
        value = features[feature]
        if value.shape != () or np.dtype(value.np_dtype).kind not in "iubOSU":
            raise RunError(f"--data {name}: feature {feature} is {value}; one text or whole number an image is read")
        roles[role] = feature
    if labelled and "label" not in roles:
        known = ", ".join(KNOWN["label"])
        raise RunError(f"--data {name}: has no feature {known}; its features are {', '.join(sorted(features))}")
    return roles


def _row(name: str, source: Sequence[Any], place: int, features: Any, roles: dict[str, str]) -> dict[str, str]:
    """Texts of an example, by role; an unknown ClassLabel is ''."""
    if not roles:
        return {}
    try:
        example = source[place]
    except Exception as error:
        raise RunError(f"--data {name}: example {place} cannot be read: {reason(error)}") from error
    found: dict[str, str] = {}
    for role, feature in roles.items():
        value, names = example[feature], getattr(features[feature], "names", None)
        if names is not None:
            text = names[int(value)] if value >= 0 else ""
        elif isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
        else:
            text = value if isinstance(value, str) else str(int(value))
        if not text and not (role == "study_id" or (role == "label" and names is not None)):
            raise RunError(f"--data {name}: feature {feature} of example {place} is empty")
        found[role] = text
    return found
