"""Imports go one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = ("demo", "phantoms", "pretrain", "finetune", "report")
BASE = {"errors", "config", "tree"}
DINO = ("accumulation", "health", "losses", "packing", "state")
# What each part of dinojax may import of dinojax, besides itself.
ALLOWED = {
    "errors": set(),
    "config": {"errors", "ranges"},
    "ranges": {"errors"},
    "tree": {"errors"},
    "progress": set(),
    "signals": set(),
    "seeds": set(),
    "rundir": BASE,
    "processes": BASE,
    "schedules": BASE,
    "sharding": BASE,
    "optim": BASE | {"schedules", "sharding"},
    "checkpoint": BASE | {"rundir", "sharding"},
    "models": BASE,
    "data": BASE | {"progress"},
    "augment": BASE,
    "dino.accumulation": BASE,
    "dino.health": BASE,
    "dino.losses": BASE | {"dino.accumulation"},
    "dino.masking": BASE,
    "dino.packing": BASE,
    "dino.state": BASE | {"schedules", "optim", "models"},
    "dino.step": BASE | {"optim", "models"} | {f"dino.{part}" for part in DINO},
    "evaluation": BASE | {"sharding", "models", "data"},
}


def part_of(module: str) -> str:
    """`dinojax.models.vit` belongs to `models`, `dinojax.dino.step` to `dino.step`."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["dino"] else (parts or ["dinojax"])[0]


def imports(path: Path) -> set[str]:
    """Modules of the project that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            children = {f"{module}.{alias.name}" for alias in node.names}
            found |= {
                child
                if (ROOT / Path(*child.split("."))).with_suffix(".py").exists()
                or (ROOT / Path(*child.split("."))).is_dir()
                else module
                for child in children
            }
    return {module for module in found if module.split(".")[0] in ("dinojax", "weights_convert")}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("dinojax"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    part = part_of(module)
    imported = imports(path)
    assert not {m for m in imported if m.startswith("weights_convert")}
    parts = {part_of(m) for m in imported} - {part}
    assert not parts & set(VERBS), f"{module} imports a verb"
    if part in ALLOWED:
        assert parts <= ALLOWED[part], f"{module} must not import {sorted(parts - ALLOWED[part])}"
    else:
        parts_of_verbs = {"pretraining", "monitor", "finetuning", "cases", "study"}
        top = {"dinojax", "__main__", "dino", *parts_of_verbs, *VERBS}
        assert part in top, f"{module}: say in this test what it may import"


@pytest.mark.parametrize("path", modules("weights_convert"), ids=lambda path: path.name)
def test_weights_convert_imports_only_what_it_needs(path: Path) -> None:
    parts = {part_of(m) for m in imports(path) if m.startswith("dinojax.")}
    assert parts <= {"models", "tree", "checkpoint", "errors"}


def test_importing_loads_no_other_framework() -> None:
    check = (
        "import sys, dinojax, weights_convert.__main__;"
        "print([m for m in ('torch', 'tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verbs_are_short_enough_to_read() -> None:
    lengths = {verb: len((ROOT / "dinojax" / f"{verb}.py").read_text().splitlines()) for verb in VERBS}
    assert max(lengths.values()) <= 150, lengths
