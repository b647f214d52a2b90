"""Pickles that are no plain weights, or that are made to do harm."""

from pathlib import Path

import numpy as np
import pytest

from dinojax.errors import RunError
from tests.weights_convert import torch_files
from tests.weights_convert.torch_files import Call, Global, numpy_number, storage, tensor
from weights_convert import pickles, pytorch, readers


def test_containers_that_hold_themselves_end(tmp_path: Path) -> None:
    # }q\x00 X1"a" h\x00 s : a dict that is its own value
    program = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    path = torch_files.write(tmp_path / "x.pth", program, {})
    with pytest.raises(RunError, match="nested"):
        readers.read(path)


def test_a_state_cannot_change_what_the_unpickler_knows(tmp_path: Path) -> None:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    changed = Call(Call(rebuild, (storage("0", 2), 0, (2,), (1,))), (), (None, {"shape": (9,)}))
    path = torch_files.write(tmp_path / "x.pth", torch_files.pickled({"w": changed}), {"0": bytes(8)})
    with pytest.raises(RunError, match="pickle is damaged"):
        readers.read(path)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        # An empty dict in place 2**32 - 1 would make Python's unpickler take room for twice as many pointers.
        (b"}r\xff\xff\xff\xff.", "holds no tensors"),
        # A dict whose key is a tuple nested 10⁵ deep: hashing it takes all of the stack.
        (b"})" + b"\x85" * 10**5 + b"Ns.", "a key that is neither text nor a number"),
        # The key is a pair of a pair of ...: hashing it takes 2⁶⁰ steps.
        (b"})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.", "a key that is neither"),
        # Four times each other's contents, fourteen deep: 2²⁸ places to look for tensors.
        (b")" + b"".join(b"q%c(h%ch%ch%ch%ct" % ((i,) * 5) for i in range(14)) + b".", "more than those of any"),
        (b"]" * (2 * 10**5 + 1) + b".", "longer than that of any checkpoint"),
        (b"]}b.", "pickle is damaged"),
        (b"ccollections\nOrderedDict\n)\x81.", "asks for the instruction NEWOBJ"),
        (b"(iposix\nsystem\n.", r"asks for posix\.system"),
        (b"\x8c\x05posix\x8c\x08sys\ntem\x07\x93.", "asks for posix.sys�tem�"),
    ],
    ids=["places", "deep key", "wide key", "wide value", "long", "state", "object", "instance", "unprintable"],
)
def test_a_pickle_cannot_crash_or_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, said: str
) -> None:
    for module in (pickles, pytorch):
        monkeypatch.setattr(module, "MOST", 2 * 10**5)  # no need to wait for the real limit
    path = torch_files.write(tmp_path / "x.pth", b"\x80\x02" + program, {})
    with pytest.raises(RunError, match=said) as refusal:
        readers.read(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_numbers_of_numpy_are_read_as_nothing(tmp_path: Path, package: str) -> None:
    group = {"lr": numpy_number(0.3, package), "params": [0]}
    tree = {"lr": numpy_number(7, package), "w": tensor(storage("0", 2), 0, (2,), (1,)), "param_groups": [group]}
    values = np.array([1, 2], np.float32)
    read = readers.read(torch_files.write(tmp_path / "x.pth", torch_files.pickled(tree), {"0": values.tobytes()}))
    assert list(read) == ["w"]
    np.testing.assert_array_equal(read["w"], values)


def test_sizes_are_read_as_plain_tuples(tmp_path: Path) -> None:
    """torch.save keeps a tensor's shape, where somebody put one beside the weights, as a call of torch.Size."""
    size, weight = Global("torch", "Size"), tensor(storage("0", 2), 0, (2,), (1,))
    tree = {"w": weight, "shapes": [Call(size, ((1, 32),)), Call(size, ((),))]}
    path = torch_files.write(tmp_path / "x.pth", torch_files.pickled(tree), {"0": bytes(8)})
    assert list(readers.read(path)) == ["w"]
    for wrong in ((), (3,), ((1, "2"),), ((weight,),), ((1,), (2,))):
        torch_files.write(path, torch_files.pickled({"w": weight, "shape": Call(size, wrong)}), {"0": bytes(8)})
        with pytest.raises(RunError, match="pickle is damaged"):
            readers.read(path)


def test_negated_and_conjugated_tensors_are_refused(tmp_path: Path) -> None:
    plain = tensor(storage("0", 2), 0, (2,), (1,))
    for metadata in ({}, {"neg": True}, {"conj": True}):
        marked = Call(plain.function, (*plain.arguments, metadata))
        path = torch_files.write(tmp_path / "x.pth", torch_files.pickled({"w": marked}), {"0": bytes(8)})
        if metadata:
            with pytest.raises(RunError, match="kept negated or conjugated"):
                readers.read(path)
        else:
            np.testing.assert_array_equal(readers.read(path)["w"], [0, 0])


def test_whole_modules_say_what_to_save_instead(tmp_path: Path) -> None:
    module = Call(Global("torchvision.models.resnet", "ResNet"), ())
    path = torch_files.write(tmp_path / "x.pt", torch_files.pickled(module), {})
    with pytest.raises(RunError, match=r"asks for torchvision\.models\.resnet\.ResNet, .* save model\.state_dict"):
        readers.read(path)
