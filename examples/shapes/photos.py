"""Writes real photographs with conversations about them, as a small LLaVA JSON and its image folder.

The photographs ship with scikit-learn (a temple above a lake, a dahlia) and matplotlib (a portrait); nothing is
downloaded. The answers of `photos.json` were written while looking at the images and are true of them. The set holds
the cases a reader of such files must stand: several turns, two images in one sample, no image, a missing file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from matplotlib.cbook import get_sample_data


def write_photographs(directory: Path) -> Path:
    """Write `directory/images/*.jpg` and `directory/data.json` in the LLaVA form; returns the JSON's path.

    Raises ModuleNotFoundError where scikit-learn, a development dependency, is missing.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}, with which the photographs ship: pip install scikit-learn") from error

    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    for file in (*load_sample_images().filenames, get_sample_data("grace_hopper.jpg", asfileobj=False)):
        shutil.copy(file, images)
    return shutil.copy(Path(__file__).with_name("photos.json"), directory / "data.json")
