"""Plans of D2M: a generator for the minutes asked for."""

import json
import re

import jax
import numpy as np
import pytest
from small import D2M

from ddjax import artifact, models, parallel
from ddjax.runs import d2m, plan_d2m, prepare, probe
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError

# What a plan leaves alone, so that its run is a matter of seconds.
FIXED = {
    "teacher.count": 2,
    "gan.iterations": 6,
    "gan.looks": 2,
    "d2m.iterations": 4,
    "d2m.ipcs": "1",
    "d2m.epochs": "4",
    "d2m.choose": "none",
    "evaluate.looks": 1,
    "evaluate.networks": 2,
    "evaluate.baselines": "",
    "evaluate.full_steps": 8,
}
ASKED = Settings.of(D2M | FIXED | {"data.source": "digits", "minutes": 2.0})


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A planned run: its folder, and how to ask for it again."""
    folder = tmp_path_factory.mktemp("planned")
    shared = Shared(*(folder / n for n in ("teachers", "data", "generators")))

    def again(settings=ASKED, name="run", **how):
        d2m.run(settings, folder / name, shared, "", fixed=FIXED, **how)
        return folder / name

    return again(), again


@pytest.mark.campaign
def test_the_plan_is_kept_and_what_is_fixed_stays(run):
    folder, _ = run
    found = json.loads((folder / "config.json").read_text())
    assert found["plan"]["asked"]["gan.patience"] == 0
    decided = found["plan"]["fields"]
    assert not set(decided) & set(FIXED)
    assert decided["gan.patience"] == 2
    assert {"teacher.epochs", "iadd.max_start"} <= set(decided)
    for name, value in (decided | FIXED).items():
        assert found["config"][name] == value
    page = (folder / "report.html").read_text()
    assert '<a href="#plan">planned</a>' in page and "2 minutes" in page


@pytest.mark.campaign
def test_a_planned_run_goes_on_by_its_plan(run, monkeypatch, capsys):
    folder, again = run
    monkeypatch.setattr(plan_d2m, "decide", None)  # would raise
    again()
    assert "complete" in capsys.readouterr().out
    killed = folder.parent / "killed"
    killed.mkdir()
    (killed / "config.json").write_text((folder / "config.json").read_text())
    again(name="killed")
    one, other = (
        artifact.load_generator(where / "generator" / "distilled.npz").params
        for where in (folder, killed)
    )
    np.testing.assert_equal(one, other)


@pytest.fixture(scope="module")
def decide(tmp_path_factory):
    """Plans with fields changed, on digits."""
    task = prepare.task(
        ASKED.data, ASKED.model, 0, tmp_path_factory.mktemp("data")
    )

    def with_fields(**fields):
        asked = Settings.of(
            D2M | {"data.source": "digits", "evaluate.networks": 2} | fields
        )
        return plan_d2m.decide(asked, task, lambda *_: None)

    # Whatever machine this is; the run above measures it.
    params = models.init_params(task.module, jax.random.key(0), (8, 8, 1))
    scores = [0.1, 0.4, 0.7, 0.8, 0.8, 0.8, 0.8]
    cost = probe.UpdateCost(1.0, 1.0, 1 << 20)
    pilot = probe.Pilot([params] * len(scores), scores, probe.Pace(0.5))
    test = probe.TestCost(probe.Pace(0.01), probe.Pace(0.1), 1.0)
    with pytest.MonkeyPatch.context() as patch:
        for where, name, found in (
            (plan_d2m, "_seconds_of_images", 1e-4),
            (plan_d2m, "_pretraining", (None, cost)),
            (plan_d2m, "_distilling_cost", cost),
            (probe, "fly", pilot),
            (probe, "test_cost", test),
        ):
            patch.setattr(where, name, lambda *_, found=found, **__: found)
        yield with_fields


def test_more_minutes_are_more_updates_within_them(decide):
    short, long = (decide(minutes=minutes) for minutes in (60.0, 200.0))
    assert short.minutes < 66 and long.minutes < 220
    assert long.settings.gan.iterations > short.settings.gan.iterations
    text = "\n".join(plan_d2m.lines(long))
    assert f"{long.settings.gan.iterations} updates of pre-training" in text
    assert "done at" in text


def test_rows_that_no_class_fills_are_left_out(decide):
    """A class of digits has 127 training images."""
    fits = decide(minutes=60.0, **{"d2m.ipcs": "1,10", "d2m.epochs": "9"})
    assert "d2m.ipcs" not in fits.fields
    many = {"d2m.ipcs": "5,900,1", "d2m.epochs": "7,8,9"}
    found = decide(minutes=60.0, **many)
    assert found.fields["d2m.ipcs"] == "5,1"
    assert found.fields["d2m.epochs"] == "7,9"
    assert found.settings.d2m.epochs_of == {5: 7, 1: 9}


def test_short_minutes_leave_the_largest_number_out(decide):
    many = {"d2m.ipcs": "1,50,10", "d2m.epochs": "8000,800,2000"}
    many["d2m.stream_ipc"] = 50
    short, long = (decide(minutes=m, **many) for m in (20.0, 300.0))
    assert short.minutes < 22 and long.minutes < 330
    fields = short.fields
    assert (fields["d2m.ipcs"], fields["d2m.epochs"]) == ("1,10", "8000,2000")
    assert fields["d2m.stream_ipc"] == 10
    assert not {"d2m.ipcs", "gan.look_epochs"} & set(long.fields)


def test_of_two_numbers_the_smaller_takes_less_time(decide):
    """An epoch was timed at the larger, which is then left out."""
    both = {"d2m.ipcs": "1,10", "d2m.epochs": "4000,4000"}
    found = decide(minutes=20.0, **both)
    assert found.fields["d2m.ipcs"] == "1"
    assert found.seconds["tests"] < 0.3 * 20 * 60


def test_looks_are_as_short_as_their_share_asks(decide, monkeypatch):
    monkeypatch.setattr(plan_d2m, "_LOOKS_SHARE", 0.01)
    found = decide(minutes=20.0)
    assert 1 <= found.fields["gan.look_epochs"] < found.fields["teacher.epochs"]
    assert found.seconds["looks of pre-training"] < 0.02 * 20 * 60


def test_what_cannot_be_planned_is_refused(tmp_path, decide):
    def again(settings, **how):
        d2m.run(settings, tmp_path, Shared.below(tmp_path), fixed=FIXED, **how)

    with pytest.raises(InputError, match="add --config"):
        again(ASKED.changed({"minutes": 0.0}), plan_only=True)
    with pytest.raises(InputError, match="leaves it out"):
        again(ASKED.changed({"d2m.generator": "one.npz"}))
    with pytest.raises(InputError, match="random has none"):
        again(ASKED.changed({"d2m.networks": "random"}))
    with pytest.raises(InputError, match="less than a start"):
        decide(minutes=0.1)
    with pytest.raises(InputError, match=r"give minutes=\d+") as refused:
        decide(minutes=0.9)
    # The number suffices.
    named = re.search(r"give minutes=(\d+)", str(refused.value))[1]
    assert decide(minutes=float(named)).settings.gan.iterations >= 100
