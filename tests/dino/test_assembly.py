"""What a run's model is fed with."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinojax
from dinojax.augment.multicrop import augment_views
from dinojax.config.pretrain import PhotometryConfig
from dinojax.dino.assembly import input_views
from dinojax.look import sheets
from dinojax.models import Preprocessing, as_transformer, create_transformer, to_one_channel
from dinojax.models.preprocessing import denormalise, model_input

QUIET = PhotometryConfig(jitter=0, grayscale=0, blur_global1=0, blur_global2=0, blur_local=0, solarize_global2=0)
FORMS = {
    1: Preprocessing(28, (0.4,), (0.2,)),
    3: Preprocessing(28, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), order="BGR"),
}


def views(channels: int) -> dict[str, jax.Array]:
    drawn = np.random.default_rng(channels)
    crops = {"globals": (3, 2, 28, 28, channels), "locals": (3, 1, 14, 14, channels)}
    batch = {name: drawn.integers(0, 256, shape, np.uint8) for name, shape in crops.items()}
    return {name: jnp.asarray(array) for name, array in batch.items()} | {"place": jnp.arange(3, dtype=jnp.uint32)}


@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_pretraining_feeds_what_preprocess_makes(given: int, channels: int) -> None:
    """Channels, their order, mean and standard deviation, of a model that is not normalised as DINOv2 is."""
    model = create_transformer("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=channels)
    model.preprocessing = FORMS[channels]
    batch = views(given)
    fed = input_views(batch, jax.random.key(0), QUIET, model)
    for name in ("globals", "locals"):
        flat = batch[name].reshape(-1, *batch[name].shape[2:])
        expected = np.asarray(dinojax.preprocess(flat, model)).reshape(*batch[name].shape[:-1], channels)
        np.testing.assert_allclose(fed[name], expected, atol=1e-6, err_msg=name)
    model.preprocessing = FORMS[4 - channels]
    with pytest.raises(ValueError, match=f"not of the model's {channels} channels"):
        input_views(batch, jax.random.key(0), QUIET, model)


@pytest.mark.parametrize("given", [1, 3])
def test_a_folded_model_is_fed_the_same_views(given: int) -> None:
    """With the colour operations as published, of which one channel knows neither saturation, hue nor grayscale."""
    coloured = dataclasses.replace(PhotometryConfig(), blur_global2=0, blur_local=0, solarize_global2=0)
    model = create_transformer("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28)
    model.preprocessing = FORMS[3]
    one, batch = as_transformer(to_one_channel(model), "patch embedding"), views(given)
    augmented = jax.jit(lambda batch: augment_views(batch, jax.random.key(0), coloured))(batch)[0][:, 0]
    assert augmented.shape == (3, 28, 28, given)
    assert float(jnp.abs(augmented - batch["globals"][:, 0] / 255).max()) > 0.05
    single, three = model_input(augmented, one), model_input(augmented, model)
    if given == 3:
        luminance = augmented @ jnp.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(single, luminance[..., None], atol=1e-6)
        three = model_input(luminance[..., None], model)
    np.testing.assert_allclose(one.patch_embed(single), model.patch_embed(three), atol=1e-5)


def test_a_sheet_of_crops_shows_the_images_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = views(3), create_transformer("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28)
    model.preprocessing = FORMS[3]
    fed = input_views(batch, jax.random.key(0), QUIET, model)
    shown = []

    def undone(crop: np.ndarray, form: Preprocessing) -> np.ndarray:
        shown.append(denormalise(crop, form))
        return shown[-1]

    monkeypatch.setattr(sheets, "denormalise", undone)
    sheets.crop_sheet(fed["globals"], fed["locals"], model.preprocessing, tmp_path / "crops.png", images=1)
    np.testing.assert_allclose(shown[0], batch["globals"][0, 0] / 255, atol=1e-5)
