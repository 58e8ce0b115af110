"""The whole of ddjax as one call: ``ddjax.distill``, ``plan`` and ``load``.

A call makes the run that a command makes, in the same folder, with the same
bytes: ``ddjax.distill("photos", ipc=10)`` is

    python experiments/iadd.py --config=configs/folder.py:photos,ipc=10
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddjax import artifact, exports, files, presets
from ddjax.data import classes, preprocess
from ddjax.data.arrays import check_arrays
from ddjax.pages import notebook
from ddjax.pages.pictures import picture
from ddjax.runs import compiled, d2m, generate, iadd, protocols, verify
from ddjax.runs.workdir import Shared, name_of, refusals
from ddjax.settings import D2m, Settings
from ddjax.types import InputError

__all__ = ["Run", "distill", "load", "plan"]

_METHODS = {"iadd": iadd.run, "d2m": d2m.run}


def distill(
    data: Any,
    *,
    ipc: int | None = None,
    method: str = "iadd",
    test: Any = None,
    class_names: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    root: str | Path = "runs",
    **fields: Any,
) -> Run:
    """Distils a data set, or goes on with or opens the run that does.

    An interrupted call goes on from its last checkpoint when it is made again,
    to the same result; a finished one is opened.

    Args:
      data: a folder with one folder of images per class; the path of an .npz
        file (README.md tells its arrays); the name of a data set, such as
        "digits" or a TFDS name; or (images, labels): images [n h w c] or
        [n h w], uint8 or floats in 0..1, labels [n], integers from 0 or texts.
      ipc: distilled images per class, 1 by default; of a generator, the
        images per class that it is selected and tested by.
      method: "iadd" for images, "d2m" for a generator of images.
      test: (images, labels) to test on, beside data of the same form; a share
        of the data by default.
      class_names: of data given as arrays with integer labels.
      workdir: the run's folder; named after the data by default.
      root: the parent of runs, and of what they share.
      **fields: ``minutes=30`` plans the run for this machine; and any
        field of ``ddjax.settings`` by its dotted name, such as
        ``**{"iadd.inner_steps": 30}``, or ``seed=3``.

    Returns:
      The finished Run.

    Raises:
      InputError: with the sentence that the command prints.

    References:
      Li et al., Neural Networks 172, 2024 (IADD); Sajedi et al., ECCV 2024
      (D2M).
    """
    call = _call_of(data, ipc, method, test, class_names, workdir, root, fields)
    call.run()
    return load(call.folder)


def plan(
    data: Any,
    *,
    minutes: int | float,
    ipc: int | None = None,
    method: str = "iadd",
    test: Any = None,
    class_names: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    root: str | Path = "runs",
    **fields: Any,
) -> None:
    """Measures this machine and prints what ``distill(.., minutes=)`` would do.

    The same as a command's ``--plan``; within a day, ``distill`` with the same
    arguments goes by what was printed.

    Args:
      data: as of ``distill``, like all arguments that follow.
      minutes: that the run is to take.
      ipc: distilled images per class.
      method: "iadd" or "d2m".
      test: (images, labels) to test on.
      class_names: of data given as arrays with integer labels.
      workdir: the run's folder.
      root: the parent of runs, and of what they share.
      **fields: of ``ddjax.settings``, by their dotted names.

    Raises:
      InputError: with the sentence that the command prints, such as that the
        minutes are too few.
    """
    fields = fields | {"minutes": minutes}
    _call_of(data, ipc, method, test, class_names, workdir, root, fields).run(
        plan_only=True
    )


class _Call(NamedTuple):
    """A run that is asked for.

    Attributes:
      method: "iadd" or "d2m".
      settings: of the run.
      folder: of the run.
      shared: where data, teachers and generators lie.
      command: the command that makes the same run.
      fixed: dotted names that a plan leaves as they are.
    """

    method: str
    settings: Settings
    folder: Path
    shared: Shared
    command: str
    fixed: tuple[str, ...]

    def run(self, plan_only: bool = False) -> None:
        """Makes it, or prints its plan."""
        compiled.return_memory_of_compiling()
        with refusals():
            _METHODS[self.method](
                self.settings,
                self.folder,
                self.shared,
                self.command,
                fixed=self.fixed,
                plan_only=plan_only,
            )


def _call_of(
    data, ipc, method, test, class_names, workdir, root, fields
) -> _Call:
    """What ``distill`` was asked for, checked; arrays are written to disk."""
    if method not in list(_METHODS):
        raise InputError(
            f"method must be {' or '.join(_METHODS)}, not {method!r}"
        )
    root = Path(root).expanduser()
    with refusals():
        if isinstance(data, str | Path):
            if test is not None or class_names is not None:
                raise InputError(
                    "test and class_names are for data given as (images, "
                    "labels): a folder has train/ and test/, an .npz file "
                    "test_images, test_labels and class_names"
                )
            what, arrays = str(data), None
            values = presets.own(what, 1 if ipc is None else ipc)
            # The form in which the settings name it.
            what = values.get("data.data_dir", what)
        else:
            arrays = _checked(data, test, class_names)
            what = str(root / "data" / f"arrays-{_digest(arrays)}.npz")
            side = max(arrays["train_images"].shape[1:3])
            values = presets.of_side(side, 1 if ipc is None else ipc)
            values |= {"data.source": "npz", "data.data_dir": what}
        if ipc is not None:
            if "iadd.ipc" in fields:
                raise InputError("give either ipc or iadd.ipc, not both")
            if method == "d2m":
                epochs = str(values["evaluate.epochs"])
                fields = {"d2m.ipcs": str(ipc), "d2m.epochs": epochs} | fields
        settings = Settings.of(values | fields)
        # Minutes stand behind the colon of configs/folder.py: they are no field
        # that a plan has to leave alone.
        given = tuple(name for name in fields if name != "minutes")
        suffix = "" if ipc is None else f",ipc={ipc}"
        if settings.minutes:
            suffix += f",minutes={settings.minutes:.12g}"
        if arrays is None:
            name = name_of(method, "folder", what + suffix)
        else:
            name = name_of(method, Path(what).stem, suffix)
            _store(arrays, Path(what))
        folder = Path(workdir).expanduser() if workdir else root / name
        shared = Shared.below(root)
        flat = settings.flat()
        command = _command(
            method,
            what + suffix,
            {field: flat[field] for field in given},
            folder,
            shared,
        )
        return _Call(method, settings, folder, shared, command, given)


def _command(method, argument, fields, folder, shared) -> str:
    """The command that makes the same run."""
    words = [f"--config=configs/folder.py:{argument}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    words.append(f"--workdir={folder}")
    if shared != Shared():
        words += [f"--{name}={path}" for name, path in shared._asdict().items()]
    return shlex.join(["python", f"experiments/{method}.py", *words])


def _checked(data, test, class_names) -> dict[str, np.ndarray]:
    """Arrays as an .npz file would hold them, checked, labels in numbers."""
    arrays: dict[str, np.ndarray] = {}
    for part, pair in (("train", data), ("test", test)):
        if pair is None:
            continue
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(
                "data must be a folder, an .npz file, the name of a data set "
                "or (images, labels), and test (images, labels)"
            )
        for what, values in zip(("images", "labels"), pair):
            try:
                arrays[f"{part}_{what}"] = np.asarray(values)
            except (ValueError, TypeError, RuntimeError):
                raise InputError(
                    f"{part} {what} must be one array, all of one shape, that "
                    "NumPy can read"
                ) from None
    if "train_labels" not in arrays:
        raise InputError("data must be given, and not None")
    parts = [part for part in ("train", "test") if f"{part}_labels" in arrays]
    if class_names is not None:
        if isinstance(class_names, str) or not hasattr(class_names, "__iter__"):
            raise InputError("class_names must be a list of texts")
        class_names = list(map(str, class_names))
    texts = {part: _texts(arrays[f"{part}_labels"]) for part in parts}
    if texts["train"] is not None:
        class_names = class_names or sorted(set(texts["train"]))
        for part in parts:
            if texts[part] is not None:
                arrays[f"{part}_labels"] = _numbered(texts[part], class_names)
    if class_names is not None:
        arrays["class_names"] = np.asarray(class_names)
    checked = check_arrays(arrays)
    arrays = {"class_names": np.asarray(checked.class_names)}
    for part, (images, labels) in checked.parts.items():
        arrays[f"{part}_images"] = images
        arrays[f"{part}_labels"] = labels
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:12]


def _store(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes the .npz file that a command can be given."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as file:
            np.savez(file, allow_pickle=False, **arrays)


def _texts(labels: np.ndarray) -> list[str] | None:
    """Labels that are texts, in whatever form; None of others."""
    values = labels.tolist() if labels.ndim == 1 else []
    if not values or not all(isinstance(v, str | bytes) for v in values):
        return None
    return [
        v.decode(errors="replace") if isinstance(v, bytes) else v
        for v in values
    ]


def _numbered(labels: list[str], names: list[str]) -> np.ndarray:
    """Texts as their places in ``names``."""
    number = {name: place for place, name in enumerate(names)}
    unknown = sorted(set(labels) - number.keys())
    if unknown:
        raise InputError(
            f"the label {unknown[0]!r} is none of the classes {d2m.some(names)}"
        )
    return np.array([number[label] for label in labels], np.int32)


def load(path: str | Path) -> Run:
    """Opens a finished run, a folder of generated images, or one such file.

    Args:
      path: the folder of a run of IADD or D2M, of a pre-training, or of
        ``generate.py``; or a distilled or generator .npz file.

    Raises:
      InputError: there is nothing finished, or it is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        for inside in (
            "distilled.npz",
            "generator/distilled.npz",
            "generator.npz",
        ):
            if (path / inside).exists():
                return Run(path, path / inside)
        begun = (path / "config.json").exists()
        raise InputError(
            f"the run in {path} is not finished: run the same command, or "
            "make the same call, to go on"
            if begun
            else f"{path} holds no run: name the folder of a finished one"
        )
    if not path.exists():
        raise InputError(
            f"there is no run or distilled file {path}: check the path; runs "
            "lie in the folder runs unless workdir or root said otherwise"
        )
    return Run(path, path)


