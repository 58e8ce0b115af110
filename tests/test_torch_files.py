"""Files of torch.save are read without it, and nothing in them runs."""

import pickle
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ddjax import torch_files
from ddjax.types import InputError

DATA = Path(__file__).parent / "data"


# An independent writer, opcode by opcode --------------------------------------


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def whole(number):
    return b"J" + struct.pack("<i", number)


def numbers(values):
    return b"(" + b"".join(map(whole, values)) + b"t"


def name(path):
    return b"c" + "\n".join(path.rsplit(" ", 1)).encode() + b"\n"


def tensor(
    shape=(2, 3), stride=(3, 1), offset=0, count=6, kind="FloatStorage", key="0"
):
    storage = b"(" + text("storage") + name(f"torch {kind}") + text(key)
    storage += text("cuda:0") + whole(count) + b"tQ"
    arguments = whole(offset) + numbers(shape) + numbers(stride)
    arguments += b"\x89" + name("collections OrderedDict") + b")R"
    return (
        name("torch._utils _rebuild_tensor_v2")
        + b"("
        + storage
        + arguments
        + b"tR"
    )


VALUES = np.arange(6, dtype="f")


def archive(path, program, values=VALUES, **more):
    with zipfile.ZipFile(path, "w", more.pop("compression", 0)) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        if values is not None:
            file.writestr("archive/data/0", values.tobytes())
        for inside, content in more.items():
            file.writestr(f"archive/{inside}", content)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tensor.pt"


# What is read ----------------------------------------------------------------


def test_files_that_pytorch_wrote():
    """Of PyTorch 2.13; their values are known."""
    found = torch_files.read(DATA / "mtt" / "images_best.pt")
    expected = np.arange(96, dtype="f").reshape(2, 3, 4, 4) / 48 - 1
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32 and not found.flags.writeable
    labels = torch_files.read(DATA / "mtt" / "labels_best.pt")
    assert labels.dtype == np.int64 and labels.tolist() == [1, 0]
    found = torch_files.read(DATA / "dc.pt")
    for number, (images, labels) in enumerate(found["data"]):
        assert images.shape == (4, 1, 4, 4) and (images == number).all()
        assert labels.tolist() == [0, 1, 0, 1]
    # NumPy's numbers stand for nothing.
    assert found["accs_all_exps"] == {"ConvNet": [None, 0.25, 3]}


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_pytorch_writes_now(path, protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    given = {
        "transposed": base.T[1:, ::2],
        "same": base[0].expand(5, 6),
        "empty": base[:0],
        "scalar": torch.tensor(3.5),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "flag": base > 3,
        "byte": base.byte(),
        "learned": torch.nn.Parameter(base),
        "list": [base, (base, None, True, "text", 2**40, -0.5)],
    }
    torch.save(given, path, pickle_protocol=protocol)
    found = torch_files.read(path)
    for key in given.keys() - {"list", "empty", "bfloat", "learned"}:
        expected = given[key].numpy()
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].dtype == expected.dtype
    assert found["empty"].size == 0
    assert found["bfloat"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["bfloat"].astype("f"), base.numpy())
    np.testing.assert_array_equal(found["learned"], base.numpy())
    assert found["list"][1][1:] == (None, True, "text", 2**40, -0.5)


def test_views_of_one_storage(path):
    archive(path, tensor(shape=(3, 2), stride=(1, 3)))
    assert torch_files.read(path).tolist() == [[0, 3], [1, 4], [2, 5]]
    archive(path, tensor(shape=(2, 2), stride=(0, 1), offset=4))
    assert torch_files.read(path).tolist() == [[4, 5], [4, 5]]


# What is refused -------------------------------------------------------------


class Evil:
    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "protocol, call, named",
    [
        (2, "os.system", "posix.system|nt.system"),
        (4, "os.system", "posix.system|nt.system"),
        (2, "builtins.exec", "__builtin__.exec"),
        (2, "builtins.getattr", "__builtin__.getattr"),
        (2, "importlib.import_module", "importlib.import_module"),
    ],
)
def test_code_is_not_run(path, tmp_path, protocol, call, named):
    module, _, function = call.rpartition(".")
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()"
    called = getattr(__import__(module), function)
    arguments = (f"touch {trace}",) if call == "os.system" else (code,)
    content = pickle.dumps(Evil(called, *arguments), protocol)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
    with pytest.raises(InputError, match=f"asks for ({named}), which tensors"):
        torch_files.read(path)
    assert not trace.exists()
    # The pickle is a real one, which does it where it is loaded.
    if call in ("os.system", "builtins.exec"):
        pickle.loads(content)
        assert trace.exists()


