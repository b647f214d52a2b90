"""Images that show nothing are refused before a run, by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinojax.data.contrast import check_contrast
from dinojax.data.reading import read_records
from dinojax.errors import RunError

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((70, 8, 8), np.uint8),
            r"of 64 looked at, all are of the single value 0 of .* \(000\.png, .* and more\)",
        ),
        (
            np.arange(3, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2),
            "of 3 looked at, each is of a single colour",
        ),
        (NOISE[[0, 0, 0]], r"of 3 looked at, all are one and the same image \(000\.png, 001\.png, 002\.png\)"),
        (NOISE, None),
        (NOISE * [[[0]], [[0]], [[0]], [[0]], [[0]], [[1]]], None),
        (NOISE[:1], None),
    ],
)
def test_images_without_content(tmp_path: Path, images: np.ndarray, message: str | None) -> None:
    for number, image in enumerate(images):
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{number:03}.png")
    records = read_records(str(tmp_path), labelled=False)
    if message is None:
        check_contrast(records)
        return
    with pytest.raises(RunError, match=message) as caught:
        check_contrast(records)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_left_to_the_run(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(NOISE[0]).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    check_contrast(read_records(str(tmp_path), labelled=False))
