"""Tensors of other frameworks' files, as NumPy arrays: nothing in them is run.

``read`` takes what ``torch.save`` writes, in its zip format and the one before
it, and safetensors. A PyTorch file is a pickle beside raw numbers, and
unpickling can call anything; here it can only call the few builders below,
which make arrays, and every other name in it is refused. What a file declares
is checked against what it holds, and against this machine's memory, before any
of it is taken.

Sources: PyTorch's serialization notes,
https://docs.pytorch.org/docs/stable/notes/serialization.html; safetensors'
format, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddjax import files
from ddjax.types import InputError

__all__ = ["read"]

_BRAIN = "brain"  # bfloat16, the upper half of a float32
_MOST_PICKLE = 1 << 26  # bytes; a thousand tensors take some 100 KB
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
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
        NotImplementedError,  # a zip of another compression
        RuntimeError,  # one with a password
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise InputError(
            f"{path} is cut short or damaged: fetch it again"
        ) from None


def _read(file):
    start = file.read(len(_OLD_MAGIC))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start.startswith(b"PK"):
        return _read_zip(file)
    if start == _OLD_MAGIC:
        return _read_old(file, size)
    if start[8:9] == b"{":
        return _read_safetensors(file, size)
    raise _Refused(
        "is neither PyTorch's nor safetensors: save it again with torch.save, "
        "tensors alone"
    )


# --- What a pickle may build ------------------------------------------------


class _Builder:
    """A function that a pickle may call and can do nothing else to."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        object.__setattr__(self, "_build", build)

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("sets what is no tensor's")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("sets what is no tensor's")


class _Dict(dict):
    """An OrderedDict; what hangs on it beside its entries is left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    """Raw numbers, once they are read.

    Attributes:
      values: [n], of the type that the file has them in.
      brain: whether they are bfloat16, as uint16.
    """

    values: np.ndarray
    brain: bool


class _NumpyType:
    """A numpy.dtype of plain numbers."""

    __slots__ = ("code",)

    def __init__(self, code: str):
        if not isinstance(code, str) or code not in _NUMPY_CODES:
            raise _Refused(f"holds NumPy values of a type {code!r}, no numbers")
        self.code = "<" + code

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.code = ">" + self.code[1:]


class _NumpyArray:
    """A numpy.ndarray, whose content comes as its state."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        flat = _numbers(dtype.code, content)
        order = "F" if fortran else "C"
        self.array = flat.reshape(_sizes(shape), order=order).copy()


_NUMPY_CODES = frozenset(
    "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split()
)  # fmt: skip


def _numbers(code, content):
    """bytes -> [n]; text is what bytes were to Python 2's pickles."""
    if isinstance(content, str):
        content = content.encode("latin1")
    native = np.dtype(code).newbyteorder("=")
    return np.frombuffer(content, code).astype(native)


def _sizes(sizes):
    if not isinstance(sizes, tuple) or not all(
        type(size) is int and size >= 0 for size in sizes
    ):
        raise ValueError(sizes)
    return sizes


class _Tensors:
    """Builds the tensors of one file and counts what they take."""

    def __init__(self):
        self._left = files.memory()

    def tensor(self, storage, offset, size, stride, *_):
        """torch._utils._rebuild_tensor and its successor."""
        values, brain = storage
        size, stride = _sizes(size), _sizes(stride)
        if len(size) != len(stride) or type(offset) is not int or offset < 0:
            raise ValueError(size)
        count = math.prod(size)
        self._left -= count * (4 if brain else values.itemsize)
        if self._left < 0:
            raise _Refused("holds more than fits in this machine's memory")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count and last >= len(values):
            raise ValueError(last)
        view = np.lib.stride_tricks.as_strided(
            values[offset : offset + 1] if count else values[:0],
            size,
            [step * values.itemsize for step in stride],
            writeable=False,
        )
        return _widened(view) if brain else view.copy()


def _widened(values):
    """bfloat16's bits as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BRAIN,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class _Unpickler(pickle.Unpickler):
    """Knows the names of tensors, and no others."""

    def __init__(self, content: bytes, storage: Callable[..., Any]):
        _check_pickle(content)
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._storage = storage
        tensor = _Builder(_Tensors().tensor)
        scalar = _Builder(lambda kind, raw: _numbers(kind.code, raw)[0].item())
        array = _Builder(lambda *_: _NumpyArray())
        self._known = {
            ("collections", "OrderedDict"): _Builder(
                lambda *args: _Dict(*args)
            ),
            ("torch", "Size"): _Builder(lambda sizes=(): _sizes(tuple(sizes))),
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_parameter"): _Builder(
                lambda data, *_: data
            ),
            ("numpy", "dtype"): _Builder(lambda code, *_: _NumpyType(code)),
            ("numpy", "ndarray"): "ndarray",
            ("_codecs", "encode"): _Builder(_latin1),
        }
        for place in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self._known[place, "scalar"] = scalar
            self._known[place, "_reconstruct"] = array

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in self._known:
            raise _Refused(
                f"holds {module}.{name}, which only code could rebuild, and no "
                "code in a file is run: save its state_dict(), tensors alone"
            )
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count, *view = pid
        # Before PyTorch 0.4 a storage could be a part of another.
        if kind != "storage" or not isinstance(key, str) or any(view):
            raise ValueError(kind)
        if dtype not in _STORAGES or type(count) is not int or count < 0:
            raise ValueError(dtype)
        return self._storage(_STORAGES[dtype], key, count)


def _latin1(text, encoding):
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


def _check_pickle(content: bytes) -> None:
    """ValueError unless what it declares is there.

    The unpickler itself would make a memo as long as an index in it is large.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name.startswith("EXT"):
            raise ValueError(opcode.name)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not (
            0 <= argument < len(content)
        ):
            raise ValueError(argument)


