"""The model that a run starts from, as its configuration records it."""

import dataclasses
from typing import TypeVar

from dinojax.config.model import ModelConfig
from dinojax.config.pretrain import PretrainConfig
from dinojax.config.study import StudyConfig
from dinojax.models.store import read_checked_description

C = TypeVar("C", bound=PretrainConfig | StudyConfig)


def with_model_of_init(config: C) -> C:
    """The configuration with `model` as it is in the model directory `init`, rather than a preset's unused section.

    What a kind of model does not have (a ResNet's depth, say) and what its weights bring along (LayerScale) is null.
    Without `init` the section is used, and stays as it is.

    Raises:
      UsageError: `init` is not a model directory.
      RunError: its `model.json` cannot be read.
    """
    if config.init is None:
        return config
    _, name, arguments, _ = read_checked_description(config.init)
    form = dataclasses.asdict(arguments)
    if isinstance(config, PretrainConfig) and config.positions != "keep":
        form["image_size"] = config.crops.global_size
    known = (field.name for field in dataclasses.fields(ModelConfig))
    section = {key: form.get(key) for key in known} | {"layer_scale": None}
    return dataclasses.replace(config, model=ModelConfig(**section | {"name": name}))  # type: ignore[arg-type]
