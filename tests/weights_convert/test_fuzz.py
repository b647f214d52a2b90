"""Files that are damaged or made up at random: one line or the right tensors, never a traceback, never a wrong success.

What carries a checksum (a zip's entries) is found out. Elsewhere (`.safetensors`, the old `.pth`, `.h5`) a changed
number cannot be: it is that one number then, and the digest that `model.json` keeps is another.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights_convert import torch_files
from tests.weights_convert.fuzzing import FILES, Tensors, assert_not_recognised, fuzzed, outline, read, written
from tests.weights_convert.torch_files import storage, tensor
from weights_convert import readers

# Bytes


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"])
@fuzzed(25)
@given(rest=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(start: bytes, rest: bytes) -> None:
    with written(start + rest) as path:
        assert read(path) is None


@fuzzed(50)
@given(
    length=st.integers(0, 300),
    header=st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=3)
        | st.sampled_from(["F32", "BF16", "F8_E4M3", "a", "shape", "dtype"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["w", "dtype", "shape", "data_offsets", "__metadata__", "a\nb"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
    body=st.binary(max_size=40),
)
def test_arbitrary_headers_of_safetensors_are_refused(length: int, header: object, body: bytes) -> None:
    text = json.dumps({"w": header}).encode()
    with written((length if length < 100 else len(text)).to_bytes(8, "little") + text + body, "x.safetensors") as path:
        found = read(path)
        # A header that says nothing wrong is one of arrays without elements.
        assert found is None or sum(array.nbytes for array in found.values()) == len(body)


INSTRUCTIONS = [
    *(
        b"(",
        b")",
        b"]",
        b"}",
        b"0",
        b"2",
        b"N",
        b"\x88",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"l",
        b"d",
        b"R",
        b"b",
        b"Q",
        b".",
    ),
    *(b"\x85", b"\x86", b"\x87", b"\x81", b"\x94", b"\x93", b"\x8f", b"\x90", b"q\x00", b"q\x01", b"h\x00", b"h\x01"),
    *(b"K\x02", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x01\x80", b"G\x7f\xf8\0\0\0\0\0\0", b"I2\n", b"L-3L\n"),
    *(b"X\x01\0\0\0a", b"X\x07\0\0\0storage", b"\x8c\x010", b"U\x01x", b"C\x01x", b"\x82\x01", b"P1\n", b"S'x'\n"),
    *(b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"ctorch._utils\n_rebuild_parameter\n", b"cos\nsystem\n", torch_files.pickled(storage("0", 4))[2:-1]),
    torch_files.pickled(tensor(storage("0", 4), 0, (2, 2), (2, 1)))[2:-1],
]


@fuzzed(300)
@given(program=st.lists(st.sampled_from(INSTRUCTIONS), max_size=25).map(b"".join))
def test_arbitrary_pickles_give_their_storage_or_are_refused(program: bytes) -> None:
    values = np.arange(4, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = torch_files.write(Path(folder) / "x.pth", b"\x80\x02" + program + b".", {"0": values.tobytes()})
        for array in (read(path) or {}).values():
            assert set(array.flat) <= set(values)


# Structure, names, shapes and types of sound files

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=6)
ARRAYS = st.tuples(
    st.sampled_from(["float32", "float64", "float16", "int64"]), st.lists(st.integers(0, 3), max_size=3)
).map(lambda drawn: np.arange(np.prod(drawn[1], dtype=int)).reshape(drawn[1]).astype(drawn[0]))
TREES = st.recursive(
    ARRAYS | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=3),
    lambda inner: st.dictionaries(NAMES | st.integers(0, 9), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def flattened(tree: object, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, np.ndarray):
        yield name, tree
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flattened(value, f"{name}.{key}" if name else str(key))


def records(tree: Any, storages: dict[str, bytes]) -> Any:
    """The tree with a tensor's record for every array, whose bytes go to `storages`."""
    if isinstance(tree, np.ndarray):
        number = len(storages)
        storages[str(number)] = tree.tobytes()
        return torch_files.state_dict({"": (tree.shape, tree.dtype.name)}, first=number)[""]
    if isinstance(tree, dict):
        return {key: records(value, storages) for key, value in tree.items()}
    return [records(value, storages) for value in tree] if isinstance(tree, list) else tree


