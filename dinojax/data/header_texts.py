"""Texts of an image's header that may name a patient, for a later check; they must not be printed."""

import contextlib
import re
from collections.abc import Iterable
from typing import Any

from PIL import Image

_XMP_TEXT = re.compile(r">([^<>]+)<")
_NO_TEXT = ("exif", "icc_profile", "xmp", "XML:com.adobe.xmp", "transparency", "photoshop", "mp", "extension")
"""What Pillow's `info` holds beside the texts of a PNG and the comments of a JPEG, GIF or JPEG 2000 file."""
_DIRECTORIES = (34665, 34853)
TEXT_TAGS = (269, 270, 315, 316, 33432, 40091, 40093, 40095, 42032, 700, *_DIRECTORIES)
"""DocumentName, ImageDescription, Artist, HostComputer, Copyright, XPTitle, XPAuthor, XPSubject, CameraOwnerName,
XMP; the directories of EXIF and GPS."""


def names_of(image: Image.Image) -> tuple[str, ...]:
    """What text chunks, comments, EXIF and XMP say that may name a patient."""
    found: list[Any] = [value for key, value in image.info.items() if key not in _NO_TEXT]
    with contextlib.suppress(Exception):  # damaged EXIF data
        exif = image.getexif()
        if exif:
            found += [exif.get_ifd(tag) if tag in _DIRECTORIES else exif.get(tag) for tag in TEXT_TAGS]
    return texts_of([*found, image.info.get("xmp")])


def texts_of(values: Iterable[Any]) -> tuple[str, ...]:
    """The texts among the values of tags, of more than two characters; those of XMP without its markup."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, dict):
            texts += texts_of(value.values())
            continue
        if isinstance(value, bytes):
            value = value.removeprefix(b"ASCII\0\0\0").removeprefix(b"UNICODE\0").decode("utf-8", "replace")
        if isinstance(value, str):
            parts = _XMP_TEXT.findall(value) if "<rdf:" in value else [value]
            texts += [text for part in parts if len(text := part.strip("\0 \r\n\t")) > 2]
    return tuple(dict.fromkeys(texts))
