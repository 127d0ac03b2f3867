"""Images that are in two parts of a data set, found by the content of their files: on these a network is tested on what it learned."""

import collections
import contextlib
import hashlib
import itertools
import math
from pathlib import Path

from resnet_study.data.file_tree import file_size, read_member
from resnet_study.errors import UsageError

_MOST_COMPARED = 50_000  # files that are read, unless asked for
_LEAKS_LISTED = 20


def find_leaks(parts: dict, wanted: str) -> tuple[tuple[tuple[str, str], ...], int | None]:
    """Looks for files with equal content in two parts.

    Files are compared by size, those of equal size by their last bytes, and only what is still equal is read as a whole.

    Args:
        parts: name of the part -> `flowers.image_part.ImagePart`.
        wanted: "on", "off", or "auto" = unless more than 50,000 files would have to be read.

    Returns:
        (up to 20 pairs of files, the number of all pairs; None = not looked for).
    """
    if wanted == "off":
        return (), None
    groups = [[(part, file) for part, images in parts.items() for file in images.files]]
    for key in (file_size, _last_bytes, _digest):
        keyed = collections.defaultdict(list)
        for number, group in enumerate(groups):
            for part, file in group:
                with contextlib.suppress(OSError, UsageError):  # whatever cannot be read is found when it is its turn
                    keyed[number, key(file)].append((part, file))
        groups = [group for group in keyed.values() if len({part for part, _ in group}) > 1]
        if wanted == "auto" and sum(map(len, groups)) > _MOST_COMPARED:
            return (), None
    leaks, count = [], 0
    for group in groups:
        # Many copies make far more pairs: these are counted without going through them.
        sizes = collections.Counter(part for part, _ in group).values()
        count += math.comb(len(group), 2) - sum(math.comb(size, 2) for size in sizes)
        pairs = ((a, b) for (part, a), (other, b) in itertools.combinations(group, 2) if part != other)
        leaks += itertools.islice(pairs, _LEAKS_LISTED)
    return tuple(sorted(leaks)[:_LEAKS_LISTED]), count


def _last_bytes(file):
    content = read_member(file, file_size(file))
    if content is not None:
        return content[-1024:]
    with open(file, "rb") as opened:  # noqa: PTH123 - a million objects would take their time
        opened.seek(max(0, file_size(file) - 1024))
        return opened.read()


def _digest(file):
    content = read_member(file, file_size(file))
    return hashlib.sha256(Path(file).read_bytes() if content is None else content).digest()
