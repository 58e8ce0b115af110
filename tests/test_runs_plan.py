"""Plans: what fits into the minutes asked for."""

import functools
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image
from small import IADD

from configs import common
from configs import folder as folder_config
from ddjax import iadd as method
from ddjax import parallel, presets, training
from ddjax.runs import iadd, plan, prepare, probe, teachers
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError

# What a plan leaves alone, so that its run is a matter of seconds.
FIXED = {
    "model.width": 4,
    "model.depth": 1,
    "teacher.count": 2,
    "iadd.iterations": 20,
    "iadd.inner_steps": 20,
    "evaluate.networks": 2,
    "evaluate.epochs": 4,
    "evaluate.full_steps": 8,
    "evaluate.baselines": "",
    "log.every": 5,
}
ASKED = Settings.of(
    IADD
    | FIXED
    | {"data.source": "digits", "minutes": 6.0, "iadd.augment": "crop"}
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return prepare.task(ASKED.data, ASKED.model, 0, folder)


@pytest.fixture(scope="module")
def pilot(task):
    part = ASKED.changed(
        {"teacher.snapshot_steps": 10, "teacher.batch_size": 64}
    )
    return part, probe.fly(part, task, *task.training_data(), most=0.0, least=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A planned run: its folder, and how to ask for it again."""
    folder = tmp_path_factory.mktemp("planned")
    shared = Shared(*(folder / n for n in ("teachers", "data", "generators")))

    def again(settings=ASKED, **how):
        iadd.run(settings, folder / "run", shared, "", fixed=FIXED, **how)

    again()
    return folder / "run", again


@pytest.mark.campaign
def test_the_plan_is_kept_and_what_is_fixed_stays(run):
    folder, _ = run
    found = json.loads((folder / "config.json").read_text())
    assert found["plan"]["asked"]["iadd.max_start"] == 2
    decided = found["plan"]["fields"]
    assert not set(decided) & (set(FIXED) - {"model.width"})
    assert {"iadd.span", "iadd.max_start", "iadd.learning_rate"} <= set(decided)
    for name, value in decided.items():
        assert found["config"][name] == value
    for name, value in FIXED.items():
        assert found["config"][name] == value
    page = (folder / "report.html").read_text()
    assert '<a href="#plan">planned</a>' in page and "6 minutes" in page
    # Few steps on the whole data are told where its figure stands first.
    assert "a training that was cut short" in page


@pytest.mark.campaign
def test_a_planned_run_is_found_again_by_what_was_asked(run, capsys):
    _, again = run
    again()
    assert "complete" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"minutes is 6\.0 there and 5\.0 here"
    ):
        again(ASKED.changed({"minutes": 5.0}))


@pytest.mark.campaign
def test_a_plan_is_kept_from_its_first_moment(run, monkeypatch, tmp_path):
    """A run that was killed among its teachers goes on by the same plan."""
    folder, _ = run
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "config.json").write_text((folder / "config.json").read_text())
    monkeypatch.setattr(plan, "decide", None)  # would raise
    shared = Shared(
        *(folder.parent / n for n in ("teachers", "data", "generators"))
    )
    iadd.run(ASKED, killed, shared, "", fixed=FIXED)
    one, other = (
        np.load(where / "distilled.npz")["images"] for where in (folder, killed)
    )
    np.testing.assert_array_equal(one, other)


def test_a_plan_alone_leaves_nothing(tmp_path, capsys, monkeypatch, task):
    monkeypatch.setattr(
        plan, "decide", lambda *args: (plan.Plan(ASKED, {}, {}, 0, 0), task)
    )
    shared = Shared(*(tmp_path / n for n in ("teachers", "data", "generators")))
    iadd.run(ASKED, tmp_path / "run", shared, "", plan_only=True)
    assert "updates   20" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_run_takes_the_plan_that_was_shown(
    tmp_path, capsys, monkeypatch, task
):
    """Once, within a day, and of the same request."""
    fields = {"iadd.span": 2, "iadd.max_start": 1}
    made = plan.Plan(
        ASKED.changed(fields), fields, {"plan": 60.0}, 0, 0, {2: [0.5, 0.25]}
    )
    decided, trained = [], []

    class Begun(Exception):
        pass

    def decide(*args):
        decided.append(args)
        return made, task

    def train(settings, *args):
        trained.append(settings.iadd.span)
        raise Begun

    monkeypatch.setattr(plan, "decide", decide)
    monkeypatch.setattr(teachers, "train", train)
    shared = Shared(*(tmp_path / n for n in ("teachers", "data", "generators")))

    def show(**how):
        iadd.run(ASKED, tmp_path / "run", shared, plan_only=True, **how)

    def begin(**how):
        with pytest.raises(Begun):
            iadd.run(ASKED, tmp_path / "run", shared, **how)
        return len(decided)

    show()
    shown = capsys.readouterr().out
    assert begin(fixed=["seed"]) == 2  # another request
    capsys.readouterr()
    assert begin() == 2 and trained == [2, 2]
    said = capsys.readouterr().out
    assert "as --plan has measured" in said and "plan 0.0" in said
    agreement = "(1 the same, 0 chance): 0.38 over 2 snapshots"
    assert agreement in shown and agreement in said
    assert begin() == 3  # used up
    show()
    (kept,) = shared.data.glob("plan-*.json")
    os.utime(kept, (1, 1))
    assert begin() == 5


def test_too_few_minutes_are_refused_with_a_number_that_suffices(
    task, monkeypatch
):
    monkeypatch.setattr(plan, "_PLAN_SHARE", 1e9)  # on a machine however slow
    asked = ASKED.changed({"minutes": 0.45})
    with pytest.raises(InputError, match=r"tests .*; give minutes=[1-9]"):
        plan.decide(asked, task, set(FIXED) - {"iadd.iterations"})
    with pytest.raises(InputError, match="less than a start"):
        plan.decide(asked.changed({"minutes": 0.1}), task)


@pytest.mark.parametrize("minutes", [1.5, 3.0, 5.0])
def test_what_has_a_share_has_it_of_more_minutes_too(minutes):
    """The number that a refusal names is the least that suffices."""

    def seconds(total):
        """Tests at their least, and more than their share."""
        return {
            "plan": 70.0,
            "teachers": 0.2 * total,
            "tests": 90.0,
            "full data": 60 + plan.FULL_DATA_SHARE * total,
            "start and page": plan.FIXED_SECONDS,
        }

    def left(total):
        return total - sum(seconds(total).values())

    short = plan.Plan(
        ASKED.changed({"minutes": minutes, "iadd.iterations": 1}),
        {},
        seconds(60 * minutes) | {"updates": 1.5},
        0,
        0,
        each=1.5,
    )
    named = plan._sufficient(short)
    least = plan._LEAST_UPDATES * 1.5
    assert left(60 * minutes) < left(60 * (named - 1)) < least
    assert left(60 * named) >= least


def test_a_measurement_that_takes_the_minutes_is_given_up(task, monkeypatch):
    asked, clock = ASKED.changed({"minutes": 3.0}), iter([0.0, 80.0, 100.0])
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(clock))
    slow = probe.TestCost(probe.Pace(100.0), probe.Pace(0.0), 0.0)
    monkeypatch.setattr(probe, "test_cost", lambda *args: slow)
    asked = asked.changed({"model.width": 64})
    with pytest.raises(InputError, match=r"taken 1\.7 .* minutes=14, or"):
        plan.decide(asked, task)


@pytest.mark.parametrize(
    ("ipc", "initial", "rows"),
    [
        (1, "random", 2 + 2 + 3),
        (1, "herding", 2 + 2 + 2),
        (10, "herding", 2 + 2 + 3),
        (10, "random", 2 + 2 + 4),
    ],
)
def test_the_same_images_are_planned_for_once(ipc, initial, rows):
    """Two looks, PNG and random real; begun with and three picks."""
    asked = Settings.of(
        {
            "iadd.ipc": ipc,
            "iadd.initial": initial,
            "evaluate.looks": 2,
            "evaluate.look_networks": 1,
            "evaluate.networks": 5,
            "evaluate.epochs": 10,
        }
    )
    test = probe.TestCost(probe.Pace(1.0), probe.Pace(0.0), 0.0)
    assert plan._tests(asked, test) == 10 * (5 * rows + 3)


def test_memory_and_disk_are_looked_at(monkeypatch):
    small = plan.Plan(ASKED, {}, {}, 10**6, 10**6)
    plan.check_room(small)
    monkeypatch.setattr(plan.files, "memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"model\.width or iadd\.batch_size"):
        plan.check_room(small)
    large = plan.Plan(ASKED, {}, {}, 0, 10**18)
    with pytest.raises(InputError, match=r"lower teacher\.count"):
        plan.check_room(large)


def test_a_teacher_has_risen():
    rising = [0.1, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8, 0.79, 0.8]
    assert 4 <= plan.risen(rising) <= 7
    assert plan.risen([0.1, 0.2, 0.3, 0.4]) == 3
    assert plan.risen([0.1, 0.2]) == 1


def test_the_pilot_is_the_first_teacher(pilot, task, tmp_path):
    part, found = pilot
    part = part.changed({"iadd.max_start": 2, "iadd.span": 1})
    store = teachers.train(part, task, tmp_path)
    for epoch in range(4):
        for one, other in zip(
            jax.tree.leaves(store.snapshot(0, epoch)),
            jax.tree.leaves(found.snapshots[epoch]),
        ):
            np.testing.assert_array_equal(one, other)


def cosines(part, task, pilot):
    return probe.agreement(
        part,
        task,
        *task.training_data(),
        pilot,
        last=len(pilot.snapshots) - 1,
        longest=2,
    )


def test_a_pace_counts_turns():
    pace = probe.Pace(alone=1.0, beside=4, turn=2.5)
    found = [pace.of(n) for n in (1, 2, 3, 4, 5, 9)]
    assert found == [1.0, 2.0, 2.5, 2.5, 3.5, 6.0]
    assert [pace.of(5, at_once) for at_once in (1, 4, 9)] == [5.0, 3.5, 3.5]
    assert [probe.Pace(1.5).of(n) for n in (1, 3)] == [1.5, 4.5]
    cost = probe.TestCost(pace, probe.Pace(0.5, 2, 0.75), 3.0)
    assert cost.seconds(5, 10) == 2 * 0.75 + 0.5 + 10 * 3.5


def test_networks_are_timed_side_by_side(task, monkeypatch):
    """On a CPU of several cores that is one device."""
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    monkeypatch.setattr(parallel, "networks_at_once", lambda: 2)
    settings = ASKED.changed({"evaluate.networks": 5})
    data, left = task.training_data()
    pilot = probe.fly(settings, task, data, left, most=0.0)
    cost = probe.test_cost(settings, task)
    for pace in (pilot.pace, cost.per_epoch, cost.constant):
        assert pace.beside == 2 and pace.alone > 0
        assert pace.of(2) == pace.turn > 0
        rest = min(pace.turn, pace.alone)
        assert pace.of(5) == pytest.approx(2 * pace.turn + rest)


def test_agreement_tells_a_way_from_a_random_walk(pilot, task):
    """On data whose labels mean nothing, late steps agree less."""
    part, found = pilot
    real = cosines(part, task, found)
    assert all(0.5 < value <= 1 for value in real[2])
    rng = np.random.default_rng(0)

    def shaken(params):
        return jax.tree.map(
            lambda leaf: leaf + rng.normal(0, 1, leaf.shape), params
        )

    lost = found._replace(snapshots=[shaken(p) for p in found.snapshots])
    noise = cosines(part, task, lost)
    assert max(map(abs, noise[2])) < 0.4


def test_the_first_rate_is_the_one_that_ends_nearest(pilot, task):
    """Against a search over rates, with one student step."""
    part, found = pilot
    part = part.changed(
        {"iadd.max_start": 0, "iadd.span": 1, "iadd.inner_steps": 1}
    )
    rate = probe.first_rate(part, task, found)
    student = jax.jit(
        functools.partial(
            method.unroll_student,
            apply_fn=training.apply_fn_of(task.module),
            settings=part.iadd,
        )
    )

    def distance(rate):
        data = probe.real_images(part, task)._replace(learning_rate=rate)
        end, _ = student(data, found.snapshots[0], jax.random.key(part.seed))
        return sum(
            float(((a - b) ** 2).sum())
            for a, b in zip(
                jax.tree.leaves(end), jax.tree.leaves(found.snapshots[1])
            )
        )

    # One step is linear in the rate, so the closed form is the minimum, unless
    # it was held within a factor of 16 of the teacher's pace.
    pace = part.teacher.learning_rate * part.teacher.snapshot_steps
    assert pace / 16 <= rate <= 16 * pace
    if pace / 15.9 < rate < 15.9 * pace:
        assert distance(rate) <= min(distance(0.9 * rate), distance(1.1 * rate))
    else:
        inward = 1.1 * rate if rate < pace else 0.9 * rate
        outward = 0.9 * rate if rate < pace else 1.1 * rate
        assert distance(outward) < distance(inward)


def test_minutes_behind_the_colon():
    config = folder_config.get_config("digits,ipc=3,minutes=2.5")
    found = common.settings_of(config)
    assert (found.minutes, found.iadd.ipc) == (2.5, 3)
    assert found.changed({"minutes": 0.0}) == Settings.of(
        presets.own("digits", 3)
    )
    with pytest.raises(InputError, match=r"minutes=soon"):
        folder_config.get_config("digits,minutes=soon")


def test_without_minutes_a_plan_is_an_estimate(task, tmp_path, capsys):
    asked = ASKED.changed({"minutes": 0.0})
    found = plan.estimate(asked, task)
    assert found.settings == asked and not found.fields
    assert min(found.seconds.values()) > 0
    longer = plan.estimate(asked.changed({"iadd.iterations": 2000}), task)
    assert longer.seconds["updates"] > found.seconds["updates"]
    shared = Shared(*(tmp_path / n for n in ("teachers", "data", "generators")))
    iadd.run(asked, tmp_path / "run", shared, "", plan_only=True)
    assert "updates   20" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_images_are_made_smaller_before_networks_are_too_narrow(
    tmp_path, monkeypatch
):
    """Sixteen channels at 64 pixels do not fit, 32 at 32 pixels do."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "large" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (64, 64), np.uint8)
            image = Image.fromarray(pixels)
            image.save(tmp_path / "large" / label / f"{number}.png")
    asked = Settings.of(
        {
            "data.source": "folder",
            "data.data_dir": str(tmp_path / "large"),
            "data.size": 64,
            "model.width": 32,
            "model.depth": 4,
            "minutes": 4.0,
        }
    )

    def load(settings):
        return prepare.task(settings.data, settings.model, 0, tmp_path)

    def cost(settings, task):
        work = (task.image_shape[0] / 32) ** 2 * settings.model.width / 32
        return probe.TestCost(probe.Pace(0.012 * work), probe.Pace(0.0), 0.0)

    def at_width(settings, *rest):
        fields = {"model.width": settings.model.width}
        return plan.Plan(settings, fields, {"updates": 1.0}, 0, 0)

    monkeypatch.setattr(probe, "test_cost", cost)
    monkeypatch.setattr(plan, "_at_width", at_width)
    found, task = plan.decide(asked, load(asked), (), load)
    assert found.fields == {
        "data.size": 32,
        "model.depth": 3,
        "model.width": 32,
    }
    assert task.image_shape == (32, 32, 1)
    assert task.module.depth == 3 and task.module.width == 32
    assert "made smaller, to 32 pixels" in "".join(plan.lines(found))
    for fixed, width in ((("data.size",), 16), (("model.width",), 32)):
        found, task = plan.decide(asked, load(asked), fixed, load)
        sides = (64, 64, 1) if "data.size" in fixed else (32, 32, 1)
        assert task.image_shape == sides
        assert found.fields["model.width"] == width
    # Where a picture has too few pixels to halve them, channels go.
    for side, smaller in ((48, 24), (47, 47)):
        sized = asked.changed({"data.size": side})
        found, task = plan.decide(
            sized.changed({"minutes": 1.5}), load(sized), (), load
        )
        assert task.image_shape == (smaller, smaller, 1)
    # What cannot fit is not measured: sixteen channels at 64 pixels.
    measured = []

    def dear(settings, task):
        measured.append((task.image_shape[0], settings.model.width))
        seconds = 100 * cost(settings, task).per_epoch.alone
        return probe.TestCost(probe.Pace(seconds), probe.Pace(0.0), 0.0)

    monkeypatch.setattr(probe, "test_cost", dear)
    plan.decide(asked, load(asked), (), load)
    assert measured == [(64, 32), (32, 32), (32, 16)]
