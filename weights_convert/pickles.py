"""Runs the pickle of a `.pth` file as far as tensors and plain containers go, and refuses all else.

A pickle is a small program that may call any function. The interpreter here knows the few instructions and names that
plain tensors need. Python's own unpickler is not used: it can be kept from calling functions, but not from crashing on
a dict whose key is a tuple nested a million deep, nor from making room for memory that a few bytes ask for.
"""

import pickletools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dinojax.errors import RunError

_ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_FUNCTIONS = {
    *("collections.OrderedDict", "torch.Size"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
}
# What optimizers hold besides tensors: NumPy's numbers. Calls of these do nothing and give nothing.
_INERT = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode"}
MOST = 5_000_000  # instructions; a checkpoint needs about forty for each tensor
SHARDED = (
    "holds one rank's part of an FSDP model; load every part with the code that wrote them, gather the weights with "
    "FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT) and save those, or take the teacher_checkpoint.pth "
    "that DINOv2 writes at each evaluation"
)

# Instructions of a pickle, by what they do here.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_CARRIED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Global(NamedTuple):
    """One of the few known names, which the pickle asked for."""

    name: str


class Storage(NamedTuple):
    """A run of elements in the file, as the pickle describes it."""

    element: np.dtype[Any]
    key: str
    length: int


class View(NamedTuple):
    """A tensor, as the pickle describes it: `shape` and `strides`, in elements, from `offset` in a storage."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def unpickle(file: Any) -> Any:
    """Runs the program at the file's position, and leaves the position after its end."""
    try:
        return _run(file)
    except RunError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way, all alike to the user
        raise RunError(f"its pickle is damaged ({type(error).__name__})") from None


def _run(file: Any) -> Any:
    stack: list[Any] = []
    memory: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name: str = opcode.name
        if count == MOST:
            raise RunError("its pickle is longer than that of any checkpoint")
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CARRIED:
            stack.append(argument)
        elif name in _PUTS:
            memory[argument] = stack[-1]
        elif name == "MEMOIZE":
            memory[len(memory)] = stack[-1]
        elif name in _GETS:
            stack.append(memory[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_marked(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = _popped(stack, 1) if name == "APPEND" else _marked(stack)
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _popped(stack, 2) if name == "SETITEM" else _marked(stack)
            dict.update(stack[-1], _dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            parts = _popped(stack, 2) if name == "STACK_GLOBAL" else str(argument).split(" ", 1)
            stack.append(_known(".".join(parts)))
        elif name == "REDUCE":
            stack.append(_called(*_popped(stack, 2)))
        elif name == "BUILD":  # hangs attributes (`_metadata`) on a state dict; nothing needs them
            owner, _ = _popped(stack, 2)
            if not isinstance(owner, dict | None):
                raise TypeError
            stack.append(owner)
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise RunError(_refused(f"the instruction {name}"))
    raise EOFError


def _popped(stack: list[Any], count: int) -> list[Any]:
    """Takes the last `count` values off the stack, in their order."""
    if count > len(stack):
        raise IndexError
    items = stack[-count:]
    del stack[-count:]
    return items


def _marked(stack: list[Any]) -> list[Any]:
    """Takes what lies above the last mark off the stack, and the mark."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise IndexError
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _dict(items: Iterable[Any]) -> dict[Any, Any]:
    """A dict of pairs. Keys are plain: hashing a tuple may need all the stack, or forever."""
    pairs = [(key, value) for key, value in items]
    for key, _ in pairs:
        if not isinstance(key, str | int | float | None) or (isinstance(key, int) and abs(key) >= 2**63):
            raise RunError("its pickle has a key that is neither text nor a number")
    return dict(pairs)


def _refused(asked: str) -> str:
    return (
        f"its pickle asks for {asked}, which is no part of plain weights; refused, and nothing was run. "
        "If you trust the file, load it where its code belongs, and save model.state_dict() alone"
    )


def _known(name: str) -> _Global:
    if name in _FUNCTIONS or name in _ELEMENTS or name in _INERT:
        return _Global(name)
    raise RunError(SHARDED if name.startswith("torch.distributed") else _refused(name))


def _called(function: object, arguments: object) -> Any:
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("collections.OrderedDict"), (list(items) | tuple(items),):
            return _dict(items)
        case _Global("torch.Size"), (tuple(sides),) if all(type(side) is int for side in sides):
            return sides
        case _Global("torch._utils._rebuild_tensor_v2"), (storage, offset, shape, strides, _, _, *metadata):
            if any(metadata):
                raise RunError("has tensors that are kept negated or conjugated; save them anew, resolved")
            return View(storage, offset, shape, strides)
        case _Global("torch._utils._rebuild_parameter"), (View() as view, *_):
            return view
        case _Global(name), tuple() if name in _INERT:
            return None
    raise TypeError


def _stored(pid: object) -> Storage:
    match pid:
        case ("storage", _Global(kind), str(key), str(), int(length), *rest) if kind in _ELEMENTS and length >= 0:
            if any(item is not None for item in rest):
                raise RunError("has tensors in the form of PyTorch before 0.4; save it anew with a later one")
            return Storage(_ELEMENTS[kind], key, length)
        case ("module", *_):
            raise RunError(_refused("the source code of a module"))
    raise RunError("its pickle refers to something that is no storage of a tensor")
