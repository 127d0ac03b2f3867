"""Labels from a table: a CSV file with a column of file names, one of labels and perhaps one of parts, in any order.

An image has several labels where the cells of labels hold several, or where the table has a column of 0 and 1 for each class.
"""

import collections
import csv
import io
import itertools
import re
from pathlib import Path

from resnet_study.data.file_sorting import Sorting, part_of
from resnet_study.data.file_tree import read_member
from resnet_study.data.image_data import read_file
from resnet_study.errors import UsageError, say_once
from resnet_study.strings import composed, shorten

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
_TAGS = "tags"  # which are several, as the name says, also with spaces between them
_LABELS = ("label", "labels", "class", "class_name", "target", "category", _TAGS)
_PARTS = ("split", "part", "subset", "set")
# Columns of true and false, such as fastai has them, and the part that true means; rows of no such part are of the first of training, validation and
# test that has no column.
_MARKS = {
    "is_test": "test",
    "is_valid": "validation",
    "is_val": "validation",
    "is_validation": "validation",
    "is_train": "training",
}
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "")
_LARGEST = 1 << 30  # bytes
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how text begins that Excel calls Unicode
SEPARATORS = {"bar": "|", "semicolon": ";", "comma": ",", "space": " "}


class NoTableError(UsageError):
    """There is no table of labels where it was looked for."""


def sort_by_table(sorting: Sorting, labels: str, separator: str = "auto") -> None:
    """Fills a sorting by a table of labels.

    A file is named by its path, by its name alone, or by that without its ending; of paths whose folders are all of another place, the name
    counts. Where several files are called so, the one in the folders
    of the row is meant, or the one in the part of the row, which is training where there is no column of parts. Images that no row
    names are left aside; those in a test folder have no labels.

    Args:
        sorting: of the images.
        labels: path of the table, from here or from the data folder.
        separator: setting `label_separator`.

    Raises:
        NoTableError: there is no such table.
        UsageError: columns are missing, a name fits several files, or a file has two rows that differ.
    """
    depths = range(len(sorting.root) + 1)
    places = [Path(labels).expanduser(), *(sorting.place.joinpath(*sorting.root[:depth], labels) for depth in depths)]
    place = next((place for place in places if place.is_file() or read_member(str(place), _LARGEST) is not None), None)
    if place is None:
        raise NoTableError(
            f"--labels must be a CSV file, received '{labels}', which is neither here nor in {sorting.place}; check the name"
        )
    rows, has_parts, sorting.multi_label, kind = _read_table(place, separator)
    taken, missing, bare = {}, [], 0
    for (name, label, told), found in zip(rows, _find_files(sorting, rows, place), strict=True):
        part = told or "training"
        if found is None:
            missing.append(name)
            continue
        bare += label is None
        if label is None and part != "test":
            continue
        if found not in taken:
            taken[found] = (label, part)
            if label is None:
                sorting.unlabelled.append(sorting.path(*found))
            else:
                own = part if has_parts else _part_of_folder(sorting, found[0])
                sorting.add(own or "training", label, found[0], [found[1]])
        elif taken[found] != (label, part):
            (one, its), (other, of_other) = taken[found], (label, part)
            differ = (
                f"the labels {one or 'none'} and {other or 'none'}"
                if one != other
                else f"the parts {its} and {of_other}"
            )
            advice = "; leave one out" if one == other or None in (one, other) else "; put several labels into one cell"
            raise UsageError(f"{place} gives {name} {differ}, expected one row for each image{advice}")
    unnamed = []
    for folder, names in sorting.images.items():
        rest = [name for name in names if (folder, name) not in taken]
        if _part_of_folder(sorting, folder) == "test":
            sorting.unlabelled += [sorting.path(folder, name) for name in rest]
        else:
            unnamed += rest
    if unnamed:
        sorting.leave(f"that {place.name} has no label for, such as {unnamed[0]}", len(unnamed))
    sorting.has_parts = bool(sorting.parts["validation"] or sorting.parts["test"])
    by = "by its column" if has_parts else "by folder" if sorting.has_parts else "none"
    sorting.taken = f"labels of {place.name}{kind and f', {kind}'}, parts: {by}"
    if missing:
        sorting.notes.append(
            f"{len(missing):,} row(s) of {place.name} name no image that is there, such as {missing[0]}"
        )
    if bare:
        sorting.notes.append(f"{bare:,} row(s) of {place.name} have no label")


