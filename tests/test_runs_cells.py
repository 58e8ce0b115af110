"""Cells: found again, and made again where damaged or shaped otherwise."""

from ddjax.runs import cells

HOW = {"seed": 0, "recipe": {"epochs": 3}}


def test_kept(tmp_path):
    path = cells.path_of(tmp_path, "convnet", HOW)
    assert cells.read(path) is None
    cells.write(path, {"mean": 0.25}, HOW)
    assert cells.read(path) == {"mean": 0.25}
    assert path == cells.path_of(
        tmp_path, "convnet", dict(reversed(HOW.items()))
    )
    assert path != cells.path_of(tmp_path, "convnet", HOW | {"seed": 1})


def test_one_changed_digit_is_found(tmp_path):
    path = cells.path_of(tmp_path, "convnet", HOW)
    cells.write(path, {"mean": 0.25}, HOW)
    path.write_text(path.read_text().replace("0.25", "0.75"))
    assert cells.read(path) is None
