"""Files of tensors: what is read, and what is never run.

Pickles are put together here opcode by opcode, as PyTorch's are, because no
pickler writes the ones that do harm. tests/data/biggan holds files that
PyTorch itself wrote; experiments/benchmarks/torch_biggan.py tells how.
"""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddjax import files, tensors
from ddjax.types import InputError

STORED = Path(__file__).parent / "data" / "biggan"
REAL = ("studio32.pth", "brock128.old.pth", "studio128.safetensors")
SIX = np.arange(6, dtype="<f4")
RAW = SIX.tobytes()


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value):
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def known(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def group(*parts):
    return b"(" + b"".join(parts) + b"t"


def storage(kind="FloatStorage", key="0", count=6):
    return (
        group(
            text("storage"),
            known("torch", kind),
            text(key),
            text("cpu"),
            whole(count),
        )
        + b"Q"
    )


def tensor(size, stride, offset=0, **kwargs):
    return (
        known("torch._utils", "_rebuild_tensor_v2")
        + group(
            storage(**kwargs),
            whole(offset),
            group(*map(whole, size)),
            group(*map(whole, stride)),
            b"\x89",
            b"N",
        )
        + b"R"
    )


@pytest.fixture
def read(tmp_path):
    """What a zip file with such a pickle and such storages holds."""

    def read_zip(content, raw=RAW, **members):
        path = tmp_path / "tensors.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
            archive.writestr("archive/data/0", raw)
            for name, value in members.items():
                archive.writestr(f"archive/{name}", value)
        return tensors.read(path)

    return read_zip


def test_views_of_a_storage(read):
    np.testing.assert_array_equal(
        read(tensor((2, 3), (3, 1))), SIX.reshape(2, 3)
    )
    np.testing.assert_array_equal(
        read(tensor((3, 2), (1, 3))), SIX.reshape(2, 3).T
    )
    np.testing.assert_array_equal(read(tensor((2,), (2,), 1)), SIX[1:5:2])
    np.testing.assert_array_equal(read(tensor((3,), (0,), 5)), [5, 5, 5])
    assert read(tensor((), (), 4)) == 4 and read(tensor((), ())).shape == ()
    assert read(tensor((0, 3), (3, 1))).shape == (0, 3)
    found = read(tensor((6,), (1,)))
    found[0] = 9  # of its own
    assert found.dtype == np.float32


def test_types(read):
    for kind, dtype in {
        "DoubleStorage": "f8",
        "HalfStorage": "f2",
        "LongStorage": "i8",
        "IntStorage": "i4",
        "ShortStorage": "i2",
        "CharStorage": "i1",
        "ByteStorage": "u1",
        "BoolStorage": "b1",
    }.items():
        raw = np.array([0, 1, 1], dtype).tobytes()
        found = read(tensor((3,), (1,), kind=kind, count=3), raw)
        assert found.dtype == dtype and found.tolist() == [0, 1, 1]
    # bfloat16 is float32 without its lower half.
    values = np.array([1.5, -2.0, 0.09375], "<f4")
    raw = values.view("<u2")[1::2].tobytes()
    found = read(tensor((3,), (1,), kind="BFloat16Storage", count=3), raw)
    assert found.dtype == np.float32 and (found == values).all()


def test_structures_around_tensors(read):
    one = tensor((2,), (1,))
    parameter = known("torch._utils", "_rebuild_parameter")
    ordered = known("collections", "OrderedDict")
    found = read(
        ordered
        + b")R("
        + text("a")
        + (parameter + group(one, b"\x88", b"N") + b"R")
        + text("b")
        + b"](" + one + b"Ne"
        + b"u"
        + b"}" + text("_metadata") + b"Ns" + b"b"
    )  # fmt: skip
    assert type(found) is dict and list(found) == ["a", "b"]
    assert found["a"].tolist() == [0, 1] and found["b"][1] is None


def test_what_pytorch_wrote():
    found = tensors.read(STORED / "studio32.pth")
    assert (found["step"], found["best_fid"]) == (1, 9.5)
    state = found["state_dict"]
    assert state["linear0.weight_orig"].shape == (128, 4)
    assert state["bn4.num_batches_tracked"] == 4
    found = tensors.read(STORED / "brock128.old.pth")
    assert found["blocks.1.1.gamma"] == np.float32(0.7)
    assert found["linear.u0"].shape == (1, 256)


class Harm:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["zip", "old"])
def test_no_code_is_run(tmp_path, protocol, place):
    mark, path = tmp_path / "harmed", tmp_path / "a.pt"
    harm = pickle.dumps({"a": [Harm(str(mark))]}, protocol)
    with open(path, "wb") as file:
        if place == "zip":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("a/data.pkl", harm)
        else:
            for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(part, file, 2)
            file.write(harm + pickle.dumps([], 2))
    with pytest.raises(InputError, match=r"holds \w+\.mkdir, which only"):
        tensors.read(path)
    assert not mark.exists()
    pickle.loads(harm)
    assert mark.exists()


