"""The verbs as functions, and what importing the package loads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinojax
from dinojax.errors import UsageError
from dinojax.verbs import run

SMALL = {"name": "vitt14", "width": 32, "depth": 1, "heads": 2, "image_size": 28}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 100)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(low, low + 150, (28, 28), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_a_function_writes_what_its_command_writes(data: Path, tmp_path: Path) -> None:
    called, commanded = tmp_path / "called", tmp_path / "commanded"
    assert dinojax.evaluate("knn", data=data, out=called, folds=3, ks=1, model=SMALL) == called
    keys = [f"--model.{name}={value}" for name, value in SMALL.items()]
    run(["evaluate", "knn", "--data", str(data), "--out", str(commanded), "--folds", "3", "--ks", "[1]", *keys])
    files = {path.relative_to(called) for path in called.rglob("*") if path.suffix in (".csv", ".json")}
    assert Path("predictions.csv") in files
    for file in files:
        assert (called / file).read_text() == (commanded / file).read_text(), file
    config = (called / "config.yaml").read_text().replace(str(called), "OUT")
    assert config == (commanded / "config.yaml").read_text().replace(str(commanded), "OUT")
    assert dinojax.report([called], out=tmp_path / "report") == tmp_path / "report"
    assert (tmp_path / "report" / "table.csv").is_file()


def test_a_function_refuses_what_its_command_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"optim\.lrr"):
        dinojax.pretrain(data=tmp_path, out=tmp_path / "run", preset="laptop", optim={"lrr": 1.0})
    with pytest.raises(UsageError, match="there is no verb 'evaluate nearest'; choose from evaluate knn"):
        dinojax.evaluate("nearest", data=tmp_path, out=tmp_path / "run")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dinojax.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code",
    [
        "import dinojax",
        "from dinojax.__main__ import main; main()",
        "from dinojax.verbs import run; run(['pretrain', '-h'])",
    ],
)
def test_jax_is_loaded_only_by_what_computes(code: str) -> None:
    check = f"""
import sys; sys.argv = ["dinojax", "pretrain", "--optim.lrr", "1"]
try:
    {code}
except SystemExit:
    pass
print([name for name in ("jax", "flax", "pandas", "numpy", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