@pytest.mark.parametrize(
    "program, why",
    [
        (name("torch LayerNorm"), "asks for torch.LayerNorm"),
        (name("torch._utils _rebuild_tensor_v3"), "_rebuild_tensor_v3"),
        (name("x \x1b[2J"), r"asks for x.\\x1b\[2J"),
        (name("collections OrderedDict") + b")\x81", "opcode NEWOBJ"),
        (b"\x82\x01", "opcode EXT1"),
        (b"(ios\nsystem\n", "opcode INST"),
        (b"(" + name("collections OrderedDict") + b"o", "opcode OBJ"),
        (b"P0\n", "opcode PERSID"),
        (b"N2", "opcode DUP"),
        (b"N0", "opcode POP"),
    ],
)
def test_opcodes_and_names_that_tensors_do_not_need(path, program, why):
    with pytest.raises(InputError, match=why) as error:
        torch_files.read(archive(path, program))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "program",
    [
        tensor(count=7),
        tensor(kind="DoubleStorage"),
        tensor(key="1"),
        tensor(key="../data.pkl"),
        tensor(shape=(2, 4)),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(stride=(3, -1)),
        tensor(shape=(-1, 3)),
        tensor(shape=(2,)),
        tensor(shape=(1,) * 9, stride=(1,) * 9),
        tensor(shape=(2**31 - 1, 2**31 - 1), stride=(0, 0)),
        tensor(shape=(True, 3)).replace(whole(1), b"\x88"),
        b"(" + tensor() + tensor(kind="IntStorage") + b"t",
        name("torch._utils _rebuild_tensor_v2") + b")R",
        name("torch._utils _rebuild_parameter") + b"(NNtR",
        name("torch FloatStorage") + b")R",
        name("collections OrderedDict") + b"}b",
        b"N)R",
        b")Q",
        b"NN",
        b"",
        b"N(t",
        b"t",
        b"a",
        b"Na",
        b"N}}s",
        b"}(NNu",
        b"h\x07",
        b"})Ns",  # a tuple as a name
        b"r" + b"\xff" * 4,
        b"\x8a\xff" + b"\0" * 4,
        b"B" + b"\xff" * 4,
        b"X" + b"\xff" * 4,
        b"X\x01\0\0\0\xff",
        b"\xfe",
    ],
)
def test_what_does_not_fit(path, program):
    with pytest.raises(InputError, match="is damaged, or no file of tensors"):
        torch_files.read(archive(path, program))


def test_archives_that_are_none_of_pytorchs(path):
    archive(path, tensor(), byteorder=b"big")
    with pytest.raises(InputError, match="big-endian"):
        torch_files.read(path)
    for how in ({"values": None}, {"compression": zipfile.ZIP_DEFLATED}):
        archive(path, tensor(), **how)
        with pytest.raises(InputError, match="damaged"):
            torch_files.read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/other", b"")
    with pytest.raises(InputError, match="damaged"):
        torch_files.read(path)
    path.write_text("no tensor")
    with pytest.raises(InputError, match="damaged"):
        torch_files.read(path)
    with pytest.raises(InputError, match="there is no file"):
        torch_files.read(path.with_name("other.pt"))
    path.write_bytes(pickle.dumps([1], 2))
    with pytest.raises(InputError, match=r"before 1\.6"):
        torch_files.read(path)


def test_the_form_before_1_6_is_told_how_to_change(path):
    torch = pytest.importorskip("torch")
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"torch\.save\(torch\.load\(PATH"):
        torch_files.read(path)


def test_members_that_overlap(path):
    """One run of bytes under many names would be more than the file."""
    archive(path, tensor(), np.zeros(1000, "f"))
    with zipfile.ZipFile(path) as file:
        member = file.getinfo("archive/data/0")
    raw = bytearray(path.read_bytes())
    # The directory says that it is larger than all of the file.
    size = struct.pack("<I", 4000)
    place = raw.rindex(size)
    raw[place - 4 : place + 4] = 2 * struct.pack("<I", 4 * len(raw))
    path.write_bytes(raw)
    assert member.file_size == 4000
    with pytest.raises(InputError, match="damaged"):
        torch_files.read(path)


def test_truncated_and_changed_bytes(path):
    content = (DATA / "dc.pt").read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            torch_files.read(path)


def test_changed_programs(path):
    """Whole archives around a program with any one byte changed: a result or a
    refusal, and nothing is imported."""
    with zipfile.ZipFile(DATA / "dc.pt") as file:
        program = file.read("dc/data.pkl")
        rest = [
            (info, file.read(info))
            for info in file.infolist()
            if "data.pkl" not in info.filename
        ]
    before, read = set(sys.modules), 0
    for place in range(len(program)):
        changed = bytearray(program)
        changed[place] ^= (0x01, 0x42)[place % 2]
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("dc/data.pkl", bytes(changed))
            for info, content in rest:
                file.writestr(info, content)
        try:
            torch_files.read(path)
            read += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert 0 < read < len(program)
    assert set(sys.modules) == before
