"""Files to arrays: what the real libraries wrote, and what must be refused."""

import os
import random
import re
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dinojax.errors import RunError, UsageError
from tests import goldens_reader as goldens
from tests.weights_convert import published, torch_files
from tests.weights_convert.torch_files import Call, Global, Persistent, storage, tensor
from weights_convert import pytorch, readers

ROUNDING = 2**-22  # the weights were rebuilt twice, once in each library


def files() -> Path:
    return goldens.goldens_dir() / "files"


def tiny(prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in published.rebuilt(published.TINY).items()}


@pytest.mark.parametrize(
    "name", ["dinov2_tiny_pretrain.pth", "dinov2_tiny_legacy_format.pth", "dinov2_tiny.safetensors"]
)
def test_golden_flat_files(name: str) -> None:
    read = readers.read(files() / name)
    assert read.keys() == tiny().keys()
    for key, expected in tiny().items():
        goldens.assert_close(read[key], expected, ROUNDING)


def test_golden_half_precision() -> None:
    read = readers.read(files() / "dinov2_tiny_fp16.pth")
    for key, expected in tiny().items():
        assert read[key].dtype == np.float16
        goldens.assert_close(read[key], expected, 2**-11)


def test_golden_teacher_checkpoints() -> None:
    read = readers.read(files() / "teacher_checkpoint.pth")
    heads = {f"teacher.dino_head.{k}": v for k, v in published.rebuilt(published.TINY_HEAD).items()}
    expected = tiny("teacher.backbone.") | heads
    assert read.keys() == expected.keys()
    for key, array in expected.items():
        goldens.assert_close(read[key], array, ROUNDING)
    chunked = readers.read(files() / "teacher_checkpoint_chunked.pth")
    name = "blocks.1.ls1.gamma"
    (found,) = [key for key in chunked if key.endswith(".1.ls1.gamma")]
    assert re.fullmatch(r"teacher\.backbone\.blocks\.[0-9]\.1\.ls1\.gamma", found)
    goldens.assert_close(chunked[found], goldens.rebuild(name, (32,)), ROUNDING)


def test_bfloat16_views_and_containers(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.float32)
    half = numbers.astype(ml_dtypes.bfloat16)
    metadata = {"_metadata": {"": {"version": 1}}}
    inner = Call(
        Global("collections", "OrderedDict"), ((("transposed", tensor(storage("0", 12), 2, (2, 3), (1, 4))),),)
    )
    parameter = Call(
        Global("torch._utils", "_rebuild_parameter"),
        (tensor(storage("1", 12, "BFloat16Storage"), 0, (12,), (1,)), True, None),
    )
    tree = {
        "model": Call(inner.function, inner.arguments, metadata),
        "list": [parameter, 3, "text", None],
        "empty": tensor(storage("0", 12), 12, (0, 3), (3, 1)),
        "scalar": tensor(storage("0", 12), 5, (), ()),
    }
    path = torch_files.write(
        tmp_path / "x.pth", torch_files.pickled(tree), {"0": numbers.tobytes(), "1": half.tobytes()}
    )
    read = readers.read(path)
    assert list(read) == ["model.transposed", "list.0", "empty", "scalar"]
    np.testing.assert_array_equal(read["model.transposed"], [[2, 6, 10], [3, 7, 11]])
    assert read["list.0"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["list.0"].astype(np.float32), numbers)
    assert read["empty"].shape == (0, 3)
    assert read["scalar"] == 5


def test_golden_malicious_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"malicious\.pth.*posix\.system"):
        readers.read(files() / "malicious.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (("builtins", "eval"), ("open('PWNED_BY_PICKLE', 'w')",)),
        (("os", "system"), ("touch PWNED_BY_PICKLE",)),
        (("torch.storage", "_load_from_bytes"), ("x",)),
        (("collections", "OrderedDict.fromkeys"), ((),)),
        (("numpy", "load"), ("x",)),
        (("numpy", "ndarray"), ((9,),)),
        (("numpy.core.multiarray", "_reconstruct"), ("x",)),
        (("numpy._core.multiarray", "fromfile"), ("x",)),
        (("_codecs", "decode"), ("x", "latin1")),
    ],
)
def test_any_other_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: tuple[str, str], arguments: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    attack = Call(Global(*name), arguments)
    sound = tensor(storage("0", 2), 0, (2,), (1,))
    path = torch_files.write(tmp_path / "x.pth", torch_files.pickled({"w": sound, "x": attack}), {"0": bytes(8)})
    with pytest.raises(RunError, match=r"x\.pth: its pickle asks for " + ".".join(name)):
        readers.read(path)
    # The old format has five pickles, and the first is read before anything else is known of the file.
    path.write_bytes(pytorch.LEGACY_START + torch_files.pickled(attack)[2:])
    with pytest.raises(RunError, match=".".join(name)):
        readers.read(path)
    assert not (tmp_path / "PWNED_BY_PICKLE").exists()


