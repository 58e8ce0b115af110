"""The curves of cost: every kind of point is one that can be measured."""

import pytest
from small import ROOT, door


@pytest.mark.parametrize("axis", ["teachers", "networks"])
def test_a_point_is_measured(monkeypatch, axis):
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
    growth = door("benchmarks/growth")
    monkeypatch.setattr(growth, "_REPEATS", 1)
    monkeypatch.setattr(growth, "BASE", growth.BASE | {"width": 4, "side": 8})
    row = growth.measure(axis, growth.AXES[axis].values[0])
    assert 0 < row["least"] <= row["seconds"] <= row["most"]
