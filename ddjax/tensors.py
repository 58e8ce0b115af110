"""Tensors of other frameworks' files, as NumPy arrays: nothing in them is run.

``read`` takes what ``torch.save`` writes, in its zip format and the one before
it, and safetensors.

PyTorch describes tensors in a pickle: a program for a small machine, which may
name any function and have it called, so whoever unpickles a file runs what it
says. There is no unpickler here. ``pickletools.genops`` takes the program
apart, which parses and calls nothing, and ``_Machine`` does the few opcodes
that containers of tensors need. A global is a text to it, which must stand in
a table and is never looked up or imported. A call is done by the function of
this file that the table has for the text, and makes a plain value. A state is
taken by NumPy's types and arrays, and by dicts, which leave it out. All other
names and opcodes are refused, so nothing in a file has a way to code.

What a file declares is checked against what it holds, and against this
machine's memory, before any of it is taken. Nothing recurses along a pickle.

Sources: PyTorch's serialization notes,
https://docs.pytorch.org/docs/stable/notes/serialization.html; Python's
pickletools; https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddjax import files
from ddjax.types import InputError

__all__ = ["read"]

_BRAIN = np.dtype(ml_dtypes.bfloat16)
_MOST_PICKLE = 1 << 26  # bytes; a thousand tensors take some 100 KB
_MOST_STEPS = 1 << 21  # opcodes; a tensor takes some thirty
# Of the structure; what is shared counts each time.
_MOST_NODES = 1 << 18
_DEEPEST = 100


class _Refused(ValueError):
    """Why a file is refused; reads on after its path."""


def read(path: Path | str) -> Any:
    """All that a file of tensors holds.

    Args:
      path: a .pt, .pth, .bin or .safetensors file.

    Returns:
      What was saved: nested dicts, lists and tuples of NumPy arrays, numbers,
      texts and None. Of safetensors, {name: array}. bfloat16 becomes float32.

    Raises:
      InputError: there is no such file, it is damaged or none of these, or it
        holds more than tensors: objects that only code could rebuild.

    >>> import tempfile
    >>> header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(len(header).to_bytes(8, "little") + header + b"ab")
    ...     _ = file.seek(0)
    ...     read(file.name)
    {'a': array([97, 98], dtype=uint8)}
    """
    path = Path(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check the path") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): check the path"
        ) from None
    try:
        with file:
            return _read(file)
    except _Refused as error:
        raise InputError(f"{path} {error}") from None
    except (
        OSError,  # a place before the file's beginning
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        EOFError,
        MemoryError,
        RuntimeError,  # a zip with a password or of an unknown version
        zipfile.BadZipFile,
    ):
        raise InputError(
            f"{path} is cut short or damaged: fetch it again"
        ) from None


def _read(file):
    start = file.read(len(_OLD_MAGIC))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > files.memory():
        raise _Refused(_TOO_MUCH)
    if start.startswith(b"PK"):
        return _read_zip(file, size)
    if start == _OLD_MAGIC:
        return _read_old(file, size)
    if start[8:9] == b"{":
        return _read_safetensors(file, size)
    raise _Refused(f"is neither PyTorch's nor safetensors: {_SAVE_AGAIN}")


_SAVE_AGAIN = "save it again with torch.save, tensors alone"
_TOO_MUCH = "holds more than fits in this machine's memory"
_ENDLESS = "holds a structure without end, and not tensors"


def _no_code(what: str) -> _Refused:
    return _Refused(
        f"holds {_shown(what)}, which no tensor needs, and no code in a file "
        "is run: save tensors alone, of a model its state_dict()"
    )


def _shown(text: str) -> str:
    """A file's text, as a terminal can be given it."""
    return ascii(text[:99])[1:-1]


# --- What a pickle may build ------------------------------------------------


class _Global(NamedTuple):
    """What a pickle calls a function or a class: its name."""

    name: str