def _find_files(sorting, rows, table: Path) -> list[tuple | None]:
    """The folder and file that each row means; None where there is none."""
    top = composed(sorting.place.resolve().name).removesuffix(".zip")
    called, known = collections.defaultdict(set), {top, *(name for folder in sorting.images for name in folder)}
    for folder, names in sorting.images.items():
        for name in names:
            called[name].add((folder, name))
            called[name.rpartition(".")[0]].add((folder, name))
    paths = [
        [piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".", "..")] or [""]
        for name, _, _ in rows
    ]
    # Windows and macOS find a file whatever the case of its name; so does a table that was written there.
    if others := {path[-1] for path in paths if path[-1] not in called}:
        folded = collections.defaultdict(set)
        for name, places in called.items():
            folded[name.casefold()] |= places
        called |= {name: folded[name.casefold()] for name in others if name.casefold() in folded}
    # Paths may be those of another machine, with folders that are not here; where one of these is, the images of the others are missing.
    elsewhere = next((folders for *folders, _ in paths if folders), None)
    alone = not any(folders and folders[-1] in known for *folders, _ in paths)
    if elsewhere and alone:
        sorting.notes.append(
            f"no folder that {table.name} names is there, such as {'/'.join(elsewhere)}, so the names of the files alone decide"
        )
    meant = [_find_all(called, top, path, alone) for path in paths]
    # Where train/1.png and test/1.png are two images, a row of the one part says nothing of the files of the other.
    alike = set()
    for places, _ in meant:
        alike |= set(itertools.permutations({_part_of_folder(sorting, folder) for folder, _ in places}, 2))
    found = []
    for (name, _, told), (places, folders) in zip(rows, meant, strict=True):
        part = told or "training"
        if not folders:
            places = [each for each in places if (part, _part_of_folder(sorting, each[0])) not in alike]
        found.append(_choose(places, folders, name, part, table))
    return found


def _part_of_folder(sorting, folder):
    return next((part for part in map(part_of, folder[len(sorting.root) :][:1]) if part), None)


def _find_all(called, top: str, path: list[str], alone: bool) -> tuple[list, list[str]]:
    """The files, pairs of folder and name, that the path of a row may mean; and its folders, unless the name alone decides."""
    *folders, last = path
    found = sorted(called.get(last, ()))
    if alone or not folders or folders[-1] == top:
        return found, []
    return [place for place in found if folders[-1] in place[0]], folders


def _choose(found, folders, name: str, part: str, table: Path):
    """The folder and file that a row means, of those that it may mean; None if there is none."""

    def count_common(place):
        pairs = zip(reversed(folders), reversed(place[0]), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    most = max(map(count_common, found), default=0)
    for fits in (
        lambda place: count_common(place) == most,
        lambda place: part in map(part_of, place[0]),
        lambda place: ("test" in map(part_of, place[0])) == (part == "test"),  # a table may split train/ itself
    ):
        if len(found) > 1:
            found = [place for place in found if fits(place)] or found
    if len(found) > 1:
        raise UsageError(
            f"{table} names {name}, which may be {' or '.join('/'.join([*folder, file]) for folder, file in found[:2])}; give paths below "
            "the data folder, with endings"
        )
    return found[0] if found else None


def _read_cells(text, delimiter):
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True))


