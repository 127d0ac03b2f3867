"""A folder of images, one folder per class: which parts and classes there are, and the names to show for them.

Classes are ordered by number where their folders are numbers (1, 2, ..., 10, not 1, 10, 2), then by name. `cat_to_name.json`
beside or in the folder, {"1": "pink primrose", ...}, gives the names to show.
"""

import json
import os
from pathlib import Path

from resnet_study.data.image_files import IMAGE_SUFFIXES
from resnet_study.errors import UsageError, as_text

_PART_NAMES = {
    "training": ("train", "training"),
    "validation": ("valid", "validation", "val"),
    "test": ("test",),
}


def find_part(folder: Path, part: str) -> Path | None:
    """The folder of "training", "validation" or "test"; None if there is none."""
    return next((folder / name for name in _PART_NAMES[part] if (folder / name).is_dir()), None)


def list_parts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Lists the image files.

    Args:
        folder: with train/<class>/ and valid/<class>/, perhaps test/<class>/; or with one folder per class.

    Returns:
        {part: {class folder: paths in the order of their names}}; a folder without train/ is one training part.

    Raises:
        UsageError: a folder cannot be read, or a class holds folders.
    """
    if not find_part(folder, "training"):
        return {"training": _list_classes(folder)}
    places = {part: find_part(folder, part) for part in _PART_NAMES}
    return {part: _list_classes(place) for part, place in places.items() if place}


def _list_classes(folder: Path) -> dict[str, list[str]]:
    classes = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                with os.scandir(entry.path) as files:
                    listed = [file for file in files if not file.name.startswith(".")]
                found = sorted(file.path for file in listed if file.name.lower().endswith(IMAGE_SUFFIXES))
                if found:
                    classes[entry.name] = found
                elif any(file.is_dir() for file in listed):
                    raise UsageError(
                        f"{entry.path} must hold the images of one class, received folders; give --data_dir=FOLDER with "
                        "train/<class>/ and valid/<class>/, or with one folder per class"
                    )
    except OSError as error:  # no right to read it, a loop of links
        raise UsageError(
            f"{error.filename or folder} could not be read ({error.strerror or error}); mend or remove it"
        ) from error
    return classes


def class_order(name: str) -> tuple:
    """Key to sort class folders by: numbers by their value, then names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() else (1, 0, name)


def describe_lack(folder: Path, classes: list[str]) -> str:
    """What was found in the place of two classes, and what to do."""
    if classes:
        return f"the one class '{classes[0]}'; add another, or a larger --classes"
    place = find_part(folder, "training") or folder
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    if any(entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries):
        return f"images that lie in {place} itself; put those of each class into a folder of their own"
    if not entries:
        return f"nothing, for {place} is empty; give another --data_dir"
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        return f"folders without images, such as {folders[0]}; give another --data_dir"
    return f"other files, such as {entries[0].name}; give another --data_dir"


def read_class_names(folder: Path, classes: list[str]) -> tuple[str, ...]:
    """The names to show for class folders: those of `cat_to_name.json`, else the names of the folders.

    Raises:
        UsageError: the file is there, but is no dictionary of names.
    """
    for place in (folder / "cat_to_name.json", folder.parent / "cat_to_name.json"):
        if place.is_file():
            try:
                names = json.loads(place.read_text(encoding="utf-8"))
                if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                    raise ValueError("it is no dictionary of names")
            except (OSError, ValueError, RecursionError) as error:
                raise UsageError(
                    f'{place} must hold {{"class folder": "name", ...}}, received {error}; mend or remove it'
                ) from error
            return tuple(as_text(names.get(name, name)) for name in classes)
    return tuple(map(as_text, classes))
