"""Files written so that a kill leaves the old or the new one, never half, and JSON that is checked when it is read."""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
import time
from pathlib import Path

import filelock
import numpy as np

from resnet_study.errors import UsageError, advise
from resnet_study.strings import as_text

ASIDE = ".aside-"
_LONGEST = 3600  # seconds without a change after which a file is no longer being written
# What file systems answer that cannot force a folder to the disk, such as some that a virtual machine shares with its host.
_NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
_WAITS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5)  # seconds between the tries to move a file, about two in all


@contextlib.contextmanager
def written_aside(path: Path):
    """Gives the name of a file to write beside `path`; then forces it to the disk and moves it into place.

    Raises:
        UsageError: the disk is full, or may not be written to; the old file, if any, is untouched.
    """
    path = Path(path)
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _force_to_disk(aside)
        move(aside, path)
        _force_folder_to_disk(path.parent)
    except OSError as error:
        raise UsageError(f"could not write {path} ({error.strerror or error}); {advise(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def holding_lock(path: Path, timeout: float, taken: str):
    """Holds a lock for one process, which the operating system frees when that process ends, however it ends.

    The file stays: who waits for a file that is deleted does not exclude who makes it again.

    Args:
        path: file of the lock; its folder is made.
        timeout: seconds to wait for another process.
        taken: what is said where another process holds it still: what that one does, and what to do.

    Raises:
        UsageError: another process holds it, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=timeout, mode=0o666)  # for all who may write in the folder
        lock.acquire()
    except filelock.Timeout as error:
        raise UsageError(taken) from error
    except OSError as error:
        raise UsageError(f"could not write to {path.parent} ({error.strerror or error}); {advise(error)}") from error
    try:
        yield
    finally:
        lock.release()


def aside_of(path: Path, part: str = "") -> Path:
    """Where this process writes what will be moved to `path`. Processes of several machines may have the same number, those of containers
    mostly have.
    """
    return path.with_name(f"{ASIDE}{os.getpid()}-{_name_machine()}{part}-{path.name}")


def _name_machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_being_written(aside: Path) -> bool:
    """Whether another process that lives, or may live on another machine, writes what will be moved into place."""
    match = re.match(rf"{re.escape(ASIDE)}(\d{{1,7}})-(?:([0-9a-f]{{8}})-)?", aside.name)
    if not match:
        return False
    here = match[2] in (None, _name_machine())  # files of earlier versions name no machine
    if here and int(match[1]) == os.getpid():
        return False
    if here and os.name != "nt":  # where the signal 0 would end that process, so that the age alone decides
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            return False
        except OSError:  # of another user
            pass
    with contextlib.suppress(OSError):
        return time.time() - aside.stat().st_mtime < _LONGEST  # or it is another process of that number
    return False


def move(aside: Path, path: Path) -> None:
    """Moves a file into place. Windows refuses while another program, such as Excel, has the old file open: it is waited for."""
    for seconds in _WAITS:
        try:
            aside.replace(path)
            return
        except PermissionError:
            time.sleep(seconds)
    aside.replace(path)


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _force_folder_to_disk(path: Path) -> None:
    """Makes sure, where the file system can, that what was moved into a folder is there after a power cut."""
    try:
        _force_to_disk(path)
    except PermissionError:  # Windows opens no folders
        pass
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file so that a kill leaves the old or the new one. Raises UsageError if there is no room or no right to."""
    with written_aside(path) as aside:
        aside.write_bytes(as_text(content).encode() if isinstance(content, str) else content)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as a `.npy` file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


def write_json(path: Path, value) -> None:
    """Writes a value as indented JSON, see `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, kind):
    """Reads a JSON file and checks what it holds.

    Args:
        path: file.
        kind: a type, None, (kind, other kind), [kind of every item], or {key: kind of its value}; other keys are left alone.
            `float` is any finite number, `object` anything.

    Raises:
        UsageError: the file is missing, damaged or holds something else.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it or start a new run") from error
    if not is_kind(value, kind):
        raise UsageError(f"{path} does not hold what is written there; restore it or start a new run")
    return value


def is_kind(value, kind) -> bool:
    """Whether a value is of a kind, as `read_json` describes kinds."""
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(name in value and is_kind(value[name], kind[name]) for name in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_kind(item, kind[0]) for item in value)
    if isinstance(kind, tuple):
        return any(is_kind(value, part) for part in kind)
    if kind is None:
        return value is None
    if kind is float:
        return type(value) in (int, float) and -1e18 < value < 1e18
    return isinstance(value, kind)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """The text of a file of a run. Raises UsageError where it is missing, may not be read or is no text in UTF-8."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise UsageError(f"expected {path}, written by a training run, found no such file; train a run first")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} could not be read ({error}); restore it or start a new run") from error