class Run:
    """What a finished run made: images or a generator, and their scores.

    In a notebook it shows itself.

    Attributes:
      path: the run's folder, or the file that was opened.
      metadata: what the file tells of itself: class names, method, recipe,
        config, scores.
      preprocessing: takes pixels to network input; see
        ``ddjax.data.preprocess.apply``.
      learning_rate: for training on the images.
    """

    def __init__(self, path: Path, file: Path):
        """Opens a file; ``load`` finds it.

        Args:
          path: what the user named.
          file: the distilled file or generator.

        Raises:
          InputError: it is damaged or of another kind.
        """
        self.path = path
        self._generator: artifact.GeneratorArtifact | None = None
        if artifact.is_generator(file):
            self._generator = found = artifact.load_generator(file)
            self.learning_rate = float(
                found.metadata.get("learning_rate", 0.01)
            )
        else:
            found = artifact.load(file)
            self.learning_rate = found.learning_rate
            self._given = found.images, found.labels
        self.metadata: dict[str, Any] = found.metadata
        self.preprocessing = found.preprocessing

    @functools.cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        if self._generator is None:
            return self._given
        k = len(self.class_names)
        labels = protocols.balanced_labels(k, self._ipc)
        return self.generate(labels), classes.one_hot(labels, k)

    @property
    def _ipc(self) -> int:
        """The images per class that a generator is shown and used by."""
        ipcs = self.metadata.get("config", {}).get("d2m.ipcs", "10")
        return D2m(ipcs=ipcs, epochs="1").middle_ipc

    @property
    def images(self) -> np.ndarray:
        """[n h w c] float32 pixels, 0 black to 1 white, unclipped. Of a
        generator those of seed 0, the middle number of ``d2m.ipcs`` per
        class."""
        return self._images[0]

    @property
    def labels(self) -> np.ndarray:
        """[n k] float32, rows sum to 1."""
        return self._images[1]

    @property
    def inputs(self) -> np.ndarray:
        """[n h w c], the images as networks are to see them."""
        return np.asarray(preprocess.apply(self.preprocessing, self.images))

    @property
    def class_names(self) -> list[str]:
        """k names, in the order of the labels' columns."""
        return list(self.metadata["class_names"])

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """{row: {network: {mean, std, ci95, accuracies, ..}}}, in 0..1, as in
        eval.json; {} of a file that tells none."""
        return self.metadata.get("scores", {})

    @property
    def report(self) -> Path | None:
        """The run's page, where there is one."""
        page = self.path / "report.html"
        return page if page.exists() else None

    def generate(
        self, labels: Any, seed: int = 0, choose: str = "random"
    ) -> np.ndarray:
        """New images of a generator; the same as ``generate.py`` makes.

        Args:
          labels: [n] integers, the class of each image.
          seed: of the noise.
          choose: "random"; "centres" or "moments" choose among many, by the
            data and teachers of the run; "latents" goes on from "centres" and
            moves their noise.

        Returns:
          [n h w c] float32 pixels in 0..1.

        Raises:
          InputError: this run has images and no generator, or a label is no
            class.
        """
        if self._generator is None:
            raise InputError(
                f"{self.path} holds images and no generator: distil with "
                'method="d2m" for one'
            )
        return generate.images_of(
            self._generator,
            np.asarray(labels),
            seed,
            choose,
            Shared.below(self.path.parent),
        )

    @property
    def _artifact(self) -> artifact.Artifact:
        return artifact.Artifact(
            self.images,
            self.labels,
            self.learning_rate,
            self.preprocessing,
            self.metadata,
        )

    def export(self, form: str, out: str | Path) -> Path:
        """Writes the images in a form that other tools read.

        Args:
          form: "png", "npz", "safetensors", "parquet" or "pt"; see
            ``ddjax.exports``.
          out: a folder to make.

        Returns:
          The folder.

        Raises:
          InputError: the form is unknown or has no room for such images, a
            package that it needs is missing, or the folder holds something.
        """
        out = Path(out).expanduser()
        with refusals():
            exports.export(self._artifact, form, out)
        return out

    def verify(
        self,
        *,
        networks: int = 0,
        seed: int = 0,
        data_dir: str = "",
        data: str | Path | None = None,
    ) -> dict[str, verify.Verdict]:
        """Trains fresh networks on the images, or on what the generator makes,
        by the recorded recipe, and compares with the recorded scores; the same
        as ``verify.py`` prints.

        Args:
          networks: how many, at least 2; as many as were recorded by default.
          seed: of the networks, and of a generator's noise.
          data_dir: where the data lie, if not where the config says.
          data: the parent of prepared data; by default beside the run, or
            runs/data where a file was opened.

        Returns:
          {network's name: Verdict}, whose ``agrees`` is the answer; see
          ``ddjax.runs.verify``.

        Raises:
          InputError: no score is recorded, or the data are missing or of
            another kind.
        """
        if data is None:
            beside = self.path.is_dir()
            shared = Shared.below(self.path.parent) if beside else Shared()
            data = shared.data
        with refusals():
            return verify.verify(
                self._generator or self._artifact,
                data_folder=Path(data).expanduser(),
                data_dir=data_dir,
                networks=networks,
                seed=seed,
            )

    def show(self) -> Image.Image:
        """The picture of the images, a column a class."""
        return picture(self.images, self.labels.argmax(-1), self.class_names)

    def __repr__(self) -> str:
        if self._generator is None:
            n, *shape = self.images.shape
            what = f"{n} images"
        else:
            shape = self._generator.apply.image_shape
            what = "a generator"
        return (
            f"<ddjax run {str(self.path)!r}: {what} of "
            f"{' x '.join(map(str, shape))}, {len(self.class_names)} classes>"
        )

    def _repr_html_(self) -> str:
        return notebook.fragment(
            self.show(), self.scores, repr(self), self.report
        )
