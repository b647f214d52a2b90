"""Schedules and parameter groups against the published code's."""

import json
from typing import Any

import pytest
from flax import nnx

import dinojax
from dinojax import optim, schedules, tree
from dinojax.config.pretrain import OptimConfig, PretrainConfig, TeacherConfig
from dinojax.dino.assembly import make_timeline
from dinojax.dino.state import Timeline, make_schedules
from dinojax.errors import UsageError
from tests import goldens_reader as goldens
from tests import rebuilt
from weights_convert import tables


def test_golden_schedules() -> None:
    golden = goldens.load("schedules.npz")
    goldens.assert_close(schedules.cosine(4e-3, 1e-6, 200, warmup_steps=20), golden["lr"], 1e-9)
    goldens.assert_close(schedules.cosine(0.04, 0.4, 200), golden["wd"], 1e-9)
    goldens.assert_close(schedules.cosine(0.992, 1.0, 200), golden["momentum"], 1e-9)
    temperatures = schedules.linear(0.04, 0.07, 200, warmup_steps=60)
    goldens.assert_close(temperatures[:60], golden["teacher_temp"], 1e-9)
    assert set(temperatures[60:]) == {0.07}


def test_golden_parameter_groups() -> None:
    golden = json.loads((goldens.goldens_dir() / "param_groups.json").read_text())
    model = dinojax.create_model("vits14", rngs=nnx.Rngs(0), image_size=70)
    _, params = tree.split(model)
    rates = optim.multipliers(params, optim.layer_decay(12, 0.9, 0.2))
    decays = optim.multipliers(params, optim.WEIGHT_DECAY)
    published = golden["vits14_backbone"]
    assert len(published) == len(params)
    for path in params:
        rate, decay, _ = published[tables.to_dinov2_name(path)]
        assert (rates[path], decays[path]) == (pytest.approx(rate, rel=1e-9), decay), path


def test_golden_head_groups() -> None:
    golden = json.loads((goldens.goldens_dir() / "param_groups.json").read_text())["dino_head"]
    paths = {f"mlp.{i}.{leaf}": f"mlp.{2 * i}.{name}" for i in range(3) for leaf, name in rebuilt.LINEAR.items()}
    paths |= {f"last_layer.{name}": f"last_layer.{name}" for name in ("weight_g", "weight_v")}
    decays = optim.multipliers(list(paths), optim.WEIGHT_DECAY)
    assert decays == {path: golden[name][1] for path, name in paths.items()}


def lay_out(**given: Any) -> Timeline:
    """Of 10,240 images in batches of 256, 100 epochs by default."""
    return make_timeline(PretrainConfig(data="d", out="o", **{"steps_per_epoch": None, **given}), 10_240)


def test_an_epoch_is_a_pass_or_as_long_as_configured() -> None:
    assert lay_out() == Timeline(4000, 40, 0, 400, 1200, 40)
    assert lay_out(steps_per_epoch=10) == Timeline(1000, 10, 0, 100, 300, 10)


def test_the_schedules_come_after_the_heads_warmup() -> None:
    """The rest of the run is what the epochs are stretched over; the learning rate is at its peak before."""
    timeline = lay_out(steps=250, head_warmup_steps=50)
    assert timeline == Timeline(250, 40, 50, 20, 60, 2)
    assert timeline.warmup == 70
    lr = make_schedules(timeline, 1024, OptimConfig(lr=1.0), TeacherConfig()).lr
    assert set(lr[:50]) == {1.0}
    assert lr[50] == 0
    assert lr[69] == 1.0
    with pytest.raises(UsageError, match="head_warmup_steps 250 leave none of the 250 steps"):
        lay_out(steps=250, head_warmup_steps=250)
    with pytest.raises(UsageError, match=r"epochs 0\.001 make no step"):
        lay_out(epochs=0.001)


def test_a_run_of_other_length_stretches_its_warmups() -> None:
    config, teacher = OptimConfig(lr=1.0, lr_scaling="none", warmup_epochs=10), TeacherConfig()
    timeline = lay_out(steps=200)
    assert timeline == Timeline(200, steps_per_epoch=40, lr_warmup=20, temperature_warmup=60, frozen_prototypes=2)
    short = make_schedules(timeline, batch_size=256, optim=config, teacher=teacher)
    assert len(short.lr) == 200
    assert short.lr[0] == 0
    assert short.lr[19] == short.lr.max()
    assert timeline.warmup == 20
    assert short.teacher_temp[59] == pytest.approx(0.07)
    assert short.teacher_temp[58] < 0.07


def test_learning_rate_follows_the_square_root_of_the_batch() -> None:
    peaks = [
        make_schedules(Timeline(100, lr_warmup=10), batch, OptimConfig(lr=2e-4), TeacherConfig()).lr.max()
        for batch in (1024, 256)
    ]
    assert peaks == pytest.approx([2e-4, 1e-4])


def test_first_match_wins_and_no_match_is_an_error() -> None:
    table = ((r"blocks\.\d+\..*", 1), (r".*", 2))
    assert tree.match("blocks.11.ls1.gamma", table) == 1
    assert tree.match("norm.scale", table) == 2
    with pytest.raises(KeyError, match=r"head\.kernel"):
        tree.match("head.kernel", table[:1])
