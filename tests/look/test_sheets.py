"""What is drawn of images of several channels."""

import numpy as np

from dinojax.look.sheets import drawable_channels


def test_channels_that_are_drawn() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(drawable_channels(image), image[:, :, :3])
    np.testing.assert_array_equal(drawable_channels(image[:, :, :1]), image[:, :, 0])
    np.testing.assert_array_equal(drawable_channels(np.full((2, 2, 2), (10, 30), np.uint8)), np.full((2, 2), 20))
