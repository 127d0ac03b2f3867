"""Images of one's own with labels: the files of a folder or a `.zip` in parts and classes.

The folders say which part and class a file belongs to, see `folder_layout`, or a table of labels does, see `label_table`. Classes are
ordered by number where their names are numbers (1, 2, ..., 10, not 1, 10, 2), then by name. `cat_to_name.json` beside or in the
folder, {"1": "pink primrose", ...}, gives the names to show.
"""

import collections
import dataclasses
import hashlib
import heapq
import json
from pathlib import Path

import numpy as np

from resnet_study.class_names import tell_apart
from resnet_study.data.file_sorting import Sorting
from resnet_study.data.file_tree import file_size, list_tree, read_member
from resnet_study.data.folder_layout import sort_by_folders
from resnet_study.data.image_files import IMAGE_SUFFIXES
from resnet_study.data.label_table import sort_by_table
from resnet_study.errors import UsageError, say_once
from resnet_study.strings import as_text, composed

_NAMES_FILES = ("cat_to_name.json", "class_names.json")
# What a folder of a run, of a test or of a study holds: its figures are no images of the data set.
_OF_RUNS = (
    {"config.json", "environment.json"},
    {"result.json", "predictions.npy"},
    {"predictions.csv", "probabilities.npy"},
    {"study.json", "report.md"},
)
_REASONS = 5  # for leaving files aside that are told
_LARGEST_NAMES = 16 << 20  # bytes
_LONGEST_NUMBER = 1000  # digits; Python refuses to read more than 4,300
_SAMPLED = 300  # files that a run remembers


