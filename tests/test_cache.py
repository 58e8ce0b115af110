"""The cache: whole or not there, made once, and never of something else."""

import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from ddjax.data import cache
from ddjax.types import InputError

SHAPE = (6, 5, 3)


def pictures(count, seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def source(train, test, *, stamp="1", watched=None, labels=None, **changes):
    """A source of encoded pictures, two classes in turn."""

    def records(split, arrays):
        def read(begin, end):
            return [
                (
                    f"{split}/{i}",
                    png(arrays[i])
                    if isinstance(arrays[i], np.ndarray)
                    else arrays[i],
                    i % 2 if labels is None else labels[i],
                )
                for i in range(begin, end)
            ]

        return cache.Records(len(arrays), read)

    given = {
        "splits": {
            "train": records("train", train),
            "test": records("test", test),
        },
        "class_names": ("cat", "dog"),
        "channels": 3,
        "stamp": stamp,
        "watched": watched,
    }
    return cache.Source(**(given | changes))


@pytest.fixture
def made(tmp_path):
    """prepare() into one folder, with its sentences collected."""

    def make(found, **kwargs):
        kwargs.setdefault("form", cache.AS_THEY_ARE)
        make.said = []
        opened = found if callable(found) else lambda: found
        return cache.prepare(
            tmp_path / "data" / "set",
            opened,
            identity={"data_dir": str(tmp_path / "nowhere")},
            say=make.said.append,
            **kwargs,
        )

    return make


def images(found, split="train"):
    return np.load(found.images_path(split))


def test_what_goes_in_comes_out(made):
    train, test = pictures(7), pictures(4, seed=1)
    found = made(source(list(train), list(test)))
    np.testing.assert_array_equal(images(found), train)
    np.testing.assert_array_equal(images(found, "test"), test)
    np.testing.assert_array_equal(found.labels("train"), np.arange(7) % 2)
    assert found.labels("test").dtype == np.int32
    assert found.manifest["class_names"] == ["cat", "dog"]
    assert found.manifest["splits"] == {"train": 7, "test": 4}
    assert found.manifest["original_sizes"] == {"5 x 6": 11}
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "manifest.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


def test_pixels_need_no_decoding(made):
    given = pictures(4)

    def read(begin, end):
        return [(str(i), given[i], i % 2) for i in range(begin, end)]

    records = cache.Records(4, read)
    found = made(
        source([], [], splits={"train": records, "test": records}),
    )
    np.testing.assert_array_equal(images(found), given)


def test_size_and_grey(made):
    form = cache.Form(size=4, crop="stretch", channels=1)
    found = made(source(list(pictures(4)), list(pictures(2))), form=form)
    assert images(found).shape == (4, 4, 4, 1)


def test_channels_are_what_the_images_have(made):
    grey = [picture[..., 0] for picture in pictures(4)]
    found = made(source(grey, grey, channels=0))
    np.testing.assert_array_equal(images(found)[..., 0], grey)
    mixed = [*grey[:3], pictures(1)[0]]
    found = made(source(grey, mixed, channels=0, stamp="2"))
    assert images(found).shape == images(found, "test").shape == (4, *SHAPE)


class Watched:
    """A source that counts what is read of it, and can stop half way."""

    def __init__(self, path, count=10, stop_at=None):
        self.opened, self.read, self.stop_at = 0, [], stop_at
        self.path = path
        if not path.exists():
            path.touch()
        self.train = pictures(count)

    def __call__(self):
        self.opened += 1
        found = source(
            list(self.train),
            list(pictures(4)),
            stamp=cache.stamp_of([self.path]),
            watched=(self.path,),
        )
        records = found.splits["train"]

        def read(begin, end):
            if self.stop_at is not None and begin >= self.stop_at:
                raise KeyboardInterrupt
            self.read += range(begin, end)
            return records.read(begin, end)

        found.splits["train"] = records._replace(read=read)
        return found


def test_second_time_nothing_is_opened(made, tmp_path):
    watched = Watched(tmp_path / "file")
    first = made(watched)
    assert (watched.opened, len(watched.read)) == (1, 10)
    assert made(watched) == first
    assert (watched.opened, len(watched.read)) == (1, 10)


def test_changed_source_is_read_again(made, tmp_path):
    watched = Watched(tmp_path / "file")
    made(watched)
    watched.path.write_text("longer")
    watched.train = pictures(10, seed=5)
    np.testing.assert_array_equal(images(made(watched)), watched.train)
    assert "have changed" in made.said[0]


def test_source_of_another_time_is_read_again(made, tmp_path):
    """Of the same name and size: the time alone tells."""
    watched = Watched(tmp_path / "file")
    made(watched)
    later = watched.path.stat().st_mtime_ns + 1_000
    os.utime(watched.path, ns=(later, later))
    watched.train = pictures(10, seed=5)
    np.testing.assert_array_equal(images(made(watched)), watched.train)
    assert "have changed" in made.said[0]


@pytest.mark.parametrize("change", ["name", "size", "time", "none"])
def test_stamp_of_files(tmp_path, change):
    def stamp(name="file", size=3, time=10**9):
        path = tmp_path / name
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(0, time))
        return cache.stamp_of([path])

    changes = {
        "name": dict(name="other"),
        "size": dict(size=4),
        "time": dict(time=10**9 + 1_000),
        "none": {},
    }
    assert (stamp() == stamp(**changes[change])) == (change == "none")


