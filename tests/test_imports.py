"""Imports go one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room of dinojax, from the bottom to the top, and which others its modules may import.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "wording": set(),
    "levels": set(),
    "config": {"errors"},
    "tree": {"errors"},
    "seeds": set(),
    "progress": set(),
    "schedules": set(),
    "sharding": {"errors"},
    "costs": {"wording"},
    "optim": {"tree"},
    "processes": {"errors", "config"},
    "runs.files": {"errors"},
    "runs": {"errors", "tree", "config", "runs.files"},
    "models": {"errors", "levels", "tree", "runs.files"},
    "augment": {"config"},
    "data": {"errors", "wording", "levels", "config", "seeds", "progress", "runs.files", "augment.geometry"},
    "dino": {"errors", "tree", "seeds", "config", "schedules", "optim", "models"},
    "reporting": {"errors", "runs.files"},
    "protocols": {
        *(
            "errors",
            "wording",
            "levels",
            "tree",
            "seeds",
            "config",
            "progress",
            "sharding",
            "costs",
            "optim",
            "runs.files",
        ),
        *("models", "data", "augment", "reporting"),
    },
    "look": {"tree", "models", "augment.geometry", "data", "reporting", "protocols"},
    "dino.evaluators": {"tree", "protocols"},
    "dino.facts": {"config", "costs", "models", "data", "dino"},
    "dino.corpus": {"errors", "config", "processes", "models", "data"},
    "dino.assembly": {
        *("errors", "seeds", "config", "costs", "sharding", "models", "data", "augment", "dino"),
        *("dino.corpus", "dino.evaluators", "dino.facts", "protocols"),
    },
    "dino.monitor": {"errors", "tree", "runs", "runs.files", "dino", "dino.evaluators"},
    "dino.loop": {
        *("errors", "tree", "progress", "sharding", "runs", "data", "dino", "dino.assembly", "dino.monitor"),
    },
    "dino.outputs": {
        *("errors", "progress", "config", "runs", "models", "data", "dino", "reporting", "runs.files"),
    },
    "verbs": {
        *("errors", "wording", "tree", "progress", "config", "sharding", "processes", "runs", "models", "data", "dino"),
        *("reporting",),
        *("protocols", "look", "dino.assembly", "dino.monitor", "dino.outputs", "dino.loop", "runs.files"),
    },
    "api": {"config", "verbs"},
    "dinojax": {"models", "api"},  # the package itself: its public interface
    "__main__": {"errors", "verbs"},
}


def room_of(module: str) -> str:
    """`dinojax.models.vit` stands in `models`, `dinojax.dino.assembly` in the room of its own above `protocols`."""
    name = module.removeprefix("dinojax.")
    return name if name in ROOMS else name.split(".")[0]


def allowed(module: str, imported: str) -> bool:
    name, rights = imported.removeprefix("dinojax."), ROOMS[room_of(module)]
    return room_of(imported) in {room_of(module), *rights} or any(
        f"{name}.".startswith(f"{right}.") for right in rights
    )


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


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


INSIDE = modules("dinojax")


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module = name_of(path)
    assert room_of(module) in ROOMS, f"{module} stands in no layer: say in this test what it may import"
    wrong = sorted(other for other in imports(path) if not allowed(module, other))
    assert not wrong, f"{module} must not import {wrong}"


def test_no_permission_is_left_unused() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in INSIDE:
        room = room_of(name_of(path))
        for other in imports(path):
            name = other.removeprefix("dinojax.")
            used[room] |= {
                right for right in ROOMS[room] if room_of(other) == right or f"{name}.".startswith(f"{right}.")
            }
    unused = {room: sorted(rights - used[room]) for room, rights in ROOMS.items() if rights - used[room]}
    assert not unused


def test_rooms_stand_in_order() -> None:
    order = list(ROOMS)
    for room, rights in ROOMS.items():
        for right in rights:
            assert order.index(room_of(right)) < order.index(room), f"{room} must not import {right}, which is above it"


@pytest.mark.parametrize("path", modules("weights_convert"), ids=lambda path: path.name)
def test_weights_convert_imports_only_what_it_needs(path: Path) -> None:
    rooms = {room_of(module) for module in imports(path) if module.startswith("dinojax.")}
    assert rooms <= {"models", "tree", "runs.files", "errors"}


def test_importing_loads_no_other_framework() -> None:
    check = (
        "import sys, dinojax, weights_convert.__main__;"
        "print([m for m in ('torch', 'tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verbs_are_short_enough_to_read() -> None:
    lengths = {path.stem: len(path.read_text().splitlines()) for path in modules("dinojax/verbs")}
    assert max(lengths.values()) <= 100, lengths
