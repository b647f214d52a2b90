"""TFDS data sets as their own library writes them without TensorFlow: images are yielded as encoded files."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIDES = ("right", "left")
PARTS = {"train": range(6), "validation": range(6, 9), "test": range(9, 12), "extra": range(12, 13)}


def picture(number: int) -> Image.Image:
    """Grey, 12×10, told apart by its level."""
    return Image.new("L", (12, 10), 10 * number)


def encoded(image: Image.Image, kind: str = "PNG") -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind)
    file.seek(0)
    return file


class _Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(numbers) for name, numbers in PARTS.items()}

    def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        raise NotImplementedError


class Hands(_Builder):
    """Grey images of a left or right hand, one of the test part unlabelled; two of a patient."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=list(SIDES)),
            "Patient ID": tfds.features.Text(),
            "age": tfds.features.Scalar(np.int64),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers:
            label = -1 if number == 11 else number % 2
            patient = f"p{number // 2}"
            yield (
                number,
                {"image": encoded(picture(number)), "label": label, "Patient ID": patient, "age": number},
            )


class Stereo(_Builder):
    """Two images an example, none of which is called image; a number as the label."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="near"), tfds.core.BuilderConfig(name="far")]  # noqa: RUF012

    @property
    def is_far(self) -> bool:
        return self.builder_config is not None and self.builder_config.name == "far"

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"photo": image, "class": tfds.features.Scalar(np.int64)}
        if self.is_far:
            features["other"] = image
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers:
            photo = Image.new("RGB", (8 + number, 6), (number, 0, 200))
            example = {"photo": encoded(photo), "class": number % 3}
            yield number, example | ({"other": encoded(photo)} if self.is_far else {})
