"""What a configuration records of the model that a run starts from, and which keys go together."""

import dataclasses
from pathlib import Path

import pytest
from flax import nnx

from dinojax.config.evaluate import KNNConfig
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.model import ModelConfig
from dinojax.config.parser import parse
from dinojax.config.pretrain import PretrainConfig
from dinojax.errors import UsageError
from dinojax.models import create_model
from dinojax.models.store import save_model
from dinojax.protocols.starting_point import with_model_of_init

GIVEN = ["--data", "d", "--out", "o"]
KINDS = [(PretrainConfig, "pretrain"), (FinetuneConfig, "finetune"), (KNNConfig, "evaluate knn")]


@pytest.mark.parametrize(("kind", "verb"), KINDS)
def test_a_key_of_the_model_beside_init_is_refused(kind: type, verb: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^--init m brings its own model, which --model\.depth cannot change"
    ) as caught:
        parse(kind, [*GIVEN, "--init", "m", "--model.depth=2"], verb)
    assert "\n" not in str(caught.value)
    preset = tmp_path / "preset.yaml"
    preset.write_text("init: m\nmodel: {depth: 2}\n")
    assert parse(kind, [*GIVEN, "--config", str(preset)], verb).model.depth == 2
    assert parse(kind, [*GIVEN, "--config", str(preset), "--init=null", "--model.depth", "3"], verb).model.depth == 3


def test_the_model_of_init_is_recorded(tmp_path: Path) -> None:
    tiny = create_model("vitt14_reg4", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28, channels=1)
    save_model(tmp_path / "vit", tiny)
    save_model(tmp_path / "cnn", create_model("resnet50", nnx.Rngs(0), blocks=(1,), filters=(4,), stem=4))
    given = KNNConfig(data="d", out="o", init=str(tmp_path / "vit"), model=ModelConfig(depth=9))
    form = ModelConfig("vitt14_reg4", 32, 1, 2, 28, 1, "gelu", None)
    assert with_model_of_init(given) == dataclasses.replace(given, model=form)
    assert with_model_of_init(with_model_of_init(given)) == with_model_of_init(given)
    pretraining = PretrainConfig(data="d", out="o", init=given.init)
    assert with_model_of_init(pretraining).model == form
    resampled = with_model_of_init(dataclasses.replace(pretraining, positions="resample"))
    assert resampled.model == dataclasses.replace(form, image_size=224)
    cnn = with_model_of_init(dataclasses.replace(given, init=str(tmp_path / "cnn")))
    assert cnn.model == ModelConfig("resnet50", channels=3, layer_scale=None)
    assert with_model_of_init(dataclasses.replace(given, init=None)).model.depth == 9