def test_changed_folder_is_read_again(made):
    # No file to watch: the source alone knows.
    made(source(list(pictures(4)), list(pictures(4)), stamp="a"))
    changed = source(list(pictures(4, 3)), list(pictures(4)), stamp="b")
    np.testing.assert_array_equal(images(made(changed)), pictures(4, 3))


def test_source_that_is_gone_leaves_the_cache(made, tmp_path):
    watched = Watched(tmp_path / "file")
    first = made(watched)
    watched.path.unlink()
    assert made(watched) == first
    assert "gone" in made.said[0]


@pytest.fixture
def step_by_step(monkeypatch):
    """Two images a write, the progress saved after every one."""
    monkeypatch.setattr(cache, "_CHUNK", 2 * int(np.prod(SHAPE)))
    monkeypatch.setattr(cache, "_SAVE_EVERY", -1.0)


def test_interrupted_goes_on(made, tmp_path, step_by_step):
    whole = made(Watched(tmp_path / "file"))
    expected = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    (tmp_path / "data").rename(tmp_path / "aside")

    watched = Watched(tmp_path / "file", stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        made(watched)
    assert not (tmp_path / "data" / "set").exists()
    # What was written after the last save must not stay.
    with open(tmp_path / "data/set.partial/train_images.npy", "ab") as file:
        file.write(b"half an image")
    watched.stop_at, before = None, max(watched.read)
    found = made(watched)
    assert min(watched.read[watched.read.index(before) + 1 :]) == before + 1
    for name, content in expected.items():
        assert (found.folder / name).read_bytes() == content, name


def test_interrupted_starts_anew_for_other_files(made, tmp_path, step_by_step):
    watched = Watched(tmp_path / "file", stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        made(watched)
    watched.stop_at = None
    watched.path.write_text("changed")
    watched.train = pictures(10, seed=9)
    np.testing.assert_array_equal(images(made(watched)), watched.train)


@pytest.mark.parametrize("damage", ["cut", "flip", "labels", "manifest"])
def test_damaged_cache_is_made_again(made, damage):
    given = source(list(pictures(7)), list(pictures(4)))
    found = made(given)
    path = {
        "labels": found.folder / "test_labels.npy",
        "manifest": found.folder / "manifest.json",
    }.get(damage, found.images_path("train"))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-3])
    with pytest.raises(InputError, match=path.name):
        cache.open_cache(found.folder)
    again = made(given)
    assert path.name in made.said[0] and "again" in made.said[0]
    np.testing.assert_array_equal(images(again), pictures(7))


def test_large_caches_are_sampled(made, monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 64)
    monkeypatch.setattr(cache, "_CHECKED_WHOLE", 512)
    monkeypatch.setattr(cache, "_SAMPLED_BLOCKS", 2)
    found = made(source(list(pictures(20)), list(pictures(4))))
    path = found.images_path("train")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    cache.open_cache(found.folder)
    with pytest.raises(InputError, match="damaged"):
        cache.open_cache(found.folder, thorough=True)


def test_two_processes_make_one(tmp_path):
    program = textwrap.dedent(
        f"""
        import sys, time
        import numpy as np
        from pathlib import Path
        from ddjax.data import cache
        pixels = np.arange(8 * 27, dtype=np.uint8).reshape(8, 3, 3, 3)
        def read(begin, end):
            with open({str(tmp_path / "reads")!r}, "a") as file:
                file.write("x")
            time.sleep(0.5)
            return [(str(i), pixels[i], i % 2) for i in range(begin, end)]
        records = cache.Records(8, read)
        found = cache.prepare(
            Path({str(tmp_path / "set")!r}),
            lambda: cache.Source(
                {{"train": records, "test": records}}, ("a", "b"), 3, "1"
            ),
            identity={{}},
            form=cache.AS_THEY_ARE,
            say=lambda sentence: print(sentence),
        )
        assert (np.load(found.images_path("test")) == pixels).all()
        """
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "reads").read_text() == "xx"  # train and test, once
    assert sum("waiting" in words for words in said) <= 1


def test_unreadable_images_are_named_and_counted(made):
    broken = list(pictures(20))
    broken[3], broken[8] = b"no image", b""
    found = made(source(broken, list(pictures(4))), unreadable_share=0.1)
    kept = [i for i in range(20) if i not in (3, 8)]
    np.testing.assert_array_equal(images(found), pictures(20)[kept])
    np.testing.assert_array_equal(found.labels("train"), np.array(kept) % 2)
    names = [name for name, _ in found.manifest["unreadable"]]
    assert names == ["train/3", "train/8"]
    assert "2 images cannot be read" in made.said[0]
    assert "train/3" in made.said[0]
    assert "manifest.json" in made.said[0]
    # The cache is there, and still more than another config allows.
    with pytest.raises(InputError, match=r"2 of 24 .*train/3.*share 0\.01"):
        made(source(broken, list(pictures(4))))


