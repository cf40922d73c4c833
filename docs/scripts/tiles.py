"""Cut a photograph into square tiles: `python docs/scripts/tiles.py PHOTOGRAPH FOLDER [--size 16] [--every 1]`.

PHOTOGRAPH is a file, or `china` or `flower`, two photographs that come with scikit-learn. Tiles do not overlap, so no
two of them share a pixel. `--every 20` keeps each 20th tile, `--but-every 20` all others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sklearn.datasets
from PIL import Image

SAMPLES = Path(sklearn.datasets.__file__).parent / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut a photograph into square tiles.")
    parser.add_argument("photograph", help="an image file, or china, or flower")
    parser.add_argument("folder", type=Path, help="where the tiles go")
    parser.add_argument("--size", type=int, default=16, help="pixels a side (16)")
    parser.add_argument("--every", type=int, help="keep each N-th tile only", metavar="N")
    parser.add_argument("--first", type=int, default=0, help="begin with this tile, counted in rows", metavar="N")
    parser.add_argument("--count", type=int, help="write N tiles at most", metavar="N")
    parser.add_argument("--but-every", type=int, help="leave out each N-th tile", metavar="N")
    asked = parser.parse_args()
    sample = SAMPLES / f"{asked.photograph}.jpg"
    file = sample if sample.is_file() else Path(asked.photograph)
    asked.folder.mkdir(parents=True, exist_ok=True)
    written = 0
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    columns, rows = (side // asked.size for side in photograph.size)
    for number in range(asked.first, rows * columns):
        if (asked.every and number % asked.every) or (asked.but_every and number % asked.but_every == 0):
            continue
        if written == asked.count:
            break
        left, top = number % columns * asked.size, number // columns * asked.size
        tile = photograph.crop((left, top, left + asked.size, top + asked.size))
        tile.save(asked.folder / f"{file.stem}-{number:04}.png")
        written += 1
    print(f"{asked.folder}: {written} tiles of {asked.size} x {asked.size} pixels of {file.name}")


if __name__ == "__main__":
    main()
