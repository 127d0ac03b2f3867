"""The files of a folder or of a `.zip`, listed and read alike; nothing of an archive is extracted.

A file within an archive has the path `<archive>.zip/<name within>`.
"""

import functools
import os
import posixpath
import re
import zipfile
from pathlib import Path

from resnet_study.errors import UsageError, one_line

# Folders of operating systems and of the drives of others, which hold copies, previews, and what was deleted.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def list_tree(place: Path, endings: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[str]]:
    """Lists all files below a folder, or within a `.zip`; what is hidden is left out.

    Args:
        place: folder or archive.
        endings: in small letters; what is called so is a file, without asking: if it is none, it is refused when it is read.

    Returns:
        {names of the folders that lead to it: names of the files, sorted}, the place itself being (); empty folders are there too.

    Raises:
        UsageError: something cannot be read, or a link leads back to a folder around it.
    """
    if place.is_file():
        return _list_archive(place)
    found, waiting = {}, [((), str(place), ())]
    while waiting:
        names, path, around = waiting.pop()
        try:
            status = os.stat(path)  # noqa: PTH116 - a million objects would take their time
            # Some drives under Windows number no files.
            if status.st_ino and (status.st_dev, status.st_ino) in around:
                raise UsageError(f"{path} is a link that leads back to a folder around it; remove it")
            around = (*around, (status.st_dev, status.st_ino))
            files = found[names] = []
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                        continue
                    if not entry.name.lower().endswith(endings) and entry.is_dir():
                        waiting.append(((*names, entry.name), entry.path, around))
                    else:
                        files.append(entry.name)
            files.sort()
        except OSError as error:  # no right to read it, a loop of links
            raise UsageError(
                f"{error.filename or path} could not be read ({error.strerror or error}); mend or remove it"
            ) from error
    return found


def _list_archive(place: Path) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {(): []}
    for name in _open_archive(str(place), place.stat().st_mtime_ns)[1]:
        *folders, file = name.split("/")
        if not any(part.startswith(".") or part in _OF_SYSTEMS for part in (*folders, file)):
            found.setdefault(tuple(folders), []).append(file)
    for files in found.values():
        files.sort()
    return found


@functools.lru_cache(maxsize=8)
def _open_archive(path: str, _changed: int):
    """The opened archive, and its files by name; raises UsageError where it is none."""
    try:
        archive = zipfile.ZipFile(path)
        # As in "./a/1.png", "/a/1.png" or "a//1.png".
        files = {
            posixpath.normpath(info.filename.replace("\\", "/")).lstrip("/"): info
            for info in archive.infolist()
            if not info.is_dir()
        }
    # A damaged archive can raise nearly anything.
    except Exception as error:
        raise UsageError(f"{path} must be a folder or a .zip, received {one_line(error)}; give another") from error
    return archive, files


def _find_member(path: str):
    """The opened archive and the entry of a path within a `.zip`; None for any other path."""
    path = path.replace("\\", "/") if os.sep == "\\" else path
    for found in re.finditer(r"\.zip/", path, re.IGNORECASE):
        archive = Path(path[: found.end() - 1])
        if archive.is_file():
            opened, files = _open_archive(str(archive), archive.stat().st_mtime_ns)
            info = files.get(path[found.end() :])
            return None if info is None else (opened, info)
    return None


def file_size(path: str) -> int:
    """Bytes of a file, unpacked. Raises OSError if there is none."""
    member = _find_member(path)
    return member[1].file_size if member else os.stat(path).st_size  # noqa: PTH116


def read_member(path: str, largest: int) -> bytes | None:
    """The content of a file within a `.zip`; None for any other path.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        UsageError: it is larger, encrypted or damaged.
    """
    member = _find_member(path)
    if member is None:
        return None
    archive, info = member
    if info.file_size > largest:
        raise UsageError(f"{path} has {info.file_size:,} bytes, expected at most {largest:,}; give a smaller file")
    try:
        with archive.open(info) as opened:
            return opened.read(largest)
    except Exception as error:
        raise UsageError(f"{path} cannot be unpacked ({one_line(error)}); mend the archive") from error
