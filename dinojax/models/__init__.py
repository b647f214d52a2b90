"""Backbones by name, their features, and the directories that hold them."""

from dinojax.models.channels import inflate_channels, to_one_channel
from dinojax.models.preprocessing import Backbone, Features, Preprocessing, preprocess
from dinojax.models.resnet import ResNet, ResNetArguments
from dinojax.models.vit import VisionTransformer, ViTArguments, as_transformer
from dinojax.models.zoo import (
    ARGUMENTS,
    Arguments,
    arguments_of,
    build,
    create_model,
    create_transformer,
    model_names,
)

__all__ = [
    "ARGUMENTS",
    "Arguments",
    "Backbone",
    "Features",
    "Preprocessing",
    "ResNet",
    "ResNetArguments",
    "ViTArguments",
    "VisionTransformer",
    "arguments_of",
    "as_transformer",
    "build",
    "create_model",
    "create_transformer",
    "inflate_channels",
    "model_names",
    "preprocess",
    "to_one_channel",
]