@fuzzed(80)
@given(tree=st.dictionaries(NAMES | st.integers(0, 9), TREES, max_size=4))
def test_nested_containers_are_read_whole(tree: dict[Any, Any]) -> None:
    storages: dict[str, bytes] = {}
    program = torch_files.pickled(records(tree, storages))
    expected = list(flattened(tree))
    with tempfile.TemporaryDirectory() as folder:
        found = read(torch_files.write(Path(folder) / "x.pth", program, storages))
    names = [name for name, _ in expected]
    if not names or len(set(names)) < len(names) or not all(name.isprintable() for name in names):
        assert found is None
        return
    assert found is not None
    assert list(found) == names
    for name, array in expected:
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@fuzzed(300)
@given(
    length=st.integers(0, 8),
    offset=st.integers(-1, 5),
    axes=st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 6)), max_size=3),
)
def test_views_are_counted_out(length: int, offset: int, axes: list[tuple[int, int]]) -> None:
    """Against a list of the places of all elements."""
    shape, strides = tuple(side for side, _ in axes), tuple(stride for _, stride in axes)
    values = np.arange(length, dtype=np.float32)
    program = torch_files.pickled({"w": tensor(storage("0", length), offset, shape, strides)})
    with tempfile.TemporaryDirectory() as folder:
        found = read(torch_files.write(Path(folder) / "x.pth", program, {"0": values.tobytes()}))
    if offset < 0 or min([*shape, *strides], default=0) < 0:
        assert found is None
        return
    places = [offset + sum(i * stride for i, stride in zip(index, strides, strict=True)) for index in np.ndindex(shape)]
    if found is not None:
        assert found["w"].shape == shape
        assert found["w"].ravel().tolist() == places
        assert len(set(places)) == len(places)
    else:  # what is laid out as nearly all tensors are must fit
        row_major = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        assert strides != row_major or offset + len(places) > length


# Damage


def different_bytes(first: Tensors, second: Tensors) -> int:
    pairs = [(first[name].tobytes(), second[name].tobytes()) for name in first]
    return sum(a != b for one, other in pairs if one != other for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "dinov2_tiny_pretrain.pth",
        "dinov2_tiny_fp16.pth",
        "teacher_checkpoint_chunked.pth",
        "dinov2_tiny_legacy_format.pth",
        "dinov2_tiny.safetensors",
        "timm_reg4_tiny.safetensors",
    ],
)
@fuzzed(40)
@given(place=st.floats(0, 1, exclude_max=True), structure=st.booleans(), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_one_number(name: str, place: float, structure: bool, bit: int) -> None:
    """Half of the flips fall into the first 6 kB, where names and shapes are; or, of a zip, into its last 6 kB."""
    content = bytearray((FILES / name).read_bytes())
    at = int(place * (6000 if structure else len(content)))
    at = len(content) - 1 - at if structure and bit % 2 and name.endswith(".pth") else at
    content[at] ^= 1 << bit
    whole = readers.read_file(FILES / name)
    with written(bytes(content), name) as path:
        found = read(path)
        if found is None:
            return
        assert readers.read_file(path).sha256() != whole.sha256()
    if outline(found) != outline(whole.tensors):
        assert not name.endswith("pretrain.pth")
        assert_not_recognised(found)
    elif "legacy" in name or name.endswith(".safetensors"):
        assert different_bytes(whole.tensors, found) <= 1
    else:
        assert all(np.array_equal(found[key], array) for key, array in whole.tensors.items())


def _h5_structure() -> list[int]:
    """Places of bytes that are no numbers of an array and not zero."""
    path = FILES / "resnet50_tiny_notop_weights.h5"
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    extents: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, item: (
                extents.append((item.id.get_offset(), item.nbytes)) if isinstance(item, h5py.Dataset) else None
            )
        )
    for start, count in extents:
        content[start : start + count] = 0
    return np.flatnonzero(content).tolist()


@fuzzed(25)
@given(place=st.sampled_from(_h5_structure()), value=st.integers(0, 255))
def test_damage_to_the_structure_of_hdf5_is_one_line_or_harmless(place: int, value: int) -> None:
    """Keras writes HDF5's oldest format, without checksums; an address may change to that of other numbers."""
    content = bytearray((FILES / "resnet50_tiny_notop_weights.h5").read_bytes())
    content[place] = value
    whole = readers.read(FILES / "resnet50_tiny_notop_weights.h5")
    with written(bytes(content), "x.h5") as path:
        found = read(path)
    if found is not None and outline(found) != outline(whole):
        assert_not_recognised(found)


@pytest.mark.parametrize(
    "name", ["dinov2_tiny_pretrain.pth", "dinov2_tiny_legacy_format.pth", "dinov2_tiny.safetensors"]
)
@fuzzed(20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(name: str, share: float) -> None:
    content = (FILES / name).read_bytes()
    with written(content[: int(share * len(content))], name) as path:
        assert read(path) is None
