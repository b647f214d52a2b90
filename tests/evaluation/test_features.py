"""Features in batches over devices against the model called at once."""

import numpy as np
import pytest
from flax import nnx

from dinojax import create_model, preprocess
from dinojax.evaluation.features import extract
from dinojax.sharding import widest_mesh


@pytest.mark.parametrize("batch_size", [3, 4])
def test_features_in_batches_equal_those_at_once(batch_size: int) -> None:
    model = create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1)
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(7, dtype=np.int32)
    batches = []
    for first in range(0, 7, batch_size):
        places = np.arange(first, first + batch_size)
        taken = np.minimum(places, 6)
        batches.append(
            {"image": images[taken], "label": labels[taken], "index": labels[taken] + 10, "valid": places < 7}
        )
    found = extract(model, batches)
    expected = model(preprocess(images, model))
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-5)
    np.testing.assert_allclose(found.mean_patch, expected.patches.mean((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.indices, labels + 10)


def test_as_many_devices_as_divide_the_batch() -> None:
    assert [widest_mesh(size).size for size in (1, 6, 7, 12, 16)] == [1, 6, 7, 6, 8]
