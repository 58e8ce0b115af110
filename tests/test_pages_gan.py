"""The page of a generator's pre-training, and what a run keeps of it."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from page_folders import make_pretraining
from read_pages import check_self_contained, section, sections, summary

from ddjax import artifact
from ddjax.pages import gan
from ddjax.types import InputError


@pytest.fixture(scope="module")
def text(tmp_path_factory, generator):
    """The page of a pre-training."""
    folder = make_pretraining(tmp_path_factory.mktemp("whole"), generator)
    return gan.write_page(folder).read_text("utf-8")


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (True, "<strong>training was cut</strong>: that score had not stopped"),
        (False, "training ended when that score had stopped rising."),
    ],
)
def test_a_pretraining_that_was_selected(tmp_path, generator, cut, said):
    folder = make_pretraining(tmp_path, generator)
    path = folder / "quality.json"
    quality = json.loads(path.read_text())
    quality |= {"cut": cut, "selected_step": 30, "metric": "accuracy"}
    quality["of_a_teacher"] = 0.25
    path.write_text(json.dumps(quality))
    with (folder / "metrics.jsonl").open("a") as file:
        for step, score in ((30, 0.8), (60, 0.7)):
            row = {"step": step, "held_out_accuracy": score}
            file.write(json.dumps(row) + "\n")
    text = gan.write_page(folder).read_text("utf-8")
    quality = section(text, "quality")
    assert "for 25.0% of the teachers' steps only" in quality
    assert "The state of step 30 was selected, by networks" in quality
    assert said in quality
    assert "highest 80.0% at step 30; step 30 was selected" in text


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    return tmp_path / "run"


def test_the_page_of_a_pretraining(text, generator):
    assert sections(text) == [
        "pictures",
        "quality",
        "looks",
        "curves",
        "files",
        "commands",
        "config",
    ]
    check_self_contained(text)
    found = artifact.load_generator(generator)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    assert f"A generator of {count:,} parameters" in summary(text)
    assert f"{count / 64:.0f} images of the data set" in summary(text)
    assert "in 60 steps, about 2 min." in summary(text)
    # 0.1 * t / sqrt(3)
    assert "80.0 ± 24.8%" in summary(text)
    quality = section(text, "quality")
    assert "80.0 ± 24.8%" in quality
    assert "<strong>0.0123</strong>, between 1,284 real" in quality
    assert "as long and on as many as the teachers are" in quality
    assert "layer &lt;i&gt; of teacher 0" in quality
    looks = section(text, "looks")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", looks)
    assert captions == ["Step 30", "Step 60"]
    assert 'alt="Step 60: 6 images of 3 classes' in looks
    assert "30 images of 3 classes" in section(text, "pictures")
    assert "critic from 2 at step 10 to 2 at step 60" in text
    commands = section(text, "commands")
    assert "--config.gan.width=4 --config.gan.augment=" in commands
    assert "--config.data=" not in commands
    assert "<script" not in text


def test_what_a_run_keeps_of_a_pretraining(run, pretraining):
    gan.copy_pretraining(pretraining, run)
    gan.copy_pretraining(pretraining, run)  # a run that goes on
    kept = run / "pretraining"
    assert sorted(path.name for path in kept.iterdir()) == [
        "metrics.jsonl",
        "quality.json",
        "samples.npz",
    ]
    for name in ("metrics.jsonl", "quality.json"):
        assert (kept / name).read_bytes() == (pretraining / name).read_bytes()
    with np.load(kept / "samples.npz") as samples:
        assert samples["steps"].tolist() == [30, 60]
        assert samples["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert samples["images"].shape == (2, 6, 8, 8, 1)
        assert samples["images"].dtype == np.float32
        with np.load(pretraining / "samples" / "0000060.npz") as last:
            rows = [0, 1, 10, 11, 20, 21]
            assert np.array_equal(samples["images"][1], last["images"][rows])


def test_of_many_classes_twenty_are_kept(run, pretraining):
    for path in (pretraining / "samples").iterdir():
        np.savez(
            path,
            images=np.zeros((150, 8, 8, 1)),
            labels=np.repeat(np.arange(50), 3),
        )
    gan.copy_pretraining(pretraining, run)
    with np.load(run / "pretraining" / "samples.npz") as samples:
        assert samples["images"].shape == (2, 40, 8, 8, 1)
        assert len(set(samples["labels"].tolist())) == 20
        assert {0, 49} <= set(samples["labels"].tolist())


@pytest.mark.parametrize(
    "name", ["shaped_by.json", "generator.npz", "quality.json", "samples"]
)
def test_what_a_pretraining_lacks_is_named(pretraining, name):
    path = pretraining / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError) as error:
        gan.write_page(pretraining)
    assert str(path) in str(error.value)
    assert "python experiments/gan.py --config=" in str(error.value)
    assert not (pretraining / "report.html").exists()


def test_damage_of_a_pretraining_is_named(run, pretraining):
    (pretraining / "quality.json").write_text('{"images": 3}')
    with pytest.raises(InputError, match=r"quality\.json does not hold"):
        gan.write_page(pretraining)
    np.savez(
        pretraining / "samples" / "0000060.npz",
        images=np.zeros((30, 8, 8, 3)),
        labels=np.zeros(30),
    )
    with pytest.raises(InputError, match=r"0000060\.npz is not of one"):
        gan.copy_pretraining(pretraining, run)
    for path in (pretraining / "samples").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="holds no samples"):
        gan.copy_pretraining(pretraining, run)
    assert not (run / "pretraining").exists()