def test_too_many_unreadable_then_mended(made):
    broken = [b"", *pictures(9)]
    with pytest.raises(InputError, match="1 of 14 images cannot be read"):
        made(source(broken, list(pictures(4))))
    # The stamp need not change: a permission may have been all.
    found = made(source(list(pictures(10)), list(pictures(4))))
    np.testing.assert_array_equal(images(found), pictures(10))


@pytest.mark.parametrize("kept", [200, -50])
def test_partial_file_that_lost_its_end(made, tmp_path, step_by_step, kept):
    watched = Watched(tmp_path / "file", stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        made(watched)
    path = tmp_path / "data/set.partial/train_images.npy"
    path.write_bytes(path.read_bytes()[:kept])
    watched.stop_at = None
    np.testing.assert_array_equal(images(made(watched)), watched.train)


@pytest.mark.parametrize("damage", ["{", '{"made_from": 1}', "sizes"])
def test_progress_that_is_damaged(made, tmp_path, step_by_step, damage):
    watched = Watched(tmp_path / "file", stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        made(watched)
    path = tmp_path / "data/set.partial/progress.json"
    if damage == "sizes":
        there = json.loads(path.read_text())
        del there["sizes"]
        damage = json.dumps(there)
    path.write_text(damage)
    watched.stop_at = None
    np.testing.assert_array_equal(images(made(watched)), watched.train)


def test_killed_between_the_renames(made, tmp_path):
    watched = Watched(tmp_path / "file")
    folder = made(watched).folder
    folder.rename(folder.with_name("set.partial"))
    (tmp_path / "data" / "set.old").mkdir()
    read = len(watched.read)
    np.testing.assert_array_equal(images(made(watched)), watched.train)
    assert len(watched.read) == read
    assert not (tmp_path / "data" / "set.old").exists()


def test_folder_that_is_no_cache_stays(made, tmp_path):
    precious = tmp_path / "data" / "set" / "precious"
    precious.mkdir(parents=True)
    with pytest.raises(InputError, match="holds precious"):
        made(source(list(pictures(4)), list(pictures(4))))
    assert precious.exists()


def test_large_images_are_decoded_few_at_a_time(made):
    read = []
    found = source(list(pictures(20)), list(pictures(4)))
    records = found.splits["train"]

    def counted(begin, end):
        read.append(end - begin)
        return records.read(begin, end)

    found.splits["train"] = records._replace(read=counted)
    made(found)
    assert read[0] == 8 and sum(read) == 20


@pytest.mark.parametrize(
    "changes, kwargs, said",
    [
        ({"labels": [0, 1, 2, 0]}, {}, "label 2, outside 0..1"),
        ({"labels": [0, -1, 0, 1]}, {}, "label -1, outside"),
        ({"labels": [0, 0, 0, 0]}, {}, "'dog' has no readable train images"),
        ({"class_names": ("cat",)}, {}, "one class only"),
        ({}, {"classes": ["cat"]}, "one class only"),
        ({}, {"classes": ["cat", "cat"]}, "'cat' twice"),
        ({}, {"classes": ["cat", "bird"]}, "'bird'.*cat, dog"),
        ({}, {"classes": ["cat", "7"]}, r"'7'.*0\.\.1"),
        ({}, {"form": cache.Form(crop="round")}, "crop 'round'"),
    ],
)
def test_refusals(made, changes, kwargs, said):
    with pytest.raises(InputError, match=said):
        made(source(list(pictures(4)), list(pictures(4)), **changes), **kwargs)


def test_what_cannot_be_opened_leaves_nothing(made, tmp_path):
    def missing():
        raise InputError("there is no folder")

    with pytest.raises(InputError, match="no folder"):
        made(missing)
    with pytest.raises(InputError, match="bird"):
        made(source(list(pictures(4)), list(pictures(4))), classes=["bird"])
    assert not list(tmp_path.iterdir())


def test_images_of_different_sizes(made):
    odd = [*pictures(3), *pictures(1, shape=(9, 8, 3))]
    with pytest.raises(InputError, match=r"train/3 is 8 x 9.* 5 x 6.*size"):
        made(source(odd, list(pictures(4))))
    with pytest.raises(InputError, match="parts have images of different"):
        made(source(list(pictures(4)), odd[3:] * 4))


def test_subset_has_new_labels(made):
    labels = [0, 1, 2, 0, 1, 2]
    found = made(
        source(
            list(pictures(6)),
            list(pictures(6)),
            labels=labels,
            class_names=("cat", "dog", "cow"),
        ),
        classes=["cow", "0"],
    )
    np.testing.assert_array_equal(images(found), pictures(6)[[0, 2, 3, 5]])
    np.testing.assert_array_equal(found.labels("train"), [1, 0, 1, 0])
    assert found.manifest["class_names"] == ["cow", "cat"]


def test_not_a_cache(tmp_path):
    with pytest.raises(InputError, match="prepare the data first"):
        cache.open_cache(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="damaged"):
        cache.open_cache(tmp_path)
