"""Backbones by name, their features, and the directories that hold them."""

from dinojax.models.preprocessing import Backbone, Features, Preprocessing, normalise, preprocess, to_channels
from dinojax.models.resnet import ResNet, ResNetArguments
from dinojax.models.vit import VisionTransformer, ViTArguments
from dinojax.models.zoo import ARGUMENTS, Arguments, Model, arguments_of, build, create_model, model_names

__all__ = [
    "ARGUMENTS",
    "Arguments",
    "Backbone",
    "Features",
    "Model",
    "Preprocessing",
    "ResNet",
    "ResNetArguments",
    "ViTArguments",
    "VisionTransformer",
    "arguments_of",
    "build",
    "create_model",
    "model_names",
    "normalise",
    "preprocess",
    "to_channels",
]
