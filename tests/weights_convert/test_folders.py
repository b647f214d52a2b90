"""Hugging Face folders: one file, or shards that an index names."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from dinojax.errors import RunError
from tests import goldens_reader as goldens
from tests.weights_convert import torch_files
from weights_convert import readers

TENSORS = {f"layer.{i}": np.full((2, 3), i, np.float32) for i in range(4)}


def sharded(folder: Path, suffix: str = "safetensors") -> Path:
    """TENSORS in two files and their index; returns the index."""
    places = {}
    for shard in range(2):
        name = f"model-{shard}.{suffix}"
        inside = {key: array for key, array in TENSORS.items() if int(key[-1]) % 2 == shard}
        if suffix == "bin":
            torch_files.write_tensors(folder / name, inside)
        else:
            safetensors.numpy.save_file(inside, folder / name)
        places |= dict.fromkeys(inside, name)
    stem = "pytorch_model.bin" if suffix == "bin" else "model.safetensors"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": places}))
    return index


def test_golden_folder() -> None:
    folder = goldens.goldens_dir() / "files" / "hf_dinov2_tiny"
    source = readers.read_file(folder)
    assert source.config is not None
    assert source.config["model_type"] == "dinov2"
    assert source.tensors["embeddings.cls_token"].shape == (1, 1, 32)
    assert source.sha256() == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    alone = readers.read_file(folder / "model.safetensors")
    assert (alone.config, alone.sha256()) == (source.config, source.sha256())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_and_preprocessor(tmp_path: Path, suffix: str) -> None:
    sharded(tmp_path, suffix)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 518}')
    source = readers.read_file(tmp_path)
    assert source.tensors.keys() == TENSORS.keys()
    assert all(np.array_equal(source.tensors[key], TENSORS[key]) for key in TENSORS)
    assert source.config == {"preprocessor": {"size": 518}}
    both = b"".join((tmp_path / f"model-{i}.{suffix}").read_bytes() for i in range(2))
    assert source.sha256() == hashlib.sha256(both).hexdigest()


@pytest.mark.parametrize(
    ("name", "config"),
    [("config.json", {"size": 518}), ("preprocessor_config.json", {"preprocessor": {"size": 518}})],
)
def test_a_file_by_itself_is_read_with_what_lies_beside_it(
    tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / name).write_text('{"size": 518}')
    assert readers.read_file(tmp_path / "model.safetensors").config == config


def test_one_file_goes_before_shards_and_torch_files_are_read(tmp_path: Path) -> None:
    torch_files.write_tensors(tmp_path / "pytorch_model.bin", {"a": np.zeros(1, np.float32)})
    assert readers.read(tmp_path).keys() == {"a"}
    sharded(tmp_path)
    assert readers.read(tmp_path).keys() == TENSORS.keys()
    safetensors.numpy.save_file({"b": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert readers.read(tmp_path).keys() == {"b"}


@pytest.mark.parametrize(
    "place",
    [
        "../model-0.safetensors",
        "/etc/model-0.safetensors",
        "..\\model-0.safetensors",
        "C:model-0.safetensors",
        "sub/model-0.safetensors",
        "config.json",
        "model-0.safetensors\0",
        "..",
        7,
        None,
        ["model-0.safetensors"],
    ],
)
def test_an_index_names_only_what_lies_beside_it(tmp_path: Path, place: object) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    index = sharded(folder)
    safetensors.numpy.save_file({"layer.0": TENSORS["layer.0"]}, tmp_path / "model-0.safetensors")
    found = json.loads(index.read_text())
    found["weight_map"]["layer.0"] = place
    index.write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"index\.json: it names a file that does not lie beside it"):
        readers.read(folder)


def test_broken_folders_end_in_one_line(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    whole = json.loads(index.read_text())
    moved = {**whole["weight_map"], "layer.0": "model-1.safetensors"}
    missing = {key: place for key, place in whole["weight_map"].items() if key != "layer.1"}
    for content, said in [
        (json.dumps({"weight_map": moved}), r"model-0\.safetensors: does not hold the tensors"),
        (json.dumps({"weight_map": missing}), r"model-1\.safetensors: does not hold the tensors"),
        (
            json.dumps({"weight_map": {**whole["weight_map"], "x": "absent.bin"}}),
            r"it names absent\.bin, which is not there",
        ),
        (json.dumps({"weight_map": {}}), "no weight_map"),
        (json.dumps({"weight_map": [1]}), "no weight_map"),
        (json.dumps([1]), "no settings by name"),
        ('{"weight_map": ', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ("\x80", "no settings by name|cannot be read"),
    ]:
        index.write_text(content)
        with pytest.raises(RunError, match=said) as refusal:
            readers.read(tmp_path)
        assert "\n" not in str(refusal.value)
    index.write_text(json.dumps(whole))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"config\.json: cannot be read"):
        readers.read(tmp_path)
