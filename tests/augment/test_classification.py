"""MediDino's fine-tuning geometry."""

import dataclasses

import numpy as np
from PIL import Image

from dinojax.augment.classification import train_transform
from dinojax.config.finetune import AugmentConfig

NOTHING = AugmentConfig(rotation=0, horizontal_flip=0, scale=(1.0, 1.0), shear=0, shift=0)


def smooth(height: int, width: int, channels: int = 1) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, channels), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(noise[..., c]).resize((width, height))) for c in range(channels)], -1)


def train(image: np.ndarray, config: AugmentConfig, seed: int = 0, size: int = 64) -> np.ndarray:
    element = {"image": image, "label": np.int32(1), "index": np.int32(5)}
    result = train_transform(element, np.random.default_rng(seed), size, config)
    assert result["label"] == 1
    assert result["index"] == 5
    return result["image"]


def test_with_all_ranges_zero_only_a_flip_and_a_crop_are_left():
    square = smooth(64, 64)
    # Scale 1 with an aspect that is not 1 never fits, so that after ten tries the whole image is taken.
    np.testing.assert_array_equal(train(square, NOTHING), square)
    np.testing.assert_array_equal(train(square, dataclasses.replace(NOTHING, horizontal_flip=1.0)), square[:, ::-1])


def test_each_operation_changes_the_image_within_its_range():
    image = np.full((64, 64, 1), 200, np.uint8)
    for change in ({"rotation": 10.0}, {"shear": 10.0}, {"shift": 0.1}):
        config = dataclasses.replace(NOTHING, **change)
        empty = [float((train(image, config, seed) == 0).mean()) for seed in range(40)]
        assert max(empty) > 0.02, change  # corners come in black
        assert max(empty) < 0.2, change
        assert min(empty) < 0.02, change


def test_every_channel_is_moved_alike():
    image, config = smooth(60, 70, 4), AugmentConfig()
    moved = train(image, config, 1)
    for channel in range(4):
        own = slice(channel, channel + 1)
        np.testing.assert_array_equal(moved[:, :, own], train(image[:, :, own], config, 1))


def test_same_draws_give_the_same_image_and_others_another():
    image = smooth(60, 70, 3)
    config = AugmentConfig()
    np.testing.assert_array_equal(train(image, config, 1), train(image, config, 1))
    assert (train(image, config, 1) != train(image, config, 2)).any()
    assert train(image, config).shape == (64, 64, 3)
