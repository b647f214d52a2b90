"""Pre-training as a command: what it writes, going on, bad files, several devices."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import dinojax
from dinojax import progress, sharding
from dinojax.config.parser import parse
from dinojax.config.pretrain import PretrainConfig
from dinojax.dino import assembly as pretraining
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.models.store import load_transformer
from dinojax.verbs import pretrain

TINY = shlex.split("""
    --batch_size 8 --steps 6 --epochs 3 --log_every 1 --checkpoint_every 2
    --model.name vitt14 --model.width 32 --model.depth 2 --model.heads 2 --model.image_size 56 --model.layer_scale 1.0
    --crops.global_size 56 --crops.local_size 28 --crops.locals 2
    --head.prototypes 64 --head.hidden 32 --head.bottleneck 16
    --optim.warmup_epochs 1 --optim.lr 0.001 --optim.lr_scaling none --drop_path 0.3
""")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small pictures, grey and RGB, in nested folders."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(20):
        path = folder / f"part{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        shape = (60, 70) if number % 2 else (64, 64, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    pretrain.main([*TINY, "--data", str(images), "--out", str(out)])
    return out


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("time") for line in lines)
    return lines


def test_a_run_writes_what_others_read(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        terms = line["dino_local"] + line["dino_global"] + line["ibot"] + line["koleo"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert 0 < line["target_entropy"] <= np.log(64) + 1e-5
    assert {"lr", "weight_decay", "momentum", "teacher_temp"} <= lines[0].keys()
    for figure in ("crops.png", "curves.png"):
        with Image.open(finished / "figures" / figure) as image:
            assert min(image.size) > 200
    model = load_transformer(finished / "model")
    x = dinojax.preprocess(np.zeros((1, 56, 56, 3), np.uint8), model)
    assert model(x).pooled.shape == (1, 32)
    assert model.preprocessing.size == 56
    assert model.arguments.drop_path == 0


def test_the_teacher_moves_and_is_what_is_saved(images: Path, finished: Path) -> None:
    config = parse(PretrainConfig, [*TINY, "--data", str(images), "--out", "x"], "pretrain")
    before = pretraining.make_backbone(config)
    after = load_transformer(finished / "model")
    moved = np.abs(np.asarray(after.blocks[1].attn.proj.kernel[...] - before.blocks[1].attn.proj.kernel[...])).max()
    assert 0 < moved < 0.006


@contextmanager
def _interrupt_after(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shown = progress.bar

    @contextmanager
    def bar(what: str, total: int, completed: int = 0) -> Iterator[Any]:
        with shown(what, total, completed) as update:

            def interrupt(done: int, note: str = "") -> None:
                update(done, note)
                if done == step:
                    os.kill(os.getpid(), number)

            yield interrupt

    monkeypatch.setattr(progress, "bar", bar)
    yield
    monkeypatch.setattr(progress, "bar", shown)


def test_a_run_goes_on_as_if_never_stopped(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TINY, "--data", str(images), "--out", str(tmp_path / "run")]
    with _interrupt_after(3, signal.SIGTERM, monkeypatch), pytest.raises(Stopped, match="SIGTERM at step 3"):
        pretrain.main(command)
    assert len(metrics(tmp_path / "run")) == 3
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:  # as if it had been killed after logging further
        log.write('{"step": 4, "loss": 1.0, "time": {"seconds": 1}}\n{"step": 5, "lo')
    pretrain.main([*command, "--threads", "1"])
    assert metrics(tmp_path / "run") == metrics(finished)
    before = (finished / "model" / "params.safetensors").read_bytes()
    assert (tmp_path / "run" / "model" / "params.safetensors").read_bytes() == before


def test_another_seed_is_another_run(images: Path, finished: Path, tmp_path: Path) -> None:
    command = [*TINY, "--data", str(images), "--out", str(tmp_path), "--seed", "1"]
    pretrain.main([*command, "--drop_path", "0", "--loss.centering", "softmax", "--optim.clip", "0"])
    assert metrics(tmp_path)[0]["loss"] != metrics(finished)[0]["loss"]


def test_a_changed_configuration_is_refused_by_name(images: Path, finished: Path) -> None:
    command = [*TINY, "--data", str(images), "--out", str(finished), "--optim.lr", "0.02"]
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001, is 0\.02.*--accept_changes optim\.lr"):
        pretrain.main(command)


def test_a_file_that_proves_unreadable_stops_the_run_or_is_listed(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 60, 60, 3), np.uint8)):
        Image.fromarray(pixels).save(data / f"{number}.jpg")
    broken = data / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])  # its header is whole
    command = [*TINY, "--data", str(data), "--out", str(tmp_path / "run")]
    with pytest.raises(RunError, match=r"5\.jpg.*stopped before the first step; mend it.*--on_bad_file skip") as caught:
        pretrain.main(command)
    assert caught.value.status == 1
    pretrain.main([*command, "--on_bad_file", "skip"])
    listed = (tmp_path / "run" / "skipped_files.csv").read_text().splitlines()
    assert len(listed) == 2
    assert listed[1].startswith("5.jpg,")
    assert len(metrics(tmp_path / "run")) == 6


def test_going_on_from_a_model_keeps_its_form(images: Path, finished: Path, tmp_path: Path) -> None:
    command = [*TINY, "--data", str(images), "--init", str(finished / "model"), "--out", str(tmp_path), "--steps", "1"]
    pretrain.main([*command, "--model.width", "64", "--loss.ibot_weight", "0"])
    assert dinojax.load_model(tmp_path / "model").width == 32
    assert metrics(tmp_path)[0]["ibot"] == 0


def test_a_resnet_is_refused(images: Path, tmp_path: Path) -> None:
    tiny = {"blocks": (1,), "filters": (4,), "stem": 4}
    dinojax.save_model(tmp_path / "resnet", dinojax.create_model("resnet50", nnx.Rngs(0), **tiny))
    command = ["--data", str(images), "--out", str(tmp_path / "run")]
    with pytest.raises(UsageError, match=r"resnet holds a resnet50; a vision transformer is needed here$"):
        pretrain.main([*command, "--init", str(tmp_path / "resnet")])
    with pytest.raises(UsageError, match=r"model resnet50 is not a vision transformer; choose from vitt14, vits14, "):
        pretrain.main([*command, "--model.name", "resnet50"])
    assert not (tmp_path / "run").exists()


def test_a_head_of_ibots_own_is_not_left_out(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    shutil.copy(tmp_path / "model" / "dino_head.safetensors", tmp_path / "model" / "ibot_head.safetensors")
    config = parse(PretrainConfig, [*TINY, "--data", "d", "--out", "o", "--init", str(tmp_path / "model")], "pretrain")
    with pytest.raises(UsageError, match=r"ibot_head\.safetensors .*--init_heads fresh"):
        pretraining.make_heads(config, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--crops.local_size", "30"], "crops.local_size 30"),
        (["--batch_size", "1000"], "batch_size 1000"),
        (["--batch_size", "12"], "12 is not a multiple of the 8 devices"),
        (["--optim.lrr", "1"], "lrr"),
        (["--steps", "many"], "steps"),
        (["--model.name", "vits16"], "vits16"),
        (["--init", "nowhere"], "nowhere is not a model directory"),
    ],
)
def test_mistakes_end_in_one_line(images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pretrain.main([*TINY, "--data", str(images), "--out", str(tmp_path / "run"), *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_untrained_head_starts_at_log_k(images: Path) -> None:
    """Both DINO terms together are log K when student and teacher say nothing: all weights of the head are zero."""
    config = parse(PretrainConfig, [*TINY, "--data", str(images), "--out", "x"], "pretrain")
    mesh = sharding.make_mesh(8)
    run = pretraining.prepare(config, mesh, pretraining.make_backbone(config), 6, np.ones(6, bool))
    silent = {path: jnp.where("weight_g" in path, 0.0, value) for path, value in run.state.student.items()}
    state = dataclasses.replace(run.state, student=silent, teacher=jax.tree.map(jnp.copy, silent))
    source, _ = pretraining.open_source(config, run.backbone.channels)
    batch = next(pretraining.read_batches(config, source, 0)) | {"stop": np.zeros(8, bool)}
    _, values = run.step(sharding.put_state(mesh, state), sharding.put_batch(mesh, batch))
    assert float(values["dino_local"] + values["dino_global"]) == pytest.approx(np.log(64), rel=1e-5)
    assert float(values["target_entropy"]) == pytest.approx(np.log(64), rel=1e-5)
    assert float(values["kl"]) == pytest.approx(0, abs=1e-4)
