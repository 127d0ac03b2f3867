"""Labels from folders: which folders are parts, which are classes, and which are neither.

    <part>/<class>/...     parts under any usual name, see `file_sorting.part_of`; images of a test part in no class folder have no labels
    <class>/...            one folder per class, to be split
    <class>/<part>/...     parts within the classes

A folder around all of it, as archives have one, is passed over.
"""

import collections

from resnet_study.data.file_sorting import Sorting, part_of
from resnet_study.errors import UsageError


def sort_by_folders(sorting: Sorting, level: int) -> None:
    """Fills a sorting by the folders that the images lie in.

    Args:
        sorting: of the images.
        level: which folder names the class, see `labelled_files.find_labelled`.

    Raises:
        UsageError: either of two levels may name the classes.
    """
    below = {folder: folder[len(sorting.root) :] for folder in sorting.images}
    tops = {inner[0] for inner in below.values() if inner}
    with_parts = {inner[0] for inner in below.values() if len(inner) > 1 and part_of(inner[1])}
    trains = any(len(inner) > 1 and part_of(inner[1]) == "training" for inner in below.values())
    beside = any(inner and not (len(inner) > 1 and part_of(inner[1])) for inner in below.values())
    within = bool(tops) and with_parts == tops and not any(map(part_of, tops)) and (trains or not beside)
    parts, sorting.has_parts = ({}, True) if within else _find_parts(below.values(), level)

    def split(inner):
        """The part of a folder, None if it has none, and the folders below that, the first of which name the class."""
        if within and inner:
            return part_of(inner[1]) if len(inner) > 1 else None, (inner[0], *inner[2:])
        if inner and inner[0] in parts:
            part = parts[inner[0]]
            doubled = len(inner) > 2 and part_of(inner[1]) == part  # train/train/<class>/, as some archives have it
            return part, inner[2 if doubled else 1 :]
        return (None if sorting.has_parts else "training"), inner

    rests = {folder: split(inner) for folder, inner in below.items()}
    if not level:
        _refuse_two_ways(sorting.whole, [rest for part, rest in rests.values() if part])
    place, deeper = max(level, 1), collections.defaultdict(set)
    for folder, (part, rest) in rests.items():
        names = sorting.images[folder]
        if part is None:
            beside = "/".join(below[folder][: 2 if within else 1])
            sorting.leave(f"in {beside or 'no folder'}, which is no part", len(names))
        elif part == "test" and not rest:
            sorting.unlabelled += [sorting.path(folder, name) for name in names]
        elif len(rest) < place:
            sorting.leave(f"in {'/'.join([str(sorting.place), *folder])} itself, without a class", len(names))
        else:
            sorting.add(part, rest[place - 1], folder, names)
            deeper[rest[place - 1]] |= set(rest[place : place + 1])
    if within:
        sorting.taken = "one folder per class, with parts in each"
    else:
        sorting.taken = ", ".join(
            ["one folder per class"] * (not sorting.has_parts)
            + [f"{top}/ = {part}" for top, part in sorted(parts.items())]
        )
    if level > 1:
        sorting.taken += f", classes named by folder {level}"
    if name := next((label for label, inner in sorted(deeper.items()) if inner), None):
        sorting.notes.append(
            f"images of deeper folders belong to the class above, such as those of {', '.join(sorted(deeper[name])[:3])} to {name}; "
            f"--label_level={place + 1} makes the deeper folders the classes"
        )


def _find_parts(below, level: int) -> tuple[dict[str, str], bool]:
    """Which of the first folders are parts, and whether they are all that counts; otherwise the others are classes."""
    tops, deep = {inner[0] for inner in below if inner}, {inner[0] for inner in below if len(inner) > 1}
    named = {top: part_of(top) for top in tops if part_of(top)}
    others = tops - named.keys()
    if named and (not others or (deep & named.keys() and level != 1)):
        return named, True
    # Beside class folders, test/ may hold images without labels; train/ may be a class, beside bus/ and car/.
    may_be = {top: part for top, part in named.items() if part == "test" and top not in deep}
    return (may_be if len(others) > 1 else {}), False


def _refuse_two_ways(whole: str, rests: list) -> None:
    """Raises UsageError where the first folders all hold the same folders, so that either may name the classes."""
    held = collections.defaultdict(set)
    for rest in rests:
        if rest:
            held[rest[0]].add(rest[1] if len(rest) > 1 else "")
    second = next(iter(held.values()), set())
    if len(held) > 1 and len(second) > 1 and "" not in second and all(names == second for names in held.values()):
        first, then = (", ".join(sorted(names)[:3]) for names in (held, second))
        raise UsageError(
            f"{whole} has folders ({first}) that all hold the same folders ({then}), expected one level of classes; give "
            f"--label_level=1 for the first as classes, --label_level=2 for the second{', or a deeper one' * any(len(rest) > 2 for rest in rests)}"
        )