@pytest.mark.parametrize(
    ("stored", "offset", "shape", "strides"),
    [
        (storage("0", 4), 1, (2, 2), (2, 1)),  # one element too far
        (storage("0", 4), 0, (2,), (4,)),
        (storage("0", 4), -1, (2,), (1,)),
        (storage("0", 4), 0, (-2,), (1,)),
        (storage("0", 4), 2, (2,), (-1,)),
        (storage("0", 4), 0, (10**12,), (0,)),  # few bytes that would become many
        (storage("0", 4), 0, (2**62, 4, 0), (1, 1, 1)),
        (storage("0", 4), 2**63, (0,), (1,)),
        (storage("0", 4), 0, (2, 2), (1,)),
        (storage("0", 4), 0, 2, 1),
        (storage("0", 4), "0", (2,), (1,)),
        (storage("0", 5), 0, (5,), (1,)),  # more than the entry holds
        (storage("0", 2), 0, (2,), (1,)),
        (storage("1", 4), 0, (4,), (1,)),  # no such entry
        (storage("../data.pkl", 4), 0, (4,), (1,)),
        (storage("0", -4), 0, (4,), (1,)),
        (storage("0", 4, "Tensor"), 0, (4,), (1,)),
        (Persistent(("module", "x")), 0, (4,), (1,)),
        ("storage", 0, (4,), (1,)),
    ],
)
def test_views_outside_their_storage_are_refused(
    tmp_path: Path, stored: object, offset: object, shape: object, strides: object
) -> None:
    program = torch_files.pickled({"w": tensor(stored, offset, shape, strides)})
    path = torch_files.write(tmp_path / "x.pth", program, {"0": np.arange(4, dtype=np.float32).tobytes()})
    with pytest.raises(RunError, match=r"x\.pth: ") as refusal:
        readers.read(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["dinov2_tiny_pretrain.pth", "dinov2_tiny_legacy_format.pth", "dinov2_tiny.safetensors"]
)
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    whole = (files() / name).read_bytes()
    path = tmp_path / name
    for length in (0, 3, 15, 60, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=name) as refusal:
            readers.read(path)
        assert "\n" not in str(refusal.value)


