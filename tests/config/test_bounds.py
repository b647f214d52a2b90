"""The bounds of every key, stated here a second time; and how bounds are written and shown."""

import dataclasses
import math
from typing import Annotated, Any

import pytest

from dinojax.config.bounds import Ascending, Bounds, Positive, PositiveInt, Share, check
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.parser import flatten, parse
from dinojax.config.pretrain import HeadConfig, PretrainConfig
from dinojax.errors import UsageError

PRETRAIN = PretrainConfig(data="d", out="o", ibot_head=HeadConfig())
FINETUNE = FinetuneConfig(data="d", out="o")
NO_NUMBER = (math.inf, math.nan)

# What is refused, and what each of the keys must be.
ABOVE_0 = (-1, 0, *NO_NUMBER), "above 0"
FROM_0 = (-1, -0.1, *NO_NUMBER), "0 or above"
FROM_2 = (-1, 0, 1), "2 or above"
SHARE = (-0.1, 1.1, *NO_NUMBER), "in 0..1"
BELOW_1 = (-0.1, 1, 1.1, *NO_NUMBER), "below 1"
SEED = (-1, 2**32), "in 0..4294967295"
RANGE_ABOVE_0 = ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)), "above 0|lower one"
RANGE_FROM_0 = ((-0.1, 1.0), (2.0, 1.0), (1.0, math.nan)), "0 or above|lower one"
RANGE_OF_SHARES = ((-0.1, 0.5), (0.5, 1.1), (0.5, 0.4)), "in 0..1|lower one"
PERCENT = ((-0.1, 50.0), (50.0, 100.1), (60.0, 40.0)), "in 0..100|lower one"
SCALE = (*RANGE_OF_SHARES[0], (0.0, 0.0)), "in 0..1|lower one|end above 0"
LIST = ((0,), (1, -1), (math.inf,), ()), "above 0|empty"

EXPECTED: dict[tuple[Any, str], tuple[tuple[tuple[Any, ...], str], str]] = {}
for config, groups in (
    (
        PRETRAIN,
        (
            (SEED, "seed"),
            (
                ABOVE_0,
                "input_channels batch_size epochs steps steps_per_epoch groups accumulate log_every checkpoint_every",
            ),
            (ABOVE_0, "keep_checkpoints probe.every probe.k probe.images"),
            (ABOVE_0, "max_megapixels intensity.number slices.every slices.middle"),
            (ABOVE_0, "probe.max_megapixels probe.intensity.number probe.slices.every probe.slices.middle"),
            (FROM_0, "slices.time probe.slices.time window_jitter.width"),
            (SHARE, "window_jitter.probability window_jitter.centre"),
            (PERCENT, "intensity.percentiles probe.intensity.percentiles"),
            (ABOVE_0, "model.width model.depth model.heads model.image_size model.channels"),
            (ABOVE_0, "head.hidden head.bottleneck head.layers ibot_head.hidden ibot_head.bottleneck ibot_head.layers"),
            (ABOVE_0, "loss.student_temperature loss.koleo_eps teacher.temperature teacher.temperature_start"),
            (ABOVE_0, "optim.lr optim.layer_decay"),
            (FROM_0, "head_warmup_steps threads workers cache_gib fsdp crops.locals"),
            (FROM_0, "photometry.brightness photometry.contrast photometry.saturation"),
            (FROM_0, "loss.dino_weight loss.ibot_weight loss.koleo_weight teacher.temperature_warmup_epochs"),
            (FROM_0, "optim.min_lr optim.warmup_epochs optim.weight_decay optim.weight_decay_end"),
            (FROM_0, "optim.patch_embed_lr optim.clip optim.freeze_prototypes_epochs"),
            (FROM_0, "probe.stop_below guard.feature_std guard.target_entropy guard.steps distributed.process"),
            (FROM_2, "head.prototypes ibot_head.prototypes"),
            (SHARE, "crops.horizontal_flip crops.vertical_flip crops.rotate90 photometry.jitter photometry.grayscale"),
            (SHARE, "photometry.blur_global1 photometry.blur_global2 photometry.blur_local"),
            (SHARE, "photometry.solarize_global2 masking.probability loss.center_momentum"),
            (SHARE, "teacher.momentum teacher.momentum_end"),
            (BELOW_1, "optim.beta1 optim.beta2 drop_path"),
            (RANGE_ABOVE_0, "photometry.blur_sigma"),
            (RANGE_OF_SHARES, "masking.ratio"),
            (SCALE, "crops.global_scale crops.local_scale"),
        ),
    ),
    (
        FINETUNE,
        (
            (SEED, "seed fold_seed"),
            (ABOVE_0, "max_megapixels intensity.number slices.every slices.middle"),
            (FROM_0, "slices.time"),
            (PERCENT, "intensity.percentiles"),
            (ABOVE_0, "folds image_size input_channels epochs"),
            (ABOVE_0, "model.width model.depth model.heads model.image_size model.channels"),
            (FROM_0, "weight_decay threads fsdp classifier.hidden augment.rotation augment.shear augment.shift"),
            (SHARE, "augment.horizontal_flip"),
            (RANGE_FROM_0, "augment.scale"),
            (LIST, "lrs batch_sizes"),
        ),
    ),
):
    for refused, keys in groups:
        EXPECTED |= {(config, key): (refused, key) for key in keys.split()}