def test_nothing_can_be_done_to_a_builder(read):
    """Not by the state that an object is given, nor by an attribute of one."""
    build = known("torch._utils", "_rebuild_tensor_v2")
    state = b"}" + text("_build") + known("torch", "Size") + b"s"
    for change in (state + b"b", group(b"N", state) + b"b"):
        with pytest.raises(InputError, match="sets what is no tensor's"):
            read(build + change + b"0" + tensor((2,), (1,)))
    assert read(tensor((2,), (1,))).tolist() == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        tensor((7,), (1,)),  # beyond its storage
        tensor((2,), (1,), 5),
        tensor((2,), (9,)),
        tensor((2,), (-1,), 1),
        tensor((-1,), (1,)),
        tensor((2, 3), (1,)),
        tensor((2,), (1,), -1),
        tensor((6,), (1,), count=7),  # a storage of another size
        tensor((6,), (1,), kind="DoubleStorage"),
        tensor((6,), (1,), key="1"),  # none there
        tensor((6,), (1,), key="../data/0"),
        group(tensor((6,), (1,)), tensor((6,), (1,), kind="IntStorage")),
        b"\x82\x01",  # of an extension registry
        b"N" + b"r" + struct.pack("<I", 1 << 31),  # a memo of 16 GiB
        b"\x8e" + struct.pack("<Q", 1 << 50),  # bytes that are not there
        b"\x95" + struct.pack("<Q", 1 << 50),  # a frame of them
        b"",
        b"}}" + b"s",
    ],
)
def test_what_is_not_there_is_refused(read, content):
    with pytest.raises(InputError, match="cut short or damaged"):
        read(content)


def test_no_more_than_the_memory(read, monkeypatch):
    """Of a tensor whose every element is the same, and of a storage."""
    start = time.perf_counter()
    with pytest.raises(InputError, match="fits in this machine's memory"):
        read(tensor((1 << 50,), (0,)))
    with pytest.raises(InputError, match="fits in this machine's memory"):
        read(b"](" + 9 * tensor((1 << 34,), (0,)) + b"e")
    assert time.perf_counter() - start < 2
    monkeypatch.setattr(files, "memory", lambda: 60)
    with pytest.raises(InputError, match="fits in this machine's memory"):
        read(tensor((6,), (1,)))


def test_structures_without_end(read, monkeypatch):
    """Each of 60 pairs holds the one before it twice; and one that holds
    itself."""
    monkeypatch.setattr(tensors, "_MOST_NODES", 1000)  # reached sooner
    pairs = b"N" + b"".join(
        b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)
    )
    for content in (pairs, b"]q\x00h\x00a"):
        with pytest.raises(InputError, match="a structure without end"):
            read(content)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (known("torch", "FloatStorage"), None),
        (known("torch._utils", "_rebuild_tensor_v2"), "other things than"),
        (storage(), "other things than"),
        (known("builtins", "eval"), r"holds builtins\.eval"),
        (known("torch.nn.modules.linear", "Linear"), r"save its state_dict"),
        (known("numpy", "dtype") + group(text("O8")) + b"R", "no numbers"),
        (b"}N" + b"Ns", "whose keys are no names"),
    ],
)
def test_other_things_are_refused(read, content, sentence):
    if sentence is None:
        assert read(content) == "FloatStorage"
        return
    with pytest.raises(InputError, match=sentence):
        read(content)


