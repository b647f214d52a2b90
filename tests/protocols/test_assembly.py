"""What a study makes of its starting point."""

from pathlib import Path

import pytest
from flax import nnx

from dinojax import tree
from dinojax.config.evaluate import KNNConfig
from dinojax.config.pretrain import CropsConfig, PretrainConfig
from dinojax.dino import assembly as pretraining
from dinojax.models import create_transformer
from dinojax.models.heads import Classifier
from dinojax.models.store import write_model
from dinojax.protocols import assembly, recipes


def write_classifier(directory: Path) -> Path:
    """As `finetune` writes one."""
    backbone = create_transformer("vitt14", nnx.Rngs(0), width=32, depth=1, heads=2, image_size=28)
    form = {"outputs": 1, "hidden": 0, "renormalise": False}
    _, params = tree.split(Classifier(backbone, **form, rngs=nnx.Rngs(0)))
    details = {"task": "thyroid", "fold": 2, "classifier": form}
    source = {"run": "thyroid_dinov2", "starting_point": "DINOv2"}
    write_model(directory, "vitt14", backbone.arguments, params, backbone.preprocessing, source, details=details)
    return directory


@pytest.mark.filterwarnings("error")
def test_a_fine_tuned_classifier_as_a_starting_point_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = str(write_classifier(tmp_path / "fold_2"))
    origin = "a classifier fine-tuned on thyroid, fold 2, of thyroid_dinov2"
    line = f"{init} is {origin}: its backbone is taken, its head is left out\n"
    config = KNNConfig(data="x", out="y", init=init)
    backbone = assembly.make_backbone(config)
    assert capsys.readouterr().out == line
    assert recipes.common_recipe(config, backbone)["init"] == f"{init} (the backbone of {origin})"
    pretraining.make_backbone(PretrainConfig(data="x", out="y", init=init, crops=CropsConfig(28, local_size=14)))
    assert capsys.readouterr().out == line
