"""Pre-training as a command: what it writes, resuming, bad files, several devices.

All runs have the same shapes and, where they can, the same program, which is compiled once a session.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image

import dinojax
from dinojax import costs, progress, sharding, tree
from dinojax.config.parser import parse
from dinojax.config.pretrain import PretrainConfig
from dinojax.dino import assembly, memory
from dinojax.dino.assembly import Pretraining
from dinojax.dino.evaluators import Evaluator, every
from dinojax.dino.outputs import Curves
from dinojax.dino.state import TrainState
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.models.store import load_transformer, read_description, read_params
from dinojax.reporting import plots
from dinojax.runs.checkpoint import Checkpoints
from dinojax.runs.directory import lock
from dinojax.verbs import run as run_verb

TINY = shlex.split("""
    --batch_size 8 --steps 6 --epochs 3 --log_every 1 --checkpoint_every 2
    --model.name vitt14 --model.width 32 --model.depth 1 --model.heads 2 --model.image_size 56 --model.layer_scale 1.0
    --crops.global_size 56 --crops.local_size 28 --crops.locals 2
    --head.prototypes 64 --head.hidden 32 --head.bottleneck 16 --teacher.momentum 0.9
    --optim.warmup_epochs 1 --optim.lr 0.001 --optim.lr_scaling none --drop_path 0.3 --drop_path_uniform true
""")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve small pictures each, dark and bright; grey and RGB."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 120)):
        (folder / name).mkdir()
        for number in range(12):
            shape = (60, 70) if number % 2 else (64, 64, 3)
            Image.fromarray(rng.integers(low, low + 130, shape, np.uint8)).save(folder / name / f"{number}.jpg")
    return folder


PAIRS = list(zip(TINY[::2], TINY[1::2], strict=True))
FORMLESS = [part for pair in PAIRS if not pair[0].startswith("--model.") for part in pair]  # the model is that of init
FACTS = ("model", "heads", "probe", "precision", "work")


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [*(FORMLESS if "--init" in more else TINY), "--data", str(data), "--out", str(out), *more]


def probe(data: Path) -> list[str]:
    return ["--probe.data", str(data), "--probe.every", "2", "--probe.k", "3"]


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    run_verb(["pretrain", *command(images, out, *probe(images))])
    return out


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that all tests share draws its curves, which takes a second or two."""
    monkeypatch.setattr(plots, "plot_metrics", lambda *form: None)