class _Storage(NamedTuple):
    """Raw numbers [n], which are None before they are read."""

    values: np.ndarray | None


class _Unset:
    """A type or an array of NumPy's, before it is given its state.

    Attributes:
      dtype: the type, but for its byte order; None of an array.
      places: where the memo has it.
    """

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype = dtype
        self.places: list[int] = []


_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": _BRAIN,
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("|i1"),
    "torch ByteStorage": np.dtype("|u1"),
    "torch BoolStorage": np.dtype("|b1"),
}
_PLAIN = (np.ndarray, str, bytes, bool, int, float)
_NUMPY_CODES = "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "STRING BINSTRING SHORT_BINSTRING".split()  # texts of Python 2
)
_ALL_SINCE_MARK = frozenset("TUPLE LIST DICT APPENDS SETITEMS".split())
_OPERANDS = {
    **dict.fromkeys("TUPLE1 APPEND BINPERSID".split(), 1),
    **dict.fromkeys("TUPLE2 SETITEM STACK_GLOBAL REDUCE BUILD".split(), 2),
    "TUPLE3": 3,
}


class _Machine:
    """Does what a pickle says, as far as tensors need it.

    Args:
      storage: (type of ``_STORAGES``, key, count) -> what the file has there.
    """

    def __init__(self, storage: Callable[..., _Storage]):
        self._storage = storage
        self._left = files.memory()
        self._calls: dict[str, Callable[..., Any]] = {
            "collections OrderedDict": self._mapping,
            "torch Size": _sizes,
            "torch._utils _rebuild_tensor": self._tensor,
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._utils _rebuild_parameter": lambda data, *_: data,
            "numpy dtype": _numpy_type,
            "_codecs encode": self._encoded,
        }
        for place in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self._calls[f"{place} scalar"] = self._scalar
            self._calls[f"{place} _reconstruct"] = lambda *_: _Unset()
        self._known = {*self._calls, *_STORAGES, "numpy ndarray"}

    def run(self, content: io.BytesIO) -> Any:
        """The value of one pickle, which ``content`` is left behind."""
        memo: dict[int, Any] = {}
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stack under each mark
        program = pickletools.genops(content)
        for step, (opcode, argument, _) in enumerate(program):
            if step == _MOST_STEPS:
                raise _Refused(_ENDLESS)
            name, values = opcode.name, []
            if name in _ALL_SINCE_MARK:
                stack, values = below.pop(), stack
            elif count := _OPERANDS.get(name, 0):
                values = [stack.pop() for _ in range(count)][::-1]
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    (result,) = stack
                    return result
                case "MARK":
                    below.append(stack)
                    stack = []
                case _ if name in _ARGUMENTS:
                    stack.append(argument)
                case _ if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                    stack.append(tuple(values))
                case "LIST" | "EMPTY_LIST":
                    stack.append(values)
                case "DICT" | "EMPTY_DICT":
                    stack.append(_filled({}, values))
                case "APPEND" | "APPENDS":
                    _of(list, stack[-1]).extend(values)
                case "SETITEM" | "SETITEMS":
                    _filled(stack[-1], values)
                case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    place = len(memo) if argument is None else argument
                    memo[place] = stack[-1]
                    if type(stack[-1]) is _Unset:
                        stack[-1].places.append(place)
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL" | "STACK_GLOBAL":
                    stack.append(self._global(argument or " ".join(values)))
                case "BINPERSID":
                    stack.append(self._stored(*_short(values[0])))
                case "REDUCE":
                    call = self._calls[_of(_Global, values[0]).name]
                    stack.append(call(*_short(values[1])))
                case "BUILD":
                    stack.append(self._with_state(*values, memo))
                case _:
                    raise _no_code(f"the opcode {name}")

    def _global(self, name):
        if name not in self._known:
            raise _no_code(name.replace(" ", "."))
        return _Global(name)

    def _stored(self, word, kind, key, _, count, *view):
        # Before PyTorch 0.4 a storage could be a part of another.
        if word != "storage" or any(view):
            raise ValueError(word)
        if type(key) is not str or type(count) is not int or count < 0:
            raise ValueError(key)
        return self._storage(_STORAGES[_of(_Global, kind).name], key, count)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Refused(_TOO_MUCH)

    def _mapping(self, entries=()):
        self._take(100 * len(entries))  # bytes; a list may come again
        result: dict[str | int, Any] = {}
        for key, value in entries:
            _filled(result, (key, value))
        return result

    def _tensor(self, storage, offset, size, stride, *_):
        """A copy of a part of a storage."""
        (values,) = _of(_Storage, storage)
        if values is None:
            return None
        size, stride = _sizes(size), _sizes(stride)
        if len(size) != len(stride) or type(offset) is not int or offset < 0:
            raise ValueError(size)
        count = math.prod(size)
        dtype = _kept_as(values.dtype)
        self._take(count * dtype.itemsize)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count and last >= len(values):
            raise ValueError(last)
        view = np.lib.stride_tricks.as_strided(
            values[offset : offset + 1] if count else values[:0],
            size,
            [step * values.itemsize for step in stride],
            writeable=False,
        )
        return view.astype(dtype, "C")

    def _encoded(self, text, encoding="latin1"):
        """bytes; text is what bytes were to Python 2's pickles."""
        if encoding != "latin1":
            raise ValueError(encoding)
        raw = text.encode("latin1") if type(text) is str else _of(bytes, text)
        self._take(len(raw))
        return raw

    def _scalar(self, kind, raw):
        (value,) = self._numbers(kind, raw)
        return value.item()

    def _numbers(self, kind, raw):
        """[n], of its own and in this machine's byte order."""
        native = kind.newbyteorder("=")
        return np.frombuffer(self._encoded(raw), kind).astype(native)

    def _with_state(self, owner, state, memo):
        if type(owner) is dict:
            return owner  # what hangs on it beside its entries is left out
        if _of(_Unset, owner).dtype is not None:
            order = ">" if state[1] == ">" else "<"
            result = owner.dtype.newbyteorder(order)
        else:
            _, shape, kind, fortran, raw = state
            result = self._numbers(kind, raw).reshape(
                _sizes(shape), order="F" if fortran else "C"
            )
        while owner.places:
            memo[owner.places.pop()] = result
        return result


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(kind)
    return value


