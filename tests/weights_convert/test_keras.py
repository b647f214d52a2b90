"""Keras' HDF5 files: what Keras wrote, and what must be refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dinojax.errors import RunError
from tests import goldens_reader as goldens
from weights_convert import hdf5, keras, readers

ROUNDING = 2**-22  # the weights were rebuilt twice, once in each library
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def files() -> Path:
    return goldens.goldens_dir() / "files"


@pytest.mark.parametrize("kind", ["weights", "model", "bytes"])
def test_golden_keras_files(kind: str) -> None:
    read = readers.read(files() / f"resnet50_tiny_notop_{kind}.h5")
    assert len(read) == 53 * 2 + 53 * 4
    assert read["conv1_conv/kernel"].shape == (7, 7, 3, 64)
    for name, array in read.items():
        assert array.dtype == np.float32
        goldens.assert_close(array, goldens.rebuild(name, array.shape), ROUNDING)


def test_arrays_of_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["optimizer_weights/step"] = 3
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["a"]
        group["a/a/kernel:0"] = VALUES
        group["b/bias:0"] = VALUES.astype(np.float16)
        group["b/scalar:0"] = np.float64(7)
        group["b/empty:0"] = np.zeros((0, 3), np.float32)
        group["b/name"] = "text"
        group.create_dataset("c/kernel:0", data=VALUES, compression="gzip", shuffle=True, fletcher32=True)
        group.create_dataset("c/other:0", data=VALUES + 1, chunks=(1, 2))
    read = readers.read(path)
    assert read.keys() == {"a/kernel", "b/bias", "b/scalar", "b/empty", "c/kernel", "c/other"}
    np.testing.assert_array_equal(read["a/kernel"], VALUES)
    np.testing.assert_array_equal(read["b/bias"], VALUES.astype(np.float16))
    assert read["b/scalar"] == 7
    assert read["b/empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["c/kernel"], VALUES)
    np.testing.assert_array_equal(read["c/other"], VALUES + 1)


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "w", (2, 3))
    file.create_virtual_dataset("a/w", layout)


def _itself(file: h5py.File) -> None:
    file["a/b"] = file["a"]


def _same_name(file: h5py.File) -> None:
    file["b/w"] = VALUES
    file["b/b/w:0"] = VALUES


MALFORMED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external link": (lambda file: file.__setitem__("a/w", h5py.ExternalLink("other.h5", "w")), "/a/w is a link"),
    "soft link": (lambda file: file.__setitem__("a/w", h5py.SoftLink("/a/v")), "/a/w is a link"),
    "linked root": (lambda file: file.__setitem__("model_weights", h5py.ExternalLink("other.h5", "/")), "is a link"),
    "virtual": (_virtual, "/a/w keeps its values in another place"),
    "external storage": (
        lambda file: file.create_dataset("a/w", (2,), np.float32, external=[("other.bin", 0, 8)]),
        "/a/w keeps its values in another place",
    ),
    "group in itself": (_itself, "holds itself"),
    "one name twice": (_same_name, "two arrays are called b/w"),
    "one array twice": (lambda file: file.__setitem__("a/w", file["a/v"]), "lie in the same place"),
    "filter": (lambda file: file.create_dataset("a/w", data=VALUES, compression="lzf"), "a filter that is not read"),
    "big-endian": (lambda file: file.__setitem__("a/w", VALUES.astype(">f4")), "numbers of a type"),
    "never written": (lambda file: file.create_dataset("a/w", (2, 3), np.float32), "never written"),
    "huge": (lambda file: file.create_dataset("a/w", (2**40,), np.float32), "never written"),
    "huge in chunks": (
        lambda file: file.create_dataset("a/w", (2**40,), np.float32, chunks=(64,)),
        "declares more than a file of",
    ),
    "bomb": (
        lambda file: file.create_dataset("a/w", data=np.zeros(2**22, np.float32), compression="gzip"),
        "declares more than a file of",
    ),
    "no shape": (lambda file: file.create_dataset("a/w", data=h5py.Empty("f4")), "has no shape"),
    "no numbers": (lambda file: file.__delitem__("a/v"), "holds no tensors"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_plain_array_is_refused(tmp_path: Path, case: str) -> None:
    make, said = MALFORMED[case]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = VALUES
    (tmp_path / "other.bin").write_bytes(bytes(8))
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/v"] = VALUES
        make(file)
    with pytest.raises(RunError, match=rf"x\.h5: .*{said}") as refusal:
        readers.read(path)
    assert "\n" not in str(refusal.value)


def test_a_crash_of_the_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that lists the file may end in any way."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/w"] = VALUES
    for program, said in [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the HDF5 library failed on it"),
        ("print('nonsense')", "the HDF5 library failed on it"),
        ('print(\'{"arrays": [["a/w", "float32", [2, 3], 1000000, false]]}\')', "a/w is not whole"),
        ('print(\'{"arrays": [["a/w", "float32", [2, 3], -24, false]]}\')', "a/w is not whole"),
        ("import time; time.sleep(60)", "did not finish within"),
    ]:
        (tmp_path / "program.py").write_text(program)
        monkeypatch.setattr(keras, "_PROGRAM", tmp_path / "program.py")
        monkeypatch.setattr(keras, "_SECONDS", 1 if "sleep" in program else 120)
        with pytest.raises(RunError, match=said):
            readers.read(path)


def test_the_process_that_lists_loads_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, program = tmp_path / "x.h5", tmp_path / "program.py"
    with h5py.File(path, "w") as file:
        file["a/w"] = VALUES
    program.write_text("""import json, os, sys
names = "HDF5_PLUGIN_PRELOAD", "OPENBLAS_NUM_THREADS", "HDF5_OF_THE_USER"
print(json.dumps({"error": f"{[os.environ[name] for name in names]} {sys.flags.safe_path}"}))""")
    monkeypatch.setattr(keras, "_PROGRAM", program)
    monkeypatch.setenv("HDF5_PLUGIN_PRELOAD", "/plugins")
    monkeypatch.setenv("HDF5_OF_THE_USER", "kept")
    with pytest.raises(RunError, match=r"\['::', '1', 'kept'\] True"):
        readers.read(path)


def test_the_process_that_lists_is_bounded_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for hard, data in [(resource.RLIM_INFINITY, 4 * 2**30), (2**30, 2**30)]:
        done: list[object] = []
        monkeypatch.setattr(resource, "getrlimit", lambda what, hard=hard: (hard, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda what, limits, done=done: done.append((what, limits)))
        monkeypatch.setattr(hdf5, "write", lambda path, output, done=done: done.append(path))
        monkeypatch.setattr(sys, "argv", ["hdf5.py", "x.h5"])
        assert hdf5.main() == 0
        assert done == [(resource.RLIMIT_DATA, (data, hard)), (resource.RLIMIT_CORE, (0, hard)), "x.h5"]


def test_truncated_keras_files_are_refused(tmp_path: Path) -> None:
    whole = (files() / "resnet50_tiny_notop_weights.h5").read_bytes()
    for length in (8, 90, 2000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.h5").write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"x\.h5: a truncated or damaged HDF5 file"):
            readers.read(tmp_path / "x.h5")
