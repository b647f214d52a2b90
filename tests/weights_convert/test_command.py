"""`python -m weights_convert`: files to model directories that load and give the reference figures."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import dinojax
from dinojax.config.pretrain import HeadConfig
from dinojax.dino.modules import make_projections
from dinojax.models import ViTArguments
from dinojax.models.store import load_linear_head
from tests import goldens_reader as goldens
from tests.weights_convert import published, torch_files
from weights_convert.__main__ import convert_file, main


def files() -> Path:
    return goldens.goldens_dir() / "files"


def nhwc(name: str, shape: tuple[int, ...]) -> jnp.ndarray:
    return jnp.asarray(goldens.rebuild(name, shape).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("dinov2_tiny_pretrain.pth", 5e-6),
        ("dinov2_tiny_legacy_format.pth", 5e-6),
        ("dinov2_tiny.safetensors", 5e-6),
        ("teacher_checkpoint.pth", 5e-6),
        ("teacher_checkpoint_chunked.pth", 5e-6),
        ("dinov2_tiny_fp16.pth", 2e-3),
    ],
)
def test_golden_files_convert_and_load(tmp_path: Path, name: str, tolerance: float) -> None:
    assert main([str(files() / name), str(tmp_path / "model"), "--heads", "2"]) == 0
    model = dinojax.load_model(tmp_path / "model")
    arguments = model.arguments
    assert isinstance(arguments, ViTArguments)
    assert (arguments.width, arguments.depth, arguments.image_size) == (32, 2, 70)
    features = model(nhwc("input.tiny", (2, 3, 70, 70)))
    golden = goldens.load("tiny.npz")
    goldens.assert_close(features.pooled, golden["cls"], tolerance)
    goldens.assert_close(features.patches.reshape(2, 25, 32), golden["patch"], tolerance)


def test_golden_huggingface_and_timm_files(tmp_path: Path) -> None:
    for name, golden, given, argv in [
        ("hf_dinov2_tiny", "tiny_hf.npz", "input.hf", []),
        ("timm_reg4_tiny.safetensors", "tiny_timm_reg4.npz", "input.timm", ["--heads", "2"]),
    ]:
        assert main([str(files() / name), str(tmp_path / name), *argv]) == 0
        features = dinojax.load_model(tmp_path / name)(nhwc(given, (2, 3, 70, 70)))
        tokens = [features.pooled[:, None], features.registers, features.patches.reshape(2, 25, 32)]
        (expected,) = goldens.load(golden).values()
        goldens.assert_close(np.concatenate([part for part in tokens if part is not None], 1), expected, 5e-6)


@pytest.mark.parametrize("kind", ["weights", "model", "bytes"])
def test_golden_keras_files(tmp_path: Path, kind: str) -> None:
    assert main([str(files() / f"resnet50_tiny_notop_{kind}.h5"), str(tmp_path / "model")]) == 0
    model = dinojax.load_model(tmp_path / "model")
    assert (model.name, model.preprocessing.order) == ("resnet50_keras", "BGR")
    features = model(jnp.asarray(goldens.rebuild("input.resnet50_tiny", (2, 96, 96, 3))))
    goldens.assert_close(features.pooled, goldens.load("resnet50_tiny_keras.npz")["pooled"], 1e-5)


def test_golden_vits14_of_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = published.rebuilt(published.backbone(384, 12, 37))
    source = torch_files.write_tensors(tmp_path / "vits14.pth", tensors)
    assert 88e6 < source.stat().st_size < 89e6
    assert main([str(source), str(tmp_path / "model")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"{tmp_path / 'model'}: vits14, 22,056,576 parameters, 88.2 MB" in last
    assert "dinojax.load_model(" in last
    model = dinojax.load_model(tmp_path / "model")
    assert model.name == "vits14"
    features = model(nhwc("input.vits14.98x98", (2, 3, 98, 98)))
    golden = goldens.load("vits14.npz")
    goldens.assert_close(features.pooled, golden["98x98.cls"], 1e-5)
    goldens.assert_close(features.patches.reshape(2, 49, 384), golden["98x98.patch"], 1e-5)


def test_swiglu_and_registers_are_read_off(tmp_path: Path) -> None:
    tensors = published.rebuilt(published.backbone(192, 2, 5, registers=4, gated=512))
    source = torch_files.write_tensors(tmp_path / "x.pth", tensors)
    assert main([str(source), str(tmp_path / "model")]) == 0
    arguments = dinojax.load_model(tmp_path / "model").arguments
    assert isinstance(arguments, ViTArguments)
    assert (arguments.heads, arguments.registers, arguments.mlp, arguments.image_size) == (3, 4, "swiglu", 70)


def test_the_directory_says_where_it_comes_from(tmp_path: Path) -> None:
    source = files() / "teacher_checkpoint.pth"
    assert main([str(source), str(tmp_path / "model"), "--heads", "2"]) == 0
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["source"] == {
        "file": "teacher_checkpoint.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "layout": "dinov2_teacher",
        "part": "teacher",
    }
    assert description["versions"].keys() >= {"dinojax", "jax", "flax"}
    head = safetensors.numpy.load_file(tmp_path / "model" / "dino_head.safetensors")
    rebuilt = published.rebuilt(published.TINY_HEAD)
    goldens.assert_close(head["mlp.1.kernel"], rebuilt["mlp.2.weight"].T, 2**-22)
    goldens.assert_close(head["last_layer.weight_v"], rebuilt["last_layer.weight_v"].T, 2**-22)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_other_models_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resnet = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "bn1.weight": np.zeros(64, np.float32)}
    tiny = published.rebuilt(published.TINY)
    wide = published.rebuilt(published.backbone(32, 2, 5)) | {"pooler.weight": np.zeros((10, 32), np.float32)}
    narrow = {k: v for k, v in tiny.items() if ".mlp." not in k} | {
        f"blocks.{i}.mlp.{name}": np.zeros(shape, np.float32)
        for i in range(2)
        for name, shape in {
            "fc1.weight": (64, 32),
            "fc1.bias": (64,),
            "fc2.weight": (32, 64),
            "fc2.bias": (32,),
        }.items()
    }
    crooked = tiny | {"pos_embed": np.zeros((1, 27, 32), np.float32)}
    student = {f"teacher.backbone.{k}": v for k, v in tiny.items()} | {"teacher.centre": np.zeros(3, np.float32)}
    twice = {"blocks.7.0.ls1.gamma": tiny["norm.bias"]} | tiny
    for number, (tensors, said) in enumerate(
        [
            (resnet, "it holds 2 tensors: conv1.weight, bn1.weight"),
            (wide, "unexpected (1): pooler.weight"),
            (narrow, "blocks.0.mlp.fc1.kernel"),
            (crooked, "pos_embed has 27 positions"),
            (student, "teacher.centre"),
            (twice, "the same block twice"),
        ]
    ):
        source = torch_files.write_tensors(tmp_path / f"{number}.pth", tensors)
        assert main([str(source), str(tmp_path / "model"), "--heads", "2"]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith(f"weights_convert: {source}: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "model").exists()


def test_wrong_arguments_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, taken, run = files() / "dinov2_tiny_pretrain.pth", tmp_path / "taken", tmp_path / "run"
    convert_file(source, run / "model", heads=2)
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for argv, said in [
        ([source, tmp_path / "model"], "--heads N"),
        ([source, tmp_path / "model", "--heads", "3"], "not a multiple of its 3 heads"),
        ([source, tmp_path / "model", "--heads", "0"], "must be 1 or more"),
        ([source, tmp_path / "model", "--part", "student"], "the file has no student"),
        ([source, tmp_path / "model", "--to", "keras"], "invalid choice"),
        ([source, tmp_path / "model", "--to", "hf"], "not a model directory"),
        ([source, tmp_path / "model", "--to", "hf", "--heads", "2"], "leave out --heads"),
        ([source, tmp_path / "model", "--inspect"], "writes nothing; leave out DST"),
        ([source], "DST"),
        ([source, ".", "--heads", "2"], "is the current directory"),
        ([source, taken, "--heads", "2"], f"{taken} exists already"),
        ([source, tmp_path / "model", "--head", "2"], "unrecognized arguments: --head"),
        ([tmp_path / "absent.pth", tmp_path / "model"], "there is no such file"),
        ([run / "model" / "params.safetensors", tmp_path / "model"], f"{run / 'model'} is a model directory already"),
        ([run, tmp_path / "model", "--to", "hf"], f"has no model.json; take {run / 'model'}"),
        ([run, tmp_path / "model"], f"is the directory of a run; its model is {run / 'model'}"),
        ([run, "--inspect"], f"is the directory of a run; its model is {run / 'model'}"),
    ]:
        assert main(list(map(str, argv))) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]
    assert (taken / "mine.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_written_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    argv = [str(files() / "dinov2_tiny_pretrain.pth"), str(tmp_path / "file" / "model"), "--heads", "2"]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert error.count("\n") == 1


def test_either_model_of_a_training_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model_0000007.rank_0.pth"
    student = torch_files.training_checkpoint(source)
    for part, offset in [("teacher", -1), ("student", 0)]:
        argv = [str(source), str(tmp_path / part), "--heads", "2"]
        assert main(argv if part == "teacher" else [*argv, "--part", part]) == 0
        assert "optimizer" in capsys.readouterr().out
        stored = safetensors.numpy.load_file(tmp_path / part / "params.safetensors")
        np.testing.assert_allclose(stored["norm.bias"], student["norm.bias"] + offset, atol=1e-6)
        assert json.loads((tmp_path / part / "model.json").read_text())["source"]["part"] == part
        assert (tmp_path / part / "dino_head.safetensors").exists()


@pytest.mark.parametrize(("blocks", "inputs"), [(1, 64), (4, 160)])
def test_a_linear_head_goes_beside_its_backbone(tmp_path: Path, blocks: int, inputs: int) -> None:
    source, directory = tmp_path / "linear_head.pth", tmp_path / "model"
    weight = torch_files.linear_head(source, inputs)
    backbone = torch_files.write_tensors(tmp_path / "backbone.pth", published.rebuilt(published.backbone(32, 4, 5)))
    assert main([str(backbone), str(directory), "--heads", "2"]) == 0
    before = json.loads((directory / "model.json").read_text())
    assert main([str(source), str(directory)]) == 0
    head = safetensors.numpy.load_file(directory / "linear_head.safetensors")
    np.testing.assert_array_equal(head["kernel"], weight.T)
    after = json.loads((directory / "model.json").read_text())
    assert after.pop("linear_head") == {
        "file": "linear_head.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "layout": "dinov2_linear_head",
        "blocks": blocks,
    }
    assert after == before
    assert {path.name for path in directory.iterdir()} == {
        "model.json",
        "params.safetensors",
        "linear_head.safetensors",
    }
    dinojax.load_model(directory)
    loaded = load_linear_head(directory)
    assert loaded.blocks == blocks
    np.testing.assert_array_equal(loaded.kernel[...], weight.T)
    np.testing.assert_array_equal(loaded.bias[...], head["bias"])


def test_a_linear_head_without_its_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_files.linear_head(tmp_path / "other.pth", 96)
    torch_files.linear_head(tmp_path / "head.pth", 64)
    for name in ("dinov2_tiny_pretrain.pth", "resnet50_tiny_notop_weights.h5"):
        argv = [str(files() / name), str(tmp_path / name), *(["--heads", "2"] if name.startswith("dino") else [])]
        assert main(argv) == 0
    vit, resnet = tmp_path / "dinov2_tiny_pretrain.pth", tmp_path / "resnet50_tiny_notop_weights.h5"
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "model.json").write_text(
        json.dumps(json.loads((vit / "model.json").read_text()) | {"classifier": {"outputs": 1}})
    )
    capsys.readouterr()
    for source, directory, status, said in [
        ("head.pth", tmp_path / "absent", 2, "name the model directory of its backbone"),
        ("head.pth", resnet, 1, "not a vision transformer"),
        ("other.pth", vit, 1, "reads 96 features; one for this backbone of width 32 with 2 blocks reads 64, or 160"),
        ("head.pth", vit, 0, ""),
        ("head.pth", vit, 2, "exists already"),
        ("head.pth", classifier, 2, "is a fine-tuned classifier"),
    ]:
        before = {path: path.read_bytes() for path in vit.iterdir()}
        assert main([str(tmp_path / source), str(directory)]) == status
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == (status > 0)
        assert not status or before == {path: path.read_bytes() for path in vit.iterdir()}
    assert not (tmp_path / "absent").exists()
    assert not (resnet / "linear_head.safetensors").exists()


PARAMETRISED = {
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}


@pytest.mark.parametrize("prefix", ["", "dino_head.", "head.", "ibot_head."])
@pytest.mark.parametrize("parametrised", [False, True])
def test_a_projection_head_goes_beside_its_backbone_and_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str, parametrised: bool
) -> None:
    """As RAD-DINO publishes its own, in a file by itself."""
    head, directory = published.rebuilt(published.TINY_HEAD), tmp_path / "rad_dino"
    head["last_layer.weight_g"] = np.arange(1, 129, dtype=np.float32)[:, None]
    names = {name: prefix + (PARAMETRISED.get(name, name) if parametrised else name) for name in head}
    source = tmp_path / "dino_head.safetensors"
    safetensors.numpy.save_file({names[name]: array for name, array in head.items()}, source)
    assert main([str(files() / "dinov2_tiny_pretrain.pth"), str(directory), "--heads", "2"]) == 0
    before = json.loads((directory / "model.json").read_text())
    capsys.readouterr()
    assert main([str(source), str(directory)]) == 0
    name, section = ("ibot_head", "ibot_head") if prefix == "ibot_head." else ("dino_head", "head")
    form = {"prototypes": 128, "hidden": 48, "bottleneck": 16, "layers": 3}
    told = " ".join(f"--{section}.{key} {value}" for key, value in form.items())
    assert f"pre-training continues it with --init {directory} {told}\n" in capsys.readouterr().out
    after = json.loads((directory / "model.json").read_text())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert after.pop(name) == {"file": source.name, "sha256": digest, "layout": f"dinov2_{name}"}
    assert after == before
    made = make_projections({name: HeadConfig(**form)}, 32, str(directory), seed=0)[0][name]
    np.testing.assert_array_equal(made.mlp[1].kernel[...], head["mlp.2.weight"].T)
    np.testing.assert_array_equal(made.last_layer.weight_g[...], np.arange(1, 129))
    np.testing.assert_array_equal(made.last_layer.weight_v[...], head["last_layer.weight_v"].T)
    assert main(["--inspect", str(directory)]) == 0
    assert f"{name:<14} file dino_head.safetensors, sha256 {digest}" in capsys.readouterr().out


def test_a_projection_head_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit = tmp_path / "vit"
    assert main([str(files() / "dinov2_tiny_pretrain.pth"), str(vit), "--heads", "2"]) == 0
    wide, right = published.rebuilt(published.head(48, 128, 48, 16)), published.rebuilt(published.TINY_HEAD)
    twice = right | {PARAMETRISED["last_layer.weight_v"]: right["last_layer.weight_v"]}
    source = tmp_path / "dino_head.safetensors"
    safetensors.numpy.save_file(right, source)
    assert main([str(source), str(vit), "--heads", "2"]) == 2
    assert "leave out --heads" in capsys.readouterr().err
    for tensors, directory, status, said in [
        (right, tmp_path / "absent", 2, "is a projection head; name the model directory of its backbone"),
        (wide, vit, 1, "the projection head reads 48 features, the backbone's width is 32"),
        (twice, vit, 1, "its last layer is there in two forms"),
        ({k: v for k, v in right.items() if k != "mlp.2.bias"}, vit, 1, "missing (1): mlp.2.bias"),
        (right | {"mlp.0.scale": right["mlp.0.bias"]}, vit, 1, "unexpected (1): mlp.0.scale"),
        (right, vit, 0, ""),
        (right, vit, 2, "exists already"),
    ]:
        before = {path: path.read_bytes() for path in vit.iterdir()}
        safetensors.numpy.save_file(tensors, source)
        assert main([str(source), str(directory)]) == status
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == (status > 0)
        assert not status or before == {path: path.read_bytes() for path in vit.iterdir()}


def test_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_files.linear_head(tmp_path / "head.pth", 64)
    argv = [str(files() / "dinov2_tiny_pretrain.pth"), str(tmp_path / "model"), "--heads", "2"]
    replace = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if target.name in ("params.safetensors", "model.json"):
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        assert main(argv) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["head.pth"]
    assert main(argv) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(Path, "replace", fail)
    assert main([str(tmp_path / "head.pth"), str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert "No space left" in error
    assert error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_the_way_back_gives_the_same_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, back = files() / "dinov2_tiny.safetensors", tmp_path / "back.safetensors"
    assert main([str(source), str(tmp_path / "model"), "--heads", "2"]) == 0
    assert main([str(tmp_path / "model"), str(back), "--to", "dinov2"]) == 0
    assert f"wrote {back}" in capsys.readouterr().out
    expected, found = safetensors.numpy.load_file(source), safetensors.numpy.load_file(back)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert main([str(tmp_path / "model"), str(tmp_path / "timm.safetensors"), "--to", "timm"]) == 0
    assert "mask_token: timm has no place for it" in capsys.readouterr().out
    assert main([str(tmp_path / "model"), str(tmp_path / "other")]) == 2
    assert "is a model directory already" in capsys.readouterr().err


def test_a_classifier_that_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"head.weight": np.zeros((10, 32), np.float32), "head.bias": np.zeros(10, np.float32)}
    source = torch_files.write_tensors(tmp_path / "x.pth", published.rebuilt(published.TINY) | head)
    assert main([str(source), str(tmp_path / "model"), "--heads", "2"]) == 0
    assert "left out       head.weight, head.bias\n" in capsys.readouterr().out


def test_a_reader_of_the_output_may_stop_early() -> None:
    command = [sys.executable, "-m", "weights_convert", "--inspect", str(files() / "dinov2_tiny_pretrain.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_golden_malicious_file_as_a_command(tmp_path: Path) -> None:
    """In a process of its own, with the directory in which the attack would leave its mark."""
    done = subprocess.run(
        [sys.executable, "-m", "weights_convert", str(files().resolve() / "malicious.pth"), "model"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "posix.system" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
