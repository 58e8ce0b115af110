"""Tensors that ``torch.save`` wrote, read without PyTorch.

Such a file is a zip archive: NAME/data.pkl describes the objects, a pickle,
and NAME/data/0, 1, .. are the tensors' raw values. A pickle is a program for
a small machine, which may name any function and call it; whoever loads one
runs what it says. Here none is loaded. ``_objects`` steps through the opcodes
that ``pickletools.genops`` takes apart (it parses and calls nothing) and does
itself the few that containers of tensors need. A global is a text to it and is
never looked up or imported; a call is done where the text is one of
``_CALLS``, each of which makes a plain value. Everything else is refused, so
there is nothing in this file's power that could run. Nothing recurses, and no
size that a file declares is taken for memory before the file has been found to
hold it.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ddjax import files
from ddjax.types import InputError

__all__ = ["read"]

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_MAPPING = "collections OrderedDict"
# What NumPy's numbers among the accuracies of DC's files are made of; they
# are not wanted, and stand as None.
_NUMBERS = (
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "_codecs encode",
)
_CALLS = (_TENSOR, _PARAMETER, _MAPPING, *_NUMBERS)
_GLOBALS = {*_CALLS, *(f"torch {name}" for name in _STORAGES)}
_MOST_AXES = 8


class _Global(str):
    """The name of a function or class, which stays a name."""


class _Damaged(ValueError):
    """No file of ``torch.save``, or not all of it."""


def read(path: Path) -> Any:
    """What a file of ``torch.save`` holds.

    Args:
      path: of the file.

    Returns:
      A tensor as a read-only array, or lists, tuples and dicts of tensors,
      texts and numbers.

    Raises:
      InputError: it is missing or damaged, of PyTorch's form before 1.6, or
        holds more than tensors in plain containers.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                raise _no_archive(path, file.read(2))
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            return _objects(path, archive, members)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check the path") from None
    except (
        OSError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        EOFError,
        RuntimeError,  # a damaged header asks for a password or an odd method
        zipfile.BadZipFile,
    ):
        raise InputError(
            f"{path} is damaged, or no file of tensors that torch.save wrote: "
            "fetch or write it again"
        ) from None


def _no_archive(path: Path, begin: bytes) -> Exception:
    if begin[:1] != b"\x80":
        return _Damaged()
    return InputError(
        f"{path} is in PyTorch's form before 1.6, or another pickle, which is "
        "not read: write it again with torch.save(torch.load(PATH, "
        "map_location='cpu', weights_only=True), PATH) in a PyTorch of 1.13 or "
        "later"
    )


def _members(
    path: Path, archive: zipfile.ZipFile
) -> dict[str, zipfile.ZipInfo]:
    """What the archive holds, by names without the folder that all lie in."""
    found = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Damaged()  # torch.save compresses nothing
        found[info.filename.partition("/")[2]] = info
    # Members that overlap could be more than the file.
    if sum(info.file_size for info in found.values()) > path.stat().st_size:
        raise _Damaged()
    order = found.get("byteorder")
    if order is not None and archive.read(order) != b"little":
        raise InputError(
            f"{path} was written on a big-endian machine: write it again on "
            "another"
        )
    return found


def _objects(path, archive, members) -> Any:
    """Does what data.pkl says, as far as tensors need it."""
    program = archive.read(members["data.pkl"])
    storages: dict[str, np.ndarray] = {}
    memo: dict[int, Any] = {}
    stack: list[Any] = []
    marked: list[list[Any]] = []

    def since_mark():
        nonlocal stack
        found, stack = stack, marked.pop()
        return found

    for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marked.append(stack)
                stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                "BINUNICODE"
                | "SHORT_BINUNICODE"
                | "BINBYTES"
                | "SHORT_BINBYTES"
                | "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
            ):
                stack.append(argument)
            case "TUPLE":
                values = tuple(since_mark())
                stack.append(values)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(_last(stack, count))]
            case "APPEND":
                value = stack.pop()
                _of(list, stack[-1]).append(value)
            case "APPENDS":
                values = since_mark()
                _of(list, stack[-1]).extend(values)
            case "SETITEM":
                name, value = _last(stack, 2)
                del stack[-2:]
                _of(dict, stack[-1])[_key(name)] = value
            case "SETITEMS":
                values = since_mark()
                names = map(_key, values[::2])
                _of(dict, stack[-1]).update(zip(names, values[1::2]))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(path, argument))
            case "STACK_GLOBAL":
                names = _last(stack, 2)
                stack[-2:] = [_known(path, " ".join(names))]
            case "BINPERSID":
                key, values = _storage(stack.pop(), archive, members, storages)
                storages[key] = values
                stack.append(values)
            case "REDUCE":
                name, values = _last(stack, 2)
                stack[-2:] = [_called(_of(_Global, name), _of(tuple, values))]
            case "BUILD":
                stack.pop()  # the state of one of NumPy's types
                if stack[-1] is not None:
                    raise _Damaged()
            case "STOP":
                (result,) = stack
                return result
            case other:
                raise _more_than_tensors(path, f"the opcode {other}")
    raise _Damaged()


def _more_than_tensors(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} asks for {what}, which tensors do not need and which may run "
        "code: it is not read; save tensors alone"
    )


def _known(path: Path, name: str) -> _Global:
    if name not in _GLOBALS:
        raise _more_than_tensors(path, ascii(name.replace(" ", "."))[1:-1])
    return _Global(name)


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Damaged()
    return value


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise _Damaged()
    return stack[-count:]


def _key(value: Any) -> Any:
    # The hash of tuples within tuples could take for ever.
    if type(value) not in (str, int, float):
        raise _Damaged()
    return value


def _storage(pid, archive, members, storages) -> tuple[str, np.ndarray]:
    """A tensor's raw values, all of them, by their name in the archive."""
    word, kind, key, _, count = _of(tuple, pid)
    dtype = np.dtype(_STORAGES[_of(_Global, kind).removeprefix("torch ")])
    if word != "storage" or type(count) is not int:
        raise _Damaged()
    if key not in storages:
        member = members[f"data/{key}"]
        if member.file_size != count * dtype.itemsize:
            raise _Damaged()
        return key, np.frombuffer(archive.read(member), dtype)
    if storages[key].dtype != dtype or len(storages[key]) != count:
        raise _Damaged()
    return key, storages[key]


def _called(name: str, arguments: tuple) -> Any:
    """The value of one of ``_CALLS``."""
    if name == _TENSOR:
        return _tensor(*arguments[:4])
    if name == _PARAMETER:
        return _of(np.ndarray, arguments[0])
    if name == _MAPPING and not arguments:
        return {}
    if name in _NUMBERS:
        return None
    raise _Damaged()


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> np.ndarray:
    """A view of a storage that stays within it."""
    storage = _of(np.ndarray, storage)
    numbers = (offset, *_of(tuple, shape), *_of(tuple, stride))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _Damaged()
    if len(shape) != len(stride) or len(shape) > _MOST_AXES:
        raise _Damaged()
    itemsize = storage.dtype.itemsize
    if math.prod(shape) == 0:
        return np.zeros(0, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    # A stride of 0 repeats values that are there once.
    too_large = math.prod(shape) * itemsize > files.memory()
    if storage.ndim != 1 or last >= len(storage) or too_large:
        raise _Damaged()
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        shape,
        [step * itemsize for step in stride],
        writeable=False,
    )
