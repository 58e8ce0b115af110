"""The letters A to Z in every font of this machine, as a folder of images.

    apt-get install --no-install-recommends fonts-{aenigma,dustin,\
georgewilliams,lato,roboto-unhinted,freefont-ttf,dejavu-extra,liberation,\
sil-gentium,open-sans,linuxlibertine,cmu,inter,ebgaramond,mplus,isabella,\
dkg-handwriting,comic-neue,averia-gwf,averia-sans-gwf,averia-serif-gwf,\
junction,quicksand,vollkorn,rufscript,dosis,cabin,hack,firacode} \
        fonts-adf-{accanthis,gillius,ikarius,irianis,libris,oldania,\
romande,switzera,tribun,universalis,verana}
    python experiments/benchmarks/letters.py --out=letters

A set of many classes and of pictures that are alike in nothing but what they
stand for: one PNG a letter and font, black on white, of its own size. Fonts
whose A to Z are not 26 different drawings (symbols, other scripts, fewer
letters) are left out.
"""

from __future__ import annotations

import argparse
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch
from PIL import Image, ImageDraw, ImageFont

from ddjax.types import InputError

_POINTS = 40
_MARGIN = 4
_MOST = 80  # pixels of a side; what is larger are ornaments


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fonts", type=Path, default=Path("/usr/share/fonts"), metavar="FOLDER"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: draw_all(args.fonts, args.out)))


def draw_all(fonts, out):
    """One folder a letter, one file a font."""
    if out.exists():
        raise InputError(f"{out} is there: remove it, or name another")
    files = sorted(
        path
        for path in fonts.rglob("*")
        if path.suffix.lower() in (".ttf", ".otf")
    )
    drawn = [found for path in files if (found := letters_of(path))]
    if not drawn:
        raise InputError(
            f"{fonts} has no font with the letters A to Z: install some, or "
            "name another folder with --fonts"
        )
    for i, pictures in enumerate(drawn):
        for letter, picture in zip(string.ascii_uppercase, pictures):
            folder = out / letter
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i:04}.png")
    print(f"{out}: 26 letters in {len(drawn)} of {len(files)} fonts")


def letters_of(path):
    """Pictures of A to Z; None of a font that has not all of them."""
    pictures = []
    try:
        font = ImageFont.truetype(path, _POINTS)
        for letter in string.ascii_uppercase:
            left, top, right, bottom = font.getbbox(letter)
            size = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
            if not 3 * _MARGIN < min(size) <= max(size) < _MOST:
                return None
            picture = Image.new("L", size, 255)
            place = _MARGIN - left, _MARGIN - top
            ImageDraw.Draw(picture).text(place, letter, font=font, fill=0)
            pictures.append(picture)
    except OSError:  # no font, or one that FreeType cannot draw
        return None
    seen = {(picture.size, picture.tobytes()) for picture in pictures}
    return pictures if len(seen) == len(pictures) else None


if __name__ == "__main__":
    main()
