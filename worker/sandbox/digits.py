"""The demo's project: the half of scikit-learn's handwritten digits that its classifier has not seen."""

import json
from pathlib import Path
from typing import Final

import numpy
from PIL import Image
from sklearn.datasets import load_digits

from worker.sandbox.backend.state import State
from worker.sandbox.seed import IMAGE_AND_LABEL, SeededProject, seed_project

TRAINING_ROWS: Final = 898
"""Rows before this one are for the plugin to learn from, rows from here on are tasks."""

GREY_STEP: Final = 15
"""A digit's pixels hold 0 to 16; the PNG holds 0 to 240, so that dividing by this gives them back."""

SIDE: Final = 64
"""Pixels of an image's side: each of the 8 by 8 is a square of equal ones."""


def seed_digits(state: State, files_dir: Path, files_url: str) -> SeededProject:
    """Write the images and the labels as files and make a project with a task for each.

    `files_url` is where `files_dir` is served.
    """
    folder = files_dir / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    files = []
    for row in range(TRAINING_ROWS, len(digits.target)):
        image, label = f"{row}.png", f"{row}.json"
        pixels = (digits.images[row] * GREY_STEP).astype(numpy.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / image)
        (folder / label).write_text(json.dumps({"label": int(digits.target[row])}))
        files.append({"image_1": _file(files_url, image, True), "label_1": _file(files_url, label, False)})
    return seed_project(state, files, specifications=IMAGE_AND_LABEL, name="digits")


def true_labels(project: SeededProject) -> dict[int, int]:
    """What is written on each task's image."""
    labels = load_digits().target[TRAINING_ROWS:]
    return {task: int(label) for task, label in zip(project.tasks, labels, strict=True)}


def _file(files_url: str, name: str, is_primary: bool) -> dict[str, object]:
    return {"url": f"{files_url}/digits/{name}", "is_primary": is_primary, "file_name_original": name}
