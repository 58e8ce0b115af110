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
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from ddjax import files, tensors
from ddjax.types import InputError

DATA = Path(__file__).parent / "data"
STORED = DATA / "biggan"
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
    images = tensors.read(DATA / "mtt" / "images_best.pt")
    expected = np.arange(96, dtype="f").reshape(2, 3, 4, 4) / 48 - 1
    np.testing.assert_array_equal(images, expected)
    labels = tensors.read(DATA / "mtt" / "labels_best.pt")
    assert labels.dtype == np.int64 and labels.tolist() == [1, 0]
    found = tensors.read(DATA / "dc.pt")
    for number, (images, labels) in enumerate(found["data"]):
        assert images.shape == (4, 1, 4, 4) and (images == number).all()
        assert labels.tolist() == [0, 1, 0, 1]
    assert found["accs_all_exps"] == {"ConvNet": [0.5, 0.25, 3]}


def test_what_python_2_wrote(read):
    """Its texts were bytes, and a mapping was called with its entries."""

    def old(word):
        return b"U" + bytes([len(word)]) + word

    entries = b"](](" + old(b"a") + tensor((2,), (1,)) + b"ee"
    found = read(known("collections", "OrderedDict") + group(entries) + b"R")
    assert list(found) == ["a"] and found["a"].tolist() == [0, 1]
    kind = known("numpy", "dtype") + group(old(b"i2"), b"I00\n", b"I01\n")
    kind += b"R" + group(whole(3), old(b">")) + b"b"
    scalar = known("numpy.core.multiarray", "scalar")
    assert read(scalar + group(kind, old(b"\x01\xff")) + b"R") == 0x1FF


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
    with pytest.raises(InputError, match=r"holds \w+\.mkdir, which no tens"):
        tensors.read(path)
    assert not mark.exists()
    pickle.loads(harm)
    assert mark.exists()


@pytest.mark.parametrize(
    "content, what",
    [
        (known("builtins", "eval"), r"builtins\.eval"),
        (known("torch._utils", "_rebuild_tensor_v3"), "torch._utils._rebuild"),
        (known("x", "\x1b[2J"), r"x\.\\x1b\[2J"),
        (known("collections", "OrderedDict") + b")\x81", "the opcode NEWOBJ"),
        (b"\x82\x01", "the opcode EXT1"),
        (b"(ios\nsystem\n", "the opcode INST"),
        (b"(" + known("collections", "OrderedDict") + b"o", "the opcode OBJ"),
        (b"P0\n", "the opcode PERSID"),
        (b"N2", "the opcode DUP"),
    ],
)
def test_names_and_opcodes_that_no_tensor_needs(read, content, what):
    with pytest.raises(
        InputError, match=rf"holds {what}.*no tensor needs, and no code"
    ) as caught:
        read(content)
    assert str(caught.value).isprintable()


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
        tensor((1,) * 65, (1,) * 65),
        known("torch._utils", "_rebuild_tensor_v2") + b")R",
        known("torch._utils", "_rebuild_tensor_v2") + b"}b",
        known("torch", "FloatStorage") + b")R",
        known("torch", "Size") + group(group(b"\x88")) + b"R",
        known("torch", "Size") + group(group(*65 * [whole(1)])) + b"R",
        known("collections", "OrderedDict") + group(b"N") + b"R",
        b"N)R",
        b")Q",
        b"NN",
        b"N(t",
        b"t",
        b"a",
        b"Na",
        b"}(" + text("a") + b"N" + text("b") + b"u",
        b"h\x07",
        b"\xfe",
        b"X\x01\0\0\0\xff",
        b"\x8a\xff\0",
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
    for content in (pairs, b"]q\x00h\x00a", 200 * b"]" + 199 * b"a"):
        with pytest.raises(InputError, match="a structure without end"):
            read(content)
    monkeypatch.setattr(tensors, "_MOST_STEPS", 100)
    read(b"(" + 90 * b"N" + b"t")
    with pytest.raises(InputError, match="a structure without end"):
        read(b"(" + 100 * b"N" + b"t")


def test_what_takes_more_than_its_opcodes(read, monkeypatch):
    """One text, list or array after another out of one in the memo."""
    monkeypatch.setattr(files, "memory", lambda: 100_000)
    entries = b"](" + 20 * group(text("a"), b"N") + b"eq\0"
    mapping = known("collections", "OrderedDict")
    raw = text("a" * 2000) + b"q\0"
    encode = known("_codecs", "encode")
    for content, call in (
        (entries, mapping + group(b"h\0") + b"R"),
        (raw, encode + group(b"h\0", text("latin1")) + b"R"),
        (tensor((6,), (1,)), tensor((1000,), (0,))),
    ):
        assert read(group(content, call)) is not None
        with pytest.raises(InputError, match="fits in this machine's memory"):
            read(group(content, *100 * [call]))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (known("torch", "FloatStorage"), "other things than"),
        (known("torch._utils", "_rebuild_tensor_v2"), "other things than"),
        (storage(), "other things than"),
        (known("torch.nn.modules.linear", "Linear"), "of a model its state_d"),
        (known("numpy", "dtype") + group(text("O8")) + b"R", "no numbers"),
        (b"}N" + b"Ns", "whose keys are no names"),
    ],
)
def test_other_things_are_refused(read, content, sentence):
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


def test_changed_programs(tmp_path):
    """Whole archives around a program with any one byte changed: a result or
    a refusal, and nothing is imported."""
    path, pickled = tmp_path / "dc.pt", "dc/data.pkl"
    with zipfile.ZipFile(DATA / "dc.pt") as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    program = members[pickled]
    before, read = set(sys.modules), 0
    for place in range(len(program)):
        changed = bytearray(program)
        changed[place] ^= (0x01, 0x42)[place % 2]
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (members | {pickled: changed}).items():
                file.writestr(name, bytes(content))
        try:
            tensors.read(path)
            read += 1
        except InputError as error:
            assert str(error).isprintable()
    assert 0 < read < len(program)
    assert set(sys.modules) == before


def test_members_that_overlap(tmp_path):
    """One lies within the other, so that both are more than the file."""
    path, raw = tmp_path / "a.pt", bytes(4000)
    inner = zipfile.ZipInfo("a/data/1")
    inner.file_size = inner.compress_size = len(raw)
    inner.CRC = zlib.crc32(raw)
    held = inner.FileHeader() + raw
    content = [
        tensor((1,), (1,), kind="ByteStorage", key=key, count=count)
        for key, count in (("0", len(held)), ("1", len(raw)))
    ]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + group(*content) + b".")
        inner.header_offset = file.fp.tell() + len("a/data/0") + 30
        file.writestr("a/data/0", held)
        file.filelist.append(inner)
    with pytest.raises(InputError, match="cut short or damaged"):
        tensors.read(path)


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
        (safe({"\n": entry("F8", [1], 0, 1)}, b"a"), r"holds \\n as F8"),
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
    with zipfile.ZipFile(
        tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr("a/data.pkl", b"N.")
    for name in ("a.npz", "a.zip"):
        with pytest.raises(InputError, match="a zip file of something else"):
            tensors.read(tmp_path / name)


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
        "again": 2 * [np.arange(3, dtype=">i4")],  # out of the memo
        "rest": [1, "text", None, (True, -2.5, 2**40, b"raw")],
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
        for again in found["again"]:
            assert again.tolist() == [0, 1, 2] and again.dtype.isnative
        assert (found["mean"], found["rest"]) == (0.5, around["rest"])