@dataclasses.dataclass(frozen=True)
class LabelledFiles:
    """The image files of a data set, with their labels.

    Attributes:
        place: the folder or archive, with the folder within that was taken for the whole.
        parts: {"training", "validation" or "test": pairs of file and class}, ordered by class, then by file. Of images with several
            labels, pairs of file and a tuple of classes, ordered by file.
        classes: all of them, in order.
        class_names: names to show for them.
        has_parts: whether the parts are those of the folder or table. Otherwise all is training, to be split.
        unlabelled: files of a test part without labels.
        found: lines that say what was taken for what, and what was left aside.
        multi_label: whether an image can have several labels, or none.
        on_bad_image: setting of that name that goes with these images; "" = that of the run.
    """

    place: str
    parts: dict[str, list[tuple]]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    has_parts: bool
    unlabelled: tuple[str, ...]
    found: tuple[str, ...]
    multi_label: bool = False
    on_bad_image: str = ""

    def in_order(self, members, rank: dict[str, int]) -> list[tuple]:
        """Pairs of `parts` by class, as `rank` has them, then by file; of images with several labels by file. Other classes are left out."""
        if self.multi_label:
            return sorted(members)
        return sorted((pair for pair in members if pair[1] in rank), key=lambda pair: (rank[pair[1]], pair[0]))

    def number_labels(self, members, rank: dict[str, int], classes: int = 0) -> np.ndarray:
        """Labels as numbers.

        Args:
            members: pairs of `parts`.
            rank: {class: its number}; of images with several, what is not in it is left out.
            classes: how many there are; 0 = those of `rank`.

        Returns:
            int32 [n]; of images with several labels 0 or 1, int32 [n, classes].
        """
        if not self.multi_label:
            return np.array([rank[label] for _, label in members], np.int32)
        table = np.zeros((len(members), classes or len(rank)), np.int32)
        for row, (_, labels) in zip(table, members, strict=True):
            row[[rank[label] for label in labels if label in rank]] = 1
        return table

    def find_classes(self, part: str) -> set[str]:
        """The classes that images of a part have."""
        return _classes_of(self.parts.get(part, ()), self.multi_label)

    def fingerprint(self) -> str:
        """Tells data sets apart by the names, places and classes of all files and by the sizes of a thousand, not by where it lies."""
        pairs = [(part, *pair) for part, members in sorted(self.parts.items()) for pair in members]
        digest = hashlib.sha256()
        for index, (part, file, name) in enumerate(pairs):
            size = ""
            if index % max(1, len(pairs) // 1000) == 0:
                try:
                    size = file_size(file)
                except OSError:  # whatever cannot be read is found when it is its turn
                    size = "none"
            digest.update(f"{part}\0{file[len(self.place) :]}\0{name}\0{size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def sample(self) -> dict[str, int]:
        """A few hundred of the files, chosen by their names, {what stands for place and class: bytes}; `count_common` finds them again wherever
        the folder lies and whatever is added."""
        return {key: _size(file) for key, file in heapq.nsmallest(_SAMPLED, self._keys())}

    def count_common(self, sample: dict[str, int]) -> int:
        """How many files of a `sample`, perhaps of other images, are among these."""
        return sum(_size(file) == sample[key] for key, file in self._keys() if key in sample) if sample else 0

    def _keys(self):
        for members in self.parts.values():
            for file, label in members:
                named = f"{file[len(self.place) :]}\0{label}".encode(errors="surrogateescape")
                yield hashlib.sha256(named).hexdigest()[:12], file


def _size(file) -> int:
    try:
        return file_size(file)
    except OSError:  # whatever cannot be read is found when it is its turn
        return -1


def _classes_of(members, multi_label: bool) -> set[str]:
    return {name for _, label in members for name in (label if multi_label else (label,))}


def find_labelled(
    data_dir: str, labels: str = "", label_level: int = 0, label_separator: str = "auto"
) -> LabelledFiles:
    """Finds the images of a folder or `.zip` and their labels.

    Args:
        data_dir: folder or archive, with one of the layouts of `folder_layout`.
        labels: CSV file with labels, see `label_table.sort_by_table`, also by its place in `data_dir`; "" = the folders are the labels.
        label_level: which folder names the class, 1 = the first below the whole or below its part; 0 = the first, where that is clear.
        label_separator: what stands between several labels in a cell of the table, see the setting.

    Returns:
        LabelledFiles; there may be no class at all, see `describe_lack`.

    Raises:
        UsageError: there is no such folder, something cannot be read, or it can be understood in two ways.

    Example:
        from resnet_study.data.labelled_files import find_labelled

        data = find_labelled("examples")  # class folders, such as examples/cat/1.jpg
        print(data.classes)  # ('digits',)
    """
    place = Path(data_dir).expanduser()
    if not data_dir or not (place.is_dir() or (place.is_file() and place.suffix.lower() == ".zip")):
        raise UsageError(
            "--data_dir must be a folder with train/<class>/ and valid/<class>/, or with one folder per class, or a .zip of that, received "
            + (
                f"'{data_dir}', which {'is neither' if place.exists() else 'does not exist'}"
                if data_dir
                else "none; give one"
            )
        )
    tree = list_tree(place, IMAGE_SUFFIXES)
    runs = [folder for folder, names in tree.items() if folder and any(marks <= set(names) for marks in _OF_RUNS)]
    tree = {folder: names for folder, names in tree.items() if not any(folder[: len(run)] == run for run in runs)}
    images, others = {}, collections.Counter()
    for folder, names in tree.items():
        if found := [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]:
            images[folder] = found
        others.update(
            Path(name).suffix.lower() or "without ending"
            for name in names
            if not name.lower().endswith(IMAGE_SUFFIXES) and name not in (*_NAMES_FILES, Path(labels).name)
        )
    sorting = Sorting(place, images)
    if labels:
        sort_by_table(sorting, labels, label_separator)
        if label_level:
            sorting.notes.append(f"the table tells the classes, so --label_level={label_level} changes nothing")
    else:
        sort_by_folders(sorting, label_level)
        around = {folder[:depth] for folder in images for depth in range(len(folder) + 1)}
        if bare := ["/".join(folder) for folder in sorted(tree) if folder not in around]:
            names = ", ".join(bare[:4]) + ", ..." * (len(bare) > 4)
            sorting.notes.append(f"{len(bare):,} folder(s) without images: {names}")
    if runs:
        sorting.notes.append(f"passed over {len(runs):,} folder(s) of runs, such as {'/'.join(runs[0])}")
    if others:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(4))
        sorting.leave(
            f"that are no images of a kind that is read ({kinds}{', ...' if len(others) > 4 else ''})", others.total()
        )
    return _finish(sorting)


def _finish(sorting: Sorting) -> LabelledFiles:
    # By class and path: an order that does not depend on whether folders or a table tell the class.
    everything = [pair for members in sorting.parts.values() for pair in members]
    classes = sorted(_classes_of(everything, sorting.multi_label), key=class_order)
    rank = {label: index for index, label in enumerate(classes)}
    parts = {
        part: sorted(members, key=lambda pair: pair[0] if sorting.multi_label else (rank[pair[1]], pair[0]))
        for part, members in sorting.parts.items()
        if members or (part == "training" and not sorting.has_parts)
    }
    counts = ", ".join(
        f"{len(members):,} {part if sorting.has_parts else 'labelled'}" for part, members in parts.items()
    )
    lines = [f"{sorting.whole}: {sorting.taken}; {len(classes):,} classes, {counts or 'no'} images"]
    if sorting.unlabelled:
        lines[0] += f", {len(sorting.unlabelled):,} test images without labels, which are predicted and not scored"
    if sorting.left_aside:
        told = [f"{count:,} file(s) {reason}" for reason, count in sorting.left_aside.most_common(_REASONS)]
        rest = sorting.left_aside.total() - sum(count for _, count in sorting.left_aside.most_common(_REASONS))
        lines.append("left aside: " + "; ".join(told + [f"{rest:,} file(s) elsewhere"] * (rest > 0)))
    return LabelledFiles(
        sorting.whole, parts, tuple(classes), _read_class_names(sorting.place, sorting.root, classes), sorting.has_parts,
        tuple(sorted(sorting.unlabelled)), (*map(as_text, lines), *map(as_text, sorting.notes)),
        sorting.multi_label,
    )  # fmt: skip


def class_order(name: str) -> tuple:
    """Key to sort classes by: numbers by their value, then names."""
    is_number = name.isascii() and name.isdecimal() and len(name) < _LONGEST_NUMBER
    return (0, int(name), name) if is_number else (1, 0, name)


def describe_lack(data: LabelledFiles, data_dir: str, labels: str) -> str:
    """What was found in the place of two classes, and what to do."""
    if data.classes:
        reasons = f" ({'; '.join(data.found[1:])})" if data.found[1:] else ""
        table = "" if labels else _find_table(data_dir)
        advice = f"give the table of labels that lies there, --labels={table}" if table else "add another"
        return f"the one class '{data.classes[0]}'{reasons}; {'mend the table' if labels else advice}"
    if labels:
        return (
            f"no image that {labels} has a label for ({'; '.join(data.found[1:]) or 'it has no rows'}); mend the table"
        )
    tree = list_tree(Path(data_dir).expanduser(), IMAGE_SUFFIXES)
    bare = [folder for folder, names in tree.items() if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)]
    if bare:
        return (
            f"images that lie in {'/'.join([data_dir, *min(bare)])} itself; put those of each class into a folder of their own, give a smaller "
            f"--label_level if there is one, or their table of labels, --labels={_find_table(data_dir) or 'FILE.csv'}"
        )
    if folders := sorted(folder[0] for folder in tree if len(folder) == 1):
        return f"folders without images, such as {folders[0]}; give another --data_dir"
    if tree[()]:
        return f"other files, such as {tree[()][0]}; give another --data_dir"
    return f"nothing, for {data_dir} is empty; give another --data_dir"


