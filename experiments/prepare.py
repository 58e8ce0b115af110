"""Decodes a config's data set once, and draws a page of what it holds.

    python experiments/prepare.py --config=configs/folder.py:PATH

Images are decoded into .npy files below --data (runs/data), which every other
script reads; an interrupted preparation goes on where it was. A
set that is prepared already is checked from end to end. The page,
<workdir>/data.html, shows samples of every class, counts, sizes, mean and
deviation: look at it before hours of training.
"""

from __future__ import annotations

from pathlib import Path

import launch
import teachers

from ddjax.data import preprocess
from ddjax.pages import data as data_page


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """Prepares the data, writes the page, and says where both are.

    Args:
      config: its data part and seed are used.
      workdir: for the page.
      shared: where the prepared images go.
    """
    splits, found = teachers.load(config, shared.data, thorough=True)
    manifest = {} if found is None else found.manifest
    fitted = preprocess.fit_standardise(splits.train.images)
    workdir.mkdir(parents=True, exist_ok=True)
    facts = {"Source": config.data.source}
    if config.data.data_dir:
        facts["Where"] = config.data.data_dir
    if found is not None:
        facts["Prepared in"] = str(found.folder)
        facts["Ignored files"] = str(manifest["ignored"])
    height, width, channels = splits.train.images.shape[1:]
    sizes = {f"{width} x {height}": sum(len(part.labels) for part in splits)}
    path = data_page.write_page(
        workdir / "data.html",
        title=f"Data: {workdir.name.removeprefix('prepare-')}",
        facts=facts,
        splits=splits._asdict(),
        sizes=manifest.get("original_sizes", sizes),
        unreadable=[tuple(pair) for pair in manifest.get("unreadable", [])],
        mean=fitted.mean.tolist(),
        std=fitted.std.tolist(),
    )
    counts = ", ".join(
        f"{len(part.labels):,} {name.replace('_', '-')}"
        for name, part in splits._asdict().items()
    )
    print(
        f"{len(splits.train.class_names)} classes of {height} x {width} x "
        f"{channels} images: {counts}"
    )
    if found is not None:
        print(f"prepared in {found.folder}")
    print(f"page: {path}")


if __name__ == "__main__":
    launch.main(run, __doc__)