def _plain(found: Any) -> Any:
    """The structure with nothing in it but what ``read`` promises."""
    nodes = 0

    def walk(node, depth):
        nonlocal nodes
        nodes += 1
        if nodes > _MOST_NODES or depth > _DEEPEST:
            raise _Refused("holds a structure without end, and not tensors")
        if isinstance(node, dict):
            if not all(isinstance(key, (str, int)) for key in node):
                raise _Refused("holds a dict whose keys are no names")
            return {key: walk(value, depth + 1) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(walk(value, depth + 1) for value in node)
        if isinstance(node, _NumpyArray):
            return node.array
        if node is None or isinstance(
            node, (np.ndarray, str, bytes, bool, int, float)
        ):
            return node
        raise _Refused("holds other things than tensors: save tensors alone")

    return walk(found, 0)


# --- The formats -----------------------------------------------------------


def _storage_of(dtype, raw):
    if dtype == _BRAIN:
        return _Storage(np.frombuffer(raw, "<u2"), True)
    return _Storage(np.frombuffer(raw, dtype), False)


def _bytes_of(dtype, count):
    return count * (2 if dtype == _BRAIN else np.dtype(dtype).itemsize)


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        found = [name for name in members if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise _Refused(
                "is a zip file, but not one of torch.save: save it again with "
                "torch.save, tensors alone"
            )
        top = found[0].removesuffix("data.pkl")
        if sum(info.file_size for info in members.values()) > files.memory():
            raise _Refused("holds more than fits in this machine's memory")
        if members[found[0]].file_size > _MOST_PICKLE:
            raise _Refused(
                "holds other things than tensors: save tensors alone"
            )
        order = members.get(f"{top}byteorder")
        if order is not None and order.file_size > len("little"):
            raise ValueError(order.file_size)
        if order is not None and archive.read(order) != b"little":
            raise _Refused("was written by a big-endian machine")
        kept: dict[str, tuple[str, _Storage]] = {}

        def storage(dtype, key, count):
            if key not in kept:
                info = members[f"{top}data/{key}"]
                if info.file_size != _bytes_of(dtype, count):
                    raise ValueError(key)
                kept[key] = dtype, _storage_of(dtype, archive.read(info))
            known, result = kept[key]
            if known != dtype:
                raise ValueError(key)
            return result

        return _plain(_Unpickler(archive.read(found[0]), storage).load())


_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
_OLD_VERSION = pickle.dumps(1001, 2)


def _read_old(file, size):
    """torch.save before PyTorch 1.6: five pickles, then the storages."""
    raw = file.read(_MOST_PICKLE + 1)
    at = len(_OLD_MAGIC)

    def next_pickle():
        """The bytes of one; the formats have no length before it."""
        nonlocal at
        rest = io.BytesIO(raw)
        rest.seek(at)
        for _ in pickletools.genops(rest):
            pass
        begin, at = at, rest.tell()
        return raw[begin:at]

    def nothing(*_):
        raise ValueError("a storage where there is none")

    if next_pickle() != _OLD_VERSION:
        raise ValueError("version")
    system = _plain(_Unpickler(next_pickle(), nothing).load())
    if system.get("little_endian") is not True:
        raise _Refused("was written by a big-endian machine")
    content = next_pickle()
    keys = _plain(_Unpickler(next_pickle(), nothing).load())

    # The storages lie behind the pickle that tells their types: it is read
    # twice, first without them.
    declared: dict[str, tuple[str, int]] = {}

    def declare(dtype, key, count):
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError(key)

    _Scout(content, declare).load()
    if set(keys) != set(declared) or len(keys) != len(declared):
        raise ValueError("keys")
    held = size - at
    if held != sum(8 + _bytes_of(*entry) for entry in declared.values()):
        raise ValueError("storages")
    if held > files.memory():
        raise _Refused("holds more than fits in this machine's memory")
    file.seek(at)
    kept = {}
    for key in keys:
        dtype, count = declared[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(key)
        kept[key] = _storage_of(dtype, file.read(_bytes_of(dtype, count)))
    return _plain(_Unpickler(content, lambda _, key, __: kept[key]).load())


class _Scout(_Unpickler):
    """Meets the storages of a pickle and builds no tensor."""

    def __init__(self, content, storage):
        super().__init__(content, storage)
        nothing = _Builder(lambda *_: None)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            self._known["torch._utils", name] = nothing


_SAFE = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": _BRAIN,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


def _read_safetensors(file, size):
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MOST_PICKLE):
        raise ValueError(length)
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    if size > files.memory():
        raise _Refused("holds more than fits in this machine's memory")
    at, result = 0, {}
    for name, entry in sorted(
        header.items(), key=lambda item: item[1]["data_offsets"]
    ):
        dtype = _SAFE.get(entry["dtype"])
        if dtype is None:
            raise _Refused(
                f"holds {name} as {entry['dtype']}: save it as F32 instead"
            )
        shape = _sizes(tuple(entry["shape"]))
        first, last = entry["data_offsets"]
        if first != at or last - first != _bytes_of(dtype, math.prod(shape)):
            raise ValueError(name)
        at = last
        result[name] = (dtype, shape, first)
    if begin + at != size:
        raise ValueError(size)
    for name, (dtype, shape, first) in result.items():
        file.seek(begin + first)
        raw = file.read(_bytes_of(dtype, math.prod(shape)))
        values, brain = _storage_of(dtype, raw)
        values = _widened(values) if brain else values.copy()
        result[name] = values.reshape(shape)
    return result