@pytest.mark.parametrize("name", REAL)
def test_files_that_are_cut_short(name, tmp_path):
    raw = (STORED / name).read_bytes()
    path = tmp_path / name
    for end in (0, 7, 12, 100, len(raw) // 3, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(InputError, match=str(path)) as caught:
            tensors.read(path)
        assert "\n" not in str(caught.value)
    if name.endswith("safetensors") or ".old." in name:
        path.write_bytes(raw + b"\0")
        with pytest.raises(InputError, match="cut short or damaged"):
            tensors.read(path)


@pytest.mark.parametrize("name", REAL)
def test_files_with_wrong_bytes(name, tmp_path):
    """They are read, or refused in one sentence, and nothing else."""
    raw = bytearray((STORED / name).read_bytes())
    path = tmp_path / name
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(raw)
        # Most of what is not numbers stands at one end or the other.
        for place in rng.integers(0, min(len(raw), 9000), 3):
            damaged[rng.choice([place, -place])] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            tensors.read(path)
        except InputError as error:
            assert str(path) in str(error)


def safe(header, raw=b"", length=None):
    encoded = json.dumps(header).encode()
    size = len(encoded) if length is None else length
    return size.to_bytes(8, "little") + encoded + raw


def entry(dtype, shape, first, last):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F32", [2, 3], 0, 24),
        "a": entry("BF16", [2], 24, 28),
        "c": entry("I8", [], 28, 29),
        "d": entry("F64", [0, 4], 29, 29),
    }
    brain = np.array([1.5, -2], "<f4").view("<u2")[1::2].tobytes()
    path.write_bytes(safe(header, RAW + brain + b"\xff"))
    found = tensors.read(path)
    assert sorted(found) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found["b"], SIX.reshape(2, 3))
    assert found["a"].tolist() == [1.5, -2] and found["c"] == -1
    assert found["d"].shape == (0, 4)
    for content, sentence in (
        (safe({"a": entry("F32", [2], 0, 4)}, bytes(4)), "damaged"),
        (safe({"a": entry("F32", [1], 0, 4)}, bytes(5)), "damaged"),
        (safe({"a": entry("F32", [-1, -1], 0, 4)}, bytes(4)), "damaged"),
        (safe({"a": entry("F32", [1 << 60], 0, 1 << 62)}, b""), "damaged"),
        (
            safe(
                {"a": entry("I8", [4], 0, 4), "b": entry("I8", [4], 2, 6)},
                bytes(6),
            ),
            "damaged",
        ),
        (safe({"a": entry("F8_E4M3", [1], 0, 1)}, b"a"), "a as F8_E4M3"),
        (safe({}, b"", length=1 << 40), "damaged"),
        (safe([1]), "neither PyTorch's nor"),
        (b"GIF89a" + bytes(90), "neither PyTorch's nor"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            tensors.read(path)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        tensors.read(tmp_path / "none.pt")
    with pytest.raises(InputError, match="cannot be read"):
        tensors.read(tmp_path)
    np.savez(tmp_path / "a.npz", a=SIX)
    with pytest.raises(InputError, match="a zip file, but not one of torch"):
        tensors.read(tmp_path / "a.npz")


def test_big_endian_files(read):
    with pytest.raises(InputError, match="big-endian"):
        read(tensor((6,), (1,)), byteorder="big")
    assert len(read(tensor((6,), (1,)), byteorder="little")) == 6


def test_round_trip_through_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    made = {
        "turned": torch.randn(3, 4).t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3.0),
        "brain": torch.randn(2, 2, dtype=torch.bfloat16),
        "strided": torch.arange(10)[2:8:2],
        "empty": torch.zeros(0, 3),
        "expanded": torch.zeros(1).expand(5),
        "bool": torch.tensor([True, False]),
    }
    around = {
        "state": torch.nn.Linear(2, 3).state_dict(),
        "mean": np.float64(0.5),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "rest": [1, "text", None, (True, 2.5)],
    }
    for kwargs in (
        {},
        {"_use_new_zipfile_serialization": False},
        {"pickle_protocol": 4},
    ):
        buffer = io.BytesIO()
        torch.save(made | around, buffer, **kwargs)
        (tmp_path / "a.pt").write_bytes(buffer.getvalue())
        found = tensors.read(tmp_path / "a.pt")
        for name, tensor in made.items():
            if name == "brain":
                tensor = tensor.float()
            expected = tensor.detach().numpy()
            np.testing.assert_array_equal(found[name], expected, name)
            assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(
            found["state"]["weight"], around["state"]["weight"]
        )
        np.testing.assert_array_equal(found["array"], around["array"])
        assert (found["mean"], found["rest"]) == (0.5, around["rest"])
