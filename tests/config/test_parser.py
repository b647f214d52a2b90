"""Configuration: presets, keys on the command line, and a run's stored copy."""

from pathlib import Path

import pytest
import yaml

from dinojax.config.evaluate import KNNConfig
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.parser import flatten, parse
from dinojax.config.pretrain import PretrainConfig
from dinojax.errors import UsageError

CONFIGS = Path(__file__).parents[2] / "configs"
REQUIRED = ["--data", "d", "--out", "o"]


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_presets_hold_only_keys_of_their_verb(preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kind = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate": KNNConfig}[preset.parent.name]
    config = parse(kind, [*REQUIRED, "--config", preset.stem], preset.parent.name)
    values = flatten(config)
    for key, value in flatten(yaml.safe_load(preset.read_text())).items():
        assert values[key] == value, key
    assert preset.read_text().startswith("# ")


def test_medidino_code_is_the_published_recipe() -> None:
    """The figures of the study's code, which are also the defaults."""
    preset = str(CONFIGS / "pretrain" / "medidino_code.yaml")
    config = parse(PretrainConfig, [*REQUIRED, "--config", preset], "pretrain")
    assert (config.epochs, config.steps_per_epoch, config.batch_size) == (100, 100, 256)
    assert (config.optim.lr, config.optim.min_lr, config.optim.weight_decay_end) == (2e-4, 1e-6, 0.2)
    assert (config.head.prototypes, config.head.hidden, config.head.bottleneck) == (65536, 2048, 256)
    assert (config.teacher.momentum, config.teacher.temperature) == (0.994, 0.07)
    assert (config.crops.global_size, config.crops.local_size, config.crops.locals) == (224, 98, 8)
    paper = parse(
        PretrainConfig, [*REQUIRED, "--config", str(CONFIGS / "pretrain" / "medidino_paper.yaml")], "pretrain"
    )
    changed = {key for key, value in flatten(paper).items() if flatten(config)[key] != value}
    assert changed == {"epochs", "drop_path", "photometry.blur_global1", "photometry.blur_global2"}


def test_the_command_line_goes_before_the_preset() -> None:
    preset = str(CONFIGS / "pretrain" / "laptop.yaml")
    config = parse(PretrainConfig, [*REQUIRED, "--config", preset, "--optim.lr", "0.5"], "pretrain")
    assert config.optim.lr == 0.5
    assert config.model.name == "vitt14"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "o"], "data"),
        ([*REQUIRED, "--optim.lrr", "1"], "optim.lrr"),
        ([*REQUIRED, "--batch_size", "eight"], "batch_size"),
        ([*REQUIRED, "--crops.global_scale", "[0.3]"], "crops.global_scale"),
        ([*REQUIRED, "--loss.centering", "none"], "loss.centering"),
        ([*REQUIRED, "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            [*REQUIRED, "--config", "nothing"],
            "--config nothing: there is no such file, and the presets of pretrain are",
        ),
        ([*REQUIRED, "--config", "."], "there is no such file"),
        ([*REQUIRED, "--batch_size", "0"], "batch_size is 0"),
        ([*REQUIRED, "--seed", "-1"], "seed is -1"),
        ([*REQUIRED, "--groups", "3"], "groups 3"),
        ([*REQUIRED, "--masking.ratio", "[0.5,0.1]"], "masking.ratio"),
        ([*REQUIRED, "--crops.locals", "-1"], "crops.locals"),
        ([*REQUIRED, "--crops.global_scale", "[0.5,1.5]"], "crops.global_scale"),
        ([*REQUIRED, "--guard.steps", "-1"], "guard.steps is -1"),
        ([*REQUIRED, "--model.channels", "2.5"], "model.channels"),
        ([*REQUIRED, "--optim.beta1", "1"], "optim.beta1"),
        ([*REQUIRED, "--drop_path", "1"], "drop_path"),
        ([*REQUIRED, "--head.prototypes", "1"], "head.prototypes"),
        ([*REQUIRED, "--batch_size", "1"], "KoLeo needs two images in a batch"),
        (
            [*REQUIRED, "--loss.dino_weight", "0", "--loss.ibot_weight", "0", "--loss.koleo_weight", "0"],
            "loss.dino_weight",
        ),
        ([*REQUIRED, "--accumulate", "0"], "accumulate is 0"),
        ([*REQUIRED, "--probe.k", "0"], "probe.k is 0"),
        ([*REQUIRED, "--teacher.temperature", "0"], "teacher.temperature is 0"),
        ([*REQUIRED, "--loss.koleo_weight", "-0.1"], "loss.koleo_weight is -0.1"),
        ([*REQUIRED, "--optim.lr", ".inf"], "optim.lr is inf"),
        ([*REQUIRED, "--ibot_head.prototypes", "0"], "ibot_head.prototypes is 0"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(arguments: list[str], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(PretrainConfig, arguments, "pretrain")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("head:\n  prototype: 5\n")
    with pytest.raises(UsageError, match="prototype"):
        parse(PretrainConfig, [*REQUIRED, "--config", str(tmp_path / "c.yaml")], "pretrain")


def test_what_is_off_at_zero_may_be_zero() -> None:
    off = ["--guard.steps", "0", "--optim.clip", "0", "--loss.koleo_weight", "0", "--crops.locals", "0", "--fsdp", "0"]
    assert parse(PretrainConfig, [*REQUIRED, *off], "pretrain").guard.steps == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "is empty"), ("# only a comment\n", "is empty"), ("batch_size\n", "holds no keys"), ("a: [\n", "YAML")],
)
def test_a_file_without_keys_is_refused_by_name(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"c\.yaml: .*{named}"):
        parse(PretrainConfig, [*REQUIRED, "--config", str(tmp_path / "c.yaml")], "pretrain")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--lrs", "1e-3"], (1e-3,)),
        (["--lrs=1e-3"], (1e-3,)),
        (["--lrs", "1e-3,1e-4"], (1e-3, 1e-4)),
        (["--lrs", "[1e-3, 1e-4]"], (1e-3, 1e-4)),
    ],
)
def test_a_key_of_many_values_takes_one(given: list[str], read: tuple[float, ...]) -> None:
    assert parse(FinetuneConfig, [*REQUIRED, *given], "finetune").lrs == read


def test_a_mistyped_key_is_answered_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match=r"--optim\.lrr.*did you mean --optim\.lr\?"):
        parse(PretrainConfig, [*REQUIRED, "--optim.lrr", "1"], "pretrain")
