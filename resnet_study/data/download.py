"""Downloads that can be trusted: three tries, a checksum, and a name only when complete.

download(...)      a file of some MB into Keras' cache
fetch_large(...)   a large file, with its progress; one that broke off is gone on with
"""

import contextlib
import contextvars
import hashlib
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import filelock
from tqdm import tqdm

from resnet_study.errors import UsageError, one_line

_WAITS = (2, 8)  # seconds before the second and third try of a download
_TIMEOUT = 30  # seconds without a byte
_SECONDS_TO_CONNECT = 6
_PIECE = 1 << 16  # bytes


_refused = contextvars.ContextVar("refused", default=False)


@contextlib.contextmanager
def without_downloads():
    """What would be downloaded within is a `UsageError` instead."""
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


def _check_allowed(name):
    if _refused.get():
        raise UsageError(f"{name} is not in Keras' cache, and is not downloaded for this; give --data_dir=FOLDER")


def keras_cache(kind: str = "datasets") -> Path:
    """The folder of what Keras downloaded, as Keras documents it; it has no public function for it.

    Args:
        kind: "datasets" or "models".

    Returns:
        `$KERAS_HOME/<kind>`, or `~/.keras/<kind>`; it need not exist.
    """
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / kind


@contextlib.contextmanager
def naming_cache(place: Path):
    """Says of data that are damaged, where they were found in Keras' cache and not by --data_dir, how to get others."""
    try:
        yield
    except UsageError as error:
        told = str(error).partition("; ")[0]
        raise UsageError(f"{told}; it lies in Keras' cache: delete {place} and repeat the command") from error


def download(url: str, sha256: str) -> Path:
    """Downloads a file into Keras' cache, once, also where several processes ask for it at the same time.

    The file gets its name only when its checksum is right, so what is half there, for whatever reason, is never read.

    Args:
        url: of the file; its last part is the name in the cache.
        sha256: checksum, 64 hexadecimal digits.

    Returns:
        Path of the file.

    Raises:
        UsageError: three tries failed, or the cache cannot be written to.
    """
    name, folder = url.rsplit("/", 1)[-1], keras_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{name}.lock"):
            if not (folder / name).is_file():
                _fetch(url, sha256, folder / f".incomplete-{name}").replace(folder / name)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror or error}); give --data_dir=FOLDER"
        ) from error
    return folder / name


def _fetch(url: str, sha256: str, place: Path) -> Path:
    """Downloads one file to `place`, in three tries; what fails its checksum is deleted."""
    import keras

    _check_allowed(place.name.removeprefix(".incomplete-"))
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # get_file itself would wait for ever for a stalled server
    try:
        for wait in (*_WAITS, None):
            try:
                return Path(keras.utils.get_file(place.name, url, file_hash=sha256, cache_dir=place.parent.parent,
                                                 cache_subdir=place.parent.name))  # fmt: skip
            except Exception as error:
                place.unlink(missing_ok=True)
                if wait is None:
                    raise UsageError(
                        f"{url.rsplit('/', 1)[-1]} is neither in Keras' cache nor could it be downloaded ({one_line(error)}); give "
                        "--data_dir=FOLDER, connect to a network, or use --dataset=digits"
                    ) from error
                print(f"{url}: {one_line(error)}; trying again in {wait} s")
                time.sleep(wait)
    finally:
        socket.setdefaulttimeout(timeout)


def is_reachable(url: str) -> bool:
    """Whether a server answers for an address within some seconds, whatever a network does in the meantime."""
    answers = []

    def ask():
        with contextlib.suppress(Exception):
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_CONNECT) as answer:
                answers.append(answer.status)

    # In a thread, because looking up a name and trying many addresses have no common limit of time.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_CONNECT)
    return bool(answers)


def fetch_large(url: str, md5: str, folder: Path, ways_out: str) -> Path:
    """Downloads a large file, once, and shows its progress.

    What a broken download has left is gone on with, in this try, the next, and the next process. The file gets its name only when its
    checksum is right.

    Args:
        url: of the file; its last part is its name.
        md5: checksum that is published for it, 32 hexadecimal digits.
        folder: where it is put.
        ways_out: what else a user can do, for messages.

    Returns:
        Path of the file.

    Raises:
        UsageError: no answer within some seconds, three tries failed, or the checksum is wrong.
    """
    name = url.rsplit("/", 1)[-1]
    path, part = folder / name, folder / f".incomplete-{name}"
    if path.is_file():
        return path
    _check_allowed(name)
    if not is_reachable(url):
        raise UsageError(
            f"{name} is not in {folder} and could not be downloaded, for {url} does not answer; {ways_out}"
        )
    for wait in (*_WAITS, None):
        try:
            _receive(url, part)
            break
        except Exception as error:  # a server, a proxy and a line can fail in any way
            if wait is None:
                raise UsageError(
                    f"the download of {name} broke off ({one_line(error)}); the same command goes on with it; or {ways_out}"
                ) from error
            print(f"{url}: {one_line(error)}; going on in {wait} s")
            time.sleep(wait)
    with part.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if found != md5:
        part.unlink()
        raise UsageError(f"{url} must have the checksum {md5}, received {found}; try again, or {ways_out}")
    return part.replace(path)


def _receive(url: str, part: Path) -> None:
    """Downloads what is missing of a file. Raises any error where it ends early."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if (
            error.code == 416 and have
        ):  # nothing is missing; or what is there is of another file, which the checksum tells
            return
        raise
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if goes_on else "wb") as written,
            tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=part.name.removeprefix(".incomplete-")
            ) as bar,
        ):
            while piece := answer.read(_PIECE):
                written.write(piece)
                bar.update(len(piece))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"received {part.stat().st_size:,} of {total:,} bytes")
