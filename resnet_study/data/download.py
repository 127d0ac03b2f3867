"""Downloads that can be trusted: three tries, a checksum, and a name only when complete."""

import os
import socket
import time
from pathlib import Path

import filelock

from resnet_study.errors import UsageError, one_line

_WAITS = (2, 8)  # seconds before the second and third try of a download
_TIMEOUT = 30  # seconds without a byte


def keras_cache(kind: str = "datasets") -> Path:
    """The folder of what Keras downloaded, as Keras documents it; it has no public function for it.

    Args:
        kind: "datasets" or "models".

    Returns:
        `$KERAS_HOME/<kind>`, or `~/.keras/<kind>`; it need not exist.
    """
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / kind


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
