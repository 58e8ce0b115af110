"""The page of a folder, whatever run or pre-training the folder is of."""

from __future__ import annotations

from pathlib import Path

from ddjax.pages import d2m, gan, iadd, matrix, nas, privacy

__all__ = ["write_page"]


def write_page(folder: Path) -> Path:
    """Writes ``report.html`` of a folder, whole or not at all; of a matrix
    ``matrix.html``, of a search ``nas.html``, of a privacy card
    ``privacy.html``.

    Args:
      folder: of a run of IADD or D2M, of a pre-training, of a matrix, of a
        search or of a privacy card; what is in it decides, and each of their
        modules lists what it reads.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    folder = Path(folder)
    images = folder / "distilled.npz"  # which D2M's runs have not
    if (folder / "generator").is_dir() and not images.exists():
        return d2m.write_page(folder)
    if (folder / "generator.npz").exists():
        return gan.write_page(folder)
    alone = not (folder / "eval.json").exists()
    if alone and (folder / "matrix.json").exists():
        return matrix.write_page(folder)
    if alone and (folder / "nas.json").exists():
        return nas.write_page(folder)
    if alone and (folder / "privacy.json").exists():
        return privacy.write_page(folder)
    return iadd.write_page(folder)
