"""Every notebook runs from top to bottom, out of the box but on less data, and its figures come out."""

import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Put behind each notebook's cell of settings, and how many figures then come out.
SETTINGS = {"look_at_a_model": ("SIZE, SEARCHED, SHOWN = 56, 12, 4\nFIGURES = 'figures'", 12)}


@pytest.fixture
def own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of the Python that runs the tests, whatever kernels this machine has."""
    folder = tmp_path / "jupyter" / "kernels" / "tests"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "tests", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return "tests"


def test_there_are_notebooks_and_settings_for_each() -> None:
    assert {path.stem for path in NOTEBOOKS} == SETTINGS.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_figures_come_out(path: Path, tmp_path: Path, own_python: str) -> None:
    settings, count = SETTINGS[path.stem]
    notebook = nbformat.read(path, as_version=4)
    (given,) = (place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(given + 1, nbformat.v4.new_code_cell(settings))
    folder = tmp_path / "work"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name=own_python, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == count
    figures = sorted((folder / "figures").glob("*.png"))
    assert len(figures) == count
    for figure in figures:
        with Image.open(figure) as image:
            assert min(image.size) > 150
            assert np.asarray(image.convert("L")).std() > 5, f"{figure.name} is empty"
    warned = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in warned if "Warning" in text]
