"""Features in batches over devices against the model called at once."""

import jax
import numpy as np
import pytest
from flax import nnx

from dinojax import create_model, preprocess, sharding, tree
from dinojax.models import vit
from dinojax.protocols import features
from dinojax.protocols.features import extract
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
    np.testing.assert_allclose(found["class_token"], expected.pooled, atol=1e-5)
    np.testing.assert_allclose(found["mean_patch"], expected.patches.mean((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["index"], labels + 10)


def test_as_many_devices_as_divide_the_batch() -> None:
    assert [widest_mesh(size).size for size in (1, 6, 7, 12, 16)] == [1, 6, 7, 6, 8]


@pytest.mark.parametrize(("devices", "chunk"), [(1, 3), (4, 2), (4, 5), (2, 100)])
def test_chunks_of_each_devices_images_equal_the_whole(devices: int, chunk: int) -> None:
    """20 images: full chunks, chunks that do not come out even, one image left over, and no need for chunks."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((20, 4, 4, 1), dtype=np.float32)
    params = {"kernel": jax.numpy.asarray(rng.standard_normal((16, 3), dtype=np.float32))}
    sizes = []

    def forward(params: tree.Params, images: jax.Array) -> jax.Array:
        sizes.append(len(images))
        return images.reshape(-1, 16) @ params["kernel"]

    mesh = sharding.make_mesh(20, devices=devices)
    spread = sharding.put_batch(mesh, {"image": images})["image"]
    program = jax.jit(features.chunked(forward, mesh, lambda height, width: chunk)).lower(params, spread).compile()
    assert set(sizes) == {{(1, 3): 3, (4, 2): 2, (4, 5): 5, (2, 100): 10}[devices, chunk]}
    found = program(params, spread)
    np.testing.assert_allclose(found, images.reshape(20, 16) @ np.asarray(params["kernel"]), atol=1e-5)
    assert len(found.sharding.device_set) == devices
    text = str(program.as_text())
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"))


def test_a_chunk_is_smaller_the_larger_image_and_model() -> None:
    """Two for ViT-S/14 at 224 pixels, as measured; never none."""
    small = create_model("vitt14", nnx.Rngs(0), width=384, heads=6, depth=1, image_size=28)
    assert small.images_per_chunk(224, 224) == 2
    assert small.images_per_chunk(112, 112) == 8
    assert small.images_per_chunk(1120, 1120) == 1


def test_extract_runs_a_large_batch_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(40), "index": np.arange(40), "valid": np.ones(40, bool)}
    monkeypatch.setattr(vit, "_TOKEN_NUMBERS", 2 * 4 * 32)  # two images: three chunks of each device's five
    found = extract(model, [batch])
    np.testing.assert_allclose(found["class_token"], model(preprocess(images, model)).pooled, atol=1e-5)