def test_any_damaged_byte_is_found_or_harmless(tmp_path: Path) -> None:
    whole = (files() / "dinov2_tiny_pretrain.pth").read_bytes()
    expected = readers.read(files() / "dinov2_tiny_pretrain.pth")
    path, generator, refused = tmp_path / "x.pth", random.Random(0), 0
    # Half the places at random, half in the pickle and the directory of the zip, where structure can break.
    places = [generator.randrange(len(whole)) for _ in range(150)]
    places += [generator.randrange(5000) for _ in range(75)]
    places += [len(whole) - generator.randrange(1, 3000) for _ in range(75)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            read = readers.read(path)
        except RunError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
            continue
        assert read.keys() == expected.keys()
        assert all(np.array_equal(read[key], expected[key]) for key in read)
    assert refused > 150


def test_damaged_legacy_pickles_end_in_one_line(tmp_path: Path) -> None:
    """The old format has no checksums: damage to its pickles must still end in a line or in arrays."""
    whole = (files() / "dinov2_tiny_legacy_format.pth").read_bytes()
    path, generator = tmp_path / "x.pth", random.Random(1)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(15, 5800)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            readers.read(path)
        except RunError as error:
            assert str(error).startswith(str(path))  # noqa: PT017


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "notes.pth"
    other.write_text("notes on the weights")
    with pytest.raises(RunError, match=r"notes\.pth: neither"):
        readers.read(other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RunError, match=r"notes\.pth: a zip file, but not one that torch\.save wrote"):
        readers.read(other)
    torch_files.write(other, torch_files.pickled({"epoch": 3}), {})
    with pytest.raises(RunError, match="no tensors"):
        readers.read(other)
    torch_files.write(other, torch_files.pickled({}), {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(RunError, match=r"not stored as torch\.save does"):
        readers.read(other)
    with pytest.raises(UsageError, match=r"absent\.pth: there is no such file"):
        readers.read(tmp_path / "absent.pth")
    with pytest.raises(RunError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        readers.read(tmp_path)
    other.write_bytes(b"")
    with pytest.raises(RunError, match="empty"):
        readers.read(other)
    if Path("/dev/zero").exists():
        with pytest.raises(RunError, match="cannot be read"):
            readers.read(Path("/dev/zero"))


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path, program = tmp_path / "x.pth", torch_files.pickled({"w": tensor(storage("0", 2), 0, (2,), (1,))})
    torch_files.write(path, program, {"0": bytes(8)}, byteorder="big")
    with pytest.raises(RunError, match="big-endian machine"):
        readers.read(path)
    whole = (files() / "dinov2_tiny_legacy_format.pth").read_bytes()
    little = b"little_endianq\x02\x88"  # True
    assert whole.count(little) == 1
    path.write_bytes(whole.replace(little, little[:-1] + b"\x89"))
    with pytest.raises(RunError, match="big-endian machine"):
        readers.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "x.pth"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # with something in it, so that reading would be wrong, but would not hang
    try:
        os.write(writer, b"PK")
        with pytest.raises(RunError, match=r"x\.pth: cannot be read: it is no regular file"):
            readers.read(pipe)
    finally:
        os.close(writer)


def test_sharded_checkpoints_say_how_to_consolidate(tmp_path: Path) -> None:
    path = torch_files.write_tensors(tmp_path / "model.rank_0.pth", {"backbone._flat_param": np.zeros(4, np.float32)})
    with pytest.raises(RunError, match="FULL_STATE_DICT"):
        readers.read(path)
    sharded = Global("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")
    torch_files.write(path, torch_files.pickled({"model": Call(sharded, ())}), {})
    with pytest.raises(RunError, match="FULL_STATE_DICT"):
        readers.read(path)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    one = tensor(storage("0", 2), 0, (2,), (1,))
    path = torch_files.write(tmp_path / "x.pth", torch_files.pickled({"a.b": one, "a": {"b": one}}), {"0": bytes(8)})
    with pytest.raises(RunError, match=r"two tensors are called a\.b"):
        readers.read(path)


def test_training_checkpoints_with_an_optimizer(tmp_path: Path) -> None:
    """Integer keys and values that are no tensors, as torch.optim keeps them."""
    moments = torch_files.state_dict({"step": ((), "float32"), "exp_avg": ((2, 3), "float32")}, first=1)
    tree = {
        "model": torch_files.state_dict({"student.backbone.norm.bias": ((3,), "bfloat16")}),
        "optimizer": {
            "state": {0: moments, 7: {}},
            "param_groups": [{"lr": 4, "betas": (0, 1), "foreach": None, "name": "a\nb", "params": [0, 7]}],
        },
        "iteration": 12499,
    }
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    storages = {"0": bytes(6), "1": np.float32(9).tobytes(), "2": values.tobytes()}
    read = readers.read(torch_files.write(tmp_path / "model_0012499.rank_0.pth", torch_files.pickled(tree), storages))
    assert list(read) == [
        "model.student.backbone.norm.bias",
        "optimizer.state.0.step",
        "optimizer.state.0.exp_avg",
    ]
    assert read["optimizer.state.0.step"] == 9
    np.testing.assert_array_equal(read["optimizer.state.0.exp_avg"], values)


def test_zip_files_that_lie_are_refused(tmp_path: Path) -> None:
    path = torch_files.write_tensors(tmp_path / "x.pth", {"w": np.arange(4, dtype=np.float32)})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(RunError, match="two entries of one name"):
        readers.read(path)
    # The directory's size of the data entry, as zip64 would have it: beyond the file.
    whole = torch_files.write_tensors(path, {"w": np.arange(4, dtype=np.float32)}).read_bytes()
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/0"))
    extra = b"\x01\x00\x10\x00" + (2**62).to_bytes(8, "little") * 2
    name = len(b"archive/data/0")
    entry = bytearray(whole[at : at + 46 + name])
    entry[20:28], entry[30:32] = b"\xff" * 8, len(extra).to_bytes(2, "little")
    end = bytearray(whole[whole.rindex(b"PK\x05\x06") :])
    end[12:16] = (int.from_bytes(end[12:16], "little") + len(extra)).to_bytes(4, "little")
    path.write_bytes(whole[:at] + bytes(entry) + extra + whole[at + 46 + name : whole.rindex(b"PK\x05\x06")] + end)
    with pytest.raises(RunError, match=r"damaged: (the checksum of archive/data/0|storage 0 has)"):
        readers.read(path)