@pytest.fixture(scope="module")
def assembled(images: Path) -> Pretraining:
    return assembly.assemble(parse(PretrainConfig, command(images, Path("x")), "pretrain"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("time") for line in lines)
    return lines


def test_a_run_writes_what_others_read(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    for line in lines[1:]:
        terms = line["dino_local"] + line["dino_global"] + line["ibot"] + line["koleo"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert 0 < line["target_entropy"] <= np.log(64) + 1e-5
    assert {"lr", "weight_decay", "momentum", "teacher_temp"} <= lines[1].keys()
    for figure in ("crops.png", "curves.png"):
        with Image.open(finished / "figures" / figure) as image:
            assert min(image.size) > 200
    told = (finished / "verdict.txt").read_text().splitlines()
    assert re.match(r"(little learned|nothing learned|learned).*log\(prototypes\) is 4\.16", told[0])
    assert re.match(r"the features .*: probe \d\.\d+ at the start.*best .* at step \d; pixels alone reach", told[1])
    model = load_transformer(finished / "model")
    x = dinojax.preprocess(np.zeros((1, 56, 56, 3), np.uint8), model)
    assert model(x).pooled.shape == (1, 32)
    assert model.preprocessing.size == 56
    assert model.arguments.drop_path == 0


def test_the_block_of_facts_stands_before_a_run_and_check_stops_there(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_verb(["pretrain", *command(images, tmp_path / "run", *probe(images)), "--check", "true"])
    shown, kept = capsys.readouterr().out, json.loads((finished / "facts.json").read_text())
    assert not (tmp_path / "run").exists()
    assert re.search(
        r"^model: +vitt14 \(width 32, depth 1, .*\) of random weights: [\d,]+ parameters; reads RGB", shown, re.M
    )
    assert re.search(r"^heads: +dino_head: new, with random weights$", shown, re.M)
    assert re.search(r"^precision: +matrix products float32", shown, re.M)
    assert re.search(r"^work: +6 steps of 8 images \(each image 2 times\); crops of 56 pixels × 2", shown, re.M)
    assert re.search(r"^memory: .* GiB", shown, re.M)
    assert re.search(r"^memory: needs about .* GiB of .* GiB free$", shown, re.M)
    assert "steps of 8 images on" not in shown
    assert kept["images"].startswith("24; 24 headers read")
    assert kept.keys() == {*("read as", "images", "intensity", "not read", "duplicates"), *FACTS}


def test_a_step_that_needs_more_memory_than_there_is_is_refused_before_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assembled: Pretraining
) -> None:
    """By a bound before anything is compiled, and by the plan of the program that would have run."""
    given = command(images, tmp_path / "run")
    config = parse(PretrainConfig, given, "pretrain")
    run = assembly.compile_step(assembled, config)
    assert isinstance(run.step, jax.stages.Compiled)
    small = (jax.local_device_count() * memory.state_bytes(run.state.student)) / 2**30
    bound = assembly.least_memory(config, run.backbone, memory.state_bytes(run.state.student), np.dtype("float32"))
    need = memory.compiled_need(run.step, bound.fixed, jax.local_device_count())
    assert need is not None
    assert small <= bound.total / 2**30 < need.total / 2**30
    told = r"a training step of 8 images needs {} .* GiB of .* GiB free; .*batch_size.*accumulate.*loop_blocks.*fsdp"
    monkeypatch.setattr(costs, "memory_gib", lambda: small)
    monkeypatch.setattr(assembly, "compile_step", None)
    with pytest.raises(UsageError, match=told.format("at least")):
        run_verb(["pretrain", *given])
    monkeypatch.undo()
    monkeypatch.setattr(costs, "memory_gib", lambda: (bound.total + need.total) / 2**31)
    with pytest.raises(UsageError, match=told.format("about")) as caught:
        run_verb(["pretrain", *given])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_probe_is_in_the_metrics_where_it_is_due(finished: Path) -> None:
    lines = metrics(finished)
    assert lines[0].keys() == {"step", "probe", "probe_balanced", "probe_pixels", "probe_majority", "probe_images"}
    assert lines[0]["probe_majority"] == 0.5
    assert [line["step"] for line in lines if "probe" in line] == [0, 2, 4, 6]
    assert all(0 <= line["probe"] <= 1 and "probe_pixels" not in line for line in lines[2::2])


def test_model_is_the_teacher_and_not_the_student(finished: Path, assembled: Pretraining) -> None:
    checkpoints = Checkpoints(finished / "checkpoints", 2)
    state = checkpoints.restore(assembled.state)
    checkpoints.close()
    assert state is not None
    assert int(state.step) == 6
    tolerance = 1e-6
    saved = {name: read_params(finished / "model", name) for name in ("params", "dino_head")}

    def furthest(params: Any) -> float:
        own = {"params": tree.subtree("backbone", params), "dino_head": tree.subtree("dino_head", params)}
        assert {name: arrays.keys() for name, arrays in saved.items()} == {name: p.keys() for name, p in own.items()}
        pairs = ((arrays[path], own[name][path]) for name, arrays in saved.items() for path in arrays)
        return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs)

    assert furthest(state.teacher) <= tolerance
    assert furthest(state.student) > 10 * tolerance
    assert furthest(assembled.state.teacher) > 10 * tolerance  # it has moved


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


def test_a_run_resumes_as_if_never_stopped(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = command(images, tmp_path / "run", *probe(images))
    with _interrupt_after(3, signal.SIGINT, monkeypatch), pytest.raises(Stopped, match="SIGINT at step 3") as stopped:
        run_verb(["pretrain", *given])
    assert stopped.value.status == 3
    assert len(metrics(tmp_path / "run")) == 4
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:  # as if it had been killed after logging further
        log.write('{"step": 4, "loss": 1.0, "time": {"seconds": 1}}\n{"step": 5, "lo')
    run_verb(["pretrain", *given, "--threads", "1"])
    assert metrics(tmp_path / "run") == metrics(finished)
    before = (finished / "model" / "params.safetensors").read_bytes()
    assert (tmp_path / "run" / "model" / "params.safetensors").read_bytes() == before


def test_another_seed_is_another_run(images: Path, finished: Path, tmp_path: Path) -> None:
    """The seed alone is changed: every loss is another, what the schedules give is the same."""
    run_verb(["pretrain", *command(images, tmp_path, "--seed", "1")])
    for line, other in zip(metrics(tmp_path), metrics(finished)[1:], strict=True):
        assert line["step"] == other["step"]
        assert line["lr"] == other["lr"]
        for term in ("loss", "dino_local", "dino_global", "ibot", "koleo"):
            assert line[term] != other[term], (line["step"], term)


class Scores:
    """An evaluator of scores that are given beforehand; it keeps the teachers that it was shown."""

    def __init__(self, *scores: float) -> None:
        self._left = iter(scores)
        self.teachers: list[tree.Params] = []

    def __call__(self, teacher: tree.Params) -> dict[str, float]:
        self.teachers.append(teacher)
        return {"rehearsed": next(self._left)}


def test_model_best_is_the_teacher_of_the_best_score(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an evaluator that neither the monitor nor the loop knows."""
    scores = Scores(0.5, 0.4, 0.7, 0.7, 0.6, 0.6, 0.6)
    evaluator = Evaluator("rehearsal", every(6, 1), scores, scores, score="rehearsed")
    drawn: list[int] = []
    monkeypatch.setattr(Curves, "redraw", lambda curves: drawn.append(len(metrics(tmp_path))))
    monkeypatch.setattr(assembly, "make_evaluators", lambda *given: ((evaluator,), "rehearsal"))
    run_verb(["pretrain", *command(images, tmp_path, "--keep_checkpoints", "1")])
    assert [line["rehearsed"] for line in metrics(tmp_path)] == [0.5, 0.4, 0.7, 0.7, 0.6, 0.6, 0.6]
    assert drawn == [2, 3, 4, 5, 6, 7]
    assert read_description(tmp_path / "model_best")["source"]["step"] == "2"
    for path, array in read_params(tmp_path / "model_best").items():
        np.testing.assert_array_equal(array, scores.teachers[2][f"backbone.{path}"], err_msg=path)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"2", "6"}


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[TrainState], TrainState]) -> None:
    """Changes the state of a run before its step `at`."""
    compile_step = assembly.compile_step

    def spoiled(run: Pretraining, config: PretrainConfig) -> Pretraining:
        run = compile_step(run, config)

        def step(state: TrainState, batch: Any) -> Any:
            return run.step(change(state) if int(state.step) == at - 1 else state, batch)

        return run._replace(step=step)

    monkeypatch.setattr(assembly, "compile_step", spoiled)


def test_a_run_that_failed_resumes_from_its_last_good_state(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = "backbone.blocks.0.mlp.fc1.bias", command(images, tmp_path, *probe(images))
    with monkeypatch.context() as patched:
        spoil(patched, 4, lambda s: dataclasses.replace(s, student=s.student | {path: s.student[path] * jnp.nan}))
        with pytest.raises(RunError, match=r"loss is nan.* at step 4.*failed_batch\.csv") as caught:
            run_verb(["pretrain", *given])
    assert caught.value.status == 1
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
    run_verb(["pretrain", *given])
    assert metrics(tmp_path) == metrics(finished)


def test_a_changed_configuration_is_refused_by_name(images: Path, finished: Path) -> None:
    given = command(images, finished, *probe(images), "--optim.lr", "0.02")
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001, is 0\.02.*--accept_changes optim\.lr"):
        run_verb(["pretrain", *given])


def test_a_second_run_in_the_same_directory_is_refused_before_it_compiles(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock(tmp_path), pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        run_verb(["pretrain", *command(images, tmp_path)])
    assert "compiling" not in capsys.readouterr().out


def test_a_file_that_proves_unreadable_stops_the_run_or_is_listed(images: Path, tmp_path: Path) -> None:
    """Found in the first batch: the run leaves no trace of a start, and when resumed writes the line of step 0 once."""
    data = tmp_path / "data"
    data.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 60, 60, 3), np.uint8)):
        Image.fromarray(pixels).save(data / f"{number}.jpg")
    broken = data / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])  # its header is whole
    given = command(data, tmp_path / "run", *probe(images))
    with pytest.raises(
        RunError, match=r"5\.jpg.*stopped before the first step; repair it.*--on_bad_file skip"
    ) as caught:
        run_verb(["pretrain", *given])
    assert caught.value.status == 1
    run_verb(["pretrain", *given, "--on_bad_file", "skip"])
    listed = (tmp_path / "run" / "skipped_files.csv").read_text().splitlines()
    assert len(listed) == 2
    assert listed[1].startswith("5.jpg,")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6]


def test_continuing_a_model_keeps_its_form_and_its_head(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command(images, tmp_path, "--init", str(finished / "model"), "--steps", "1")
    preset = tmp_path / "preset.yaml"  # its section of another model has no effect, and is not recorded
    preset.write_text("model: {name: vits14, width: 64, channels: 1}\n")
    given = [*given, "--config", str(preset), "--loss.ibot_weight", "0"]
    run_verb(["pretrain", *given])
    assert f"dino_head: continues that of {finished / 'model'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "facts.json").read_text())["heads"] == [
        f"dino_head: continues that of {finished / 'model'}"
    ]
    recorded = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    form = {"name": "vitt14", "width": 32, "depth": 1, "heads": 2, "image_size": 56, "channels": 3, "mlp": "gelu"}
    assert recorded == form | {"layer_scale": None}
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001, is 0\.02; choose"):  # and nothing else has changed
        run_verb(["pretrain", *given, "--optim.lr", "0.02"])
    assert dinojax.load_model(tmp_path / "model").width == 32
    assert metrics(tmp_path)[0]["ibot"] == 0


def test_a_resnet_is_refused(images: Path, tmp_path: Path) -> None:
    tiny = {"blocks": (1,), "filters": (4,), "stem": 4}
    dinojax.save_model(tmp_path / "resnet", dinojax.create_model("resnet50", nnx.Rngs(0), **tiny))
    given = ["--data", str(images), "--out", str(tmp_path / "run")]
    with pytest.raises(UsageError, match=r"resnet holds a resnet50; a vision transformer is needed here$"):
        run_verb(["pretrain", *given, "--init", str(tmp_path / "resnet")])
    with pytest.raises(UsageError, match=r"model resnet50 is not a vision transformer; choose from vitt14, vits14, "):
        run_verb(["pretrain", *given, "--model.name", "resnet50"])
    assert not (tmp_path / "run").exists()


def test_projection_heads_are_not_left_out(images: Path, finished: Path, tmp_path: Path) -> None:
    """One of iBOT's own that the configuration does not name, and one of another form."""
    shutil.copytree(finished / "model", tmp_path / "model")
    given = command(images, tmp_path / "run", "--init", str(tmp_path / "model"))
    with pytest.raises(
        UsageError, match=r"dino_head\.safetensors is of another form than head says .*weight_v.*set head\.\*"
    ):
        run_verb(["pretrain", *given, "--head.bottleneck", "8"])
    shutil.copy(tmp_path / "model" / "dino_head.safetensors", tmp_path / "model" / "ibot_head.safetensors")
    with pytest.raises(UsageError, match=r"ibot_head\.safetensors .*--init_heads fresh"):
        run_verb(["pretrain", *given])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--crops.local_size", "30"], "crops.local_size 30 is not a multiple of the patch size, 14"),
        (["--batch_size", "1000"], "batch_size 1000 is more than the 24 images of .*images"),
        (["--batch_size", "12"], "12 is not a multiple of the 8 devices"),
        (["--head_warmup_steps", "6"], "head_warmup_steps 6 leave none of the 6 steps"),
        (["--optim.lrr", "1"], "lrr"),
        (["--steps", "many"], "steps"),
        (["--model.name", "vits16"], "vits16"),
        (["--init", "nowhere"], "nowhere is not a model directory"),
        (["--init", "x", "--model.width", "64"], r"--init x brings its own model, which --model\.width cannot change"),
    ],
)
def test_mistakes_end_in_one_line(images: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run_verb(["pretrain", *command(images, tmp_path / "run", *arguments)])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_black_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(8):
        Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "data" / f"{number}.png")
    with pytest.raises(RunError, match=r"single value 0 .*0\.png"):
        run_verb(["pretrain", *command(tmp_path / "data", tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_untrained_head_starts_at_log_k(assembled: Pretraining) -> None:
    """Both DINO terms together are log K when student and teacher say nothing: all weights of the head are zero.

    And a teacher whose last norm is zero has the same features for all images.
    """
    run = assembled
    batch = sharding.put_batch(run.mesh, next(run.read_batches(0)) | {"stop": np.zeros(8, bool)})
    silent = {path: jnp.where("weight_g" in path, 0.0, value) for path, value in run.state.student.items()}
    state = dataclasses.replace(run.state, student=silent, teacher=jax.tree.map(jnp.copy, silent))
    _, values = run.step(sharding.put_state(run.mesh, jax.tree.map(jnp.copy, state)), batch)
    assert float(values["dino_local"] + values["dino_global"]) == pytest.approx(np.log(64), rel=1e-5)
    assert float(values["target_entropy"]) == pytest.approx(np.log(64), rel=1e-5)
    assert float(values["kl"]) == pytest.approx(0, abs=1e-4)
    assert float(values["feature_std"]) > 1e-3

    norm = "backbone.norm.scale"
    state = dataclasses.replace(run.state, teacher=run.state.teacher | {norm: run.state.teacher[norm] * 0})
    _, values = run.step(sharding.put_state(run.mesh, jax.tree.map(jnp.copy, state)), batch)
    assert float(values["feature_std"]) < 1e-7