def _read_table(place: Path, separator: str) -> tuple[list[tuple], bool, bool, str]:
    """Rows of (file name; label, with several a tuple of them, None = none; part or None), whether there is a column of parts, whether
    images have several labels, and what is to be said of that.
    """
    try:
        content = read_member(str(place), _LARGEST)
        content = read_file(place, _LARGEST) if content is None else content
        text = composed(content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig"))
        if mark := re.match(r"sep=([,;\t])\r?\n", text):  # by which Excel is told what stands between cells
            text = text[mark.end() :]
        head = text.partition("\n")[0]
        delimiter = max(",;\t", key=head.count)
        try:
            lines = _read_cells(text, delimiter)
        except csv.Error:  # perhaps of blanks between a closing quote and what stands between cells
            lines = _read_cells(re.sub(rf'" +(?={delimiter}|\r?$)', '"', text, flags=re.MULTILINE), delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{place} must be a CSV file in UTF-8 whose quotes are closed, received {shorten(str(error))}; save it as such"
        ) from error
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    name, label, part = (
        next((columns.index(known) for known in kind if known in columns), None) for kind in (_NAMES, _LABELS, _PARTS)
    )
    aside = None
    if (
        part is not None
        and columns[part] != "split"
        and not any(part_of(cells[part]) for cells in lines[1:] if len(cells) > part)
    ):
        say_once(
            f"note: the column {columns[part]} of {place} names no part (train, valid or test), so it is left aside"
        )
        aside, part = part, None
    marks = (
        [] if part is not None else [index for index, column in enumerate(columns) if _is_mark(lines, index, column)]
    )
    if label is None and any(column.startswith("is_") and column not in _MARKS for column in columns):
        marks = []  # is_train may stand beside is_car, and both be classes
    if part is None and not marks:
        part = next(
            (
                index
                for index in range(len(columns))
                if index not in (name, label, aside) and _holds_parts(lines, index)
            ),
            None,
        )
    classes = [] if label is not None or name is None else _find_classes(lines, {name, part, aside, *marks})
    if name is None or (label is None and not classes):
        raise UsageError(
            f"{place} must have a column filename, image, path or id, and one label, class or target, or columns of 0 and 1 "
            f"for two classes or more, in its first row, received {shorten(', '.join(columns)) or 'nothing'}; name the columns so"
        )
    rows, has_parts = [], part is not None or bool(marks)
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < len(columns):
            raise UsageError(f"{place} has {len(cells)} cells in row {number}, expected {len(columns)}; mend it")
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise UsageError(
                f"{place} has {len(cells)} cells in row {number}, expected {len(columns)}; put several labels into quotes"
            )
        told = None
        if marks:
            told = _marked_part(cells, marks, columns)
            if told is None:
                named = " and ".join(columns[index] for index in marks)
                raise UsageError(f"{place} has row {number} in no part or several by {named}, expected one; mend it")
        if part is not None:
            told = part_of(cells[part])
            if told is None:
                raise UsageError(
                    f"{place} has '{cells[part]}' in row {number} of its column of parts, expected train, valid or test; mend it"
                )
        if classes:
            rows.append(
                (cells[name].strip(), tuple(sorted(lines[0][k].strip() for k in classes if float(cells[k]))), told)
            )
        else:
            rows.append((cells[name].strip(), cells[label].strip() or None, told))
    if classes:
        if separator != "auto":
            say_once(f"note: {place} has columns of 0 and 1, so --label_separator={separator} is of no use")
        if not rows or any(len(labels) != 1 for _, labels, _ in rows):
            return rows, has_parts, True, f"several for an image: {len(classes)} columns of 0 and 1"
        one = [(file, label, told) for file, (label,), told in rows]
        return one, has_parts, False, f"one for an image: {len(classes)} columns, of which each row has one 1"
    found = _find_separator({cell for _, cell, _ in rows if cell}, separator, columns[label])
    if not found:
        return rows, has_parts, False, ""
    mark = SEPARATORS[found]
    rows = [(file, cell and split_cell(cell, mark), told) for file, cell, told in rows]
    kind = f"several for an image, with a {found} between them (--label_separator=none makes one of each cell)"
    return rows, has_parts, True, kind


def _is_mark(lines, index, column) -> bool:
    """Whether a column says of each image, by true or false, whether it is of a part."""
    cells = {cells[index].strip().lower() for cells in lines[1:] if len(cells) > index}
    return column in _MARKS and bool(cells & set(_TRUE)) and cells <= {*_TRUE, *_FALSE}


def _marked_part(cells, marks, columns) -> str | None:
    """The part of a row; None where it is in several, or in none though each has a column."""
    marked = {_MARKS[columns[index]] for index in marks if cells[index].strip().lower() in _TRUE}
    told = {_MARKS[columns[index]] for index in marks}
    rest = [part for part in ("training", "validation", "test") if part not in told]
    return None if len(marked) > 1 else next(iter(marked), rest[0] if rest else None)


def _holds_parts(lines, index) -> bool:
    """Whether each cell of a column names a part, and they name two at least, whatever the column is called."""
    cells = [cells[index] for cells in lines[1:] if len(cells) > index and any(cell.strip() for cell in cells)]
    parts = {part_of(cell) for cell in cells}
    return len(parts) > 1 and None not in parts


def split_cell(cell: str, mark: str) -> tuple[str, ...]:
    """The labels in a cell, in the order of the alphabet, each once."""
    return tuple(sorted({piece.strip() for piece in cell.split(mark)} - {""}))


def _find_classes(lines, others) -> list[int]:
    """The columns that hold 0 and 1 alone, which are classes if there are two or more."""
    rows = [cells for cells in lines[1:] if any(cell.strip() for cell in cells)]
    found = [
        column
        for column in range(len(lines[0]))
        if column not in others
        and rows
        and all(len(row) > column and row[column].strip() in ("0", "1", "0.0", "1.0") for row in rows)
    ]
    return found if len(found) > 1 else []


def _find_separator(cells: set[str], wanted: str, column: str) -> str | None:
    """What stands between several labels, a key of `SEPARATORS`; None = each cell is one label.

    It is found by pieces of cells that other cells hold, too. Names of classes often share words. So with spaces, all words must be
    cells of their own, or numbers, unless the name of the column says that there are several.
    """
    if wanted != "auto":
        return None if wanted == "none" else wanted
    for name, mark in SEPARATORS.items():
        split = {cell: split_cell(cell, mark) for cell in cells}
        several = [pieces for pieces in split.values() if len(pieces) > 1]
        held = collections.Counter(piece for pieces in split.values() for piece in pieces)
        pieces = set().union(*several)
        if mark == " " and column != _TAGS and not (pieces <= cells or all(map(str.isdecimal, held))):
            continue
        if any(held[piece] > 1 for piece in pieces):
            return name
    return None