UNBOUNDED = {
    *("crops.global_size", "crops.local_size", "photometry.hue", "model.layer_scale"),
    *("distributed.processes", "intensity.range", "probe.intensity.range"),
}


def changed(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


@pytest.mark.parametrize(("config", "key"), EXPECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_no_run_can_have_is_refused_by_its_key(config: Any, key: str) -> None:
    (refused, must), _ = EXPECTED[config, key]
    for value in refused:
        shown = str(list(value) if isinstance(value, tuple) else value)
        with pytest.raises(UsageError, match=must) as caught:
            changed(config, key, value)
        assert str(caught.value).startswith(f"{key} is {'empty' if value == () else shown};")


def test_no_number_lacks_bounds_by_oversight() -> None:
    for config in (PRETRAIN, FINETUNE):
        words = (str, bool)
        named = {field for field, value in flatten(config).items() if not isinstance(value, words)}
        texts = {"init", "data_root", "group_regex", "task", "starting_point", "positive_class", "model.mlp"}
        texts |= {"log_to", "uncertain", "path_column", "label_column", "distributed.coordinator", "salt_file"}
        texts |= {"patient_column", "probe.patient_column"}
        of_probe = ("data", "data_root", "group_regex", "path_column", "label_column", "uncertain", "salt_file")
        texts |= {f"probe.{name}" for name in of_probe}
        assert named - texts - UNBOUNDED == {key for whose, key in EXPECTED if whose is config}


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    share: Share | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """Every place where bounds may stand."""

    one: PositiveInt = 1
    """Documented."""
    some: tuple[Positive, ...] = (1.0,)
    pair: Annotated[tuple[float, float], Bounds(low=1, high=5), Ascending()] = (1.0, 2.0)
    free: tuple[float, ...] = (-1.0,)
    maybe: Annotated[float, Bounds(above=1, below=2)] | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)
    absent: Inner | None = None

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--one", "0"], "one is 0; it must be above 0"),
        (["--some", "[1,-2]"], "some is [1.0, -2.0]; it must be above 0"),
        (["--some", "[]"], "some is empty; give at least one value"),
        (["--pair", "[1,6]"], "pair is [1.0, 6.0]; it must lie in 1..5"),
        (["--pair", "[2,1]"], "pair is [2.0, 1.0]; the lower one comes first"),
        (["--maybe", "2"], "maybe is 2.0; it must be above 1, and below 2"),
        (["--inner.share", "1.5"], "inner.share is 1.5; it must lie in 0..1"),
        (["--absent.share", "-1"], "absent.share is -1.0; it must lie in 0..1"),
    ],
)
def test_bounds_stand_wherever_a_number_does(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Example, arguments, "example")
    assert str(caught.value) == message


def test_types_stay_what_they_are_and_help_shows_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--one", "3", "--pair", "[1,1]", "--maybe", "1.5", "--inner.share", "1", "--absent.share", "null"]
    read = parse(Example, given, "example")
    assert read == Example(3, pair=(1.0, 1.0), maybe=1.5, inner=Inner(1.0), absent=Inner())
    assert (type(read.one), type(read.pair), type(read.pair[0])) == (int, tuple, float)
    with pytest.raises(UsageError, match=r"--one 1.5: it must be a whole number"):
        parse(Example, ["--one", "1.5"], "example")
    with pytest.raises(SystemExit):
        parse(Example, ["--help"], "example")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Documented. (type: int above 0, default: 1)" in shown
    assert "(type: tuple[float above 0, ...], default: (1.0,))" in shown
    assert "(type: tuple[float, float] in 1..5, ascending, default: (1.0, 2.0))" in shown