def _find_table(data_dir):
    """A table that lies among the images, by its place; "" = there is none."""
    tree = list_tree(Path(data_dir).expanduser(), IMAGE_SUFFIXES)
    tables = [
        "/".join([*folder, name]) for folder, names in tree.items() for name in names if name.lower().endswith(".csv")
    ]
    return min(tables, key=lambda name: ("train" not in name, name), default="")


def _read_class_names(place: Path, root: tuple[str, ...], classes: list[str]) -> tuple[str, ...]:
    """The names to show for classes: those of `cat_to_name.json` or `class_names.json`, else their own. Raises UsageError where the first of these is no
    dictionary of names.
    """
    around = [place.joinpath(*root[:depth]) for depth in range(len(root), -1, -1)]
    for file in (folder / name for folder in (*around, place.parent) for name in _NAMES_FILES):
        try:
            content = read_member(str(file), _LARGEST_NAMES)
            if content is None and not file.is_file():
                continue
            names = json.loads(file.read_bytes() if content is None else content)
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                if file.name != _NAMES_FILES[0]:  # such a file may be anybody's
                    say_once(f"note: {file} is no {{class folder: name}}, so it names no classes")
                    continue
                raise ValueError("it is no dictionary of names")
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f'{file} must hold {{"class folder": "name", ...}}, received {error}; mend or remove it'
            ) from error
        names = {composed(folder): name for folder, name in names.items()}
        if file.parent == place.parent:  # where it may be of other images
            say_once(f"names of classes from {file}")
        return tuple(tell_apart([as_text(names.get(name, name)) for name in classes], [*map(as_text, classes)]))
    return tuple(map(as_text, classes))
