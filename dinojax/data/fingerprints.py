"""Fingerprints of images: one that identical pixels share, and one that alike pictures nearly share."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn

from dinojax.augment import geometry
from dinojax.data.decode import decode
from dinojax.data.formats import BadFile
from dinojax.data.records import Records

SIDE = 32
"""Of the small grey images that are compared, in pixels."""
_LOWEST = 8
"""Of the frequencies along either axis, so many make the perceptual hash."""
_FLAT = 2.0
"""Grey levels; a small image whose standard deviation is less shows nothing, and its hash is noise."""
_AT_A_TIME = 4096  # small images whose transforms are in memory together


class Fingerprints(NamedTuple):
    """Of the images of a data set; row i is that of entry i of its records."""

    pixels: np.ndarray
    """uint64 [N]: equal where the decoded pixels are, whatever the file format; see `pixel_hash`."""
    small: np.ndarray
    """uint8 [N, 32, 32], the images as small grey squares; of stacks, the mean of the channels."""
    perceptual: np.ndarray
    """uint64 [N]; see `perceptual_hashes`."""
    flat: np.ndarray
    """bool [N]: constant or nearly so, where a perceptual hash says nothing."""
    unreadable: dict[int, str]
    """Why images could not be decoded, by place. All else that stands of them here says nothing."""

    @property
    def comparable(self) -> np.ndarray:
        """bool [N]: those whose perceptual hash says something."""
        readable = np.ones(len(self.pixels), bool)
        readable[list(self.unreadable)] = False
        return readable & ~self.flat


def read_pixels(records: Records, index: int) -> np.ndarray:
    """An image as it is compared: uint8 [H, W, C], of a stack all its channels; BadFile if it cannot be decoded."""
    return decode(records, index)


def pixel_hash(image: np.ndarray) -> int:
    """Eight bytes of BLAKE2b of an image's shape and values, uint8 [H, W, C], as a number.

    An image whose channels are all equal throughout is hashed as the grey image that it is. Of a million
    different images, two share a hash with a chance of 3e-8.
    """
    if image.shape[2] > 1 and (image == image[:, :, :1]).all():
        image = image[:, :, :1]
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return int.from_bytes(digest.digest(), "little")


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """The pHash of images: which of their 63 lowest frequencies are above the median of these.

    The DCT-II of the 32×32 grey image is cut to its 8×8 lowest frequencies; the mean brightness (DC) is left out. As it
    is above the median of any picture, 64 bits with it would differ in as many places. A change of contrast or
    brightness changes no bit, and distances are even, as 31 bits are set.

    Args:
      small: uint8 [N, 32, 32].

    Returns:
      uint64 [N].
    """
    hashes = np.empty(len(small), np.uint64)
    for first in range(0, len(small), _AT_A_TIME):
        part = small[first : first + _AT_A_TIME].astype(np.float32)
        lowest = np.asarray(dctn(part, axes=(1, 2), norm="ortho"))[:, :_LOWEST, :_LOWEST].reshape(len(part), -1)[:, 1:]
        bits = lowest > np.median(lowest, axis=1, keepdims=True)
        padded = np.concatenate([np.zeros((len(part), 1), bool), bits], axis=1)  # 63 bits to 64
        hashes[first : first + _AT_A_TIME] = np.packbits(padded, axis=1).view(">u8")[:, 0]
    return hashes


def fingerprint(
    records: Records,
    threads: int,
    read: Callable[[Records, int], np.ndarray] = read_pixels,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Fingerprints:
    """Decodes every image once, keeps none of them, and takes its fingerprints. They need 1.1 KiB an image.

    Args:
      records: the images.
      threads: that decode.
      read: gives image number i of the records, uint8 [H, W, C].
      on_progress: is called with the number of images done.
    """
    pixels, small = np.zeros(len(records), np.uint64), np.zeros((len(records), SIDE, SIDE), np.uint8)
    unreadable: dict[int, str] = {}

    def load(index: int) -> None:
        try:
            image = read(records, index)
        except BadFile as error:
            unreadable[index] = str(error)
            return
        pixels[index] = pixel_hash(image)
        small[index] = geometry.square(geometry.grey(image, records.stacked), SIDE)[:, :, 0]

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done, _ in enumerate(pool.map(load, range(len(records))), start=1):
            on_progress(done)
    flat = small.reshape(len(small), -1).std(axis=1, dtype=np.float32) < _FLAT
    return Fingerprints(pixels, small, perceptual_hashes(small), flat, dict(sorted(unreadable.items())))


def hash_all(records: Records, threads: int, on_progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
    """`pixel_hash` of every image that can be decoded, uint64 [n], sorted and each once; nothing else is kept."""

    def load(index: int) -> int | None:
        try:
            return pixel_hash(read_pixels(records, index))
        except BadFile:
            return None

    hashes = np.zeros(len(records), np.uint64)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        count = 0
        for done, value in enumerate(pool.map(load, range(len(records))), start=1):
            if value is not None:
                hashes[count] = value
                count += 1
            on_progress(done)
    return np.unique(hashes[:count])
