"""Labels from a table: a CSV file with a column of file names, one of labels and perhaps one of parts, in any order."""

import collections
import csv
import io
from pathlib import Path

from resnet_study.data.file_sorting import Sorting, part_of
from resnet_study.data.image_data import read_file
from resnet_study.errors import UsageError, shorten

_NAMES = (
    "filename",
    "file_name",
    "file",
    "image",
    "image_name",
    "image_path",
    "image_id",
    "path",
    "filepath",
    "img",
    "id",
)
_LABELS = ("label", "labels", "class", "class_name", "target", "category")
_PARTS = ("split", "part", "subset", "set")
_LARGEST = 1 << 30  # bytes


def sort_by_table(sorting: Sorting, labels: str) -> None:
    """Fills a sorting by a table of labels.

    A file is named by its path, by its name alone, or by that without its ending. Where several files are
    called so, the one in the part of the row is meant, which is training where there is no column of parts. Images that no row names
    are left aside; those in a test folder have no labels.

    Args:
        sorting: of the images.
        labels: path of the table, from here or from the data folder.

    Raises:
        UsageError: there is no such table, columns are missing, a name fits several files, or a file has several labels.
    """
    place = Path(labels).expanduser()
    if not place.is_file():
        place = sorting.place / labels
    if not place.is_file():
        raise UsageError(
            f"--labels must be a CSV file, received '{labels}', which is neither here nor in {sorting.place}; check the name"
        )
    rows, has_parts = _read_table(place)
    _refuse_several(rows, place)
    called = collections.defaultdict(list)
    for folder, names in sorting.images.items():
        for name in names:
            called[name.rpartition(".")[0]].append((folder, name))
    taken, added, missing, bare = {}, set(), [], 0
    for name, label, part in rows:
        found = _find(called, name, part or "training", place)
        if found is None:
            missing.append(name)
        elif not label:
            bare += 1
            if part == "test":
                taken[found] = None
                sorting.unlabelled.append(sorting.path(*found))
        elif taken.setdefault(found, label) != label:
            raise UsageError(
                f"{place} gives {name} the labels {taken[found]} and {label}, expected one for each image; several labels of an image are "
                "not supported"
            )
        elif found not in added:
            added.add(found)
            sorting.add(
                (part if has_parts else _part_of_folder(sorting, found[0])) or "training", label, found[0], [found[1]]
            )
    for folder, names in sorting.images.items():
        rest = [name for name in names if (folder, name) not in taken]
        if _part_of_folder(sorting, folder) == "test":
            sorting.unlabelled += [sorting.path(folder, name) for name in rest]
        elif rest:
            sorting.leave(f"that {place.name} has no label for, such as {rest[0]}", len(rest))
    sorting.has_parts = bool(sorting.parts["validation"] or sorting.parts["test"])
    by = "by its column" if has_parts else "by folder" if sorting.has_parts else "none"
    sorting.taken = f"labels of {place.name}, parts: {by}"
    if missing:
        sorting.notes.append(
            f"{len(missing):,} row(s) of {place.name} name no image that is there, such as {missing[0]}"
        )
    if bare:
        sorting.notes.append(f"{bare:,} row(s) of {place.name} have no label")


def _part_of_folder(sorting, folder):
    return next((part for part in map(part_of, folder[len(sorting.root) :][:1]) if part), None)


def _find(called, name: str, part: str, table: Path):
    """The folder and file that a row means; None if there is none."""
    *folders, last = [piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".", "..")] or [""]
    near = {place for key in (last, last.rpartition(".")[0]) for place in called.get(key, ())}
    found = [(folder, file) for folder, file in near if last in (file, file.rpartition(".")[0])]
    # Paths may be those of another machine, so the folders of a row only choose among several files.
    for fits in (lambda folder: list(folder[-len(folders) :]) == folders, lambda folder: part in map(part_of, folder)):
        if len(found) > 1:
            found = sorted(place for place in found if fits(place[0])) or sorted(found)
    if len(found) > 1:
        raise UsageError(
            f"{table} names {name}, which may be {' or '.join('/'.join([*folder, file]) for folder, file in found[:2])}; give paths below "
            "the data folder, with endings"
        )
    return found[0] if found else None


def _read_table(place: Path) -> tuple[list[tuple[str, str, str | None]], bool]:
    """Rows of (file name, label, part or None), and whether there is a column of parts."""
    try:
        text = read_file(place, _LARGEST).decode("utf-8-sig")
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{place} must be a CSV file in UTF-8, received {shorten(str(error))}; save it as such"
        ) from error
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    name, label, part = (
        next((columns.index(known) for known in kind if known in columns), None) for kind in (_NAMES, _LABELS, _PARTS)
    )
    if name is None or label is None:
        raise UsageError(
            f"{place} must have a column filename, image, path or id, and one label, class or target, in its first row, "
            f"received {shorten(', '.join(columns)) or 'nothing'}; name the columns so"
        )
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < len(columns):
            raise UsageError(f"{place} has {len(cells)} cells in row {number}, expected {len(columns)}; mend it")
        told = None
        if part is not None:
            told = part_of(cells[part])
            if told is None:
                raise UsageError(
                    f"{place} has '{cells[part]}' in row {number} of its column of parts, expected train, valid or test; mend it"
                )
        rows.append((cells[name].strip(), cells[label].strip(), told))
    return rows, part is not None


def _refuse_several(rows, place: Path) -> None:
    """Raises UsageError where cells hold several labels: pieces of one that others hold, too."""
    cells = {label for _, label, _ in rows}
    for separator in "|;,":
        pieces = collections.Counter(piece.strip() for cell in cells for piece in set(cell.split(separator)))
        several = next(
            (
                cell
                for cell in cells
                if separator in cell and any(pieces[piece.strip()] > 1 for piece in cell.split(separator))
            ),
            None,
        )
        if several is not None:
            raise UsageError(
                f"{place} has the cell '{several}', expected one label for each image; several labels of an image are not supported, keep one"
            )
