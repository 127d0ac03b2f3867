"""Image files on their way into parts and classes, by the folders they lie in (`folder_layout`) or by a table (`label_table`)."""

import collections
import re
from pathlib import Path

from resnet_study.strings import composed

PARTS = {
    "training": ("train", "training"),
    "validation": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}


class Sorting:
    """Files on their way into parts and classes.

    Attributes:
        images: {names of the folders: names of the image files}, composed, see `strings.composed`; `path` gives them as they are stored.
        root: the folders that are around everything.
        parts, unlabelled, has_parts: see `LabelledFiles`.
        multi_label: whether a label is a tuple of them, for images with several.
        taken: what the first line says of the layout.
    """

    def __init__(self, place: Path, images: dict[tuple[str, ...], list[str]]):
        self.place, self.root = place, _find_root(images)
        self.images, self._stored = _compose(images)
        self.parts = {part: [] for part in PARTS}
        self.unlabelled, self.has_parts, self.taken, self.notes = [], False, "", []
        self.multi_label = False
        self.left_aside = collections.Counter()

    @property
    def whole(self) -> str:
        """Path of the folder that holds everything."""
        return "/".join([str(self.place), *self.root])

    def path(self, folder: tuple[str, ...], name: str) -> str:
        folder, name = self._stored.get((folder, name), (folder, name))
        return "/".join([str(self.place), *folder, name])

    def add(self, part: str, label: str, folder: tuple[str, ...], names) -> None:
        label = composed(label) if isinstance(label, str) else label
        self.parts[part] += [(self.path(folder, name), label) for name in names]

    def leave(self, reason: str, count: int) -> None:
        """Notes files that are left aside, for a line."""
        self.left_aside[reason] += count


def _compose(images) -> tuple[dict, dict]:
    """The same with composed names, and {(folder, name) of these: as stored} where that is something else."""
    if all(name.isascii() for folder, names in images.items() for name in (*folder, *names)):
        return images, {}
    found, stored = {}, {}
    pairs = [(folder, name) for folder, names in images.items() for name in names]
    # Those that are composed come first, so that of a name that is there in both ways the other one stays what it is.
    for folder, name in sorted(pairs, key=lambda pair: any(text != composed(text) for text in (*pair[0], pair[1]))):
        key = tuple(map(composed, folder)), composed(name)
        key = (folder, name) if key in stored else key
        stored[key] = folder, name
        found.setdefault(key[0], []).append(key[1])
    return found, stored


def part_of(name: str) -> str | None:
    """The part that a folder or a cell of a table names, in any case, perhaps with a word behind: `Train`, `val`, `test_set`; or None."""
    stem = re.sub(r"[ _-]?(set|data|images|split|part)$", "", name.strip().lower())
    return next((part for part, names in PARTS.items() if stem in names), None)


def _find_root(images) -> tuple[str, ...]:
    """The folders that are around everything: each the only one with images, and neither a part nor a class."""
    root = ()
    while root not in images:
        inner = {folder[len(root)] for folder in images}
        if len(inner) != 1 or part_of(*inner) or (*root, *inner) in images:
            break
        root = (*root, *inner)
    return root
