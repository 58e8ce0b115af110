"""Whatever a user may bring: a few drawn cases, and those once found."""

import json

import jax
import numpy as np
import pytest
from small import ROOT

import ddjax
from ddjax import artifact, models
from ddjax.data.arrays import check_arrays
from ddjax.types import InputError


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
        import fuzz

        yield fuzz


@pytest.mark.parametrize(
    "name", ["settings", "labels", "shapes", "image files", "artefact bytes"]
)
def test_it_works_or_a_sentence_says_why_not(fuzz, name):
    counts = fuzz.fuzz(name, 40)
    assert counts[fuzz.WORKED] > 3 and counts[fuzz.REFUSED] > 3
    assert not list(ROOT.glob(".hypothesis/*"))


def test_what_does_neither_is_found(fuzz):
    """The net has no hole: a traceback, a refusal without a sentence."""
    with pytest.raises(KeyError):
        fuzz.told(lambda: {}["a"])

    def refuse():
        raise InputError("")

    with pytest.raises(AssertionError):
        fuzz.told(refuse)
    assert fuzz.told(lambda: None) == fuzz.WORKED


# Found by it -----------------------------------------------------------------


def test_one_number_for_images():
    with pytest.raises(InputError, match=r"shape \(n, h, w, c\), not \(\)"):
        check_arrays(
            {"train_images": np.array(0.5), "train_labels": np.arange(2)}
        )


def test_images_without_a_pixel():
    module = models.build("mlp", num_classes=2)
    with pytest.raises(InputError, match=r"no images of shape \(0, 8, 1\)"):
        models.init_params(module, jax.random.key(0), (0, 8, 1))


def test_a_zip_file_of_a_version_to_come(fuzz, tmp_path):
    fuzz.fault_kinds.KINDS["distilled.npz"].write(tmp_path, False)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 64
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        ddjax.load(path)


@pytest.mark.parametrize(
    "metadata, why",
    [
        ({"scores": None}, "scores in its metadata is no table"),
        ({"config": [1]}, "config in its metadata is no table"),
        ({"learning_rate": "high"}, "learning rate in its metadata is 'high'"),
        ({"learning_rate": -1}, "learning rate in its metadata is -1"),
    ],
)
@pytest.mark.parametrize("kind", ["distilled.npz", "generator"])
def test_metadata_of_other_types(fuzz, tmp_path, kind, metadata, why):
    fuzz.fault_kinds.KINDS[kind].write(tmp_path, False)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = {
            name: file[name]
            for name in file.files
            if name not in ("checksum", "format_version")
        }
    told = json.loads(str(arrays["metadata"]))
    arrays["metadata"] = np.array(json.dumps(told | metadata))
    np.savez(path, **arrays)
    load = artifact.load_generator if kind == "generator" else artifact.load
    with pytest.raises(InputError, match=why):
        load(path)
