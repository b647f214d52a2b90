"""A look at pixels before a run: images that show nothing, or all the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dinojax.data.decode import decode
from dinojax.data.formats import BadFile
from dinojax.data.records import Records
from dinojax.errors import RunError

_LOOKED_AT = 64
_DECODED_AT_A_TIME = 4


def check_contrast(records: Records) -> None:
    """Decodes up to 64 evenly spaced images. Those that cannot be read are left to whoever reads them all.

    Raises:
      RunError: each of them has a single grey level or colour, or all are the same image.
    """
    places = np.unique(np.linspace(0, len(records) - 1, min(_LOOKED_AT, len(records))).astype(int))

    def read(place: int) -> np.ndarray | None:
        try:
            return decode(records, place)
        except BadFile:
            return None

    with ThreadPoolExecutor(_DECODED_AT_A_TIME) as pool:
        first, constant, equal, names = None, True, True, []
        for place, image in zip(places, pool.map(read, places), strict=True):
            if image is None:
                continue
            names.append(str(records.paths[place]))
            first = image if first is None else first
            constant = constant and bool((image == image[0, 0]).all())
            equal = equal and np.array_equal(image, first)
    if first is None or len(names) < 2 or not (constant or equal):
        return
    levels = "all are one and the same image" if equal else "each is of a single colour"
    if constant and equal:
        levels = f"all are of the single value {'/'.join(map(str, first[0, 0].tolist()))} of 0..255"
    raise RunError(
        f"nothing can be learned from these images: of {len(names)} looked at, {levels} ({', '.join(names[:3])}"
        f"{' and more' if len(names) > 3 else ''}); look at how they were exported"
    )
