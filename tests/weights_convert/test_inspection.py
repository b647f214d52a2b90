"""`python -m weights_convert --inspect`: what files and model directories are, without converting them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests import goldens_reader as goldens
from tests.weights_convert import published, torch_files
from weights_convert.__main__ import main


def files() -> Path:
    return goldens.goldens_dir() / "files"


def test_inspect_shows_files_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_files.training_checkpoint(tmp_path / "training.pth")
    torch_files.linear_head(tmp_path / "head.pth", 64)
    for source, said in [
        (files() / "dinov2_tiny_pretrain.pth", ["PyTorch file", "layout         dinov2", "2 blocks of width 32"]),
        (files() / "dinov2_tiny_legacy_format.pth", ["PyTorch file of the format before 1.6"]),
        (files() / "dinov2_tiny_fp16.pth", ["(96, 32) float16", "35 tensors"]),
        (files() / "timm_reg4_tiny.safetensors", ["safetensors file", "layout         timm", "4 registers"]),
        (files() / "hf_dinov2_tiny", ["Hugging Face folder with a safetensors file", "layout         hf"]),
        (files() / "resnet50_tiny_notop_model.h5", ["Keras HDF5 file", "layout         keras", "256 pixels, BGR"]),
        (tmp_path / "training.pth", ["dinov2_training_teacher", "dino_head", "optimizer.state.0.exp_avg"]),
        (tmp_path / "head.pth", ["dinov2_linear_head", "(1000, 64) float32"]),
    ]:
        argv = ["--inspect", str(source)]
        assert main(argv if source.suffix == ".h5" or source.is_dir() else [*argv, "--heads", "2"]) == 0
        shown = capsys.readouterr().out
        assert all(text in shown for text in said), shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.pth", "training.pth"]


def test_inspect_sums_up_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    source = files() / "dinov2_tiny_pretrain.pth"
    assert main(["--inspect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["sha256", hashlib.sha256(source.read_bytes()).hexdigest()]
    assert "known, but the width, 32, does not tell the number of attention heads; add --heads N" in lines[2]
    cells = [line.split() for line in lines]
    assert ["blocks.{0..1}.attn.qkv.weight", "(96,", "32)", "float32", "×", "2"] in cells
    assert ["blocks.{0..1}.norm{1..2}.bias", "(32)", "float32", "×", "4"] in cells
    count = sum(int(np.prod(shape)) for shape in published.TINY.values())
    assert lines[-1] == f"{len(published.TINY)} tensors, {count:,} parameters, {4 * count:,} bytes"


def test_inspect_lists_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {f"h.{i}.w": np.zeros((2, 3), np.float32) for i in (0, 1, 3)}
    tensors |= {f"{k}.{i}.b": np.zeros(3, np.float32) for k, i in [(0, 0), (0, 1), (1, 2)]}
    tensors |= {"x01": np.zeros(1, np.float32), "x1": np.zeros(1, np.float32), "x#": np.zeros(1, np.float32)}
    source = torch_files.write_tensors(tmp_path / "x.pth", tensors)
    assert main(["--inspect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("layout         not recognised: no DINOv2")
    assert [line.split()[0] for line in lines[4:-1]] == ["h.{0,1,3}.w", "0.{0..1}.b", "1.2.b", "x{01,1}", "x#"]


def test_inspect_shows_a_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(files() / "teacher_checkpoint.pth"), str(tmp_path / "model"), "--heads", "2"]) == 0
    capsys.readouterr()
    assert main(["--inspect", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    given, params = files() / "teacher_checkpoint.pth", tmp_path / "model" / "params.safetensors"
    for text in (
        hashlib.sha256(given.read_bytes()).hexdigest(),
        f"{hashlib.sha256(params.read_bytes()).hexdigest()} of params.safetensors",
        "width 32",
        "mean [0.485",
        "params.safetensors",
        "blocks.{0..1}.attn.qkv.kernel",
        "dino_head.s",
    ):
        assert text in shown
    description = (tmp_path / "model" / "model.json").read_text()
    for damage in (
        lambda: (tmp_path / "model" / "model.json").write_text(description.replace('"heads"', '"headz"')),
        lambda: (tmp_path / "model" / "model.json").write_text(description.replace('"depth": 2', '"depth": 3')),
        lambda: params.write_bytes(b"damaged"),
        params.unlink,
    ):
        damage()
        assert main(["--inspect", str(tmp_path / "model")]) != 0
        assert capsys.readouterr().err.count("\n") == 1
        (tmp_path / "model" / "model.json").write_text(description)
