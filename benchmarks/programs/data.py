"""Random data in files, for programs that read some: `python data.py KIND FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def words(folder: Path) -> None:
    """Tokens of nanoGPT: data/openwebtext/{train,val}.bin, 16-bit."""
    place = folder / "data" / "openwebtext"
    place.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        random.integers(0, 50257, 200_000, dtype=np.uint16).tofile(place / f"{name}.bin")


def texts(folder: Path) -> None:
    """Text of 200 different words: data/wikitext-2/{train,valid,test}.txt."""
    place = folder / "data" / "wikitext-2"
    place.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("train", "valid", "test"):
        lines = (" ".join(f"w{number}" for number in line) for line in random.integers(0, 200, (400, 30)))
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n")


def images(folder: Path) -> None:
    """Pictures in folders, one for each class: images/{train,val}/CLASS/N.png."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            place = folder / "images" / part / label
            place.mkdir(parents=True)
            for number in range(24):
                pixels = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png", compress_level=0)


KINDS = {"words": words, "texts": texts, "images": images}


if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]))