def _short(values: Any) -> tuple[Any, ...]:
    # The same long one a million times would take for ever.
    if len(_of(tuple, values)) > 64:  # of axes, NumPy has no more
        raise ValueError(len(values))
    return values


def _filled(target, values):
    """A dict with values that alternate with their keys before them."""
    keys = values[::2]
    if not all(isinstance(key, (str, int)) for key in keys):
        raise _Refused("holds a dict whose keys are no names")
    _of(dict, target).update(zip(keys, values[1::2], strict=True))
    return target


def _sizes(sizes=()):
    if not all(type(size) is int and size >= 0 for size in _short(sizes)):
        raise ValueError(sizes)
    return sizes


def _numpy_type(code, *_):
    if _of(str, code) not in _NUMPY_CODES:
        what = f"NumPy values of a type {_shown(code)}, no numbers"
        raise _Refused(f"holds {what}: {_SAVE_AGAIN}")
    return _Unset(np.dtype(code))


def _kept_as(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == _BRAIN else dtype


def _load(content: io.BytesIO, storage: Callable[..., _Storage]) -> Any:
    """The value of a pickle, when it is no more than ``read`` promises."""
    found = _Machine(storage).run(content)
    left, waiting = _MOST_NODES, [(found, 0)]
    while waiting:
        node, depth = waiting.pop()
        if type(node) in (list, tuple, dict):
            left -= len(node)
            if left < 0 or depth > _DEEPEST:
                raise _Refused(_ENDLESS)
            parts = node.values() if type(node) is dict else node
            waiting.extend((part, depth + 1) for part in parts)
        elif node is not None and type(node) not in _PLAIN:
            raise _Refused(f"holds other things than tensors: {_SAVE_AGAIN}")
    return found


# --- The formats -----------------------------------------------------------


def _read_zip(file, size):
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        found = [name for name in members if name.endswith("/data.pkl")]
        compressed = any(info.compress_type for info in members.values())
        if len(found) != 1 or compressed:
            raise _Refused(f"is a zip file of something else: {_SAVE_AGAIN}")
        # Members that overlap could be more than the file.
        if sum(info.file_size for info in members.values()) > size:
            raise ValueError(size)
        if members[found[0]].file_size > _MOST_PICKLE:
            raise _Refused(_ENDLESS)
        top = found[0].removesuffix("data.pkl")
        order = members.get(f"{top}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise _Refused("was written by a big-endian machine")
        kept: dict[str, np.ndarray] = {}

        def storage(dtype, key, count):
            if key not in kept:
                raw = archive.read(members[f"{top}data/{key}"])
                kept[key] = np.frombuffer(raw, dtype)
            if (kept[key].dtype, len(kept[key])) != (dtype, count):
                raise ValueError(key)
            return _Storage(kept[key])

        return _load(io.BytesIO(archive.read(found[0])), storage)


# A pickle of the number.
_OLD_MAGIC = (
    b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
)
_OLD_VERSION = 1001


def _read_old(file, size):
    """torch.save before PyTorch 1.6: five pickles, then the storages."""
    content = io.BytesIO(file.read(_MOST_PICKLE))
    content.seek(len(_OLD_MAGIC))

    def nothing(*_):
        raise ValueError("a storage where there is none")

    if _load(content, nothing) != _OLD_VERSION:
        raise ValueError("version")
    if _load(content, nothing).get("little_endian") is not True:
        raise _Refused("was written by a big-endian machine")

    # The storages lie behind the pickle that tells their types: it is read
    # twice, first without them.
    declared: dict[str, tuple[np.dtype, int]] = {}

    def declare(dtype, key, count):
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError(key)
        return _Storage(None)

    begin = content.tell()
    _load(content, declare)
    keys = _load(content, nothing)
    if set(keys) != set(declared) or len(keys) != len(declared):
        raise ValueError("keys")
    at = file.seek(content.tell())
    held = sum(8 + n * dtype.itemsize for dtype, n in declared.values())
    if size - at != held:
        raise ValueError("storages")
    kept = {}
    for key in keys:
        dtype, count = declared[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(key)
        raw = file.read(count * dtype.itemsize)
        kept[key] = _Storage(np.frombuffer(raw, dtype))
    content.seek(begin)
    return _load(content, lambda _, key, __: kept[key])


_SAFE = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": _BRAIN,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("|i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("|u1"),
    "BOOL": np.dtype("|b1"),
}


def _read_safetensors(file, size):
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MOST_PICKLE):
        raise ValueError(length)
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    at, result = 0, {}
    for name, entry in sorted(
        header.items(), key=lambda item: item[1]["data_offsets"]
    ):
        dtype = _SAFE.get(entry["dtype"])
        if dtype is None:
            what = f"{_shown(name)} as {_shown(entry['dtype'])}"
            raise _Refused(f"holds {what}: save it as F32 instead")
        shape = _sizes(tuple(entry["shape"]))
        first, last = entry["data_offsets"]
        if first != at or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(name)
        at = last
        result[name] = (dtype, shape, first, last)
    if begin + at != size:
        raise ValueError(size)
    file.seek(begin)
    for name, (dtype, shape, first, last) in result.items():
        values = np.frombuffer(file.read(last - first), dtype)
        result[name] = values.astype(_kept_as(dtype)).reshape(shape)
    return result
