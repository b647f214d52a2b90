"""A data set of synthetic breast ultrasound: a stand-in for patients' images that is free to share.

Lesions follow BI-RADS: benign ones oval, wider than tall, smooth, enhancing what lies behind them; malignant ones
irregular, spiculated, taller, with a blurred margin, shadowing. Gain, depth, tissue and the lesion's place and size
vary alike in both classes, and attenuation and darkness overlap, so that shape and margin are more informative than
any pixel.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dinojax import progress
from dinojax.data.fold_files import write_fold_files
from dinojax.data.phantoms.bmode import Scene, draw_image
from dinojax.data.splits import grouped_folds
from dinojax.errors import UsageError

CLASSES = ("benign", "malignant")

Ranges = dict[str, tuple[float, float]]

# What a patient's images share; for names and units see `Scene`.
_PATIENT: Ranges = {
    "half_angle": (22, 25),
    "gain": (-3, 3),
    "dynamic_range": (56, 68),
    "tilt": (-11, -3),
    "skin": (0.03, 0.05),
    "fat_depth": (0.15, 0.27),
    "gland_depth": (0.28, 0.38),
    "fat": (-35, -31),
    "gland": (-25, -19),
    "muscle": (-36, -30),
    "septa": (9, 15),
    "radius": (0.08, 0.14),
}
# The same of the lesion, a column for each of `CLASSES`.
_LESION = {
    "aspect": ((1.15, 1.9), (0.65, 1.15)),
    "roughness": ((0.0, 0.04), (0.06, 0.13)),
    "spicules": ((0, 0), (5, 12)),
    "reach": ((0, 0), (0.15, 0.45)),
    "blur": ((0.03, 0.07), (0.1, 0.25)),
    "darkness": ((5, 12), (5, 13)),
    "attenuation": ((-50, 0), (3, 58)),
    "halo": ((0, 2), (2, 6)),
    "rim": ((30, 30), (0, 0)),
}
# What a view adds to its patient's values: another site, other settings, another position of the probe.
_VIEW: Ranges = {
    "gain": (-5, 5),
    "tilt": (-4, 4),
    "fat_depth": (-0.08, 0.08),
    "gland_depth": (-0.08, 0.08),
    "fat": (-2.5, 2.5),
    "gland": (-3.5, 3.5),
    "muscle": (-4, 4),
    "radius": (-0.015, 0.015),
    "aspect": (-0.1, 0.1),
    "darkness": (-5, 5),
    "attenuation": (-37, 37),
    "shown": (0.58, 0.72),
    "lesion_depth": (0.26, 0.54),
    "lesion_side": (-0.8, 0.8),
    "rotation": (-0.35, 0.35),
}


def draw_scenes(rng: np.random.Generator, label: str, patients: int, images_per_patient: int) -> list[list[Scene]]:
    """Draws the views of every patient of one class.

    Each quantity is spread evenly over its range, once for the patients and once for the views (Latin hypercube,
    McKay 1979), so that the classes do not differ by chance in what has nothing to do with the lesion.

    Args:
      rng: of all draws.
      label: 'benign' or 'malignant'.
      patients: how many.
      images_per_patient: of each.
    """
    lesion = {name: ranges[CLASSES.index(label)] for name, ranges in _LESION.items()}
    shared = _spread(rng, _PATIENT | lesion, patients)
    views = iter(_spread(rng, _VIEW, patients * images_per_patient))

    def view(patient: dict[str, float]) -> Scene:
        added = next(views)
        return Scene(**{name: patient.get(name, 0.0) + added.get(name, 0.0) for name in patient | added})

    return [[view(patient) for _ in range(images_per_patient)] for patient in shared]


def _spread(rng: np.random.Generator, ranges: Ranges, count: int) -> list[dict[str, float]]:
    cells = rng.permuted(np.tile(np.arange(count), (len(ranges), 1)), axis=1)
    shares = (cells + rng.random(cells.shape)) / count
    return [
        {name: low + share * (high - low) for (name, (low, high)), share in zip(ranges.items(), column, strict=True)}
        for column in shares.T
    ]


def write_phantoms(
    out: Path,
    *,
    patients: int = 60,
    images_per_patient: int = 4,
    size: int = 128,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Writes a phantom data set with RadImageNet's fold files; half of the patients are benign, half malignant.

    `images/` and, under the same names, `masks/` of the lesions (0 or 255): grey PNG. `manifest.csv`: columns `path`,
    `patient_id`, `label`, `mask`. `dataframe/phantom_{train,val,test}_fold<k>.csv`: patient by patient.

    Args:
      out: directory, made if need be; must be empty.
      patients: how many; of an odd number one more is benign.
      images_per_patient: of the same lesion.
      size: side of the images in pixels, at least 64.
      folds: at least 3.
      seed: of everything, at least 0.

    Returns:
      What `manifest.csv` holds.

    Raises:
      UsageError: `out` holds something, or a number is too small.
    """
    lowest = {"folds": (folds, 3), "patients": (patients, 2 * folds), "size": (size, 64), "seed": (seed, 0)}
    for name, (value, bound) in (lowest | {"images_per_patient": (images_per_patient, 1)}).items():
        if value < bound:
            raise UsageError(f"{name} is {value}; at least {bound} is needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not an empty directory; choose another, or remove what is there")
    rng = np.random.default_rng(seed)
    drawn = [
        (label, scenes)
        for place, label in enumerate(CLASSES)
        for scenes in draw_scenes(rng, label, (patients + 1 - place) // 2, images_per_patient)
    ]
    drawn = [drawn[place] for place in rng.permutation(patients)]  # so that the number does not reveal the class
    rows = [
        (f"images/{name}", f"p{number:03}", label, f"masks/{name}")
        for number, (label, _) in enumerate(drawn)
        for name in (f"p{number:03}_{view}.png" for view in range(images_per_patient))
    ]
    table = pd.DataFrame(rows, columns=["path", "patient_id", "label", "mask"])
    divided = grouped_folds(table["label"].to_numpy(), table["patient_id"].to_numpy(), folds, seed)
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    scenes = [scene for _, views in drawn for scene in views]
    with progress.bar("phantoms", len(table)) as report:
        for place, ((path, _, _, mask_path), scene) in enumerate(zip(rows, scenes, strict=True)):
            image, mask = draw_image(np.random.default_rng([seed, place]), scene, size)
            Image.fromarray(image).save(out / path)
            Image.fromarray(mask).save(out / mask_path)
            report(place + 1, "")
    table.to_csv(out / "manifest.csv", index=False)
    listed = {"filename": table["path"], "label": table["label"], "patient_id": table["patient_id"]}
    write_fold_files(out, "phantom", pd.DataFrame(listed), divided)
    return table
